//! A certificate authority that signs as Apple does, and forgeries of its signatures.
//!
//! The chain has the shape of Apple's: a P-384 root, a P-384 intermediate and a P-256 leaf, every certificate signed
//! with ECDSA and SHA-384, Apple's marker extensions on intermediate and leaf, and no extended key usage. Names, policies and
//! addresses of lists are as long as Apple's, so that a JWS is as large. A JWS names all three in `x5c` and is signed with
//! ES256. It verifies only where this very
//! root is trusted.

use std::time::Duration;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use der::Encode;
use der::asn1::{Any, Ia5String, ObjectIdentifier};
use der::oid::AssociatedOid;
use rcgen::{
    BasicConstraints, CertificateParams, CrlDistributionPoint, CustomExtension, DistinguishedName,
    DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PublicKeyData as _, SignatureAlgorithm,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use strum::{EnumCount, VariantArray};
use time::OffsetDateTime;
use x509_cert::ext::pkix::certpolicy::{
    CertificatePolicies, DisplayText, PolicyInformation, PolicyQualifierInfo, UserNotice,
};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{AccessDescription, AuthorityInfoAccessSyntax};

use crate::base::clock::Timestamp;

/// The extension of a leaf that signs receipts and transactions.
const LEAF_MARKER_OID: &[u64] = &[1, 2, 840, 113_635, 100, 6, 11, 1];
/// The extension of the intermediate that may issue such leaves.
const INTERMEDIATE_MARKER_OID: &[u64] = &[1, 2, 840, 113_635, 100, 6, 2, 1];
/// Apple's extensions for other uses, which a verifier must refuse.
const OTHER_LEAF_MARKER_OID: &[u64] = &[1, 2, 840, 113_635, 100, 6, 11, 2];
const OTHER_INTERMEDIATE_MARKER_OID: &[u64] = &[1, 2, 840, 113_635, 100, 6, 2, 2];
/// Apple's policy for certificates of this kind.
const POLICY_OID: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113635.100.5.6.1");
const ID_QT_CPS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.2.1");
const ID_QT_UNOTICE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.2.2");
const ID_AD_CA_ISSUERS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.2");
const POLICY_NOTICE: &str = "Made by a simulator for tests, and not issued by Apple. What is signed with this certificate \
    proves no purchase, and its root must not be trusted.";
/// Certificates are valid this long before and after their creation, so that a test can move the clock.
const VALIDITY_MARGIN: Duration = Duration::from_hours(10 * 365 * 24);
/// The value of these extensions: an ASN.1 NULL.
const ASN1_NULL: [u8; 2] = [5, 0];

/// The simulated App Store's certificates and keys.
pub struct CertificateAuthority {
    created_at: Timestamp,
    root: CertificateAndKey,
    intermediate: CertificateAndKey,
    leaf: CertificateAndKey,
    /// The leaf's key, ready to sign.
    signing_key: EcdsaKeyPair,
    /// The first segment of every JWS, written once.
    jws_header: String,
}

struct CertificateAndKey {
    certificate: Vec<u8>,
    key: KeyPair,
}

/// An authority as it is saved to a file. Contains private keys.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredAuthority {
    made: Timestamp,
    root: StoredCertificate,
    intermediate: StoredCertificate,
    leaf: StoredCertificate,
}

/// Base64 of a DER certificate and of its PKCS#8 key.
#[derive(Serialize, Deserialize)]
struct StoredCertificate {
    certificate: String,
    key: String,
}

impl CertificateAuthority {
    /// A new authority, valid for ten years to both sides of `now`.
    pub fn new(now: Timestamp) -> Self {
        let root_key = generate_key(&PKCS_ECDSA_P384_SHA384);
        let root = root_parameters(now)
            .self_signed(&root_key)
            .expect("a root can be made");
        let root = CertificateAndKey {
            certificate: root.der().to_vec(),
            key: root_key,
        };
        let intermediate = root.issue_certificate(
            root_parameters(now),
            &intermediate_parameters(now, INTERMEDIATE_MARKER_OID),
            &PKCS_ECDSA_P384_SHA384,
        );
        let leaf = intermediate.issue_certificate(
            intermediate_parameters(now, INTERMEDIATE_MARKER_OID),
            &leaf_parameters(now, LEAF_MARKER_OID),
            &PKCS_ECDSA_P256_SHA256,
        );
        Self::from_chain(now, root, intermediate, leaf)
    }

