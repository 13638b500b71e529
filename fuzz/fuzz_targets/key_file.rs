//! Files and values that operators supply: a service account, an encryption key, an allowed
//! network. Each is accepted or refused, and no error message repeats the input.

#![no_main]

use attesto::crypto::keyring::MasterKey;
use attesto::egress::AllowedNetwork;
use attesto::stores::google::account::GoogleServiceAccount;
use libfuzzer_sys::fuzz_target;

/// No long run of letters of the input is in the error message, unless it is part of the message's
/// own text.
fn says_nothing_of(given: &str, refusal: &str) {
    let own = [
        "client_email",
        "private_key",
        "service_account",
        "service-account",
        "iam.gserviceaccount.com",
    ];
    let runs =
        given.split(|letter: char| !(letter.is_ascii_alphanumeric() || "+/=_-.".contains(letter)));
    for run in runs.filter(|run| run.len() >= 16) {
        let is_own = own
            .iter()
            .any(|word| run.contains(word) || word.contains(run));
        assert!(is_own || !refusal.contains(run), "{refusal}");
    }
}

fuzz_target!(|file: &[u8]| {
    let Ok(text) = std::str::from_utf8(file) else {
        let _ = GoogleServiceAccount::parse(file);
        return;
    };
    if let Err(refusal) = GoogleServiceAccount::parse(file) {
        says_nothing_of(text, &refusal.to_string());
    }
    if let Err(refusal) = MasterKey::parse(text, Some(1)) {
        says_nothing_of(text, &refusal.to_string());
    }
    let _ = text.parse::<AllowedNetwork>();
});
