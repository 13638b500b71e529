//! Google's purchase resources: any JSON that parses has a status, an amount and an expiry, and
//! nothing panics.

#![no_main]

use attesto::base::clock::Timestamp;
use attesto::stores::google::payload::{GoogleErrorBody, ProductPurchase, SubscriptionPurchase};
use attesto::stores::google::translate::{self, PurchaseStatus};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    let now = Timestamp::from_millis(1_790_000_000_000);
    if let Ok(purchase) = serde_json::from_slice::<SubscriptionPurchase>(json) {
        for product in [None, Some("pro")] {
            let item = translate::select_line_item(&purchase, product);
            let status = translate::subscription_status(&purchase, item, now);
            let runs = item
                .and_then(|item| item.expiry_time)
                .is_some_and(|end| end > now);
            assert!(
                status != PurchaseStatus::Canceled || runs,
                "cancelled is paid for until its end"
            );
            let _ = translate::payment_state(status, item);
            let plan = item.and_then(|item| item.auto_renewing_plan.as_ref());
            let _ = plan
                .and_then(|plan| plan.recurring_price.as_ref())
                .map(translate::to_micros);
        }
    }
    if let Ok(purchase) = serde_json::from_slice::<ProductPurchase>(json) {
        let _ = translate::product_status(&purchase);
        let _ = translate::product_acknowledgement(&purchase);
    }
    let _ = serde_json::from_slice::<GoogleErrorBody>(json);
});
