//! Files that are sealed with a passphrase or for a recipient, whose identity unseals them.
//!
//! ```text
//! attesto sealed file 1
//! {"passphrase":{"iterations":…,"salt":…,"key":…}}     or {"recipient":{"encapsulated":…,"key":…}}
//! SHA-256 of the two lines above, in hexadecimal
//! chunks: 64 KiB each except the last, AES-256-GCM, each followed by its tag of 16 bytes
//! ```
//!
//! Every file has a random key of its own. That key is sealed with the passphrase (PBKDF2-HMAC-SHA-256, then
//! AES-256-GCM) or for the recipient (HPKE, RFC 9180: X25519, HKDF-SHA-256, AES-256-GCM). The chunks are encrypted with
//! a key that is derived from the file's key and the first two lines, so they cannot be decrypted if these lines were
//! changed. A chunk's nonce has its number and whether it is the last. A chunk that was changed, moved, removed or
//! truncated is therefore detected before any of its content is used. The third line only distinguishes accidental
//! damage from a wrong passphrase. An attacker who changes the lines can also write a matching sum; the chunks then
//! cannot be decrypted.
//!
//! HPKE's base mode does not authenticate the sender: any person who has the recipient's text can seal a file for it.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::num::NonZeroU32;

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::{Aes256Gcm, KeyInit as _};
use aws_lc_rs::{pbkdf2, rand};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hkdf::Hkdf;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};
use secrecy::{ExposeSecret as _, SecretSlice, SecretString};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::token;

/// The first line.
const MAGIC: &str = "attesto sealed file 1\n";
/// The beginning of the first line in every version of the format.
const MAGIC_PREFIX: &str = "attesto sealed file ";
/// The maximum length of each of the first three lines.
const MAX_HEADER_LINE_BYTES: u64 = 4096;
/// The length of a chunk's plaintext, except the last.
const CHUNK_BYTES: usize = 64 * 1024;
const NONCE_BYTES: usize = 12;
const TAG_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
/// Iterations of PBKDF2, which set the cost of one guess. OWASP's advice on storing passwords asks for at least 600
/// 000.
const PBKDF2_ITERATIONS: u32 = 1_000_000;
/// A file with more iterations is refused because it could keep a CPU busy for a long time, and one with fewer than
/// [`PBKDF2_ITERATIONS`] because Attesto does not write it.
const MAX_PBKDF2_ITERATIONS: u32 = 20_000_000;
/// A shorter passphrase can be guessed, whatever the cost of one guess.
const MIN_PASSPHRASE_CHARS: usize = 12;
/// Bound to every sealed key, so that it cannot be used for another purpose.
const DOMAIN_SEPARATOR: &[u8] = b"attesto/sealed-file/v1";

/// Why a file cannot be unsealed.
#[derive(Debug, thiserror::Error)]
pub enum SealedFileError {
    /// The file does not begin with the first line of a sealed file.
    #[error("it is not a file that Attesto sealed")]
    NotSealed,
    /// The file has a newer version of the format.
    #[error("it was sealed by a newer release: read it with that release")]
    NewerVersion,
    /// The file was changed or truncated.
    #[error("it was changed or truncated: nothing in it can be trusted")]
    Damaged,
    /// The file's key cannot be decrypted with the passphrase.
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    /// The file's key cannot be decrypted with the identity.
    #[error("it was sealed for another recipient than this identity's")]
    WrongIdentity,
    /// The file was sealed with a passphrase, and an identity was given.
    #[error("it was sealed under a passphrase, and an identity was given")]
    NeedsPassphrase,
    /// The file was sealed for a recipient, and a passphrase was given.
    #[error("it was sealed for a recipient, and a passphrase was given")]
    NeedsIdentity,
    /// The file cannot be read.
    #[error(transparent)]
    Io(io::Error),
}

impl From<io::Error> for SealedFileError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => error,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Self::Damaged,
            Err(error) => Self::Io(error),
        }
    }
}

impl From<SealedFileError> for io::Error {
    fn from(error: SealedFileError) -> Self {
        Self::new(ErrorKind::InvalidData, error)
    }
}

/// A passphrase of at least [`MIN_PASSPHRASE_CHARS`] characters.
#[derive(Debug)]
pub struct Passphrase(SecretString);

/// A passphrase has fewer than [`MIN_PASSPHRASE_CHARS`] characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a passphrase has at least {MIN_PASSPHRASE_CHARS} characters (make one with: openssl rand -base64 24)"
)]
pub struct PassphraseTooShortError;

