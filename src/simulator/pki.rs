//! A throw-away certificate authority that signs the way Apple does, and every way of getting it wrong.
//!
//! The chain has the shape of Apple's: a P-384 root, a P-384 intermediate and a P-256 leaf, every certificate signed
//! with ECDSA and SHA-384, Apple's marker extensions on intermediate and leaf, and no extended key usage. A JWS names
//! all three in `x5c` and is signed with ES256. Nobody but a verifier that was told to trust this very root believes
//! it.

use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PublicKeyData as _,
    SignatureAlgorithm,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use crate::clock::Timestamp;

/// What marks a leaf that signs receipts and transactions.
const LEAF_MARKER: &[u64] = &[1, 2, 840, 113_635, 100, 6, 11, 1];
/// What marks the intermediate that may issue such leaves.
const INTERMEDIATE_MARKER: &[u64] = &[1, 2, 840, 113_635, 100, 6, 2, 1];
/// Apple's markers of other uses, which must not do.
const OTHER_LEAF_MARKER: &[u64] = &[1, 2, 840, 113_635, 100, 6, 11, 2];
const OTHER_INTERMEDIATE_MARKER: &[u64] = &[1, 2, 840, 113_635, 100, 6, 2, 2];
/// Validity reaches this far to both sides of the moment of making, so that a test may travel in time.
const REACH: Duration = Duration::from_hours(10 * 365 * 24);
/// The content of a marker: an ASN.1 NULL.
const NULL: [u8; 2] = [5, 0];

/// The simulated App Store's certificates and keys.
pub struct Authority {
    made: Timestamp,
    root: Link,
    intermediate: Link,
    leaf: Link,
    /// The leaf's key, ready to sign.
    signer: EcdsaKeyPair,
    /// The first segment of every JWS, written once.
    header: String,
}

/// A certificate and its key.
struct Link {
    certificate: Vec<u8>,
    key: KeyPair,
}

/// An authority as it is kept in a file. Holds private keys.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    made: Timestamp,
    root: KeptLink,
    intermediate: KeptLink,
    leaf: KeptLink,
}

/// Base64 of a DER certificate and of its PKCS#8 key.
#[derive(Serialize, Deserialize)]
struct KeptLink {
    certificate: String,
    key: String,
}

impl Authority {
    /// A new authority, valid for ten years to both sides of `now`.
    pub fn new(now: Timestamp) -> Self {
        let root_key = key(&PKCS_ECDSA_P384_SHA384);
        let root = root_parameters(now)
            .self_signed(&root_key)
            .expect("a root can be made");
        let root = Link {
            certificate: root.der().to_vec(),
            key: root_key,
        };
        let intermediate = root.issue(
            root_parameters(now),
            &intermediate_parameters(now, INTERMEDIATE_MARKER),
            &PKCS_ECDSA_P384_SHA384,
        );
        let leaf = intermediate.issue(
            intermediate_parameters(now, INTERMEDIATE_MARKER),
            &leaf_parameters(now, LEAF_MARKER),
            &PKCS_ECDSA_P256_SHA256,
        );
        Self::of(now, root, intermediate, leaf)
    }

    fn of(made: Timestamp, root: Link, intermediate: Link, leaf: Link) -> Self {
        let chain = [&root, &intermediate, &leaf].map(|link| STANDARD.encode(&link.certificate));
        let [root_text, intermediate_text, leaf_text] = &chain;
        let header = header(&json!({
            "alg": "ES256",
            "x5c": [leaf_text, intermediate_text, root_text],
        }));
        Self {
            made,
            signer: signer(&leaf.key),
            root,
            intermediate,
            leaf,
            header,
        }
    }

    pub(super) fn keep(&self) -> Kept {
        Kept {
            made: self.made,
            root: self.root.keep(),
            intermediate: self.intermediate.keep(),
            leaf: self.leaf.keep(),
        }
    }

    /// `None` when the file does not hold what [`Authority::keep`] wrote.
    pub(super) fn restore(kept: &Kept) -> Option<Self> {
        Some(Self::of(
            kept.made,
            kept.root.restore(&PKCS_ECDSA_P384_SHA384)?,
            kept.intermediate.restore(&PKCS_ECDSA_P384_SHA384)?,
            kept.leaf.restore(&PKCS_ECDSA_P256_SHA256)?,
        ))
    }

