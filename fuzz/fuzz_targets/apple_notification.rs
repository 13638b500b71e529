//! What Apple signs, after the signature: any JSON has a meaning, and none breaks anything.

#![no_main]

use attesto::stores::apple::payload::{Notification, SignedPart, Transaction};
use attesto::stores::apple::translate;
use attesto::base::clock::Timestamp;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let transaction: Option<SignedPart> = serde_json::from_slice(json).ok();
    if let Ok(notification) = serde_json::from_slice::<Notification>(json) {
        let _ = notification.block();
        let meaning = translate::meaning(&notification, transaction.as_ref());
        assert!(meaning.platform_event.starts_with("apple."));
        assert!(
            translate::meaning(&notification, None)
                .platform_event
                .starts_with("apple.")
        );
    }
    if let Ok(transaction) = serde_json::from_slice::<Transaction>(json) {
        let _ = translate::status(&transaction, Timestamp::from_millis(1_790_000_000_000));
    }
});