impl Passphrase {
    /// Removes line ends at the end of the text, because editors add them to files.
    pub fn parse(text: &str) -> Result<Self, PassphraseTooShortError> {
        let text = text.trim_end_matches(['\r', '\n']);
        if text.chars().count() < MIN_PASSPHRASE_CHARS {
            return Err(PassphraseTooShortError);
        }
        Ok(Self(SecretString::from(text)))
    }
}

/// The public key that a file is sealed for. It need not be kept secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient([u8; KEY_BYTES]);

/// The private key that unseals files sealed for its recipient.
pub struct RecipientIdentity(SecretSlice<u8>);

/// A text is not a recipient, or not an identity. The message never repeats the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is `{prefix}` and 43 characters: `attesto encryption generate-identity` makes one", prefix = self.expected_prefix())]
pub struct RecipientParseError(&'static str);

const RECIPIENT_PREFIX: &str = "attesto-recipient-1:";
const IDENTITY_PREFIX: &str = "attesto-identity-1:";

impl RecipientParseError {
    fn expected_prefix(self) -> &'static str {
        if self.0 == "a recipient" {
            RECIPIENT_PREFIX
        } else {
            IDENTITY_PREFIX
        }
    }
}

impl std::str::FromStr for Recipient {
    type Err = RecipientParseError;

    fn from_str(text: &str) -> Result<Self, RecipientParseError> {
        let decoded = text.trim().strip_prefix(RECIPIENT_PREFIX);
        let decoded = decoded.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let public = decoded
            .filter(|bytes| bytes.len() == KEY_BYTES)
            .map(HpkePublicKey);
        // A public key of small order belongs to no private key, and HPKE refuses to seal for it.
        let public = public.filter(|public| SUITE.setup_sealer(DOMAIN_SEPARATOR, public).is_ok());
        let bytes = public.and_then(|public| public.0.try_into().ok());
        bytes.map(Self).ok_or(RecipientParseError("a recipient"))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{RECIPIENT_PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for RecipientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

impl RecipientIdentity {
    /// Generates an identity, as the text that [`RecipientIdentity::parse`] reads, and its recipient.
    pub fn generate_identity() -> (SecretString, Recipient) {
        let (public, secret) = SUITE.generate_key_pair().expect("X25519 makes keys");
        let recipient = Recipient(public.0.try_into().expect("a public key is 32 bytes"));
        let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(secret.secret_bytes()));
        let text = format!(
            "# opens what was sealed for {recipient}\n{IDENTITY_PREFIX}{}\n",
            encoded.as_str()
        );
        (SecretString::from(text), recipient)
    }

    /// Reads the text of an identity's file. Empty lines and lines that begin with `#` are ignored.
    pub fn parse(text: &str) -> Result<Self, RecipientParseError> {
        let mut lines = text.lines().map(str::trim);
        let line = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
        let encoded = line.and_then(|line| line.strip_prefix(IDENTITY_PREFIX));
        let decoded = encoded.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        match decoded {
            Some(bytes) if bytes.len() == KEY_BYTES => Ok(Self(SecretSlice::from(bytes))),
            _ => Err(RecipientParseError("an identity")),
        }
    }
}

/// What a file is sealed with.
#[derive(Debug)]
pub enum SealTarget {
    /// The passphrase also unseals the file.
    Passphrase(Passphrase),
    /// The recipient's identity unseals the file.
    Recipient(Recipient),
}

impl fmt::Display for SealTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passphrase(_) => f.write_str("a passphrase"),
            Self::Recipient(recipient) => recipient.fmt(f),
        }
    }
}

/// What a file is unsealed with.
#[derive(Debug)]
pub enum OpeningSecret {
    /// The passphrase that the file was sealed with.
    Passphrase(Passphrase),
    /// The identity whose recipient the file was sealed for.
    Identity(RecipientIdentity),
}

/// The second line of a file: the file's key, sealed.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum SealedFileKey {
    Passphrase {
        iterations: u32,
        salt: String,
        key: String,
    },
    Recipient {
        encapsulated: String,
        key: String,
    },
}

fn random_bytes<const LENGTH: usize>() -> Zeroizing<[u8; LENGTH]> {
    let mut bytes = Zeroizing::new([0; LENGTH]);
    rand::fill(bytes.as_mut_slice()).expect("the operating system gives random bytes");
    bytes
}

