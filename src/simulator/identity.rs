//! The keys of the simulated stores, and those that a developer would download from their consoles: certificates, an
//! App Store key, a Google service account.
//!
//! All keys are created at run time and are accepted by a simulator only. Saved to a folder, they survive a restart, so
//! that credentials given to Attesto continue to work.

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

use super::pki::{self, CertificateAuthority, encode_pem};
use crate::base::clock::Timestamp;
use crate::crypto::token;

/// Inside the simulator's folder.
const IDENTITY_FILE: &str = "identity.json";

/// All keys and certificates of the simulated stores. Cheap to clone; share one between simulators, because creating
/// one generates two RSA keys, which is slow.
#[derive(Clone)]
pub struct SimulatorIdentity(Arc<IdentityParts>);

struct IdentityParts {
    authority: CertificateAuthority,
    apple_key: SimulatedAppleKey,
    service_account: SimulatedServiceAccount,
    /// Signs the tokens of Pub/Sub pushes.
    google_signing_key: GoogleSigningKey,
}

/// A key as App Store Connect gives it out for the App Store Server API.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedAppleKey {
    /// The id of the team, a UUID.
    pub issuer_id: String,
    /// Ten characters of A–Z and 0–9.
    pub key_id: String,
    /// The `.p8` file: PKCS#8 PEM of a P-256 key.
    pub private_key: String,
    /// The public point in base64; client tokens are verified with it.
    pub public_key: String,
}

/// A service account as the Google Cloud console gives it out.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SimulatedServiceAccount {
    /// The email address that names the account.
    pub client_email: String,
    /// The key's id: 40 hexadecimal digits.
    pub private_key_id: String,
    /// PKCS#8 PEM of an RSA key.
    pub private_key: String,
    /// The public key, PKCS#1 in base64; assertions are verified with it.
    pub public_key: String,
}

/// An RSA key of the simulated Google, with the id it is published under. Clones are the same key.
#[derive(Clone)]
pub struct GoogleSigningKey {
    key_id: String,
    key_pair: Arc<rsa::KeyPair>,
}

#[derive(Serialize, Deserialize)]
struct StoredIdentity {
    authority: pki::StoredAuthority,
    apple: SimulatedAppleKey,
    google: SimulatedServiceAccount,
    google_signer_id: String,
    google_signer: String,
}

impl SimulatorIdentity {
    /// Creates an identity whose certificates are valid ten years before and after `now`.
    pub fn new(now: Timestamp) -> Self {
        Self(Arc::new(IdentityParts {
            authority: CertificateAuthority::new(now),
            apple_key: SimulatedAppleKey::new(&token::generate_uuid()),
            service_account: SimulatedServiceAccount::new("attesto"),
            google_signing_key: GoogleSigningKey::new(),
        }))
    }

    /// Loads the identity from `folder`, or creates one and saves it there, readable by its owner only.
    pub(crate) fn load_or_create(folder: &Path, now: Timestamp) -> io::Result<Self> {
        let file = folder.join(IDENTITY_FILE);
        match fs::read(&file) {
            Ok(text) => Self::from_stored_json(&text).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "{} was not written by this simulator; remove it to create new keys",
                        file.display()
                    ),
                )
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let identity = Self::new(now);
                let text = serde_json::to_vec_pretty(&identity.to_stored())?;
                write_private_file(&file, &text)?;
                Ok(identity)
            }
            Err(error) => Err(error),
        }
    }

    fn to_stored(&self) -> StoredIdentity {
        StoredIdentity {
            authority: self.0.authority.to_stored(),
            apple: self.0.apple_key.clone(),
            google: self.0.service_account.clone(),
            google_signer_id: self.0.google_signing_key.key_id.clone(),
            google_signer: STANDARD.encode(to_pkcs8(&self.0.google_signing_key.key_pair)),
        }
    }

    fn from_stored_json(text: &[u8]) -> Option<Self> {
        let stored: StoredIdentity = serde_json::from_slice(text).ok()?;
        let signer = STANDARD.decode(&stored.google_signer).ok()?;
        Some(Self(Arc::new(IdentityParts {
            authority: CertificateAuthority::from_stored(&stored.authority)?,
            apple_key: stored.apple,
            service_account: stored.google,
            google_signing_key: GoogleSigningKey {
                key_id: stored.google_signer_id,
                key_pair: Arc::new(rsa::KeyPair::from_pkcs8(&signer).ok()?),
            },
        })))
    }

    /// The App Store's certificates.
    pub fn certificate_authority(&self) -> &CertificateAuthority {
        &self.0.authority
    }

    /// The key that an app's developer has for the App Store Server API.
    pub fn apple_key(&self) -> &SimulatedAppleKey {
        &self.0.apple_key
    }

    /// The service account that an app's developer has for the Play Developer API.
    pub fn service_account(&self) -> &SimulatedServiceAccount {
        &self.0.service_account
    }

    /// Google's public keys, as a JWK set.
    pub(crate) fn google_jwk_set(&self) -> Value {
        json!({ "keys": [self.0.google_signing_key.to_jwk()] })
    }

    /// The key that signs the tokens of Pub/Sub pushes.
    pub fn google_signing_key(&self) -> &GoogleSigningKey {
        &self.0.google_signing_key
    }
}