    /// The root to trust, as DER.
    pub fn root_der(&self) -> &[u8] {
        &self.root.certificate
    }

    /// The root to trust, as PEM.
    pub fn root_pem(&self) -> String {
        pem("CERTIFICATE", &self.root.certificate)
    }

    /// A payload as a JWS that verifies.
    pub fn sign(&self, payload: &Map<String, Value>) -> String {
        signed(&self.signer, &self.header, &segment(payload))
    }

    /// A payload as a JWS that must not be believed, or (the last three) not be taken for this app's purchase.
    #[expect(clippy::too_many_lines, reason = "one arm for each forgery")]
    pub fn forge(&self, forgery: Forgery, payload: &Map<String, Value>) -> String {
        let made = self.made;
        let body = segment(payload);
        let chain = |links: &[&Link]| {
            let x5c: Vec<String> = links
                .iter()
                .map(|link| STANDARD.encode(&link.certificate))
                .collect();
            header(&json!({ "alg": "ES256", "x5c": x5c }))
        };
        // A leaf of the genuine intermediate, made to `parameters`.
        let leaf = |parameters: CertificateParams| {
            self.intermediate.issue(
                intermediate_parameters(made, INTERMEDIATE_MARKER),
                &parameters,
                &PKCS_ECDSA_P256_SHA256,
            )
        };
        // A leaf under an intermediate of the genuine root, made to `parameters`.
        let branch = |parameters: CertificateParams| {
            let intermediate =
                self.root
                    .issue(root_parameters(made), &parameters, &PKCS_ECDSA_P384_SHA384);
            let leaf = intermediate.issue(
                parameters,
                &leaf_parameters(made, LEAF_MARKER),
                &PKCS_ECDSA_P256_SHA256,
            );
            let header = chain(&[&leaf, &intermediate, &self.root]);
            signed(&signer(&leaf.key), &header, &body)
        };
        match forgery {
            Forgery::WrongRoot => Self::new(made).sign(payload),
            Forgery::LookAlikeRoot => {
                let other = Self::new(made);
                let header = chain(&[&other.leaf, &other.intermediate, &self.root]);
                signed(&other.signer, &header, &body)
            }
            Forgery::ForeignLeaf => {
                let other = Self::new(made);
                let header = chain(&[&other.leaf, &self.intermediate, &self.root]);
                signed(&other.signer, &header, &body)
            }
            Forgery::LeafWithoutMarker => {
                let leaf = leaf(leaf_parameters(made, OTHER_LEAF_MARKER));
                let header = chain(&[&leaf, &self.intermediate, &self.root]);
                signed(&signer(&leaf.key), &header, &body)
            }
            Forgery::IntermediateWithoutMarker => {
                branch(intermediate_parameters(made, OTHER_INTERMEDIATE_MARKER))
            }
            Forgery::IntermediateNotCa => {
                let mut parameters = intermediate_parameters(made, INTERMEDIATE_MARKER);
                parameters.is_ca = IsCa::ExplicitNoCa;
                branch(parameters)
            }
            Forgery::ExpiredLeaf => {
                let mut parameters = leaf_parameters(made, LEAF_MARKER);
                parameters.not_before = moment(made.minus(REACH));
                parameters.not_after = moment(made.minus(REACH / 2));
                let leaf = leaf(parameters);
                let header = chain(&[&leaf, &self.intermediate, &self.root]);
                signed(&signer(&leaf.key), &header, &body)
            }
            Forgery::NoCertificates => {
                signed(&self.signer, &header(&json!({ "alg": "ES256" })), &body)
            }
            Forgery::TwoCertificates => {
                let header = chain(&[&self.leaf, &self.intermediate]);
                signed(&self.signer, &header, &body)
            }
            Forgery::FourCertificates => {
                let header = chain(&[&self.leaf, &self.intermediate, &self.root, &self.root]);
                signed(&self.signer, &header, &body)
            }
            Forgery::OtherKey => {
                signed(&signer(&key(&PKCS_ECDSA_P256_SHA256)), &self.header, &body)
            }
            Forgery::AlteredPayload => {
                let genuine = self.sign(payload);
                let mut altered = payload.clone();
                altered.insert("productId".to_owned(), json!("com.example.app.everything"));
                replace(&genuine, 1, &segment(&altered))
            }
            Forgery::AlteredSignature => {
                let genuine = self.sign(payload);
                let signature = genuine.rsplit('.').next().unwrap_or_default();
                let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
                if let Some(byte) = bytes.last_mut() {
                    *byte ^= 1;
                }
                replace(&genuine, 2, &URL_SAFE_NO_PAD.encode(bytes))
            }
            Forgery::ReencodedHeader => {
                let genuine = self.sign(payload);
                let text = URL_SAFE_NO_PAD.decode(&self.header).unwrap_or_default();
                let spaced = [b" ".as_slice(), &text].concat();
                replace(&genuine, 0, &URL_SAFE_NO_PAD.encode(spaced))
            }
            Forgery::Truncated => {
                let genuine = self.sign(payload);
                genuine[..genuine.len() - 20].to_owned()
            }
            Forgery::AlgorithmNone => {
                let mut header_value = self.header_value();
                header_value["alg"] = json!("none");
                format!("{}.{body}.", header(&header_value))
            }
            Forgery::AlgorithmHs256 => {
                let mut header_value = self.header_value();
                header_value["alg"] = json!("HS256");
                let input = format!("{}.{body}", header(&header_value));
                let key = hmac::Key::new(hmac::HMAC_SHA256, self.leaf.key.der_bytes());
                let tag = hmac::sign(&key, input.as_bytes());
                format!("{input}.{}", URL_SAFE_NO_PAD.encode(tag))
            }
            Forgery::Xcode => {
                let leaf = Self::new(made).leaf;
                let header = header(&json!({
                    "alg": "ES256",
                    "kid": "Apple_Xcode_Key",
                    "typ": "JWT",
                    "x5c": [STANDARD.encode(&leaf.certificate)],
                }));
                let mut local = payload.clone();
                local.insert("environment".to_owned(), json!("Xcode"));
                signed(&signer(&leaf.key), &header, &segment(&local))
            }
            Forgery::OtherBundle => {
                let mut other = payload.clone();
                other.insert("bundleId".to_owned(), json!("com.example.stranger"));
                self.sign(&other)
            }
            Forgery::OtherEnvironment => {
                let mut other = payload.clone();
                let flipped = match payload.get("environment").and_then(Value::as_str) {
                    Some("Production") => "Sandbox",
                    _ => "Production",
                };
                other.insert("environment".to_owned(), json!(flipped));
                self.sign(&other)
            }
        }
    }