/// Derives a key from a passphrase and a random salt. It encrypts one value only, so a constant nonce is never reused.
fn derive_passphrase_key(
    passphrase: &Passphrase,
    salt: &[u8],
    iterations: NonZeroU32,
) -> Aes256Gcm {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    let passphrase = passphrase.0.expose_secret().as_bytes();
    let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
    pbkdf2::derive(algorithm, iterations, salt, passphrase, key.as_mut_slice());
    Aes256Gcm::new((&*key).into())
}

/// The nonce for keys that encrypt one value only.
const SINGLE_USE_NONCE: [u8; NONCE_BYTES] = [0; NONCE_BYTES];

impl SealedFileKey {
    fn seal_key(key: &[u8; KEY_BYTES], to: &SealTarget) -> Self {
        match to {
            SealTarget::Passphrase(passphrase) => {
                let salt = random_bytes::<16>();
                let iterations = NonZeroU32::new(PBKDF2_ITERATIONS).expect("it is not zero");
                let mut sealed = Zeroizing::new(key.to_vec());
                derive_passphrase_key(passphrase, salt.as_slice(), iterations)
                    .encrypt_in_place(&SINGLE_USE_NONCE.into(), DOMAIN_SEPARATOR, &mut *sealed)
                    .expect("AES-GCM seals 32 bytes");
                Self::Passphrase {
                    iterations: PBKDF2_ITERATIONS,
                    salt: STANDARD.encode(salt.as_slice()),
                    key: STANDARD.encode(sealed.as_slice()),
                }
            }
            SealTarget::Recipient(recipient) => {
                let public = HpkePublicKey(recipient.0.to_vec());
                let (encapsulated, key) = SUITE
                    .seal(DOMAIN_SEPARATOR, &[], key, &public)
                    .expect("a text that is no key was refused when it was parsed");
                Self::Recipient {
                    encapsulated: STANDARD.encode(encapsulated.0),
                    key: STANDARD.encode(key),
                }
            }
        }
    }

    fn open_key(
        &self,
        with: &OpeningSecret,
    ) -> Result<Zeroizing<[u8; KEY_BYTES]>, SealedFileError> {
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| SealedFileError::Damaged);
        let opened = match (self, with) {
            (
                Self::Passphrase {
                    iterations,
                    salt,
                    key,
                },
                OpeningSecret::Passphrase(passphrase),
            ) => {
                let iterations = NonZeroU32::new(*iterations)
                    .filter(|count| {
                        (PBKDF2_ITERATIONS..=MAX_PBKDF2_ITERATIONS).contains(&count.get())
                    })
                    .ok_or(SealedFileError::Damaged)?;
                let mut sealed = Zeroizing::new(decode(key)?);
                derive_passphrase_key(passphrase, &decode(salt)?, iterations)
                    .decrypt_in_place(&SINGLE_USE_NONCE.into(), DOMAIN_SEPARATOR, &mut *sealed)
                    .map_err(|_| SealedFileError::WrongPassphrase)?;
                sealed
            }
            (Self::Recipient { encapsulated, key }, OpeningSecret::Identity(identity)) => {
                let secret = HpkePrivateKey::from(identity.0.expose_secret().to_vec());
                let encapsulated = EncapsulatedSecret(decode(encapsulated)?);
                let opened =
                    SUITE.open(&encapsulated, DOMAIN_SEPARATOR, &[], &decode(key)?, &secret);
                Zeroizing::new(opened.map_err(|_| SealedFileError::WrongIdentity)?)
            }
            (Self::Passphrase { .. }, OpeningSecret::Identity(_)) => {
                return Err(SealedFileError::NeedsPassphrase);
            }
            (Self::Recipient { .. }, OpeningSecret::Passphrase(_)) => {
                return Err(SealedFileError::NeedsIdentity);
            }
        };
        let key = opened
            .as_slice()
            .try_into()
            .map_err(|_| SealedFileError::Damaged)?;
        Ok(Zeroizing::new(key))
    }
}

/// Encrypts or decrypts the chunks in order.
struct ChunkCipher {
    cipher: Aes256Gcm,
    next_chunk_number: u64,
}

impl ChunkCipher {
    fn new(file_key: &[u8; KEY_BYTES], header: &str) -> Self {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        Hkdf::<Sha256>::new(None, file_key)
            .expand_multi_info(&[DOMAIN_SEPARATOR, header.as_bytes()], key.as_mut_slice())
            .expect("HKDF gives 32 bytes");
        Self {
            cipher: Aes256Gcm::new((&*key).into()),
            next_chunk_number: 0,
        }
    }

