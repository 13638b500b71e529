//! A file that only whoever has the passphrase, or the identity it was sealed for, can read.
//!
//! ```text
//! attesto sealed file 1
//! {"passphrase":{"iterations":…,"salt":…,"key":…}}     or {"recipient":{"encapsulated":…,"key":…}}
//! SHA-256 of the two lines above, in hexadecimal
//! pieces: 64 KiB each but the last, AES-256-GCM, each with its tag of 16 bytes
//! ```
//!
//! Every file has a random key of its own. It is sealed under the passphrase (PBKDF2-HMAC-SHA-256, then AES-256-GCM) or for the
//! recipient (HPKE, RFC 9180: X25519, HKDF-SHA-256, AES-256-GCM). The pieces are sealed with a key made of it and of the lines
//! above, so that no other lines lead to them. A piece's nonce is its number and whether it is the last: none can be changed,
//! moved, left out or cut off without being noticed before anything of it is believed. The third line tells an accident from
//! a wrong passphrase, and nothing more: whoever changes the lines on purpose can write another, and then the key does not open.
//!
//! HPKE's base mode says nothing about who sealed a file: whoever knows a recipient can seal for it.

use std::fmt;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::num::NonZeroU32;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::{pbkdf2, rand};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256 as SUITE;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke as _, HpkePrivateKey, HpkePublicKey};
use secrecy::{ExposeSecret as _, SecretSlice, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::token;

/// The first line.
const MAGIC: &str = "attesto sealed file 1\n";
/// What the first line of every version begins with.
const FAMILY: &str = "attesto sealed file ";
/// The first lines are no longer than this.
const MOST_HEADER: u64 = 4096;
/// Bytes in a piece.
const PIECE: usize = 64 * 1024;
const TAG: usize = 16;
const KEY: usize = 32;
/// Rounds of PBKDF2. A guess costs what this costs; see OWASP's advice on storing passwords, which asks for 600 000.
const ITERATIONS: u32 = 1_000_000;
/// A file that asks for more than this wants to keep us busy; one that asks for less was not made here.
const MOST_ITERATIONS: u32 = 20_000_000;
/// Characters of a passphrase: what is shorter is guessed, whatever a guess costs.
const SHORTEST_PASSPHRASE: usize = 12;
/// What the sealed keys are for, so that they are good for nothing else.
const PURPOSE: &[u8] = b"attesto/sealed-file/v1";

/// Why a file does not open.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It does not begin as one.
    #[error("it is not a file that Attesto sealed")]
    NotSealed,
    /// It is of another version.
    #[error("it was sealed by a newer release: read it with that release")]
    Newer,
    /// It was changed, or it is not whole.
    #[error("it was changed, or cut off, or is not whole: nothing in it can be trusted")]
    Damaged,
    /// The passphrase does not open it.
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    /// The identity does not open it.
    #[error("it was sealed for another recipient than this identity's")]
    OtherRecipient,
    /// A passphrase is needed.
    #[error("it was sealed under a passphrase, and an identity was given")]
    NeedsPassphrase,
    /// An identity is needed.
    #[error("it was sealed for a recipient, and a passphrase was given")]
    NeedsIdentity,
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(io::Error),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(told) => told,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Self::Damaged,
            Err(error) => Self::Unreadable(error),
        }
    }
}

impl From<FileError> for io::Error {
    fn from(error: FileError) -> Self {
        Self::new(ErrorKind::InvalidData, error)
    }
}

/// Something a person remembers, or a password store does.
#[derive(Debug)]
pub struct Passphrase(SecretString);

/// A passphrase is too short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a passphrase has at least {SHORTEST_PASSPHRASE} characters (make one with: openssl rand -base64 24)"
)]
pub struct TooShort;

impl Passphrase {
    /// Without the line end that editors leave.
    pub fn parse(text: &str) -> Result<Self, TooShort> {
        let text = text.trim_end_matches(['\r', '\n']);
        if text.chars().count() < SHORTEST_PASSPHRASE {
            return Err(TooShort);
        }
        Ok(Self(SecretString::from(text)))
    }
}

/// Who can read what was sealed for them. Public.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient([u8; KEY]);

/// What opens what was sealed for its recipient. Secret.
pub struct Identity(SecretSlice<u8>);

