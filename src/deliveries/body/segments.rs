//! Decodes the base64 strings of a text, so that the text can be restored byte for byte.
//!
//! The result is a stream, a list of segments. A segment is literal bytes, or a nested stream that was base64 in the text.
//! A string is decoded only if encoding restores the same characters: one with unusual padding or non-zero trailing bits stays
//! literal.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// Followed by a length and as many bytes.
const LITERAL: u8 = 0;
/// Followed by the decoded content of unpadded base64url, up to [`END`].
const BASE64URL: u8 = 1;
/// Followed by the decoded content of padded base64, up to [`END`].
const BASE64: u8 = 2;
/// The end of a nested stream.
const END: u8 = 3;
/// The place of the event's `sequence`: a number or `null`.
const SEQUENCE: u8 = 4;

/// A shorter string stays literal: names and ids use the same characters.
const MIN_BASE64_CHARS: usize = 40;
/// A certificate in the header of an inner JWS is encoded three times.
const MAX_DEPTH: usize = 4;

/// The classes of characters: in both alphabets, only in that of base64url, only in that of base64.
const IN_BOTH: u8 = 1;
const IN_BASE64URL: u8 = 2;
const IN_BASE64: u8 = 4;

const fn character_classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        classes[byte as usize] = match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => IN_BOTH,
            b'-' | b'_' => IN_BASE64URL,
            b'+' | b'/' => IN_BASE64,
            _ => 0,
        };
        byte += 1;
    }
    classes
}

const CLASSES: [u8; 256] = character_classes();

/// Appends a text to the stream.
pub(super) fn push_text(stream: &mut Vec<u8>, text: &[u8]) {
    push_segments(stream, text, 0);
}

/// Appends the place of the event's `sequence` to the stream.
pub(super) fn push_sequence(stream: &mut Vec<u8>) {
    stream.push(SEQUENCE);
}

fn push_segments(stream: &mut Vec<u8>, text: &[u8], depth: usize) {
    let (mut literal, mut at) = (0, 0);
    while let Some(run) = find_run(text, at) {
        at = run.end;
        if let Some(found) = decode_run(text, &run) {
            push_literal(stream, &text[literal..run.start]);
            stream.push(found.kind);
            // Only JSON contains more base64. Certificates and signatures are not searched.
            if depth + 1 < MAX_DEPTH && found.content.starts_with(b"{") {
                push_segments(stream, &found.content, depth + 1);
            } else {
                push_literal(stream, &found.content);
            }
            stream.push(END);
            at = found.end;
            literal = at;
        }
    }
    push_literal(stream, &text[literal..]);
}

/// A maximal run of characters of both alphabets.
struct Base64Run {
    start: usize,
    end: usize,
    classes: u8,
}

/// The next run of at least [`MIN_BASE64_CHARS`] characters. `from` is not inside a run.
fn find_run(text: &[u8], mut from: usize) -> Option<Base64Run> {
    let class = |at: usize| CLASSES[usize::from(text[at])];
    loop {
        // A run that begins at `from` includes `probe`. Checking from there backwards skips most of a text.
        let probe = from + MIN_BASE64_CHARS - 1;
        if probe >= text.len() {
            return None;
        }
        let before = (from..=probe).rev().find(|at| class(*at) == 0);
        if let Some(before) = before {
            from = before + 1;
            continue;
        }
        let (mut end, mut classes) = (from, 0);
        while end < text.len() && class(end) != 0 {
            classes |= class(end);
            end += 1;
        }
        return Some(Base64Run {
            start: from,
            end,
            classes,
        });
    }
}

struct DecodedRun {
    kind: u8,
    content: Vec<u8>,
    /// The end of the string, including its padding.
    end: usize,
}

/// Decodes a run. The decoders refuse a string that encoding would not restore.
fn decode_run(text: &[u8], run: &Base64Run) -> Option<DecodedRun> {
    let padding = text[run.end..].iter().take(2);
    let padding = padding.take_while(|byte| **byte == b'=').count();
    let has = |class| run.classes & class != 0;
    let is_base64url = match (has(IN_BASE64URL), has(IN_BASE64)) {
        (true, true) => return None,
        (true, false) => true,
        (false, true) => false,
        (false, false) => padding == 0,
    };
    let (kind, content, end) = if is_base64url {
        let content = URL_SAFE_NO_PAD.decode(&text[run.start..run.end]).ok()?;
        (BASE64URL, content, run.end)
    } else {
        let end = run.end + padding;
        let content = STANDARD.decode(&text[run.start..end]).ok()?;
        (BASE64, content, end)
    };
    Some(DecodedRun { kind, content, end })
}

fn push_literal(stream: &mut Vec<u8>, bytes: &[u8]) {
    if !bytes.is_empty() {
        stream.push(LITERAL);
        push_number(stream, bytes.len() as u64);
        stream.extend_from_slice(bytes);
    }
}