    /// Bytes 3 to 10 are the chunk's number, big-endian; byte 11 is 1 for the last chunk.
    fn next_nonce(&mut self, is_last: bool) -> [u8; NONCE_BYTES] {
        let mut nonce = [0; NONCE_BYTES];
        nonce[3..11].copy_from_slice(&self.next_chunk_number.to_be_bytes());
        nonce[11] = u8::from(is_last);
        self.next_chunk_number += 1;
        nonce
    }

    fn seal_chunk(&mut self, chunk: &mut Vec<u8>, is_last: bool) {
        let nonce = self.next_nonce(is_last);
        self.cipher
            .encrypt_in_place(&nonce.into(), &[], chunk)
            .expect("AES-GCM seals 64 KiB");
    }

    fn open_chunk(&mut self, chunk: &mut Vec<u8>, is_last: bool) -> Result<(), SealedFileError> {
        let nonce = self.next_nonce(is_last);
        self.cipher
            .decrypt_in_place(&nonce.into(), &[], chunk)
            .map_err(|_| SealedFileError::Damaged)
    }
}

/// Seals what is written to it. The file cannot be unsealed until it is [finished](Self::finish_file).
pub struct SealedFileWriter<W> {
    writer: W,
    cipher: ChunkCipher,
    chunk: Vec<u8>,
}

impl<W: Write> SealedFileWriter<W> {
    /// Writes the first three lines.
    pub fn new(mut writer: W, to: &SealTarget) -> io::Result<Self> {
        let key = random_bytes::<KEY_BYTES>();
        let sealed = serde_json::to_string(&SealedFileKey::seal_key(&key, to))?;
        let header = format!("{MAGIC}{sealed}\n");
        let sum = token::encode_hex(&token::sha256(header.as_bytes()));
        writer.write_all(header.as_bytes())?;
        writer.write_all(format!("{sum}\n").as_bytes())?;
        Ok(Self {
            writer,
            cipher: ChunkCipher::new(&key, &header),
            chunk: Vec::with_capacity(CHUNK_BYTES + TAG_BYTES),
        })
    }

    fn write_chunk(&mut self, is_last: bool) -> io::Result<()> {
        self.cipher.seal_chunk(&mut self.chunk, is_last);
        self.writer.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }

    /// Seals the remaining bytes as the last chunk and returns the writer.
    pub fn finish_file(mut self) -> io::Result<W> {
        self.write_chunk(true)?;
        self.writer.flush()?;
        Ok(self.writer)
    }
}

