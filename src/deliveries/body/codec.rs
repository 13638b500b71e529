//! The formats of stored bodies. The first byte is the format:
//!
//! | format | followed by |
//! |---|---|
//! | 0 | the whole text; SQL can write this format |
//! | 1 | the dictionary's id, the length of the stream (see [`super::segments`]), and the stream compressed with Zstandard |
//! | 2 | the length of the text before `sequence`, and the text without the value of `sequence` |
//!
//! Numbers have variable length, as in a stream. Every later release reads these formats, so a format is never changed.

use std::cell::RefCell;

use zstd::bulk::Compressor;
use zstd::zstd_safe::{CParameter, DCtx};

use super::dictionary::{BUILT_IN_ID, BodyDictionary};
use super::segments;

const WHOLE_TEXT: u8 = 0;
const COMPRESSED: u8 = 1;
const TEXT_IN_PARTS: u8 = 2;

/// A longer text is stored uncompressed, and no longer stream or text is decompressed. The body of the largest notification, 1 MiB, is
/// less than a quarter of this.
const MAX_UNPACKED_BYTES: usize = 16 * 1024 * 1024;

thread_local! {
    /// Kept because every delivery decompresses a body, and the memory of a context is larger than most bodies.
    static DECOMPRESSION: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// The text of a body.
#[derive(Clone, Copy, Debug)]
pub enum BodyParts<'a> {
    /// The whole text.
    Whole(&'a str),
    /// The text before and after the value of `sequence`, which is not known before the event is stored.
    AroundSequence(&'a str, &'a str),
}

/// Why a stored body cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It was written by a newer release.
    #[error(
        "the body is stored in a format that this release does not know; run the newest release on this database"
    )]
    UnknownFormat,
    /// The dictionary it was compressed with is missing.
    #[error(
        "the body needs dictionary {0}, which is missing in body_dictionaries; restore that table from a backup"
    )]
    MissingDictionary(i32),
    /// It was changed after it was written.
    #[error("the stored body is damaged; restore the event from a backup")]
    Damaged,
}

/// Encodes a body. The more the dictionary has in common with it, the shorter the result.
pub fn encode_body(parts: BodyParts<'_>, dictionary: &BodyDictionary) -> Vec<u8> {
    let (before, after) = match parts {
        BodyParts::Whole(text) => (text, None),
        BodyParts::AroundSequence(before, after) => (before, Some(after)),
    };
    let length = before.len() + after.map_or(0, str::len);
    let compressed = (length <= MAX_UNPACKED_BYTES)
        .then(|| {
            let mut stream = Vec::with_capacity(length);
            segments::push_text(&mut stream, before.as_bytes());
            if let Some(after) = after {
                segments::push_sequence(&mut stream);
                segments::push_text(&mut stream, after.as_bytes());
            }
            compress_stream(&stream, dictionary)
        })
        .flatten();
    if let Some(compressed) = compressed {
        return compressed;
    }
    let mut stored = Vec::with_capacity(length + 12);
    if after.is_some() {
        stored.push(TEXT_IN_PARTS);
        segments::push_number(&mut stored, before.len() as u64);
    } else {
        stored.push(WHOLE_TEXT);
    }
    stored.extend_from_slice(before.as_bytes());
    stored.extend_from_slice(after.unwrap_or_default().as_bytes());
    stored
}

/// `None`: the result is not shorter than the stream, or the stream is too long.
fn compress_stream(stream: &[u8], dictionary: &BodyDictionary) -> Option<Vec<u8>> {
    if stream.len() > MAX_UNPACKED_BYTES {
        return None;
    }
    let mut compressor = Compressor::with_prepared_dictionary(dictionary.encoder()).ok()?;
    for parameter in [
        // The format has the length and the dictionary's id.
        CParameter::ContentSizeFlag(false),
        CParameter::DictIdFlag(false),
        // Detects a damaged body, and a dictionary with the wrong content.
        CParameter::ChecksumFlag(true),
    ] {
        compressor.set_parameter(parameter).ok()?;
    }
    let compressed = compressor.compress(stream).ok()?;
    let mut stored = Vec::with_capacity(compressed.len() + 12);
    stored.push(COMPRESSED);
    segments::push_number(&mut stored, u64::from(dictionary.id.unsigned_abs()));
    segments::push_number(&mut stored, stream.len() as u64);
    stored.extend_from_slice(&compressed);
    (stored.len() < stream.len()).then_some(stored)
}