/// A text is not a recipient, or not an identity. Never repeats the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is `{prefix}` and 43 characters: `attesto encryption generate-identity` makes one", prefix = self.prefix())]
pub struct NotOne(&'static str);

const RECIPIENT: &str = "attesto-recipient-1:";
const IDENTITY: &str = "attesto-identity-1:";

impl NotOne {
    fn prefix(self) -> &'static str {
        if self.0 == "a recipient" {
            RECIPIENT
        } else {
            IDENTITY
        }
    }
}

impl std::str::FromStr for Recipient {
    type Err = NotOne;

    fn from_str(text: &str) -> Result<Self, NotOne> {
        let decoded = text.trim().strip_prefix(RECIPIENT);
        let decoded = decoded.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        let public = decoded
            .filter(|bytes| bytes.len() == KEY)
            .map(HpkePublicKey);
        // A point of small order is nobody's key, and the one thing that HPKE refuses to seal for.
        let public = public.filter(|public| SUITE.setup_sealer(PURPOSE, public).is_ok());
        let bytes = public.and_then(|public| public.0.try_into().ok());
        bytes.map(Self).ok_or(NotOne("a recipient"))
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{RECIPIENT}{}", URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

impl Identity {
    /// A new one, as the text that [`Identity::parse`] reads, and the recipient it belongs to.
    pub fn generate() -> (SecretString, Recipient) {
        let (public, secret) = SUITE.generate_key_pair().expect("X25519 makes keys");
        let recipient = Recipient(public.0.try_into().expect("a public key is 32 bytes"));
        let encoded = Zeroizing::new(URL_SAFE_NO_PAD.encode(secret.secret_bytes()));
        let text = format!(
            "# opens what was sealed for {recipient}\n{IDENTITY}{}\n",
            encoded.as_str()
        );
        (SecretString::from(text), recipient)
    }

    /// Reads an identity's file: lines that begin with `#` are for people.
    pub fn parse(text: &str) -> Result<Self, NotOne> {
        let mut lines = text.lines().map(str::trim);
        let line = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
        let encoded = line.and_then(|line| line.strip_prefix(IDENTITY));
        let decoded = encoded.and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        match decoded {
            Some(bytes) if bytes.len() == KEY => Ok(Self(SecretSlice::from(bytes))),
            _ => Err(NotOne("an identity")),
        }
    }
}

/// For whom a file is sealed.
#[derive(Debug)]
pub enum To {
    /// Whoever has the passphrase.
    Passphrase(Passphrase),
    /// Whoever has the recipient's identity.
    Recipient(Recipient),
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passphrase(_) => f.write_str("a passphrase"),
            Self::Recipient(recipient) => recipient.fmt(f),
        }
    }
}

/// What opens a file.
#[derive(Debug)]
pub enum With {
    /// The passphrase it was sealed under.
    Passphrase(Passphrase),
    /// The identity it was sealed for.
    Identity(Identity),
}

/// The second line: the file's key, sealed.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
enum SealedKey {
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

fn random<const LENGTH: usize>() -> Zeroizing<[u8; LENGTH]> {
    let mut bytes = Zeroizing::new([0; LENGTH]);
    rand::fill(bytes.as_mut_slice()).expect("the operating system gives random bytes");
    bytes
}

fn aead(key: &[u8; KEY]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).expect("an AES-256 key is 32 bytes"))
}

/// The key that a passphrase gives with a salt. It seals one thing, so its nonce never comes twice.
fn of_passphrase(passphrase: &Passphrase, salt: &[u8], iterations: NonZeroU32) -> LessSafeKey {
    let mut key = Zeroizing::new([0; KEY]);
    let passphrase = passphrase.0.expose_secret().as_bytes();
    let algorithm = pbkdf2::PBKDF2_HMAC_SHA256;
    pbkdf2::derive(algorithm, iterations, salt, passphrase, key.as_mut_slice());
    aead(&key)
}

fn only_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

