//! Seals secrets before they are stored, and unseals them only in the context they were sealed for.
//!
//! A sealed value is `key id (1 byte) ‖ nonce (12) ‖ ciphertext ‖ tag (16)`, AES-256-GCM. The encryption key is derived
//! from the master key by HKDF-SHA-256 for each table and column. Table, column and row are authenticated with the
//! value: a value that was copied to another row, column or table cannot be unsealed. The keyring seals with its first
//! key and unseals with any of its keys.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hkdf::Hkdf;
use secrecy::{ExposeSecret, SecretBox, SecretSlice, SecretString};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::token;
use crate::telemetry::metrics::Counter;

/// The length of a master key, and of each key derived from it.
pub const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
/// The length of an empty secret, sealed.
const MIN_SEALED_BYTES: usize = 1 + NONCE_BYTES + TAG_BYTES;

/// Where a sealed value is stored. It can only be unsealed with the context it was sealed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealContext<'a> {
    /// The table's name.
    pub table: &'static str,
    /// The column's name.
    pub column: &'static str,
    /// The row's name: the tenant's id, or another name that never changes for the row.
    pub row: &'a str,
}

impl SealContext<'_> {
    /// Each part is preceded by its length, so that different contexts never give the same bytes.
    fn associated_data(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for part in [self.table, self.column, self.row] {
            bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }
}

/// A master key and its id, which is the first byte of the values sealed with it.
pub struct MasterKey {
    id: u8,
    bytes: SecretBox<[u8; KEY_BYTES]>,
}

/// Why a text is not a master key. The message never repeats the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MasterKeyError {
    /// The part before the colon is not a number from 1 to 255.
    #[error("the id before the colon must be a whole number from 1 to 255")]
    Id,
    /// The key is not standard base64.
    #[error(
        "the key must be standard base64 with padding (as `openssl rand -base64 32` prints one)"
    )]
    Base64,
    /// The decoded key is not 32 bytes long.
    #[error(
        "the key must decode to exactly 32 bytes, this one decodes to {0} (as `openssl rand -base64 32` prints one)"
    )]
    Length(usize),
}

impl MasterKey {
    /// Reads `<base64 of 32 bytes>`, optionally with `<id>:` before it. Without an id, `default_id` is used.
    pub fn parse(text: &str, default_id: Option<u8>) -> Result<Self, MasterKeyError> {
        let text = text.trim();
        let (id, encoded) = match text.split_once(':') {
            Some((id, encoded)) => {
                // Only digits: `u8::from_str` also accepts a leading plus.
                let digits = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit());
                let id = digits.then(|| id.parse::<u8>().ok()).flatten();
                (id.filter(|id| *id != 0).ok_or(MasterKeyError::Id)?, encoded)
            }
            None => (default_id.ok_or(MasterKeyError::Id)?, text),
        };
        let decoded = Zeroizing::new(
            STANDARD
                .decode(encoded)
                .map_err(|_| MasterKeyError::Base64)?,
        );
        let bytes: [u8; KEY_BYTES] = decoded
            .as_slice()
            .try_into()
            .map_err(|_| MasterKeyError::Length(decoded.len()))?;
        Ok(Self {
            id,
            bytes: SecretBox::new(Box::new(bytes)),
        })
    }

    /// The id, from 1 to 255.
    pub fn id(&self) -> u8 {
        self.id
    }

    /// Generates a random key, as the text that [`MasterKey::parse`] reads: `<id>:<base64>`. `None` if the id is 0.
    pub fn generate_key(id: u8) -> Option<SecretString> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        rand::fill(bytes.as_mut_slice()).expect("the operating system gives random bytes");
        let encoded = Zeroizing::new(STANDARD.encode(bytes.as_slice()));
        (id != 0).then(|| SecretString::from(format!("{id}:{}", encoded.as_str())))
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

/// Why a sealed value cannot be unsealed. The three causes need different actions and are always reported separately.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// It was sealed with a key that is not configured.
    #[error(
        "it was sealed with encryption key {id}, which is not configured (add it to ATTESTO_ENCRYPTION_KEYS_RETIRED)"
    )]
    UnknownKey {
        /// The id in the value's first byte.
        id: u8,
    },
    /// Decryption failed: the configured key of that id is a different key, or the value was changed or moved.
    #[error(
        "it does not open with encryption key {id}: the configured key is not the one it was sealed with, or the value was changed or moved"
    )]
    DecryptionFailed {
        /// The id in the value's first byte.
        id: u8,
    },
    /// It is too short to be a sealed value, or its key id is 0.
    #[error("it is not a sealed value")]
    NotSealed,
}

impl UnsealError {
    const CLASSES: [&str; 3] = ["key_unknown", "does_not_open", "not_sealed"];