    fn from_chain(
        created_at: Timestamp,
        root: CertificateAndKey,
        intermediate: CertificateAndKey,
        leaf: CertificateAndKey,
    ) -> Self {
        let chain = [&root, &intermediate, &leaf].map(|link| STANDARD.encode(&link.certificate));
        let [root_text, intermediate_text, leaf_text] = &chain;
        let jws_header = encode_header(&json!({
            "alg": "ES256",
            "x5c": [leaf_text, intermediate_text, root_text],
        }));
        Self {
            created_at,
            signing_key: to_signing_key(&leaf.key),
            root,
            intermediate,
            leaf,
            jws_header,
        }
    }

    pub(super) fn to_stored(&self) -> StoredAuthority {
        StoredAuthority {
            made: self.created_at,
            root: self.root.to_stored(),
            intermediate: self.intermediate.to_stored(),
            leaf: self.leaf.to_stored(),
        }
    }

    /// `None` when a certificate or a key cannot be decoded.
    pub(super) fn from_stored(stored: &StoredAuthority) -> Option<Self> {
        Some(Self::from_chain(
            stored.made,
            stored
                .root
                .to_certificate_and_key(&PKCS_ECDSA_P384_SHA384)?,
            stored
                .intermediate
                .to_certificate_and_key(&PKCS_ECDSA_P384_SHA384)?,
            stored
                .leaf
                .to_certificate_and_key(&PKCS_ECDSA_P256_SHA256)?,
        ))
    }

    /// The root to trust, as DER.
    pub fn root_der(&self) -> &[u8] {
        &self.root.certificate
    }

    /// The root to trust, as PEM.
    pub(crate) fn root_pem(&self) -> String {
        encode_pem("CERTIFICATE", &self.root.certificate)
    }

    /// Signs a payload as a compact JWS that verifies against the root.
    pub fn sign_jws(&self, payload: &Map<String, Value>) -> String {
        self.sign_encoded(&encode_payload(payload))
    }

    /// The same of a text, which need not be JSON.
    pub(crate) fn sign_jws_text(&self, payload: &str) -> String {
        self.sign_encoded(&URL_SAFE_NO_PAD.encode(payload))
    }

    fn sign_encoded(&self, payload: &str) -> String {
        sign_compact_jws(&self.signing_key, &self.jws_header, payload)
    }