impl SealedKey {
    fn seal(key: &[u8; KEY], to: &To) -> Self {
        match to {
            To::Passphrase(passphrase) => {
                let salt = random::<16>();
                let iterations = NonZeroU32::new(ITERATIONS).expect("it is not zero");
                let mut sealed = Zeroizing::new(key.to_vec());
                of_passphrase(passphrase, salt.as_slice(), iterations)
                    .seal_in_place_append_tag(only_nonce(), Aad::from(PURPOSE), &mut *sealed)
                    .expect("AES-GCM seals 32 bytes");
                Self::Passphrase {
                    iterations: ITERATIONS,
                    salt: STANDARD.encode(salt.as_slice()),
                    key: STANDARD.encode(sealed.as_slice()),
                }
            }
            To::Recipient(recipient) => {
                let public = HpkePublicKey(recipient.0.to_vec());
                let (encapsulated, key) = SUITE
                    .seal(PURPOSE, &[], key, &public)
                    .expect("whoever is no key was refused when the text was read");
                Self::Recipient {
                    encapsulated: STANDARD.encode(encapsulated.0),
                    key: STANDARD.encode(key),
                }
            }
        }
    }

    fn open(&self, with: &With) -> Result<Zeroizing<[u8; KEY]>, FileError> {
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| FileError::Damaged);
        let opened = match (self, with) {
            (
                Self::Passphrase {
                    iterations,
                    salt,
                    key,
                },
                With::Passphrase(passphrase),
            ) => {
                let iterations = NonZeroU32::new(*iterations)
                    .filter(|count| (ITERATIONS..=MOST_ITERATIONS).contains(&count.get()))
                    .ok_or(FileError::Damaged)?;
                let mut sealed = decode(key)?;
                of_passphrase(passphrase, &decode(salt)?, iterations)
                    .open_in_place(only_nonce(), Aad::from(PURPOSE), &mut sealed)
                    .map_err(|_| FileError::WrongPassphrase)?;
                sealed.truncate(sealed.len().saturating_sub(TAG));
                Zeroizing::new(sealed)
            }
            (Self::Recipient { encapsulated, key }, With::Identity(identity)) => {
                let secret = HpkePrivateKey::from(identity.0.expose_secret().to_vec());
                let encapsulated = EncapsulatedSecret(decode(encapsulated)?);
                let opened = SUITE.open(&encapsulated, PURPOSE, &[], &decode(key)?, &secret);
                Zeroizing::new(opened.map_err(|_| FileError::OtherRecipient)?)
            }
            (Self::Passphrase { .. }, With::Identity(_)) => return Err(FileError::NeedsPassphrase),
            (Self::Recipient { .. }, With::Passphrase(_)) => return Err(FileError::NeedsIdentity),
        };
        let key = opened
            .as_slice()
            .try_into()
            .map_err(|_| FileError::Damaged)?;
        Ok(Zeroizing::new(key))
    }
}

struct KeyLength;

impl KeyType for KeyLength {
    fn len(&self) -> usize {
        KEY
    }
}

/// Seals or opens one piece after the other.
struct Pieces {
    key: LessSafeKey,
    number: u64,
}

impl Pieces {
    fn new(file_key: &[u8; KEY], header: &str) -> Self {
        let mut key = Zeroizing::new([0; KEY]);
        Salt::new(HKDF_SHA256, &[])
            .extract(file_key)
            .expand(&[PURPOSE, header.as_bytes()], KeyLength)
            .and_then(|okm| okm.fill(key.as_mut_slice()))
            .expect("HKDF gives 32 bytes");
        Self {
            key: aead(&key),
            number: 0,
        }
    }

    /// Eleven bytes of its number and one that says whether it is the last.
    fn next_nonce(&mut self, is_last: bool) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[3..11].copy_from_slice(&self.number.to_be_bytes());
        nonce[11] = u8::from(is_last);
        self.number += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self, piece: &mut Vec<u8>, is_last: bool) {
        let nonce = self.next_nonce(is_last);
        self.key
            .seal_in_place_append_tag(nonce, Aad::empty(), piece)
            .expect("AES-GCM seals 64 KiB");
    }

    fn open(&mut self, piece: &mut Vec<u8>, is_last: bool) -> Result<(), FileError> {
        let nonce = self.next_nonce(is_last);
        self.key
            .open_in_place(nonce, Aad::empty(), piece)
            .map_err(|_| FileError::Damaged)?;
        piece.truncate(piece.len().saturating_sub(TAG));
        Ok(())
    }
}

/// Seals what is written to it. What is not [finished](Self::finish) does not open.
pub struct Sealer<W> {
    writer: W,
    pieces: Pieces,
    piece: Vec<u8>,
}