    fn class_index(&self) -> usize {
        match self {
            Self::UnknownKey { .. } => 0,
            Self::DecryptionFailed { .. } => 1,
            Self::NotSealed => 2,
        }
    }

    /// The class of the cause for lists, logs and metrics: `key_unknown`, `does_not_open` or `not_sealed`.
    pub fn class(&self) -> &'static str {
        Self::CLASSES[self.class_index()]
    }

    /// The message if the configured key is known to be the right one, because its canary could be unsealed.
    pub fn message_with_valid_canary(&self) -> String {
        match self {
            Self::DecryptionFailed { id } => format!(
                "it does not open, although the configured key {id} is the one it names: the value was changed, or moved from another row"
            ),
            other => other.to_string(),
        }
    }
}

/// Two configured keys have the same id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("encryption key id {0} is given twice: each key needs an id of its own")]
pub struct DuplicateKeyIdError(pub u8);

/// The master keys of this process: one seals, and all unseal.
pub struct Keyring {
    sealing_key_id: u8,
    keys: BTreeMap<u8, MasterKey>,
    /// How many times [`Keyring::open`] failed, by [`UnsealError::class_index`].
    unseal_failures: [Counter; UnsealError::CLASSES.len()],
    /// Whether the keys were proved to be those of the database since this process started.
    is_proved: AtomicBool,
}

impl Keyring {
    /// A keyring that seals with `sealing`, and unseals with that and the `retired` keys.
    pub fn new(sealing: MasterKey, retired: Vec<MasterKey>) -> Result<Self, DuplicateKeyIdError> {
        let id = sealing.id;
        let mut keys = BTreeMap::from([(id, sealing)]);
        for key in retired {
            let id = key.id;
            if keys.insert(id, key).is_some() {
                return Err(DuplicateKeyIdError(id));
            }
        }
        Ok(Self {
            sealing_key_id: id,
            keys,
            unseal_failures: Default::default(),
            is_proved: AtomicBool::new(false),
        })
    }

    /// Whether the keys opened the canaries of their database since this process started.
    pub(crate) fn is_proved(&self) -> bool {
        self.is_proved.load(Ordering::Relaxed)
    }

    pub(crate) fn set_proved(&self) {
        self.is_proved.store(true, Ordering::Relaxed);
    }

    /// The id of the key that seals.
    pub fn sealing_key_id(&self) -> u8 {
        self.sealing_key_id
    }

    /// The ids of all keys, ascending.
    pub fn key_ids(&self) -> impl Iterator<Item = u8> {
        self.keys.keys().copied()
    }

    /// Whether the key that seals is all zeros, which is a placeholder and not a secret.
    pub fn is_sealing_key_zero(&self) -> bool {
        let key = self.keys[&self.sealing_key_id].bytes.expose_secret();
        key.iter().all(|byte| *byte == 0)
    }

    /// A public fingerprint of a key: `<id>:` and the first 16 hex digits of a SHA-256 over a label and the key. The
    /// key has 256 random bits, so it cannot be guessed from its digest. `None` for an id that is not on the keyring.
    pub fn key_fingerprint(&self, id: u8) -> Option<String> {
        let key = self.keys.get(&id)?;
        let mut labelled = Zeroizing::new(b"attesto/fingerprint/v1/".to_vec());
        labelled.extend_from_slice(key.bytes.expose_secret());
        Some(format!("{id}:{}", token::sha256_fingerprint(&labelled)))
    }

    /// Seals `secret` with the current key, bound to `place`.
    pub fn seal(&self, place: SealContext<'_>, secret: &[u8]) -> Vec<u8> {
        let cipher = derive_cipher(&self.keys[&self.sealing_key_id], place);
        let mut nonce = [0; NONCE_BYTES];
        rand::fill(&mut nonce).expect("the operating system gives random bytes");
        let mut blob = Vec::with_capacity(MIN_SEALED_BYTES + secret.len());
        blob.push(self.sealing_key_id);
        blob.extend_from_slice(&nonce);
        blob.extend_from_slice(secret);
        let plaintext = &mut blob[1 + NONCE_BYTES..];
        let tag = cipher
            .encrypt_inout_detached(&nonce.into(), &place.associated_data(), plaintext.into())
            .expect("AES-GCM seals anything shorter than 64 GiB");
        blob.extend_from_slice(&tag);
        blob
    }

    /// Unseals a value that was sealed for `place`. Failures are counted in [`Keyring::unseal_failures`], because none
    /// is expected.
    pub fn open(
        &self,
        place: SealContext<'_>,
        blob: &[u8],
    ) -> Result<SecretSlice<u8>, UnsealError> {
        let opened = self.try_open(place, blob);
        if let Err(cause) = &opened {
            self.unseal_failures[cause.class_index()].inc();
        }
        opened
    }

