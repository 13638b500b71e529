//! The payload of an Apple notification after its signature was verified: any JSON is handled
//! without a panic.

#![no_main]

use attesto::base::clock::Timestamp;
use attesto::stores::apple::payload::{NotificationPayload, SignedPart, TransactionPayload};
use attesto::stores::apple::translate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let transaction: Option<SignedPart> = serde_json::from_slice(json).ok();
    if let Ok(notification) = serde_json::from_slice::<NotificationPayload>(json) {
        let _ = notification.find_block();
        let meaning = translate::translate_notification(&notification, transaction.as_ref());
        assert!(meaning.platform_event.starts_with("apple."));
        assert!(
            translate::translate_notification(&notification, None)
                .platform_event
                .starts_with("apple.")
        );
    }
    if let Ok(transaction) = serde_json::from_slice::<TransactionPayload>(json) {
        let _ =
            translate::transaction_status(&transaction, Timestamp::from_millis(1_790_000_000_000));
    }
});
