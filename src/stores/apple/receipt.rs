//! Finds the transactions in an app receipt, which apps sent before StoreKit 2: a PKCS #7 container in base64 that begins with `MII`.
//!
//! Nothing here checks a signature, because nothing of a receipt is believed: Apple is asked about the transaction's id. Structure and
//! attribute types are those of Apple's "Receipt fields".

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use der::asn1::{AnyRef, ObjectIdentifier, OctetString};
use der::{Decode as _, EncodingRules, Header, Reader, Sequence, SliceReader, Tag, TagNumber};

/// The most base64 characters of a receipt. Apple's grow with each purchase; those of apps with many are several hundred KB.
pub const MAX_RECEIPT_CHARS: usize = 2 * 1024 * 1024;
const SIGNED_DATA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.7.2");
const IN_APP_PURCHASE: u64 = 17;
const TRANSACTION_ID: u64 = 1703;
const PURCHASE_DATE: u64 = 1704;
const ORIGINAL_TRANSACTION_ID: u64 = 1705;

/// The newest transaction of a subscription or other purchase, by its `purchase_date`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptPurchase {
    /// The `transaction_id` of the newest transaction.
    pub transaction_id: String,
    /// The `original_transaction_id`, which all its transactions have in common.
    pub original_transaction_id: String,
    /// As RFC 3339, in UTC.
    purchase_date: String,
}

/// Why no transaction can be read from a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// More than [`MAX_RECEIPT_CHARS`].
    #[error("has more than {MAX_RECEIPT_CHARS} characters")]
    TooLong,
    /// It is no base64.
    #[error("is not base64")]
    NotBase64,
    /// Its structure is another one.
    #[error("is not an app receipt")]
    NotAReceipt,
    /// It lists no purchase, as the receipt of a customer who bought nothing.
    #[error("lists no purchase")]
    NoPurchase,
}

/// The newest transaction of each purchase in a receipt, the newest of all first.
pub fn find_receipt_purchases(receipt: &str) -> Result<Vec<ReceiptPurchase>, ReceiptError> {
    if receipt.len() > MAX_RECEIPT_CHARS {
        return Err(ReceiptError::TooLong);
    }
    let characters: String = receipt.split_ascii_whitespace().collect();
    let container = STANDARD
        .decode(characters)
        .map_err(|_| ReceiptError::NotBase64)?;
    let mut newest: BTreeMap<String, ReceiptPurchase> = BTreeMap::new();
    for purchase in read_purchases(&container).map_err(|_| ReceiptError::NotAReceipt)? {
        let known = newest.get(&purchase.original_transaction_id);
        if known.is_none_or(|known| known.purchase_date < purchase.purchase_date) {
            newest.insert(purchase.original_transaction_id.clone(), purchase);
        }
    }
    let mut purchases: Vec<_> = newest.into_values().collect();
    purchases.sort_by(|one, other| other.purchase_date.cmp(&one.purchase_date));
    if purchases.is_empty() {
        return Err(ReceiptError::NoPurchase);
    }
    Ok(purchases)
}

/// An attribute of a receipt, or of a purchase in it.
#[derive(Sequence)]
struct Attribute {
    kind: u64,
    version: u64,
    value: OctetString,
}

fn read_purchases(container: &[u8]) -> der::Result<Vec<ReceiptPurchase>> {
    let mut purchases = Vec::new();
    for attribute in read_attributes(&read_content(container)?)? {
        if attribute.kind == IN_APP_PURCHASE {
            purchases.extend(read_purchase(attribute.value.as_bytes())?);
        }
    }
    Ok(purchases)
}

/// `None`: it names no transaction.
fn read_purchase(content: &[u8]) -> der::Result<Option<ReceiptPurchase>> {
    let [
        mut transaction_id,
        mut original_transaction_id,
        mut purchase_date,
    ] = [None, None, None];
    for attribute in read_attributes(content)? {
        let field = match attribute.kind {
            TRANSACTION_ID => &mut transaction_id,
            ORIGINAL_TRANSACTION_ID => &mut original_transaction_id,
            PURCHASE_DATE => &mut purchase_date,
            _ => continue,
        };
        let text = AnyRef::from_der(attribute.value.as_bytes())?;
        *field = Some(String::from_utf8_lossy(text.value()).into_owned());
    }
    Ok(transaction_id
        .filter(|id| !id.is_empty())
        .map(|transaction_id| ReceiptPurchase {
            original_transaction_id: original_transaction_id
                .filter(|id| !id.is_empty())
                .unwrap_or_else(|| transaction_id.clone()),
            transaction_id,
            purchase_date: purchase_date.unwrap_or_default(),
        }))
}

/// The attributes of a receipt or of a purchase: a SET of sequences.
fn read_attributes(content: &[u8]) -> der::Result<Vec<Attribute>> {
    let mut reader = SliceReader::new_with_encoding_rules(content, EncodingRules::Ber)?;
    enter(&mut reader, Tag::Set)?;
    let mut attributes = Vec::new();
    while !reader.is_finished() {
        attributes.push(Attribute::decode(&mut reader)?);
    }
    Ok(attributes)
}

