//! The body of a question: it is read, or refused with everything that is wrong with it.

#![no_main]

use attesto::http::json::{FromJson, read};
use attesto::{apple, google};
use libfuzzer_sys::fuzz_target;

fn ask<T: FromJson>(body: &[u8]) {
    if let Err(problem) = read::<T>(body) {
        assert_eq!(problem.status(), 400, "{}", problem.message);
        assert!(
            problem.details["issues"]
                .as_array()
                .is_some_and(|issues| !issues.is_empty())
        );
    }
}

fuzz_target!(|body: &[u8]| {
    ask::<apple::verify::Question>(body);
    ask::<google::verify::Question>(body);
});