impl GoogleSigningKey {
    /// Generates a key and its id.
    pub fn new() -> Self {
        Self {
            key_id: random_hex(20),
            key_pair: Arc::new(generate_rsa_key()),
        }
    }

    /// The `kid` in the JWK set.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The public key, as an entry of a JWK set.
    pub(crate) fn to_jwk(&self) -> Value {
        let public = self.key_pair.public_key();
        let part = |number: &[u8]| URL_SAFE_NO_PAD.encode(number);
        json!({
            "kty": "RSA",
            "alg": "RS256",
            "use": "sig",
            "kid": self.key_id,
            "n": part(public.modulus().big_endian_without_leading_zero()),
            "e": part(public.exponent().big_endian_without_leading_zero()),
        })
    }

    /// Signs claims as a JWT with RS256.
    pub fn sign_jwt(&self, claims: &Value) -> String {
        self.sign_jwt_with_kid(&self.key_id, claims)
    }

    /// The same, with the `kid` of another key.
    pub(crate) fn sign_jwt_with_kid(&self, id: &str, claims: &Value) -> String {
        let header = json!({ "alg": "RS256", "kid": id, "typ": "JWT" });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let mut signature = vec![0; self.key_pair.public_modulus_len()];
        self.key_pair
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                signed.as_bytes(),
                &mut signature,
            )
            .expect("an RSA key signs");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// A forgery: HS256 with the public key as the secret.
    pub(crate) fn sign_jwt_with_hs256(&self, claims: &Value) -> String {
        let header = json!({ "alg": "HS256", "kid": self.key_id, "typ": "JWT" });
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let secret = hmac::Key::new(hmac::HMAC_SHA256, self.key_pair.public_key().as_ref());
        let tag = hmac::sign(&secret, signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag))
    }
}

impl Default for GoogleSigningKey {
    fn default() -> Self {
        Self::new()
    }
}

impl SimulatedAppleKey {
    /// Generates a key of a team.
    pub fn new(issuer_id: &str) -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .expect("a key can be made");
        Self {
            issuer_id: issuer_id.to_owned(),
            key_id: random_key_id(),
            private_key: encode_pem("PRIVATE KEY", pair.serialized_der()),
            public_key: STANDARD.encode(pair.public_key_raw()),
        }
    }
}

impl SimulatedServiceAccount {
    /// Generates an account; `name` becomes part of its address.
    pub fn new(name: &str) -> Self {
        let pair = generate_rsa_key();
        Self {
            client_email: format!("{name}@simulator.iam.gserviceaccount.com"),
            private_key_id: random_hex(20),
            private_key: encode_pem("PRIVATE KEY", &to_pkcs8(&pair)),
            public_key: STANDARD.encode(pair.public_key().as_ref()),
        }
    }

    /// The JSON key file that the console downloads.
    pub fn to_key_file(&self, token_uri: &str) -> Value {
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

fn generate_rsa_key() -> rsa::KeyPair {
    rsa::KeyPair::generate(KeySize::Rsa2048).expect("an RSA key can be made")
}

fn to_pkcs8(pair: &rsa::KeyPair) -> Vec<u8> {
    let der: Pkcs8V1Der<'_> = pair.as_der().expect("an RSA key can be written");
    der.as_ref().to_vec()
}

fn random_hex(bytes: usize) -> String {
    let mut random = vec![0; bytes];
    aws_lc_rs::rand::fill(&mut random).expect("the operating system gives random bytes");
    token::encode_hex(&random)
}

fn random_key_id() -> String {
    const LETTERS: &[u8] = b"23456789ABCDEFGHJKLMNPQRSTUVWXYZ";
    let mut random = [0; 10];
    aws_lc_rs::rand::fill(&mut random).expect("the operating system gives random bytes");
    random
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
        .collect()
}

/// Writes a file atomically, readable by its owner only; creates its folder.
pub(super) fn write_private_file(file: &Path, content: &[u8]) -> io::Result<()> {
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