impl<W: Write> Sealer<W> {
    /// Writes the first lines.
    pub fn new(mut writer: W, to: &To) -> io::Result<Self> {
        let key = random::<KEY>();
        let sealed = serde_json::to_string(&SealedKey::seal(&key, to))?;
        let header = format!("{MAGIC}{sealed}\n");
        let sum = token::hex(&token::sha256(header.as_bytes()));
        writer.write_all(header.as_bytes())?;
        writer.write_all(format!("{sum}\n").as_bytes())?;
        Ok(Self {
            writer,
            pieces: Pieces::new(&key, &header),
            piece: Vec::with_capacity(PIECE + TAG),
        })
    }

    fn put(&mut self, is_last: bool) -> io::Result<()> {
        self.pieces.seal(&mut self.piece, is_last);
        self.writer.write_all(&self.piece)?;
        self.piece.clear();
        Ok(())
    }

    /// Seals what is left as the last piece and gives the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.put(true)?;
        self.writer.flush()?;
        Ok(self.writer)
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full piece is put when there is more: the last one may be full.
        if self.piece.len() == PIECE && !bytes.is_empty() {
            self.put(false)?;
        }
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Opens what was sealed: what is read from it is what was written, or an error that holds a [`FileError`].
pub struct Opener<R> {
    reader: BufReader<R>,
    pieces: Pieces,
    piece: Zeroizing<Vec<u8>>,
    read: usize,
    ended: bool,
}

impl<R: Read> Opener<R> {
    /// Reads the first lines and opens the key.
    pub fn new(reader: R, with: &With) -> Result<Self, FileError> {
        let mut reader = BufReader::with_capacity(PIECE + TAG, reader);
        let mut line = || -> Result<String, FileError> {
            let mut line = Vec::new();
            let mut limited = (&mut reader).take(MOST_HEADER);
            limited.read_until(b'\n', &mut line)?;
            match String::from_utf8(line) {
                Ok(line) if line.ends_with('\n') => Ok(line),
                _ => Err(FileError::Damaged),
            }
        };
        let magic = line().map_err(|error| match error {
            FileError::Damaged => FileError::NotSealed,
            other => other,
        })?;
        if magic != MAGIC {
            let version = magic
                .strip_prefix(FAMILY)
                .map(|rest| rest.trim_end().parse::<u32>());
            return Err(match version {
                Some(Ok(2..)) => FileError::Newer,
                _ => FileError::NotSealed,
            });
        }
        let (sealed, sum) = (line()?, line()?);
        let header = format!("{magic}{sealed}");
        if sum.trim_end() != token::hex(&token::sha256(header.as_bytes())) {
            return Err(FileError::Damaged);
        }
        let sealed: SealedKey = serde_json::from_str(&sealed).map_err(|_| FileError::Damaged)?;
        let key = sealed.open(with)?;
        Ok(Self {
            reader,
            pieces: Pieces::new(&key, &header),
            piece: Zeroizing::new(Vec::with_capacity(PIECE + TAG)),
            read: 0,
            ended: false,
        })
    }