    fn header_value(&self) -> Value {
        let text = URL_SAFE_NO_PAD.decode(&self.header).unwrap_or_default();
        serde_json::from_slice(&text).expect("the header was written here")
    }
}

/// A way in which a JWS can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Forgery {
    /// All is well but the root: another authority with the same names.
    WrongRoot,
    /// Leaf and intermediate of another authority, with the genuine root put third.
    LookAlikeRoot,
    /// A leaf of another authority, with the genuine intermediate and root.
    ForeignLeaf,
    /// The leaf carries Apple's marker of another use.
    LeafWithoutMarker,
    /// The intermediate carries Apple's marker of another use.
    IntermediateWithoutMarker,
    /// The intermediate is no certificate authority.
    IntermediateNotCa,
    /// The leaf had expired when the payload says it was signed.
    ExpiredLeaf,
    /// The header names no certificate.
    NoCertificates,
    /// The root is left out.
    TwoCertificates,
    /// The root is named twice.
    FourCertificates,
    /// Signed with a key that is not the leaf's.
    OtherKey,
    /// The payload was exchanged after signing.
    AlteredPayload,
    /// One bit of the signature is flipped.
    AlteredSignature,
    /// The header means the same but is written differently from what was signed.
    ReencodedHeader,
    /// The last characters are missing.
    Truncated,
    /// `alg` is `none` and there is no signature.
    AlgorithmNone,
    /// `alg` is `HS256`, keyed with the leaf's public key.
    AlgorithmHs256,
    /// As Xcode's local `StoreKit` signs: its own certificate, environment `Xcode`.
    Xcode,
    /// Genuine, but of the app `com.example.stranger`.
    OtherBundle,
    /// Genuine, but of the other environment.
    OtherEnvironment,
}