/// What is signed: the content of the `SignedData` in a `ContentInfo` (RFC 5652).
fn read_content(container: &[u8]) -> der::Result<Vec<u8>> {
    let mut reader = SliceReader::new_with_encoding_rules(container, EncodingRules::Ber)?;
    enter(&mut reader, Tag::Sequence)?;
    let content_type = ObjectIdentifier::decode(&mut reader)?;
    if content_type != SIGNED_DATA {
        return Err(Tag::Sequence.value_error().into());
    }
    enter(&mut reader, context_tag())?;
    enter(&mut reader, Tag::Sequence)?;
    let _version = u64::decode(&mut reader)?;
    let _digest_algorithms = AnyRef::decode(&mut reader)?;
    enter(&mut reader, Tag::Sequence)?;
    let _content_type: ObjectIdentifier = ObjectIdentifier::decode(&mut reader)?;
    enter(&mut reader, context_tag())?;
    // The certificates and signatures after it are not read.
    Ok(OctetString::decode(&mut reader)?.into_bytes().into())
}

fn context_tag() -> Tag {
    Tag::ContextSpecific {
        constructed: true,
        number: TagNumber(0),
    }
}

/// Reads on inside of a constructed value.
fn enter<'a>(reader: &mut impl Reader<'a>, expected: Tag) -> der::Result<()> {
    Header::decode(reader)?.tag().assert_eq(expected)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulator::app_receipt::{self, ListedPurchase, build_receipt};

    const NO_ATTRIBUTES: &[u8] = &[];

    fn listed(
        id: &'static str,
        original: &'static str,
        date: &'static str,
    ) -> ListedPurchase<'static> {
        ListedPurchase {
            transaction_id: id,
            original_transaction_id: original,
            purchase_date: date,
        }
    }

    #[test]
    fn the_newest_transaction_of_each_purchase_is_found_the_newest_first() {
        let receipt = build_receipt(&[
            listed("11", "10", "2026-02-01T00:00:00Z"),
            listed("12", "10", "2026-03-01T00:00:00Z"),
            listed("10", "10", "2026-01-01T00:00:00Z"),
            listed("20", "20", "2026-04-01T00:00:00Z"),
            listed("", "", ""),
        ]);
        assert!(receipt.starts_with("MII"), "{receipt}");
        let found = find_receipt_purchases(&receipt).unwrap();
        let ids: Vec<_> = found.iter().map(|one| &*one.transaction_id).collect();
        assert_eq!(ids, ["20", "12"]);
        assert_eq!(found[1].original_transaction_id, "10");
        // As some clients send it, in lines.
        let lines = receipt
            .as_bytes()
            .chunks(64)
            .map(|line| str::from_utf8(line).unwrap());
        let wrapped = lines.collect::<Vec<_>>().join("\r\n");
        assert_eq!(find_receipt_purchases(&wrapped).unwrap(), found);
    }

    #[test]
    fn what_is_no_receipt_is_refused() {
        let empty = build_receipt(&[]);
        let cut = &empty[..40];
        for (text, expected) in [
            ("", ReceiptError::NotAReceipt),
            ("MII!", ReceiptError::NotBase64),
            ("MIIB", ReceiptError::NotAReceipt),
            (cut, ReceiptError::NotAReceipt),
            (&empty, ReceiptError::NoPurchase),
            (&"A".repeat(MAX_RECEIPT_CHARS + 1), ReceiptError::TooLong),
        ] {
            assert_eq!(find_receipt_purchases(text), Err(expected), "{text:.20}");
        }
    }

    #[test]
    fn lengths_that_end_later_are_read_too() {
        // A constructed OCTET STRING in two parts, with indefinite lengths around it, as in BER.
        let purchases = [listed("7", "7", "2026-01-01T00:00:00Z")];
        let content = app_receipt::encode_content(&purchases);
        let (one, two) = content.split_at(content.len() / 2);
        let open = |tag: u8, content: &[u8]| [&[tag, 0x80], content, &[0, 0]].concat();
        let whole = app_receipt::encode_value;
        let parts = [whole(Tag::OctetString, one), whole(Tag::OctetString, two)];
        let string = open(0x24, &parts.concat());
        let data = whole(Tag::ObjectIdentifier, app_receipt::DATA.as_bytes());
        let encapsulated = open(0x30, &[data, open(0xa0, &string)].concat());
        let head = [whole(Tag::Integer, &[1]), whole(Tag::Set, NO_ATTRIBUTES)].concat();
        let signed = open(0x30, &[head, encapsulated].concat());
        let signed_data = whole(Tag::ObjectIdentifier, SIGNED_DATA.as_bytes());
        let info = open(0x30, &[signed_data, open(0xa0, &signed)].concat());
        let found = find_receipt_purchases(&STANDARD.encode(info)).unwrap();
        assert_eq!(found[0].transaction_id, "7");
    }
}
