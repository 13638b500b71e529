//! A Pub/Sub push: its token as text, and the notification inside the message.

#![no_main]

use attesto::stores::google::payload::{DeveloperNotification, SubscriptionPurchase};
use attesto::stores::google::translate::{self, ReplacedPurchase, Replacement};
use attesto::stores::google::trust::PushToken;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = std::str::from_utf8(input)
        && let Ok(token) = PushToken::parse(text)
    {
        let _ = token.key_id();
    }
    if let Ok(notification) = serde_json::from_slice::<DeveloperNotification>(input) {
        let purchase: Option<SubscriptionPurchase> = serde_json::from_slice(input).ok();
        for replaced in [
            ReplacedPurchase::Nothing,
            ReplacedPurchase::Running(Replacement::OtherPlan),
            ReplacedPurchase::Ended,
        ] {
            let meaning =
                translate::translate_notification(&notification, purchase.as_ref(), replaced);
            assert!(meaning.platform_event.starts_with("google."));
        }
    }
});
