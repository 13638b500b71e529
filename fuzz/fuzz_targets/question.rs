//! The body of a question: it is read, or refused with everything that is wrong with it.

#![no_main]

use attesto::http::json::{FromJson, read_json};
use attesto::stores::{apple, google};
use libfuzzer_sys::fuzz_target;

fn ask<T: FromJson>(body: &[u8]) {
    if let Err(problem) = read_json::<T>(body) {
        assert_eq!(problem.status(), 400, "{}", problem.message);
        assert!(
            problem.details["issues"]
                .as_array()
                .is_some_and(|issues| !issues.is_empty())
        );
    }
}

fuzz_target!(|body: &[u8]| {
    ask::<apple::verify::AppleVerifyRequest>(body);
    ask::<google::verify::GoogleVerifyRequest>(body);
});