impl<W: Write> Write for SealedFileWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full chunk is kept until more bytes follow, because it may be the last one.
        if self.chunk.len() == CHUNK_BYTES && !bytes.is_empty() {
            self.write_chunk(false)?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Unseals a file while it is read. A read returns authenticated bytes, or an error that contains a
/// [`SealedFileError`].
pub struct SealedFileReader<R> {
    reader: BufReader<R>,
    cipher: ChunkCipher,
    chunk: Zeroizing<Vec<u8>>,
    position: usize,
    is_last_chunk: bool,
}

impl<R: Read> SealedFileReader<R> {
    /// Reads the first three lines and unseals the file's key.
    pub fn new(reader: R, with: &OpeningSecret) -> Result<Self, SealedFileError> {
        let mut reader = BufReader::with_capacity(CHUNK_BYTES + TAG_BYTES, reader);
        let mut line = || -> Result<String, SealedFileError> {
            let mut line = Vec::new();
            let mut limited = (&mut reader).take(MAX_HEADER_LINE_BYTES);
            limited.read_until(b'\n', &mut line)?;
            match String::from_utf8(line) {
                Ok(line) if line.ends_with('\n') => Ok(line),
                _ => Err(SealedFileError::Damaged),
            }
        };
        let magic = line().map_err(|error| match error {
            SealedFileError::Damaged => SealedFileError::NotSealed,
            other => other,
        })?;
        if magic != MAGIC {
            let version = magic
                .strip_prefix(MAGIC_PREFIX)
                .map(|rest| rest.trim_end().parse::<u32>());
            return Err(match version {
                Some(Ok(2..)) => SealedFileError::NewerVersion,
                _ => SealedFileError::NotSealed,
            });
        }
        let (sealed, sum) = (line()?, line()?);
        let header = format!("{magic}{sealed}");
        if sum.trim_end() != token::encode_hex(&token::sha256(header.as_bytes())) {
            return Err(SealedFileError::Damaged);
        }
        let sealed: SealedFileKey =
            serde_json::from_str(&sealed).map_err(|_| SealedFileError::Damaged)?;
        let key = sealed.open_key(with)?;
        Ok(Self {
            reader,
            cipher: ChunkCipher::new(&key, &header),
            chunk: Zeroizing::new(Vec::with_capacity(CHUNK_BYTES + TAG_BYTES)),
            position: 0,
            is_last_chunk: false,
        })
    }

    fn read_next_chunk(&mut self) -> Result<(), SealedFileError> {
        self.chunk.clear();
        self.position = 0;
        let most = u64::try_from(CHUNK_BYTES + TAG_BYTES).unwrap_or(u64::MAX);
        (&mut self.reader).take(most).read_to_end(&mut self.chunk)?;
        self.is_last_chunk = self.reader.fill_buf()?.is_empty();
        if self.chunk.len() < TAG_BYTES {
            return Err(SealedFileError::Damaged);
        }
        self.cipher.open_chunk(&mut self.chunk, self.is_last_chunk)
    }
}

impl<R: Read> Read for SealedFileReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.position == self.chunk.len() {
            if self.is_last_chunk {
                return Ok(0);
            }
            self.read_next_chunk()?;
        }
        let rest = &self.chunk[self.position..];
        let given = rest.len().min(into.len());
        into[..given].copy_from_slice(&rest[..given]);
        self.position += given;
        Ok(given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase() -> Passphrase {
        Passphrase::parse("correct horse battery\n").unwrap()
    }

    fn identity() -> (RecipientIdentity, Recipient) {
        let (text, recipient) = RecipientIdentity::generate_identity();
        (
            RecipientIdentity::parse(text.expose_secret()).unwrap(),
            recipient,
        )
    }

    fn sealed(content: &[u8], to: &SealTarget) -> Vec<u8> {
        let mut sealer = SealedFileWriter::new(Vec::new(), to).unwrap();
        sealer.write_all(content).unwrap();
        sealer.finish_file().unwrap()
    }

    fn opened(file: &[u8], with: &OpeningSecret) -> Result<Vec<u8>, SealedFileError> {
        let mut content = Vec::new();
        SealedFileReader::new(file, with)?.read_to_end(&mut content)?;
        Ok(content)
    }

    /// A test vector. It was made with AWS-LC, which earlier releases sealed with, and with a passphrase chosen for
    /// this test.
    #[test]
    fn a_file_that_was_sealed_with_aws_lc_opens() {
        let header = "attesto sealed file 1\n{\"passphrase\":{\"iterations\":1000000,\"salt\":\"FCZchE+wAcbPlEVVzwvUqQ==\",\
            \"key\":\"ZE1fEEjyAEXGPNppn1U96SZt1egbW2iftRviUI1NBQrvCc4Rxvu1oGMg/BWtBY85\"}}\n\
            a91090f8b86ca5676680ea9605d8132e8c393b6e762f21945a0d0ae353367e97\n";
        let content = "qVJBZDW+VZy/jihokSWCDC04WHYt1QLHWZH0B63EdYQh+7I20eogzL4DYw==";
        let mut file = header.as_bytes().to_vec();
        file.extend(STANDARD.decode(content).unwrap());
        let passphrase = Passphrase::parse("a passphrase of the test vector").unwrap();
        let content = opened(&file, &OpeningSecret::Passphrase(passphrase)).unwrap();
        assert_eq!(content, b"what was in the file before");
    }

    #[test]
    fn what_was_sealed_opens_whatever_its_length() {
        let (identity, recipient) = identity();
        let (to, with) = (
            SealTarget::Recipient(recipient),
            OpeningSecret::Identity(identity),
        );
        for length in [
            0,
            1,
            CHUNK_BYTES - 1,
            CHUNK_BYTES,
            CHUNK_BYTES + 1,
            3 * CHUNK_BYTES,
        ] {
            let content: Vec<u8> = (0..length)
                .map(|at| u8::try_from(at % 251).unwrap())
                .collect();
            assert!(
                opened(&sealed(&content, &to), &with).unwrap() == content,
                "{length}"
            );
        }
        let file = sealed(b"under a passphrase", &SealTarget::Passphrase(passphrase()));
        let content = opened(&file, &OpeningSecret::Passphrase(passphrase())).unwrap();
        assert_eq!(content, b"under a passphrase");
    }

    #[test]
    fn only_what_it_was_sealed_for_opens_it_and_the_cause_is_said() {
        let ((mine, recipient), (others, _)) = (identity(), identity());
        let file = sealed(b"x", &SealTarget::Recipient(recipient));
        let with = |with: &OpeningSecret| opened(&file, with).unwrap_err();
        assert!(matches!(
            with(&OpeningSecret::Identity(others)),
            SealedFileError::WrongIdentity
        ));
        assert!(matches!(
            with(&OpeningSecret::Passphrase(passphrase())),
            SealedFileError::NeedsIdentity
        ));
        let file = sealed(b"x", &SealTarget::Passphrase(passphrase()));
        let wrong = Passphrase::parse("correct horse batterx").unwrap();
        let with = |with: &OpeningSecret| opened(&file, with).unwrap_err();
        assert!(matches!(
            with(&OpeningSecret::Passphrase(wrong)),
            SealedFileError::WrongPassphrase
        ));
        assert!(matches!(
            with(&OpeningSecret::Identity(mine)),
            SealedFileError::NeedsPassphrase
        ));
        assert!(Passphrase::parse("too short\r\n").is_err());
    }

    #[test]
    fn a_file_that_was_changed_anywhere_is_refused() {
        let (identity, recipient) = identity();
        let with = OpeningSecret::Identity(identity);
        let content = vec![b'x'; 2 * CHUNK_BYTES + 100];
        let file = sealed(&content, &SealTarget::Recipient(recipient));
        let begin = file.len() - (content.len() + 3 * TAG_BYTES);
        // Every byte of the first lines, and some bytes of each chunk.
        let some = (begin..file.len()).step_by(4099).chain([file.len() - 1]);
        for at in (0..begin).chain(some) {
            let mut other = file.clone();
            other[at] ^= 1;
            assert!(opened(&other, &with).is_err(), "byte {at}");
        }
        // Truncated, also at the end of a chunk.
        for length in [
            0,
            5,
            begin - 1,
            begin,
            begin + CHUNK_BYTES + TAG_BYTES,
            file.len() - 1,
        ] {
            assert!(opened(&file[..length], &with).is_err(), "{length} bytes");
        }
        // A chunk twice, a chunk removed, bytes after the last chunk.
        let (first, second) = (
            begin..begin + CHUNK_BYTES + TAG_BYTES,
            begin + CHUNK_BYTES + TAG_BYTES..begin + 2 * (CHUNK_BYTES + TAG_BYTES),
        );
        let swapped = [
            &file[..begin],
            &file[second.clone()],
            &file[first.clone()],
            &file[second.end..],
        ];
        assert!(opened(&swapped.concat(), &with).is_err());
        assert!(opened(&[&file[..begin], &file[second.clone()]].concat(), &with).is_err());
        assert!(opened(&[&file[..], b"x"].concat(), &with).is_err());
        assert!(opened(&file, &with).is_ok());
    }

    #[test]
    fn what_is_no_such_file_is_told_apart() {
        let (identity, _) = identity();
        let with = OpeningSecret::Identity(identity);
        let refused = |text: &[u8]| opened(text, &with).unwrap_err();
        assert!(matches!(refused(b"PGDMP"), SealedFileError::NotSealed));
        assert!(matches!(refused(b"hello\n"), SealedFileError::NotSealed));
        assert!(matches!(
            refused(b"attesto sealed file 2\n"),
            SealedFileError::NewerVersion
        ));
        let long = vec![b'{'; 10_000];
        assert!(matches!(
            refused(&[MAGIC.as_bytes(), &long].concat()),
            SealedFileError::Damaged
        ));
    }

    #[test]
    fn texts_are_read_back_and_others_are_refused_without_being_repeated() {
        let (text, recipient) = RecipientIdentity::generate_identity();
        assert_eq!(recipient.to_string().parse(), Ok(recipient.clone()));
        assert!(
            !format!("{:?}", RecipientIdentity::parse(text.expose_secret()))
                .contains(IDENTITY_PREFIX)
        );
        let other = recipient
            .to_string()
            .replace(RECIPIENT_PREFIX, IDENTITY_PREFIX);
        let said = other.parse::<Recipient>().unwrap_err().to_string();
        assert!(
            said.contains(RECIPIENT_PREFIX) && !said.contains(&other),
            "{said}"
        );
        assert!(RecipientIdentity::parse(&recipient.to_string()).is_err());
        let small_order = format!(
            "{RECIPIENT_PREFIX}{}",
            URL_SAFE_NO_PAD.encode([0; KEY_BYTES])
        );
        assert!(small_order.parse::<Recipient>().is_err());
    }
}