    /// A payload as a JWS that a verifier must refuse. The last two kinds verify, but are of another app or environment.
    #[expect(clippy::too_many_lines, reason = "one arm for each forgery")]
    pub fn forge_jws(&self, forgery: JwsForgery, payload: &Map<String, Value>) -> String {
        let made = self.created_at;
        let body = encode_payload(payload);
        let chain = |links: &[&CertificateAndKey]| {
            let x5c: Vec<String> = links
                .iter()
                .map(|link| STANDARD.encode(&link.certificate))
                .collect();
            encode_header(&json!({ "alg": "ES256", "x5c": x5c }))
        };
        // A leaf of the genuine intermediate, made to `parameters`.
        let leaf = |parameters: CertificateParams| {
            self.intermediate.issue_certificate(
                intermediate_parameters(made, INTERMEDIATE_MARKER_OID),
                &parameters,
                &PKCS_ECDSA_P256_SHA256,
            )
        };
        let sign_with = |leaf: &CertificateAndKey, header: &str| {
            sign_compact_jws(&to_signing_key(&leaf.key), header, &body)
        };
        // A leaf under an intermediate of the genuine root, made to `parameters`.
        let branch = |parameters: CertificateParams| {
            let intermediate = self.root.issue_certificate(
                root_parameters(made),
                &parameters,
                &PKCS_ECDSA_P384_SHA384,
            );
            let leaf = intermediate.issue_certificate(
                parameters,
                &leaf_parameters(made, LEAF_MARKER_OID),
                &PKCS_ECDSA_P256_SHA256,
            );
            let header = chain(&[&leaf, &intermediate, &self.root]);
            sign_with(&leaf, &header)
        };
        match forgery {
            JwsForgery::WrongRoot => Self::new(made).sign_jws(payload),
            JwsForgery::LookAlikeRoot => {
                let other = Self::new(made);
                let header = chain(&[&other.leaf, &other.intermediate, &self.root]);
                sign_with(&other.leaf, &header)
            }
            JwsForgery::ForeignLeaf => {
                let other = Self::new(made);
                let header = chain(&[&other.leaf, &self.intermediate, &self.root]);
                sign_with(&other.leaf, &header)
            }
            JwsForgery::LeafWithoutMarker => {
                let leaf = leaf(leaf_parameters(made, OTHER_LEAF_MARKER_OID));
                let header = chain(&[&leaf, &self.intermediate, &self.root]);
                sign_with(&leaf, &header)
            }
            JwsForgery::IntermediateWithoutMarker => {
                branch(intermediate_parameters(made, OTHER_INTERMEDIATE_MARKER_OID))
            }
            JwsForgery::IntermediateNotCa => {
                let mut parameters = intermediate_parameters(made, INTERMEDIATE_MARKER_OID);
                parameters.is_ca = IsCa::ExplicitNoCa;
                branch(parameters)
            }
            JwsForgery::ExpiredLeaf => {
                let mut parameters = leaf_parameters(made, LEAF_MARKER_OID);
                parameters.not_before = to_offset_date_time(made.minus(VALIDITY_MARGIN));
                parameters.not_after = to_offset_date_time(made.minus(VALIDITY_MARGIN / 2));
                let leaf = leaf(parameters);
                let header = chain(&[&leaf, &self.intermediate, &self.root]);
                sign_with(&leaf, &header)
            }
            JwsForgery::NoCertificates => sign_compact_jws(
                &self.signing_key,
                &encode_header(&json!({ "alg": "ES256" })),
                &body,
            ),
            JwsForgery::TwoCertificates => {
                let header = chain(&[&self.leaf, &self.intermediate]);
                sign_with(&self.leaf, &header)
            }
            JwsForgery::FourCertificates => {
                let header = chain(&[&self.leaf, &self.intermediate, &self.root, &self.root]);
                sign_with(&self.leaf, &header)
            }
            JwsForgery::OtherKey => sign_compact_jws(
                &to_signing_key(&generate_key(&PKCS_ECDSA_P256_SHA256)),
                &self.jws_header,
                &body,
            ),
            JwsForgery::AlteredPayload => {
                let genuine = self.sign_jws(payload);
                let mut altered = payload.clone();
                altered.insert("productId".to_owned(), json!("com.example.app.everything"));
                replace_jws_part(&genuine, 1, &encode_payload(&altered))
            }
            JwsForgery::AlteredSignature => {
                let genuine = self.sign_jws(payload);
                let signature = genuine.rsplit('.').next().unwrap_or_default();
                let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap_or_default();
                if let Some(byte) = bytes.last_mut() {
                    *byte ^= 1;
                }
                replace_jws_part(&genuine, 2, &URL_SAFE_NO_PAD.encode(bytes))
            }
            JwsForgery::ReencodedHeader => {
                let genuine = self.sign_jws(payload);
                let text = URL_SAFE_NO_PAD.decode(&self.jws_header).unwrap_or_default();
                let spaced = [b" ".as_slice(), &text].concat();
                replace_jws_part(&genuine, 0, &URL_SAFE_NO_PAD.encode(spaced))
            }
            JwsForgery::Truncated => {
                let genuine = self.sign_jws(payload);
                genuine[..genuine.len() - 20].to_owned()
            }
            JwsForgery::AlgorithmNone => {
                format!("{}.{body}.", self.jws_header_with_alg("none"))
            }
            JwsForgery::AlgorithmHs256 => {
                let input = format!("{}.{body}", self.jws_header_with_alg("HS256"));
                let key = hmac::Key::new(hmac::HMAC_SHA256, self.leaf.key.der_bytes());
                let tag = hmac::sign(&key, input.as_bytes());
                format!("{input}.{}", URL_SAFE_NO_PAD.encode(tag))
            }
            JwsForgery::Xcode => {
                let leaf = Self::new(made).leaf;
                let header = encode_header(&json!({
                    "alg": "ES256",
                    "kid": "Apple_Xcode_Key",
                    "typ": "JWT",
                    "x5c": [STANDARD.encode(&leaf.certificate)],
                }));
                let mut local = payload.clone();
                local.insert("environment".to_owned(), json!("Xcode"));
                sign_compact_jws(&to_signing_key(&leaf.key), &header, &encode_payload(&local))
            }
            JwsForgery::OtherBundle => {
                let mut other = payload.clone();
                other.insert("bundleId".to_owned(), json!("com.example.stranger"));
                self.sign_jws(&other)
            }
            JwsForgery::OtherEnvironment => {
                let mut other = payload.clone();
                let flipped = match payload.get("environment").and_then(Value::as_str) {
                    Some("Production") => "Sandbox",
                    _ => "Production",
                };
                other.insert("environment".to_owned(), json!(flipped));
                self.sign_jws(&other)
            }
        }
    }