    /// How many values could not be unsealed, by [`UnsealError::class`].
    pub fn unseal_failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.unseal_failures.iter().map(Counter::get);
        UnsealError::CLASSES.into_iter().zip(counts)
    }

    /// Like [`Keyring::open`], but failures are not counted. For callers that test whether a value can be unsealed.
    pub fn try_open(
        &self,
        place: SealContext<'_>,
        blob: &[u8],
    ) -> Result<SecretSlice<u8>, UnsealError> {
        // No key has the id zero.
        if blob.len() < MIN_SEALED_BYTES || blob[0] == 0 {
            return Err(UnsealError::NotSealed);
        }
        let id = blob[0];
        let master = self.keys.get(&id).ok_or(UnsealError::UnknownKey { id })?;
        let not_sealed = UnsealError::NotSealed;
        let (nonce, sealed) = blob[1..]
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(not_sealed.clone())?;
        let (ciphertext, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(not_sealed)?;
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        derive_cipher(master, place)
            .decrypt_inout_detached(
                nonce.into(),
                &place.associated_data(),
                buffer.as_mut_slice().into(),
                tag.into(),
            )
            .map_err(|_| UnsealError::DecryptionFailed { id })?;
        Ok(SecretSlice::from(std::mem::take(&mut *buffer)))
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Keyring(seals with {}, opens {:?})",
            self.sealing_key_id,
            self.keys.keys()
        )
    }
}

