//! Who the simulated stores are, and what a developer would download from their consoles: certificates, an App Store
//! key, a Google service account.
//!
//! All of it is made at run time, and none of it opens anything but a simulator. Kept in a folder, it survives a
//! restart, so that credentials given to Attesto yesterday still work today.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{self, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::pki::{self, Authority, pem};
use crate::clock::Timestamp;
use crate::crypto::token;

/// The file's name inside the simulator's folder.
const FILE: &str = "identity.json";

/// Everything secret and everything signed about the simulated stores. Cheap to clone, and may be shared by many
/// simulators: making one takes two RSA keys, which is slow.
#[derive(Clone)]
pub struct Identity(Arc<Parts>);

struct Parts {
    authority: Authority,
    apple: AppleKey,
    google: ServiceAccount,
    /// Signs what Google itself signs.
    google_signer: GoogleSigner,
}

/// A key as App Store Connect gives it out for the App Store Server API.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AppleKey {
    /// The team: a UUID.
    pub issuer_id: String,
    /// Ten characters of A–Z and 0–9.
    pub key_id: String,
    /// The `.p8` file: PKCS#8 PEM of a P-256 key.
    pub private_key: String,
    /// The public point, base64, by which tokens are checked.
    pub public_key: String,
}

/// A service account as the Google Cloud console gives it out.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccount {
    /// Its address.
    pub client_email: String,
    /// The key's id: 40 hexadecimal digits.
    pub private_key_id: String,
    /// PKCS#8 PEM of an RSA key.
    pub private_key: String,
    /// The public key, base64 of PKCS#1, by which assertions are checked.
    pub public_key: String,
}

/// An RSA key of the simulated Google, with the id it is published under. Clones are the same key.
#[derive(Clone)]
pub struct GoogleSigner {
    id: String,
    pair: Arc<rsa::KeyPair>,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Kept {
    authority: pki::Kept,
    apple: AppleKey,
    google: ServiceAccount,
    google_signer_id: String,
    google_signer: String,
}

impl Identity {
    /// A new identity, good for ten years to both sides of `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(Arc::new(Parts {
            authority: Authority::new(now),
            apple: AppleKey::new(&uuid()),
            google: ServiceAccount::new("attesto"),
            google_signer: GoogleSigner::new(),
        }))
    }

    /// The identity kept in `folder`, or a new one that is kept there from now on, readable by its owner only.
    pub fn keep_in(folder: &Path, now: Timestamp) -> io::Result<Self> {
        let file = folder.join(FILE);
        match fs::read(&file) {
            Ok(text) => Self::restore(&text).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "{} was not written by this simulator; remove it to begin anew",
                        file.display()
                    ),
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Self::new(now);
                let text = serde_json::to_vec_pretty(&identity.kept())?;
                write_private(&file, &text)?;
                Ok(identity)
            }
            Err(error) => Err(error),
        }
    }

    fn kept(&self) -> Kept {
        Kept {
            authority: self.0.authority.keep(),
            apple: self.0.apple.clone(),
            google: self.0.google.clone(),
            google_signer_id: self.0.google_signer.id.clone(),
            google_signer: STANDARD.encode(pkcs8(&self.0.google_signer.pair)),
        }
    }

    fn restore(text: &[u8]) -> Option<Self> {
        let kept: Kept = serde_json::from_slice(text).ok()?;
        let signer = STANDARD.decode(&kept.google_signer).ok()?;
        Some(Self(Arc::new(Parts {
            authority: Authority::restore(&kept.authority)?,
            apple: kept.apple,
            google: kept.google,
            google_signer: GoogleSigner {
                id: kept.google_signer_id,
                pair: Arc::new(rsa::KeyPair::from_pkcs8(&signer).ok()?),
            },
        })))
    }

    /// The App Store's certificates.
    pub fn authority(&self) -> &Authority {
        &self.0.authority
    }

    /// The key that an app's developer has for the App Store Server API.
    pub fn apple_key(&self) -> &AppleKey {
        &self.0.apple
    }

    /// The service account that an app's developer has for the Play Developer API.
    pub fn service_account(&self) -> &ServiceAccount {
        &self.0.google
    }

    /// Google's public keys, as a JWK set.
    pub fn google_keys(&self) -> Value {
        json!({ "keys": [self.0.google_signer.jwk()] })
    }

    /// Signs what Google itself signs.
    pub fn google_signer(&self) -> &GoogleSigner {
        &self.0.google_signer
    }
}

