//! App receipts, as `StoreKit` 1 gave them to apps: PKCS #7 with the attributes of Apple's "Receipt fields". Nothing in them is signed:
//! what reads them believes nothing, and asks the App Store.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::asn1::{AnyRef, ObjectIdentifier};
use der::{Encode as _, Tag, TagNumber};

pub(crate) const DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.1");
const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");

/// A purchase in a receipt.
#[derive(Clone, Copy, Debug)]
pub struct ListedPurchase<'a> {
    /// Its `transaction_id`; empty when it has none.
    pub transaction_id: &'a str,
    /// The `original_transaction_id` of its subscription, or its own.
    pub original_transaction_id: &'a str,
    /// As RFC 3339, in UTC.
    pub purchase_date: &'a str,
}

/// A receipt that lists these purchases, in base64.
pub fn build_receipt(purchases: &[ListedPurchase<'_>]) -> String {
    let explicit = Tag::ContextSpecific {
        constructed: true,
        number: TagNumber(0),
    };
    let content = encode_value(Tag::OctetString, &encode_content(purchases));
    let encapsulated = [
        encode_value(Tag::ObjectIdentifier, DATA.as_bytes()),
        encode_value(explicit, &content),
    ];
    let signed = [
        encode_value(Tag::Integer, &[1]),
        encode_value(Tag::Set, &[]),
        encode_value(Tag::Sequence, &encapsulated.concat()),
        encode_value(explicit, &[0; 1024]),
    ];
    let signed = encode_value(Tag::Sequence, &signed.concat());
    let info = [
        encode_value(Tag::ObjectIdentifier, SIGNED_DATA.as_bytes()),
        encode_value(explicit, &signed),
    ];
    STANDARD.encode(encode_value(Tag::Sequence, &info.concat()))
}

/// What is signed of a receipt.
pub(crate) fn encode_content(purchases: &[ListedPurchase<'_>]) -> Vec<u8> {
    let mut attributes = vec![attribute(2, &text(Tag::Utf8String, "com.example.app"))];
    for purchase in purchases {
        let mut fields = vec![attribute(1701, &encode_value(Tag::Integer, &[1]))];
        if !purchase.transaction_id.is_empty() {
            fields.extend([
                attribute(1703, &text(Tag::Utf8String, purchase.transaction_id)),
                attribute(1704, &text(Tag::Ia5String, purchase.purchase_date)),
                attribute(
                    1705,
                    &text(Tag::Utf8String, purchase.original_transaction_id),
                ),
            ]);
        }
        attributes.push(attribute(17, &encode_value(Tag::Set, &fields.concat())));
    }
    encode_value(Tag::Set, &attributes.concat())
}

fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let fields = [
        kind.to_der().expect("a number"),
        encode_value(Tag::Integer, &[1]),
        encode_value(Tag::OctetString, content),
    ];
    encode_value(Tag::Sequence, &fields.concat())
}

fn text(tag: Tag, text: &str) -> Vec<u8> {
    encode_value(tag, text.as_bytes())
}

/// A value with its tag and length.
pub(crate) fn encode_value(tag: Tag, content: &[u8]) -> Vec<u8> {
    let value = AnyRef::new(tag, content).and_then(|value| value.to_der());
    value.expect("a receipt is shorter than the longest value")
}