    fn jws_header_with_alg(&self, algorithm: &str) -> String {
        let text = URL_SAFE_NO_PAD.decode(&self.jws_header).unwrap_or_default();
        let mut header: Value = serde_json::from_slice(&text).expect("the header was written here");
        header["alg"] = json!(algorithm);
        encode_header(&header)
    }
}

/// A way to forge a JWS.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, EnumCount, VariantArray,
)]
#[serde(rename_all = "kebab-case")]
pub enum JwsForgery {
    /// A complete chain of another authority with the same names.
    WrongRoot,
    /// Leaf and intermediate of another authority, with the genuine root put third.
    LookAlikeRoot,
    /// A leaf of another authority, with the genuine intermediate and root.
    ForeignLeaf,
    /// The leaf has Apple's extension for another use.
    LeafWithoutMarker,
    /// The intermediate has Apple's extension for another use.
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
    /// The payload was replaced after signing.
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

impl JwsForgery {
    /// Every kind, in the order of their documentation.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().expect("as many as COUNT");
}

impl CertificateAndKey {
    /// A certificate for a new key, signed by this one, whose own parameters are `issuer`.
    fn issue_certificate(
        &self,
        issuer: CertificateParams,
        subject: &CertificateParams,
        algorithm: &'static SignatureAlgorithm,
    ) -> Self {
        let key = generate_key(algorithm);
        let issuer = Issuer::new(issuer, &self.key);
        let certificate = subject
            .signed_by(&key, &issuer)
            .expect("a certificate can be made");
        Self {
            certificate: certificate.der().to_vec(),
            key,
        }
    }

    fn to_stored(&self) -> StoredCertificate {
        StoredCertificate {
            certificate: STANDARD.encode(&self.certificate),
            key: STANDARD.encode(self.key.serialized_der()),
        }
    }
}

impl StoredCertificate {
    fn to_certificate_and_key(
        &self,
        algorithm: &'static SignatureAlgorithm,
    ) -> Option<CertificateAndKey> {
        let key = STANDARD.decode(&self.key).ok()?;
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key);
        Some(CertificateAndKey {
            certificate: STANDARD.decode(&self.certificate).ok()?,
            key: KeyPair::from_pkcs8_der_and_sign_algo(&key, algorithm).ok()?,
        })
    }
}

fn generate_key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("a key can be made")
}

fn root_parameters(now: Timestamp) -> CertificateParams {
    let mut parameters = base_parameters(
        now,
        "Simulated Root CA - G3",
        "Simulated Certification Authority",
    );
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.use_authority_key_identifier_extension = false;
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}

fn intermediate_parameters(now: Timestamp, marker: &[u64]) -> CertificateParams {
    let mut parameters = base_parameters(
        now,
        "Simulated Worldwide Developer Relations Certification Authority",
        "G6",
    );
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters.custom_extensions = vec![
        CustomExtension::from_oid_content(marker, ASN1_NULL.to_vec()),
        issuer_address("http://certs.simulator.invalid/rootg3.der"),
    ];
    parameters.crl_distribution_points = vec![CrlDistributionPoint {
        uris: vec!["http://crl.simulator.invalid/rootg3.crl".to_owned()],
    }];
    parameters
}