impl Forgery {
    /// Every one, in the order of their documentation.
    pub const ALL: [Self; 20] = [
        Self::WrongRoot,
        Self::LookAlikeRoot,
        Self::ForeignLeaf,
        Self::LeafWithoutMarker,
        Self::IntermediateWithoutMarker,
        Self::IntermediateNotCa,
        Self::ExpiredLeaf,
        Self::NoCertificates,
        Self::TwoCertificates,
        Self::FourCertificates,
        Self::OtherKey,
        Self::AlteredPayload,
        Self::AlteredSignature,
        Self::ReencodedHeader,
        Self::Truncated,
        Self::AlgorithmNone,
        Self::AlgorithmHs256,
        Self::Xcode,
        Self::OtherBundle,
        Self::OtherEnvironment,
    ];
}

impl Link {
    /// A certificate for a new key, signed by this one, whose own parameters are `issuer`.
    fn issue(
        &self,
        issuer: CertificateParams,
        subject: &CertificateParams,
        algorithm: &'static SignatureAlgorithm,
    ) -> Self {
        let key = key(algorithm);
        let issuer = Issuer::new(issuer, &self.key);
        let certificate = subject
            .signed_by(&key, &issuer)
            .expect("a certificate can be made");
        Self {
            certificate: certificate.der().to_vec(),
            key,
        }
    }

    fn keep(&self) -> KeptLink {
        KeptLink {
            certificate: STANDARD.encode(&self.certificate),
            key: STANDARD.encode(self.key.serialized_der()),
        }
    }
}

impl KeptLink {
    fn restore(&self, algorithm: &'static SignatureAlgorithm) -> Option<Link> {
        let key = STANDARD.decode(&self.key).ok()?;
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key);
        Some(Link {
            certificate: STANDARD.decode(&self.certificate).ok()?,
            key: KeyPair::from_pkcs8_der_and_sign_algo(&key, algorithm).ok()?,
        })
    }
}

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("a key can be made")
}

fn root_parameters(now: Timestamp) -> CertificateParams {
    let mut parameters = parameters(now, "Simulated Root CA - G3");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}

fn intermediate_parameters(now: Timestamp, marker: &[u64]) -> CertificateParams {
    let mut parameters = parameters(now, "Simulated Worldwide Developer Relations CA");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.custom_extensions = vec![CustomExtension::from_oid_content(marker, NULL.to_vec())];
    parameters
}

fn leaf_parameters(now: Timestamp, marker: &[u64]) -> CertificateParams {
    let mut parameters = parameters(now, "Simulated App Store Receipt Signing");
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.custom_extensions = vec![CustomExtension::from_oid_content(marker, NULL.to_vec())];
    parameters
}

fn parameters(now: Timestamp, name: &str) -> CertificateParams {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject.push(DnType::OrganizationName, "Attesto simulator (not Apple)");
    subject.push(DnType::CountryName, "US");
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = subject;
    parameters.not_before = moment(now.minus(REACH));
    parameters.not_after = moment(now.plus(REACH));
    parameters.use_authority_key_identifier_extension = true;
    parameters
}

fn moment(timestamp: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from(timestamp)
}

fn header(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn segment(payload: &Map<String, Value>) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(payload).expect("a JSON object can be written"))
}

fn signer(key: &KeyPair) -> EcdsaKeyPair {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der())
        .expect("a leaf's key is on P-256")
}

fn signed(key: &EcdsaKeyPair, header: &str, body: &str) -> String {
    let input = format!("{header}.{body}");
    let signature = key
        .sign(&SystemRandom::new(), input.as_bytes())
        .expect("signing works");
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A JWS with one of its three parts exchanged.
fn replace(jws: &str, part: usize, by: &str) -> String {
    let mut parts: Vec<&str> = jws.split('.').collect();
    parts[part] = by;
    parts.join(".")
}

/// DER between PEM's lines.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        pem.push('\n');
    }
    pem.push_str("-----END ");
    pem.push_str(label);
    pem.push_str("-----\n");
    pem
}