impl GoogleSigner {
    /// A new key.
    pub fn new() -> Self {
        Self {
            id: random_hex(20),
            pair: Arc::new(rsa_pair()),
        }
    }

    /// What it is published as.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The public key, as an entry of a JWK set.
    pub fn jwk(&self) -> Value {
        let public = self.pair.public_key();
        let part = |number: &[u8]| URL_SAFE_NO_PAD.encode(number);
        json!({
            "kty": "RSA",
            "alg": "RS256",
            "use": "sig",
            "kid": self.id,
            "n": part(public.modulus().big_endian_without_leading_zero()),
            "e": part(public.exponent().big_endian_without_leading_zero()),
        })
    }

    /// A token with these claims.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(&self.id, claims)
    }

    /// A token with these claims, said to be signed by another key.
    pub fn sign_as(&self, id: &str, claims: &Value) -> String {
        let header = json!({ "alg": "RS256", "kid": id, "typ": "JWT" });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                signed.as_bytes(),
                &mut signature,
            )
            .expect("an RSA key signs");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// A token as somebody makes it who hopes that the public key is taken for a shared secret.
    pub fn sign_symmetrically(&self, claims: &Value) -> String {
        let header = json!({ "alg": "HS256", "kid": self.id, "typ": "JWT" });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let secret = hmac::Key::new(hmac::HMAC_SHA256, self.pair.public_key().as_ref());
        let tag = hmac::sign(&secret, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    }
}

impl Default for GoogleSigner {
    fn default() -> Self {
        Self::new()
    }
}

impl AppleKey {
    /// A new key of a team.
    pub fn new(issuer_id: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .expect("a key can be made");
        Self {
            issuer_id: issuer_id.to_owned(),
            key_id: key_id(),
            private_key: pem("PRIVATE KEY", pair.serialized_der()),
            public_key: STANDARD.encode(pair.public_key_raw()),
        }
    }
}

impl ServiceAccount {
    /// A new account called `name`.
    pub fn new(name: &str) -> Self {
        let pair = rsa_pair();
        Self {
            client_email: format!("{name}@simulator.iam.gserviceaccount.com"),
            private_key_id: random_hex(20),
            private_key: pem("PRIVATE KEY", &pkcs8(&pair)),
            public_key: STANDARD.encode(pair.public_key().as_ref()),
        }
    }

    /// The JSON file that the console downloads, for a token endpoint.
    pub fn file(&self, token_uri: &str) -> Value {
        json!({
            "type": "service_account",
            "project_id": "simulator",
            "private_key_id": self.private_key_id,
            "private_key": self.private_key,
            "client_email": self.client_email,
            "client_id": "100000000000000000001",
            "auth_uri": "https://accounts.google.com/o/oauth2/auth",
            "token_uri": token_uri,
            "universe_domain": "googleapis.com",
        })
    }
}

fn rsa_pair() -> rsa::KeyPair {
    rsa::KeyPair::generate(KeySize::Rsa2048).expect("an RSA key can be made")
}

fn pkcs8(pair: &rsa::KeyPair) -> Vec<u8> {
    let der: Pkcs8V1Der<'_> = pair.as_der().expect("an RSA key can be written");
    der.as_ref().to_vec()
}

fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    aws_lc_rs::rand::fill(&mut random).expect("the operating system gives random bytes");
    token::hex(&random)
}

fn key_id() -> String {
    const LETTERS: &[u8] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";
    let mut random = [0; 10];
    aws_lc_rs::rand::fill(&mut random).expect("the operating system gives random bytes");
    random
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
        .collect()
}

/// A random UUID of version 4.
pub(super) fn uuid() -> String {
    let mut hex = random_hex(16);
    hex.replace_range(12..13, "4");
    hex.replace_range(16..17, "a");
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

/// Writes a file that only its owner can read, whole or not at all; makes its folder.
pub(super) fn write_private(file: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)?;
    }
    let draft = file.with_extension("draft");
    let mut writer = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    writer.write_all(content)?;
    writer.sync_all()?;
    fs::rename(&draft, file)
}