/// Restores the text of a stream. `None`: the stream is malformed, or its text is longer than `max_bytes`.
pub(super) fn read_text(
    mut stream: &[u8],
    sequence: Option<i64>,
    max_bytes: usize,
) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(stream.len().saturating_mul(2).min(max_bytes));
    // The open nested streams: how each is encoded, and where its content begins in `text`.
    let mut open: Vec<(u8, usize)> = Vec::new();
    let mut encoded = String::new();
    while let Some((kind, rest)) = stream.split_first() {
        stream = rest;
        match *kind {
            LITERAL => {
                let length = usize::try_from(read_number(&mut stream)?).ok()?;
                let (bytes, rest) = stream.split_at_checked(length)?;
                text.extend_from_slice(bytes);
                stream = rest;
            }
            BASE64URL | BASE64 if open.len() < MAX_DEPTH => open.push((*kind, text.len())),
            END => {
                let (kind, begin) = open.pop()?;
                encoded.clear();
                if kind == BASE64URL {
                    URL_SAFE_NO_PAD.encode_string(&text[begin..], &mut encoded);
                } else {
                    STANDARD.encode_string(&text[begin..], &mut encoded);
                }
                text.truncate(begin);
                text.extend_from_slice(encoded.as_bytes());
            }
            SEQUENCE => match sequence {
                Some(number) => text.extend_from_slice(number.to_string().as_bytes()),
                None => text.extend_from_slice(b"null"),
            },
            _ => return None,
        }
        if text.len() > max_bytes {
            return None;
        }
    }
    open.is_empty().then_some(text)
}

/// Appends a variable-length number: seven bits in each byte, the lowest first. The highest bit says that more follow.
pub(super) fn push_number(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    into.push(number.to_le_bytes()[0]);
}

/// Takes a variable-length number. `None`: it is cut off, or larger than 64 bits.
pub(super) fn read_number(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        let bits = u64::from(byte & 0x7f);
        if bits.checked_shl(shift)? >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 1 << 20;

    fn stream_of(text: &str) -> Vec<u8> {
        let mut stream = Vec::new();
        push_text(&mut stream, text.as_bytes());
        stream
    }

    #[test]
    fn base64_is_decoded_where_it_comes_back_as_it_was() {
        let content = "the quick brown fox jumps over the lazy dog";
        let url = URL_SAFE_NO_PAD.encode(content);
        let standard = STANDARD.encode(content);
        assert!(standard.ends_with("=="));
        let in_both = URL_SAFE_NO_PAD.encode(&content[..42]);
        let twice = URL_SAFE_NO_PAD.encode(format!("{{\"x5c\":[\"{standard}\"]}}"));
        for (text, is_decoded) in [
            (format!("{{\"a\":\"{url}\"}}"), true),
            (format!("{{\"a\":\"{standard}\"}}"), true),
            (format!("{in_both}.{in_both}.{in_both}"), true),
            (twice, true),
            // One bit behind the end.
            (format!("{}B", &url[..url.len() - 1]), false),
            (format!("{url}="), false),
            (standard[..standard.len() - 1].to_owned(), false),
            (format!("-{standard}"), false),
            (format!("+-{url}{url}"), false),
            (URL_SAFE_NO_PAD.encode("short, as ids are"), false),
            (String::new(), false),
        ] {
            let stream = stream_of(&text);
            assert_eq!(
                read_text(&stream, None, MAX),
                Some(text.clone().into_bytes()),
                "{text}"
            );
            let holds = |part: &str| stream.windows(part.len()).any(|it| it == part.as_bytes());
            assert_eq!(holds("quick brown fox"), is_decoded, "{text}");
        }
    }

    #[test]
    fn the_number_has_its_place() {
        let mut stream = stream_of("{\"sequence\":");
        push_sequence(&mut stream);
        push_text(&mut stream, b"}");
        for (sequence, expected) in [
            (Some(7), "{\"sequence\":7}"),
            (Some(-1), "{\"sequence\":-1}"),
            (None, "{\"sequence\":null}"),
        ] {
            let text = read_text(&stream, sequence, MAX).unwrap();
            assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        let nested = [BASE64; MAX_DEPTH + 1];
        let balanced = [[BASE64; MAX_DEPTH + 1], [END; MAX_DEPTH + 1]].concat();
        for stream in [
            &[LITERAL][..],
            &[LITERAL, 2, b'a'],
            &[LITERAL, 0xff, 0xff],
            &[LITERAL, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2],
            &[5],
            &[END],
            &[BASE64URL, LITERAL, 1, b'a'],
            &nested,
            &balanced,
            // Longer than four bytes.
            &[LITERAL, 5, 1, 2, 3, 4, 5],
            &[BASE64, LITERAL, 4, 1, 2, 3, 4, END],
            &[SEQUENCE, SEQUENCE],
        ] {
            assert_eq!(read_text(stream, None, 4), None, "{stream:?}");
        }
    }

    #[test]
    fn numbers_come_back() {
        for number in [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            push_number(&mut bytes, number);
            let mut rest = bytes.as_slice();
            assert_eq!(read_number(&mut rest), Some(number));
            assert!(rest.is_empty());
        }
    }
}