    fn next_piece(&mut self) -> Result<(), FileError> {
        self.piece.clear();
        self.read = 0;
        let most = u64::try_from(PIECE + TAG).unwrap_or(u64::MAX);
        (&mut self.reader).take(most).read_to_end(&mut self.piece)?;
        self.ended = self.reader.fill_buf()?.is_empty();
        if self.piece.len() < TAG {
            return Err(FileError::Damaged);
        }
        self.pieces.open(&mut self.piece, self.ended)
    }
}

impl<R: Read> Read for Opener<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.read == self.piece.len() {
            if self.ended {
                return Ok(0);
            }
            self.next_piece()?;
        }
        let rest = &self.piece[self.read..];
        let given = rest.len().min(into.len());
        into[..given].copy_from_slice(&rest[..given]);
        self.read += given;
        Ok(given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passphrase() -> Passphrase {
        Passphrase::parse("correct horse battery\n").unwrap()
    }

    fn identity() -> (Identity, Recipient) {
        let (text, recipient) = Identity::generate();
        (Identity::parse(text.expose_secret()).unwrap(), recipient)
    }

    fn sealed(content: &[u8], to: &To) -> Vec<u8> {
        let mut sealer = Sealer::new(Vec::new(), to).unwrap();
        sealer.write_all(content).unwrap();
        sealer.finish().unwrap()
    }

    fn opened(file: &[u8], with: &With) -> Result<Vec<u8>, FileError> {
        let mut content = Vec::new();
        Opener::new(file, with)?.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn what_was_sealed_opens_whatever_its_length() {
        let (identity, recipient) = identity();
        let (to, with) = (To::Recipient(recipient), With::Identity(identity));
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let content: Vec<u8> = (0..length)
                .map(|at| u8::try_from(at % 251).unwrap())
                .collect();
            assert!(
                opened(&sealed(&content, &to), &with).unwrap() == content,
                "{length}"
            );
        }
        let file = sealed(b"under a passphrase", &To::Passphrase(passphrase()));
        let content = opened(&file, &With::Passphrase(passphrase())).unwrap();
        assert_eq!(content, b"under a passphrase");
    }

    #[test]
    fn only_what_it_was_sealed_for_opens_it_and_the_cause_is_said() {
        let ((mine, recipient), (others, _)) = (identity(), identity());
        let file = sealed(b"x", &To::Recipient(recipient));
        let with = |with: &With| opened(&file, with).unwrap_err();
        assert!(matches!(
            with(&With::Identity(others)),
            FileError::OtherRecipient
        ));
        assert!(matches!(
            with(&With::Passphrase(passphrase())),
            FileError::NeedsIdentity
        ));
        let file = sealed(b"x", &To::Passphrase(passphrase()));
        let wrong = Passphrase::parse("correct horse batterx").unwrap();
        let with = |with: &With| opened(&file, with).unwrap_err();
        assert!(matches!(
            with(&With::Passphrase(wrong)),
            FileError::WrongPassphrase
        ));
        assert!(matches!(
            with(&With::Identity(mine)),
            FileError::NeedsPassphrase
        ));
        assert!(Passphrase::parse("too short\r\n").is_err());
    }

    #[test]
    fn a_file_that_was_changed_anywhere_is_refused() {
        let (identity, recipient) = identity();
        let with = With::Identity(identity);
        let content = vec![b'x'; 2 * PIECE + 100];
        let file = sealed(&content, &To::Recipient(recipient));
        let begin = file.len() - (content.len() + 3 * TAG);
        // Every byte before the pieces, and some of each piece.
        let some = (begin..file.len()).step_by(4099).chain([file.len() - 1]);
        for at in (0..begin).chain(some) {
            let mut other = file.clone();
            other[at] ^= 1;
            assert!(opened(&other, &with).is_err(), "byte {at}");
        }
        // Cut off anywhere: also where a piece ends.
        for length in [0, 5, begin - 1, begin, begin + PIECE + TAG, file.len() - 1] {
            assert!(opened(&file[..length], &with).is_err(), "{length} bytes");
        }
        // A piece twice, one left out, something after the last.
        let (first, second) = (
            begin..begin + PIECE + TAG,
            begin + PIECE + TAG..begin + 2 * (PIECE + TAG),
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
        let with = With::Identity(identity);
        let refused = |text: &[u8]| opened(text, &with).unwrap_err();
        assert!(matches!(refused(b"PGDMP"), FileError::NotSealed));
        assert!(matches!(refused(b"hello\n"), FileError::NotSealed));
        assert!(matches!(
            refused(b"attesto sealed file 2\n"),
            FileError::Newer
        ));
        let long = vec![b'{'; 10_000];
        assert!(matches!(
            refused(&[MAGIC.as_bytes(), &long].concat()),
            FileError::Damaged
        ));
    }

    #[test]
    fn texts_are_read_back_and_others_are_refused_without_being_repeated() {
        let (text, recipient) = Identity::generate();
        assert_eq!(recipient.to_string().parse(), Ok(recipient.clone()));
        assert!(!format!("{:?}", Identity::parse(text.expose_secret())).contains(IDENTITY));
        let other = recipient.to_string().replace(RECIPIENT, IDENTITY);
        let said = other.parse::<Recipient>().unwrap_err().to_string();
        assert!(said.contains(RECIPIENT) && !said.contains(&other), "{said}");
        assert!(Identity::parse(&recipient.to_string()).is_err());
        let nobody = format!("{RECIPIENT}{}", URL_SAFE_NO_PAD.encode([0; KEY]));
        assert!(nobody.parse::<Recipient>().is_err());
    }
}