fn leaf_parameters(now: Timestamp, marker: &[u64]) -> CertificateParams {
    let mut parameters = base_parameters(
        now,
        "Simulated ECC Mac App Store and iTunes Store Receipt Signing",
        "Simulated Worldwide Developer Relations",
    );
    parameters.is_ca = IsCa::ExplicitNoCa;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.custom_extensions = vec![
        CustomExtension::from_oid_content(marker, ASN1_NULL.to_vec()),
        issuer_address("http://certs.simulator.invalid/wwdrg6.der"),
        certificate_policy(),
    ];
    parameters
}

/// Where the issuer's certificate is (authority information access). It names no OCSP responder, because there is none.
fn issuer_address(url: &str) -> CustomExtension {
    let access = AuthorityInfoAccessSyntax(vec![AccessDescription {
        access_method: ID_AD_CA_ISSUERS,
        access_location: GeneralName::UniformResourceIdentifier(
            Ia5String::new(url).expect("an address is ASCII"),
        ),
    }]);
    to_extension(&access)
}

/// The policy under which a leaf is issued, with a notice to its users.
fn certificate_policy() -> CustomExtension {
    let qualifier = |id, qualifier| PolicyQualifierInfo {
        policy_qualifier_id: id,
        qualifier: Some(qualifier),
    };
    let notice = UserNotice {
        notice_ref: None,
        explicit_text: Some(DisplayText::Utf8String(POLICY_NOTICE.to_owned())),
    };
    let page = Ia5String::new("http://simulator.invalid/certificateauthority/");
    let encoded = (
        Any::encode_from(&notice),
        page.and_then(|page| Any::encode_from(&page)),
    );
    let (Ok(notice), Ok(page)) = encoded else {
        unreachable!("a short text is encoded");
    };
    to_extension(&CertificatePolicies(vec![PolicyInformation {
        policy_identifier: POLICY_OID,
        policy_qualifiers: Some(vec![
            qualifier(ID_QT_UNOTICE, notice),
            qualifier(ID_QT_CPS, page),
        ]),
    }]))
}

fn to_extension<T: AssociatedOid + Encode>(content: &T) -> CustomExtension {
    let oid: Vec<u64> = T::OID.arcs().map(u64::from).collect();
    CustomExtension::from_oid_content(&oid, content.to_der().expect("a short value is encoded"))
}

fn base_parameters(now: Timestamp, name: &str, unit: &str) -> CertificateParams {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject.push(DnType::OrganizationalUnitName, unit);
    subject.push(DnType::OrganizationName, "Simulator");
    subject.push(DnType::CountryName, "US");
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = subject;
    parameters.not_before = to_offset_date_time(now.minus(VALIDITY_MARGIN));
    parameters.not_after = to_offset_date_time(now.plus(VALIDITY_MARGIN));
    parameters.use_authority_key_identifier_extension = true;
    parameters
}

fn to_offset_date_time(timestamp: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from(timestamp)
}

fn encode_header(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn encode_payload(payload: &Map<String, Value>) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(payload).expect("a JSON object can be written"))
}

fn to_signing_key(key: &KeyPair) -> EcdsaKeyPair {
    EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der())
        .expect("a leaf's key is on P-256")
}

fn sign_compact_jws(key: &EcdsaKeyPair, header: &str, body: &str) -> String {
    let input = format!("{header}.{body}");
    let signature = key
        .sign(&SystemRandom::new(), input.as_bytes())
        .expect("signing works");
    format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// A JWS with one of its three parts replaced.
fn replace_jws_part(jws: &str, part: usize, by: &str) -> String {
    let mut parts: Vec<&str> = jws.split('.').collect();
    parts[part] = by;
    parts.join(".")
}

/// PEM with lines of 64 characters.
pub(super) fn encode_pem(label: &str, der: &[u8]) -> String {
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
