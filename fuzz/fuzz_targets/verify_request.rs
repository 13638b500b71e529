//! The body of a verify request: it is parsed, or refused with a list of its issues.

#![no_main]

use attesto::http::json::{FromJson, read_json};
use attesto::stores::apple::AppleVerifyRequest;
use attesto::stores::google::GoogleVerifyRequest;
use libfuzzer_sys::fuzz_target;

fn check_body<T: FromJson>(body: &[u8]) {
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
    check_body::<AppleVerifyRequest>(body);
    check_body::<GoogleVerifyRequest>(body);
});
