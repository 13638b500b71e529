//! Searches text for secrets in many encodings, and also for parts of them.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// The length of the parts that are searched for. A part starts at every half of this length, so
/// that one and a half times this length of a secret is always found.
const PART: usize = 24;
/// The length of the prefix that the first lookup compares.
const HEAD: usize = 8;

/// The patterns to search for.
#[derive(Default)]
pub(crate) struct Needles {
    /// Each pattern, and the number of its secret.
    all: Vec<(Vec<u8>, usize)>,
    by_head: HashMap<[u8; HEAD], Vec<usize>>,
    /// By the first two bytes: whether a pattern starts with them. This alone skips most positions.
    beginnings: Vec<bool>,
}

/// A secret found in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The number under which it was added.
    pub(crate) number: usize,
    /// The match, and the text around it.
    pub(crate) context: String,
}

impl Needles {
    /// Adds a secret of at least eight bytes, which is reported with this number.
    pub(crate) fn add(&mut self, secret: &[u8], number: usize) {
        assert!(secret.len() >= HEAD, "too short to be told from chance");
        self.beginnings.resize(1 << 16, false);
        for part in parts(secret) {
            for spelling in spellings(part) {
                let head: [u8; HEAD] = spelling[..HEAD].try_into().expect("eight bytes");
                self.beginnings[usize::from(u16::from_be_bytes([head[0], head[1]]))] = true;
                self.by_head.entry(head).or_default().push(self.all.len());
                self.all.push((spelling, number));
            }
        }
    }

    /// The secrets in the text: each number once, with its first position.
    pub(crate) fn found_in(&self, hay: &[u8]) -> Vec<Found> {
        let (mut found, mut known) = (Vec::new(), BTreeSet::new());
        for (at, head) in hay.array_windows::<HEAD>().enumerate() {
            if !self.beginnings[usize::from(u16::from_be_bytes([head[0], head[1]]))] {
                continue;
            }
            for number in self.by_head.get(head).into_iter().flatten() {
                let (needle, number) = &self.all[*number];
                if hay[at..].starts_with(needle) && known.insert(*number) {
                    let around = &hay[at.saturating_sub(120)..hay.len().min(at + 200)];
                    found.push(Found {
                        number: *number,
                        context: String::from_utf8_lossy(around).into_owned(),
                    });
                }
            }
        }
        found
    }
}

fn parts(secret: &[u8]) -> Vec<&[u8]> {
    if secret.len() <= PART {
        return vec![secret];
    }
    let last = secret.len() - PART;
    let begins = (0..last).step_by(PART / 2).chain([last]);
    begins.map(|at| &secret[at..at + PART]).collect()
}

/// The encodings in which a part may appear.
fn spellings(part: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut all = BTreeSet::from([part.to_vec()]);
    let mut add = |text: String| all.insert(text.into_bytes());
    let written = |each: &dyn Fn(&mut String, u8)| {
        part.iter().fold(String::new(), |mut text, byte| {
            each(&mut text, *byte);
            text
        })
    };
    let hex = written(&|text, byte| write!(text, "{byte:02x}").expect("memory"));
    add(hex.to_uppercase());
    add(hex);
    for between in [", ", ","] {
        // As `{:?}` and JSON write bytes. The last number may be cut off.
        let numbers: Vec<String> = part.iter().map(ToString::to_string).collect();
        add(numbers.join(between));
    }
    // At any offset in a longer base64 text: characters that also encode neighbouring bytes are
    // left out.
    for before in 0..3 {
        let text = [&[0; 2][..before], part].concat();
        let shared_first = if before == 0 { 0 } else { before + 1 };
        let shared_last = usize::from(!text.len().is_multiple_of(3));
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let encoded = engine.encode(&text);
            add(encoded[shared_first..encoded.len() - shared_last].to_owned());
        }
    }
    if let Ok(text) = str::from_utf8(part) {
        add(text.escape_debug().to_string());
        let quoted = serde_json::to_string(text).expect("a text");
        add(quoted[1..quoted.len() - 1].to_owned());
        add(written(&|text, byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                text.push(byte.into());
            }
            _ => write!(text, "%{byte:02X}").expect("memory"),
        }));
    }
    all
}

/// Proves that the search finds secrets; otherwise finding none would prove nothing.
#[test]
fn whatever_is_there_is_found() {
    let key: Vec<u8> = (0..32).map(|_| fastrand::u8(..)).collect();
    let text: String = (0..40).map(|_| fastrand::alphanumeric()).collect();
    let spaced = format!("a \"quoted\" line\nand another one with a + {text}");
    let mut needles = Needles::default();
    let secrets = [key.as_slice(), text.as_bytes(), spaced.as_bytes()];
    for (number, secret) in secrets.into_iter().enumerate() {
        needles.add(secret, number);
    }
    let numbers = |hay: &[u8]| -> BTreeSet<usize> {
        let found = needles.found_in(hay);
        found.into_iter().map(|found| found.number).collect()
    };
    assert_eq!(numbers(b"nothing of all this is in here"), [].into());
    for (number, secret) in secrets.into_iter().enumerate() {
        for before in ["", "x", "xy", "xyz"] {
            let around = |middle: &[u8]| [before.as_bytes(), middle, b"and more"].concat();
            let mut hays = vec![
                around(secret),
                around(STANDARD_NO_PAD.encode(secret).as_bytes()),
                STANDARD_NO_PAD.encode(around(secret)).into_bytes(),
                URL_SAFE_NO_PAD.encode(around(secret)).into_bytes(),
                around(format!("{secret:?}").as_bytes()),
                around(serde_json::to_string(secret).expect("JSON").as_bytes()),
                around(&hex::<false>(secret)),
                around(&hex::<true>(secret)),
                // A part of it: the first that fits in a short line, or the rest.
                around(&secret[..30]),
                around(&secret[secret.len() - 30..]),
            ];
            if let Ok(text) = str::from_utf8(secret) {
                hays.push(around(format!("{text:?}").as_bytes()));
                let quoted = serde_json::to_string(text).expect("JSON");
                hays.push(around(quoted.as_bytes()));
                let query: String =
                    url::form_urlencoded::byte_serialize(text.replace(' ', "").as_bytes())
                        .collect();
                hays.push(around(query.as_bytes()));
            }
            for hay in hays {
                let shown = String::from_utf8_lossy(&hay);
                assert!(numbers(&hay).contains(&number), "{number} in {shown}");
            }
        }
    }
}

#[cfg(test)]
fn hex<const UPPER: bool>(bytes: &[u8]) -> Vec<u8> {
    let text = attesto::crypto::token::encode_hex(bytes);
    if UPPER { text.to_uppercase() } else { text }.into_bytes()
}