fn derive_cipher(master: &MasterKey, place: SealContext<'_>) -> Aes256Gcm {
    let info = [
        b"attesto/seal/v1/".as_slice(),
        place.table.as_bytes(),
        b"/",
        place.column.as_bytes(),
    ];
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    Hkdf::<Sha256>::new(None, master.bytes.expose_secret())
        .expand_multi_info(&info, key.as_mut_slice())
        .expect("HKDF gives 32 bytes");
    Aes256Gcm::new((&*key).into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: SealContext<'_> = SealContext {
        table: "apple_credentials",
        column: "private_key_enc",
        row: "tenant_a",
    };

    fn key(id: u8, fill: u8) -> MasterKey {
        MasterKey::parse(
            &format!("{id}:{}", STANDARD.encode([fill; KEY_BYTES])),
            None,
        )
        .expect("a good key")
    }

    fn ring(id: u8, fill: u8) -> Keyring {
        Keyring::new(key(id, fill), vec![]).expect("one id")
    }

    /// A test vector. It was made with AWS-LC, which earlier releases sealed with; its key was generated for this test.
    #[test]
    fn what_was_sealed_with_aws_lc_opens() {
        const KEY: &str = "f3f98aeb5548abfa199a73670855967a0137a2713a9bbf1c0dd649788478c284";
        const SEALED: &str = "07f8c452b2d9343220513b9355d06baf0166db41d61da8fe6fd905153fad1550ccf2ffe4ec0b86e526fab067da3325998a56aa";
        const SEALED_EMPTY: &str = "07310743bb2357617d9e6c669b9716fd08d5baf8f8df250fa5ab7f3bde";
        let key = format!("7:{}", STANDARD.encode(decode_hex(KEY)));
        let ring = Keyring::new(MasterKey::parse(&key, None).expect("a good key"), vec![])
            .expect("one id");
        let place = SealContext {
            table: "apple_credentials",
            column: "private_key",
            row: "ten_01HZX3V5T8N2Q4R6S8W0Y2A4C6",
        };
        for (sealed, content) in [(SEALED, "what was sealed before"), (SEALED_EMPTY, "")] {
            let opened = ring.open(place, &decode_hex(sealed)).expect("it opens");
            assert_eq!(opened.expose_secret(), content.as_bytes());
        }
        assert_eq!(
            ring.key_fingerprint(7).as_deref(),
            Some("7:863a2c649c31071d")
        );
    }

    fn decode_hex(text: &str) -> Vec<u8> {
        let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
        (0..text.len()).step_by(2).map(byte).collect()
    }

    #[test]
    fn every_flipped_bit_is_refused_for_what_it_is() {
        let ring = ring(9, 9);
        let blob = ring.seal(HERE, b"a secret");
        for at in 0..blob.len() {
            for bit in 0..8 {
                let mut flipped = blob.clone();
                flipped[at] ^= 1_u8 << bit;
                let expected = if at == 0 {
                    "key_unknown"
                } else {
                    "does_not_open"
                };
                let class = ring.open(HERE, &flipped).unwrap_err().class();
                assert_eq!(class, expected, "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn a_key_is_refused_with_what_to_do() {
        let good = STANDARD.encode([7; 32]);
        let parse = |text: &str| MasterKey::parse(text, Some(1)).map(|key| key.id());
        assert_eq!(parse(&good), Ok(1));
        assert_eq!(parse(&format!("{good}\n")), Ok(1));
        assert_eq!(parse(&format!("255:{good}")), Ok(255));
        for id in ["0", "256", "-1", "+1", "a", ""] {
            assert_eq!(
                parse(&format!("{id}:{good}")),
                Err(MasterKeyError::Id),
                "{id}"
            );
        }
        assert_eq!(parse("not base64!"), Err(MasterKeyError::Base64));
        assert_eq!(
            parse(&STANDARD.encode([7; 31])),
            Err(MasterKeyError::Length(31))
        );
        assert_eq!(
            MasterKey::parse(&good, None).map(|key| key.id()),
            Err(MasterKeyError::Id)
        );
    }

    #[test]
    fn a_new_key_is_a_good_key_and_never_the_same() {
        let text = MasterKey::generate_key(7).expect("an id");
        let read = MasterKey::parse(text.expose_secret(), None).expect("a good key");
        assert_eq!(read.id(), 7);
        let other = MasterKey::generate_key(7).expect("an id");
        assert_ne!(text.expose_secret(), other.expose_secret());
        assert!(MasterKey::generate_key(0).is_none());
    }

    #[test]
    fn a_retired_key_opens_and_never_seals() {
        let before = ring(1, 1).seal(HERE, b"secret");
        let after = Keyring::new(key(2, 2), vec![key(1, 1)]).expect("two ids");
        assert_eq!(
            after.open(HERE, &before).expect("opens").expose_secret(),
            b"secret"
        );
        assert_eq!(after.seal(HERE, b"secret")[0], 2);
        assert_eq!(
            ring(2, 2).open(HERE, &before).unwrap_err(),
            UnsealError::UnknownKey { id: 1 }
        );
        assert_eq!(
            Keyring::new(key(1, 1), vec![key(1, 2)]).unwrap_err(),
            DuplicateKeyIdError(1)
        );
    }

    #[test]
    fn a_key_is_recognised_by_its_own_fingerprint() {
        let two = Keyring::new(key(2, 2), vec![key(1, 1)]).expect("two ids");
        assert_eq!(two.key_fingerprint(1), ring(1, 1).key_fingerprint(1));
        assert_ne!(two.key_fingerprint(1), ring(1, 2).key_fingerprint(1));
        assert_eq!(two.key_fingerprint(3), None);
        let print = two.key_fingerprint(1).expect("it is there");
        assert_eq!((&print[..2], print.len()), ("1:", 18));
        let bare = crate::crypto::token::sha256_fingerprint(&[1; KEY_BYTES]);
        assert!(
            !print.ends_with(&bare),
            "not what a digest of the key alone begins with"
        );
    }

    #[test]
    fn a_blob_opens_only_where_it_was_sealed() {
        let ring = ring(1, 1);
        let blob = ring.seal(HERE, b"secret");
        for there in [
            SealContext {
                table: "google_credentials",
                ..HERE
            },
            SealContext {
                column: "other_enc",
                ..HERE
            },
            SealContext {
                row: "tenant_b",
                ..HERE
            },
            SealContext { row: "", ..HERE },
        ] {
            assert_eq!(
                ring.open(there, &blob).unwrap_err(),
                UnsealError::DecryptionFailed { id: 1 }
            );
        }
    }

    #[test]
    fn nothing_of_a_key_is_printed() {
        let text = format!("{:?} {:?}", ring(1, 0x41), key(3, 0x41));
        assert_eq!(text, "Keyring(seals with 1, opens [1]) MasterKey(3)");
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens(secret: Vec<u8>, row in ".{0,40}") {
            let place = SealContext { row: &row, ..HERE };
            let ring = ring(9, 9);
            let blob = ring.seal(place, &secret);
            prop_assert_eq!(blob.len(), MIN_SEALED_BYTES + secret.len());
            let opened = ring.open(place, &blob).expect("opens");
            prop_assert_eq!(opened.expose_secret(), secret.as_slice());
            prop_assert_ne!(ring.seal(place, &secret), blob, "a nonce is never used twice");
        }

        #[test]
        fn any_flipped_bit_and_any_cut_is_refused(secret: Vec<u8>, at: prop::sample::Index, bit in 0_u8..8) {
            let ring = ring(9, 9);
            let blob = ring.seal(HERE, &secret);
            let at = at.index(blob.len());
            let mut flipped = blob.clone();
            flipped[at] ^= 1_u8 << bit;
            prop_assert!(ring.open(HERE, &flipped).is_err());
            prop_assert!(ring.open(HERE, &blob[..at]).is_err());
        }

        #[test]
        fn another_key_of_the_same_id_does_not_open(secret: Vec<u8>) {
            let blob = ring(9, 9).seal(HERE, &secret);
            prop_assert_eq!(ring(9, 8).open(HERE, &blob).unwrap_err(), UnsealError::DecryptionFailed { id: 9 });
        }
    }
}
