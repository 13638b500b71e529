//! App receipts, as a file of purchases may hold them: read or refused, in bounded memory.

#![no_main]

use attesto::stores::apple::receipt::find_receipt_purchases;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|container: &[u8]| {
    if let Ok(purchases) = find_receipt_purchases(&STANDARD.encode(container)) {
        assert!(!purchases.is_empty());
        assert!(purchases.iter().all(|one| !one.transaction_id.is_empty()));
    }
    if let Ok(text) = std::str::from_utf8(container) {
        let _ = find_receipt_purchases(text);
    }
});