/// The id of the dictionary that a stored body was compressed with. `None`: it needs no row of `body_dictionaries`.
pub(super) fn required_dictionary(stored: &[u8]) -> Option<i32> {
    let mut rest = stored.strip_prefix(&[COMPRESSED])?;
    let id = segments::read_number(&mut rest)?;
    i32::try_from(id).ok().filter(|id| *id != BUILT_IN_ID)
}

/// Decodes a stored body. `sequence` is the event's, `dictionary` the one with the id of [`required_dictionary`].
pub fn decode_body(
    stored: &[u8],
    sequence: Option<i64>,
    dictionary: Option<&BodyDictionary>,
) -> Result<String, BodyError> {
    let (format, mut rest) = stored.split_first().ok_or(BodyError::Damaged)?;
    let text = match *format {
        WHOLE_TEXT => rest.to_vec(),
        TEXT_IN_PARTS => {
            let length = segments::read_number(&mut rest).ok_or(BodyError::Damaged)?;
            let length = usize::try_from(length).map_err(|_| BodyError::Damaged)?;
            let (before, after) = rest.split_at_checked(length).ok_or(BodyError::Damaged)?;
            let sequence = sequence.map_or_else(|| "null".to_owned(), |number| number.to_string());
            [before, sequence.as_bytes(), after].concat()
        }
        COMPRESSED => {
            let id = segments::read_number(&mut rest).ok_or(BodyError::Damaged)?;
            let id = i32::try_from(id).map_err(|_| BodyError::Damaged)?;
            let dictionary = if id == BUILT_IN_ID {
                BodyDictionary::built_in()
            } else {
                dictionary
                    .filter(|dictionary| dictionary.id == id)
                    .ok_or(BodyError::MissingDictionary(id))?
            };
            let length = segments::read_number(&mut rest).ok_or(BodyError::Damaged)?;
            let stream = decompress_stream(rest, length, dictionary).ok_or(BodyError::Damaged)?;
            segments::read_text(&stream, sequence, MAX_UNPACKED_BYTES).ok_or(BodyError::Damaged)?
        }
        _ => return Err(BodyError::UnknownFormat),
    };
    String::from_utf8(text).map_err(|_| BodyError::Damaged)
}

