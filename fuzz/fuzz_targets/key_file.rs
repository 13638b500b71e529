//! What an operator hands over: a service account, an encryption key, a network to open. Good or refused, and no refusal
//! repeats what was given.

#![no_main]

use attesto::crypto::keyring::MasterKey;
use attesto::deliveries::guard::Opening;
use attesto::google::account::ServiceAccount;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    if let Err(refusal) = ServiceAccount::parse(file) {
        assert!(!refusal.to_string().is_empty());
    }
    let Ok(text) = std::str::from_utf8(file) else {
        return;
    };
    if let Err(refusal) = MasterKey::parse(text, Some(1)) {
        let long = text.len() > 16;
        assert!(!long || !refusal.to_string().contains(text), "{refusal}");
    }
    let _ = text.parse::<Opening>();
});
