//! `attesto inspect` with any text, verified with Apple's own roots: nothing is accepted and
//! nothing panics.

#![no_main]

use std::sync::LazyLock;

use attesto::base::clock::Timestamp;
use attesto::stores::apple::inspection::{ExpectedAppIdentity, inspect_signed_data};
use attesto::stores::apple::trust::JwsVerifier;
use libfuzzer_sys::fuzz_target;

static APPLE: LazyLock<JwsVerifier> = LazyLock::new(JwsVerifier::with_apple_roots);

fuzz_target!(|text: &str| {
    let now = Timestamp::from_millis(1_790_000_000_000);
    assert!(
        APPLE.verify_payload(text, now).is_err(),
        "Apple did not sign this"
    );
    if let Some(found) = inspect_signed_data(text, &APPLE, &ExpectedAppIdentity::default(), now) {
        assert!(serde_json::to_string(&found).is_ok(), "it can be shown");
    }
});