fn decompress_stream(
    compressed: &[u8],
    length: u64,
    dictionary: &BodyDictionary,
) -> Option<Vec<u8>> {
    let length = usize::try_from(length).ok();
    let length = length.filter(|length| *length <= MAX_UNPACKED_BYTES)?;
    // Its capacity is the most that is written.
    let mut stream = Vec::with_capacity(length);
    DECOMPRESSION
        .with_borrow_mut(|context| {
            let dictionary = dictionary.decoder().as_ddict();
            context.decompress_using_ddict(&mut stream, compressed, dictionary)
        })
        .ok()?;
    (stream.len() == length).then_some(stream)
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::super::dictionary::SharedContent;
    use super::*;

    /// Written by the release that introduced the formats; never changed.
    const VECTORS: [(&str, &str); 4] = [
        ("AHsiYSI6N30=", r#"{"a":7}"#),
        ("AgV7ImEiOn0=", r#"{"a":41}"#),
        (
            "AQDVASi1L/0EAGUDAMIEEhlgdw4wJvz9N3b5KV7JgX1NnEzgZZOe7JAB3X0IXcJIR0gTdH71DDvFt1498uYt0XP+NeO3Y4HzixX6lEYnJ9VilcoGN3ZwNgoA\
             XUUJWbkP0BTLBUgDvjmILskDJgIGbLjMD+EG8DrKWMnHaOk=",
            EVENT,
        ),
        (
            "AQPVASi1L/0EAH0FAJJMKCMwb5sxof+/2Yy3N/6yJ95OdMSucVe1O6YTU5ligMOYIzGfBNM0DYGwBsKygQcIhnN4Ab0kdhRH5O0xeZ3wOHBYOF8YXTJQjHNl\
             3+LiawIVMA2hsmVgo5NljdPOt9GGXbSiKXzdYI5dfDay5FAA5wqpsovGuM1SLtHnVaAE8m1vI4uNL4aJXv6cqPu8Vlaybx/2HAdB97Q4EcVz6G1klxRUAwQB\
             XlfxV+u4mAHJx2jp",
            EVENT,
        ),
    ];
    const EVENT: &str = concat!(
        r#"{"event":"subscription.renewed","reason":null,"sequence":41,"raw":{"message":{"data":"#,
        r#""eyJ2ZXJzaW9uIjoiMS4wIiwicGFja2FnZU5hbWUiOiJjb20uZXhhbXBsZS5hcHAifQ==","#,
        r#""signed":"eyJhbGciOiJFUzI1NiIsIng1YyI6WyJoaSJdLCJ0eXAiOiJKV1QifQ.e30.AA"}}}"#,
    );

    fn round_trip(text: &str, dictionary: &BodyDictionary) -> Vec<u8> {
        let stored = encode_body(BodyParts::Whole(text), dictionary);
        assert_eq!(
            decode_body(&stored, Some(5), Some(dictionary)).as_deref(),
            Ok(text)
        );
        stored
    }

    /// Random bytes, the same for the same seed.
    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(|| random.u8(..))
            .take(length)
            .collect()
    }

    fn jws(header: &str, payload: &str, seed: u64) -> String {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let signature = part(&noise(seed, 64));
        format!(
            "{}.{}.{signature}",
            part(header.as_bytes()),
            part(payload.as_bytes())
        )
    }

    /// A chain of certificates, and an event of Apple's size with three JWSs, each with that chain.
    fn apple_event() -> (Vec<Vec<u8>>, String) {
        let chain: Vec<Vec<u8>> = [(1, 1000), (2, 780), (3, 580)]
            .map(|(seed, length)| noise(seed, length))
            .into();
        let x5c: Vec<String> = chain.iter().map(|it| STANDARD.encode(it)).collect();
        let header = serde_json::json!({ "alg": "ES256", "x5c": x5c }).to_string();
        let transaction = r#"{"transactionId":"2000000912345678","originalTransactionId":"2000000812345678","bundleId":"com.example.app","productId":"com.example.pro.monthly","purchaseDate":1775830930000,"quantity":1,"type":"Auto-Renewable Subscription","signedDate":1775830931000,"environment":"Production"}"#;
        let renewal = r#"{"originalTransactionId":"2000000812345678","autoRenewProductId":"com.example.pro.monthly","productId":"com.example.pro.monthly","autoRenewStatus":1,"signedDate":1775830931000}"#;
        let (signed_transaction, signed_renewal) =
            (jws(&header, transaction, 4), jws(&header, renewal, 5));
        let data = |decoded: bool| {
            let field = |name: &str, value: &str| {
                if decoded {
                    format!(r#","{name}":{value}"#)
                } else {
                    String::new()
                }
            };
            format!(
                r#"{{"notificationType":"DID_RENEW","notificationUUID":"d5f0b7a2-2d7e-4a53-9a39-0f7d0d6d6c11","data":{{"bundleId":"com.example.app","signedTransactionInfo":"{signed_transaction}"{},"signedRenewalInfo":"{signed_renewal}"{}}}}}"#,
                field("transactionInfo", transaction),
                field("renewalInfo", renewal),
            )
        };
        let raw = jws(&header, &data(false), 6);
        let event = format!(
            r#"{{"event":"subscription.renewed","sequence":5,"data":{},"raw":{{"signedPayload":"{raw}"}}}}"#,
            data(true)
        );
        (chain, event)
    }

    fn dictionary_of(chain: &[Vec<u8>]) -> BodyDictionary {
        let chain: Vec<&[u8]> = chain.iter().map(Vec::as_slice).collect();
        BodyDictionary::new(7, SharedContent::of_certificate_chain(&chain).content)
    }

    #[test]
    fn an_apple_event_becomes_a_small_part_of_its_length() {
        let (chain, event) = apple_event();
        assert!(event.len() > 25_000, "{}", event.len());
        let small = round_trip(&event, &dictionary_of(&chain));
        // Three signatures of 64 bytes cannot become shorter.
        assert!(small.len() < 800, "{}", small.len());
        // Without the chain's dictionary its certificates stand in it once.
        let certificates: usize = chain.iter().map(Vec::len).sum();
        let larger = round_trip(&event, BodyDictionary::built_in());
        assert!(larger.len() < certificates + 1000, "{}", larger.len());
    }

    #[test]
    fn stored_bodies_of_every_release_are_read() {
        let dictionary = BodyDictionary::new(3, &b"what the stored bodies have in common"[..]);
        for (stored, expected) in VECTORS {
            let bytes = STANDARD.decode(stored).unwrap();
            assert_eq!(
                decode_body(&bytes, Some(41), Some(&dictionary)).as_deref(),
                Ok(expected),
                "{stored}"
            );
        }
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_not_another_text() {
        let (chain, event) = apple_event();
        let dictionary = dictionary_of(&chain);
        let stored = encode_body(BodyParts::Whole(&event), &dictionary);
        assert_eq!(required_dictionary(&stored), Some(7));
        let missing = Err(BodyError::MissingDictionary(7));
        assert_eq!(decode_body(&stored, None, None), missing);
        let another = BodyDictionary::new(8, &b"something else"[..]);
        assert_eq!(decode_body(&stored, None, Some(&another)), missing);
        // The right id, with another content.
        let mut changed = SharedContent::of_certificate_chain(&[&chain[0]]).content;
        changed.extend_from_slice(&noise(9, 1000));
        let another = BodyDictionary::new(7, changed);
        assert_eq!(
            decode_body(&stored, None, Some(&another)),
            Err(BodyError::Damaged)
        );
        for at in 0..stored.len() {
            let mut altered = stored.clone();
            altered[at] ^= 0x10;
            // Zstandard has one unused bit.
            if let Ok(read) = decode_body(&altered, None, Some(&dictionary)) {
                assert!(read == event, "byte {at}");
            }
            let cut = decode_body(&stored[..at], None, Some(&dictionary));
            assert!(cut.is_err(), "{at} bytes");
        }
        assert_eq!(decode_body(&[], None, None), Err(BodyError::Damaged));
        assert_eq!(
            decode_body(&[3, 1], None, None),
            Err(BodyError::UnknownFormat)
        );
        assert_eq!(decode_body(&[0, 0xff], None, None), Err(BodyError::Damaged));
    }

    /// With a length that is too short, correct, or impossible.
    #[test]
    fn a_few_bytes_do_not_become_many() {
        let long = vec![b'a'; MAX_UNPACKED_BYTES + 1];
        let frame = zstd::bulk::compress(&long, 1).unwrap();
        assert!(frame.len() < 10_000);
        for claimed in [1, long.len() as u64, u64::MAX] {
            let mut stored = vec![COMPRESSED, 0];
            segments::push_number(&mut stored, claimed);
            stored.extend_from_slice(&frame);
            assert_eq!(decode_body(&stored, None, None), Err(BodyError::Damaged));
        }
    }

    #[test]
    fn the_longest_texts_come_back() {
        let built_in = BodyDictionary::built_in();
        let longest = "a.".repeat(MAX_UNPACKED_BYTES / 2 - 8);
        assert!(round_trip(&longest, built_in).len() < 10_000);
        let longer = "a".repeat(MAX_UNPACKED_BYTES + 1);
        assert_eq!(round_trip(&longer, built_in).len(), longer.len() + 1);
        let parts = BodyParts::AroundSequence(&longer, "}");
        let stored = encode_body(parts, built_in);
        for (sequence, word) in [(Some(12), "12}"), (None, "null}")] {
            let text = decode_body(&stored, sequence, None).unwrap();
            assert_eq!(text.strip_prefix(&longer), Some(word));
        }
    }

    /// Texts with nested base64 of both kinds, some of it not canonical.
    fn text() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            any::<String>(),
            "[A-Za-z0-9+/_=.-]{0,200}",
            "[A-Za-z0-9_-]{38,60}",
            proptest::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| STANDARD.encode(bytes)),
        ];
        leaf.prop_recursive(6, 64, 4, |inner| {
            proptest::collection::vec((inner, 0_u8..5), 1..4).prop_map(|parts| {
                let parts = parts.into_iter().map(|(text, kind)| match kind {
                    0 => URL_SAFE_NO_PAD.encode(text),
                    1 => STANDARD.encode(text),
                    2 => format!("{{\"a\":\"{}\"}}", URL_SAFE_NO_PAD.encode(text)),
                    3 => format!("{}=", STANDARD.encode(text)),
                    _ => text,
                });
                parts.collect::<Vec<_>>().join(".")
            })
        })
    }

    proptest! {
        #[test]
        fn every_text_comes_back(before in text(), after in text(), sequence in any::<Option<i64>>()) {
            let dictionary = BodyDictionary::new(2, &b"{\"a\":\"what is in both\"}"[..]);
            for dictionary in [BodyDictionary::built_in(), &dictionary] {
                round_trip(&before, dictionary);
                let parts = BodyParts::AroundSequence(&before, &after);
                let stored = encode_body(parts, dictionary);
                let number = sequence.map_or("null".to_owned(), |number| number.to_string());
                let expected = format!("{before}{number}{after}");
                prop_assert_eq!(decode_body(&stored, sequence, Some(dictionary)), Ok(expected));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut stored in proptest::collection::vec(any::<u8>(), 0..300), format in 0_u8..3) {
            if let Some(first) = stored.first_mut() {
                *first = format;
            }
            let _ = decode_body(&stored, None, Some(BodyDictionary::built_in()));
        }
    }
}
