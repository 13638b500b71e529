//! Verifies that data was signed by Apple.
//!
//! A JWS is accepted if its signature was made with the key of a certificate whose chain leads to a pinned root, the
//! chain has Apple's two marker extensions, and every certificate was valid on the day the payload says it was signed.
//! The rules and their order are those of Apple's own server libraries. Two of them are easily got wrong:
//!
//! - `x5c` has three certificates and the third is ignored. Only the pinned roots are trusted.
//! - Validity is checked at the payload's `signedDate`, not now: a transaction that a device has kept since before
//!   Apple changed its signing certificate is still genuine.
//!
//! With `APPLE_OCSP=on`, as in Apple's libraries, validity is checked now ([`JwsVerifier::check_validity_at_now`]), and
//! the caller checks afterwards whether the certificates were revoked ([`super::ocsp`]). The functions here do no I/O.
//!
//! A chain is verified once and cached with the period in which all its certificates are valid. The signature is
//! verified every time, over the bytes as they were received.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use serde::Deserialize;
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, anchor_from_trusted_cert,
    aws_lc_rs as algorithms,
};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::ObjectIdentifier;
use x509_cert::ext::pkix::KeyUsage;

use super::chains::ChainCache;
use super::ocsp::{ChainCertificate, RevocationError};
use super::payload::{self, NotificationPayload, SignedPart};
use crate::base::clock::Timestamp;
use crate::crypto::redact;
use crate::deliveries::body::SharedContent;

/// The extension of the leaf certificate that signs for the App Store.
pub(super) const LEAF_MARKER: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113635.100.6.11.1");
/// The extension of the intermediate certificate of Apple's Worldwide Developer Relations.
pub(super) const INTERMEDIATE_MARKER: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113635.100.6.2.1");
/// Real transactions have 5 to 6 KB. Renewal and offer details may grow.
const MAX_JWS_BYTES: usize = 128 * 1024;
/// How far Apple's clock may be ahead of ours.
const MAX_CLOCK_SKEW: Duration = Duration::from_mins(5);
/// The bytes before the 65 bytes of a P-256 point in a `SubjectPublicKeyInfo` of 91 bytes.
const P256_SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Apple's roots, as published. A list, so that a successor can be added before Apple uses it.
const APPLE_ROOT_CERTIFICATES: [&[u8]; 1] = [include_bytes!("roots/AppleRootCA-G3.cer")];

/// Why a JWS is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SignatureError {
    /// Not three parts of base64url, or longer than [`MAX_JWS_BYTES`].
    #[error("it is not a compact JWS: three parts of base64url without padding, joined by dots")]
    NotAJws,
    /// The header is not valid JSON of a JWS header.
    #[error("its header is not readable")]
    BadHeader,
    /// `alg` is not ES256.
    #[error("its algorithm is not ES256, the only one Apple signs with")]
    WrongAlgorithm,
    /// `x5c` has another number of certificates than three.
    #[error("its header does not hold a chain of exactly three certificates")]
    WrongChainLength,
    /// Xcode signed it on a developer's machine, with a certificate of its own.
    #[error(
        "Xcode's local StoreKit signed it, with a certificate of its own; test with the sandbox or TestFlight, whose transactions Apple signs"
    )]
    SignedByXcode,
    /// A certificate cannot be parsed.
    #[error("a certificate of its chain cannot be read")]
    BadCertificate,
    /// The chain does not lead to a trusted root, or a certificate is used for something that it is not allowed for.
    #[error("its certificates do not lead to a trusted Apple root")]
    UntrustedChain,
    /// A certificate was not valid on the day of signing.
    #[error("a certificate of its chain was not valid on the day it says it was signed")]
    CertificateExpired,
    /// The leaf certificate lacks Apple's marker extension.
    #[error("its signing certificate is not one for App Store receipts")]
    MissingLeafMarker,
    /// The intermediate certificate lacks Apple's marker extension.
    #[error("its intermediate certificate is not Apple's Worldwide Developer Relations")]
    MissingIntermediateMarker,
    /// The payload cannot be parsed as JSON.
    #[error("its payload is not readable")]
    BadPayload,
    /// It was signed by Apple, and is not a transaction.
    #[error("it names no transaction: it is something else of Apple's")]
    NotATransaction,
    /// Its `signedDate` is more than five minutes in the future.
    #[error("it says it was signed in the future")]
    SignedInTheFuture,
    /// The signature was not made with the leaf's key over these bytes.
    #[error("its signature does not match: it was altered, or signed with another key")]
    BadSignature,
    /// Apple revoked a certificate of the chain.
    #[error("a certificate of its chain was revoked")]
    CertificateRevoked,
    /// Apple's OCSP responder does not know a certificate of the chain.
    #[error("Apple's responder knows nothing of a certificate of its chain")]
    CertificateUnknown,
    /// A certificate of the chain names no OCSP responder that may be called.
    #[error(
        "a certificate of its chain names no responder of Apple's that could be asked about it"
    )]
    NoOcspResponder,
    /// The OCSP responder gave no valid answer. The certificates may still be good.
    #[error("Apple's responder does not say whether the certificates were revoked")]
    OcspUnavailable {
        /// How long to wait before the next attempt.
        retry_after: Duration,
    },
}

impl From<RevocationError> for SignatureError {
    fn from(error: RevocationError) -> Self {
        match error {
            RevocationError::Revoked => Self::CertificateRevoked,
            RevocationError::Unknown => Self::CertificateUnknown,
            RevocationError::NoResponder => Self::NoOcspResponder,
            RevocationError::OcspUnavailable { retry_after } => {
                Self::OcspUnavailable { retry_after }
            }
        }
    }
}

impl SignatureError {
    /// The class of the error for programs and metrics.
    pub fn class(self) -> &'static str {
        match self {
            Self::NotAJws => "not_a_jws",
            Self::BadHeader => "bad_header",
            Self::WrongAlgorithm => "wrong_algorithm",
            Self::WrongChainLength | Self::SignedByXcode => "chain_length",
            Self::BadCertificate => "bad_certificate",
            Self::UntrustedChain => "untrusted_chain",
            Self::CertificateExpired => "certificate_expired",
            Self::MissingLeafMarker => "leaf_marker",
            Self::MissingIntermediateMarker => "intermediate_marker",
            Self::BadPayload => "bad_payload",
            Self::NotATransaction => "not_a_transaction",
            Self::SignedInTheFuture => "signed_in_the_future",
            Self::BadSignature => "bad_signature",
            Self::CertificateRevoked => "revoked",
            Self::CertificateUnknown => "unknown_to_responder",
            Self::NoOcspResponder => "no_responder",
            Self::OcspUnavailable { .. } => "responder_unavailable",
        }
    }
}

/// A verified chain: the leaf's key, and the period in which every certificate is valid.
pub(super) struct CertificateChain {
    key: ParsedPublicKey,
    not_before: Timestamp,
    not_after: Timestamp,
    /// The leaf and the intermediate certificate, to be checked for revocation.
    pub(super) certificates: [ChainCertificate; 2],
    /// What all messages with this chain have in common.
    pub(super) shared_content: Arc<SharedContent>,
}

/// A verified JWS. Its certificates have not been checked for revocation.
pub(super) struct VerifiedJws {
    /// The payload as JSON.
    pub(super) payload: Vec<u8>,
    /// The chain of the certificate that signed it.
    pub(super) chain: Arc<CertificateChain>,
}

/// Verifies data that Apple signed. Clones share the cache of verified chains.
#[derive(Clone)]
pub struct JwsVerifier {
    roots: Arc<Vec<RootCertificate>>,
    chain_cache: ChainCache<CertificateChain>,
    is_validity_checked_now: bool,
}

struct RootCertificate {
    der: Vec<u8>,
    anchor: TrustAnchor<'static>,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// Why root certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RootCertificatesError {
    /// A file or folder cannot be read.
    #[error("{path} cannot be read: {cause}")]
    Unreadable {
        /// The file or folder that was given.
        path: String,
        /// The error of the operating system.
        cause: std::io::Error,
    },
    /// A file contains no certificate.
    #[error("{path} holds no certificate: give DER or PEM files, or a folder of them")]
    NoCertificate {
        /// The file or folder that was given.
        path: String,
    },
}

/// The fields of the header that are needed. They are borrowed, so that a cached chain is found by its text without
/// decoding it.
#[derive(Deserialize)]
struct AppleJwsHeader<'a> {
    #[serde(borrow)]
    alg: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    x5c: Vec<std::borrow::Cow<'a, str>>,
    /// The key id. Apple sends none; Xcode does.
    #[serde(borrow, default)]
    kid: Option<std::borrow::Cow<'a, str>>,
    /// Extensions that a recipient must understand (RFC 7515, 4.1.11). None is supported, and Apple sends none.
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

/// When each trusted root certificate expires.
pub fn root_expiries(verifier: &JwsVerifier) -> Vec<Timestamp> {
    let roots = verifier.roots.iter();
    roots.map(|root| root.not_after).collect()
}

/// When the chain that Apple signs with expires: the latest expiry of the cached chains. `None`: no chain was verified
/// yet.
pub fn signing_chain_expiry(verifier: &JwsVerifier) -> Option<Timestamp> {
    let chains = verifier.chain_cache.values();
    chains.iter().map(|chain| chain.not_after).max()
}

/// Whether the header or payload says that Xcode's local StoreKit signed it.
fn is_signed_by_xcode(header: &AppleJwsHeader<'_>, payload: &[u8]) -> bool {
    header.kid.as_deref() == Some("Apple_Xcode_Key")
        || serde_json::from_slice::<SignedPart>(payload)
            .is_ok_and(|claimed| claimed.environment.as_deref() == Some("Xcode"))
}

/// The payload of a JWS without any verification. Only to be used as a name in logs.
pub(super) fn decode_unverified_payload(jws: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(jws.split('.').nth(1)?).ok()
}

/// What a notification says, with its signature not checked: its id, to look it up by, and words for a log.
pub(super) fn peek_notification(jws: &str) -> Option<NotificationPayload> {
    let payload: serde_json::Value =
        serde_json::from_slice(&decode_unverified_payload(jws)?).ok()?;
    NotificationPayload::deserialize(&payload).ok()
}

impl JwsVerifier {
    /// Trusts only Apple's own roots.
    pub fn with_apple_roots() -> Self {
        let roots = APPLE_ROOT_CERTIFICATES
            .iter()
            .map(|der| parse_root(der).expect("Apple's root is a certificate"));
        Self::new(roots.collect())
    }

    /// Trusts only the certificates in `path`: a DER or PEM file, or a folder of such files.
    pub fn with_roots_from(path: &Path) -> Result<Self, RootCertificatesError> {
        let unreadable = |path: &Path| {
            let path = redact::redact_path(path);
            move |cause| RootCertificatesError::Unreadable { path, cause }
        };
        let mut files = vec![path.to_owned()];
        if path.is_dir() {
            files = std::fs::read_dir(path)
                .and_then(|entries| {
                    entries
                        .map(|entry| entry.map(|entry| entry.path()))
                        .collect()
                })
                .map_err(unreadable(path))?;
            files.retain(|file| file.is_file());
            files.sort();
        }
        let mut roots = Vec::new();
        for file in &files {
            let bytes = std::fs::read(file).map_err(unreadable(file))?;
            let found = parse_roots(&bytes);
            if found.is_empty() {
                return Err(RootCertificatesError::NoCertificate {
                    path: redact::redact_path(file),
                });
            }
            roots.extend(found);
        }
        if roots.is_empty() {
            return Err(RootCertificatesError::NoCertificate {
                path: redact::redact_path(path),
            });
        }
        Ok(Self::new(roots))
    }

    /// Trusts only one root certificate, given in DER. `None` if it cannot be parsed.
    pub fn with_root(der: &[u8]) -> Option<Self> {
        Some(Self::new(vec![parse_root(der)?]))
    }

    fn new(roots: Vec<RootCertificate>) -> Self {
        Self {
            roots: Arc::new(roots),
            chain_cache: ChainCache::default(),
            is_validity_checked_now: false,
        }
    }

    /// Requires certificates to be valid now instead of on the day of signing. Needed with OCSP, because responders
    /// only tell whether a certificate is revoked now.
    #[must_use]
    pub fn check_validity_at_now(self) -> Self {
        Self {
            is_validity_checked_now: true,
            ..self
        }
    }

    /// Verifies `jws` and returns its payload as JSON. `now` is used to refuse a `signedDate` in the future, and in
    /// place of a missing `signedDate`.
    pub fn verify_payload(&self, jws: &str, now: Timestamp) -> Result<Vec<u8>, SignatureError> {
        let verified = self.verify_jws(jws, now)?;
        Ok(verified.payload)
    }

    /// Like [`JwsVerifier::verify_payload`], but also returns the certificate chain.
    pub(super) fn verify_jws(
        &self,
        jws: &str,
        now: Timestamp,
    ) -> Result<VerifiedJws, SignatureError> {
        if jws.len() > MAX_JWS_BYTES {
            return Err(SignatureError::NotAJws);
        }
        self.verify_jws_any_length(jws, now)
    }

    /// Like [`JwsVerifier::verify_jws`] without a limit on the length, for a notification, which contains other JWS.
    /// The caller limits its length.
    pub(super) fn verify_jws_any_length(
        &self,
        jws: &str,
        now: Timestamp,
    ) -> Result<VerifiedJws, SignatureError> {
        let (signed, signature) = jws.rsplit_once('.').ok_or(SignatureError::NotAJws)?;
        let (header, payload) = signed.split_once('.').ok_or(SignatureError::NotAJws)?;
        let part = |text: &str| {
            URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|_| SignatureError::NotAJws)
        };
        let (header, payload, signature) = (part(header)?, part(payload)?, part(signature)?);

        let header: AppleJwsHeader<'_> =
            serde_json::from_slice(&header).map_err(|_| SignatureError::BadHeader)?;
        if header.crit.is_some() {
            return Err(SignatureError::BadHeader);
        }
        if header.alg != "ES256" {
            return Err(SignatureError::WrongAlgorithm);
        }
        let [leaf, intermediate, _ignored] = header.x5c.as_slice() else {
            return Err(if is_signed_by_xcode(&header, &payload) {
                SignatureError::SignedByXcode
            } else {
                SignatureError::WrongChainLength
            });
        };
        let date_claim = payload::peek_signed_date(&payload).ok_or(SignatureError::BadPayload)?;
        let signed_on = date_claim.signed_date.unwrap_or(now);
        if signed_on > now.plus(MAX_CLOCK_SKEW) {
            return Err(SignatureError::SignedInTheFuture);
        }
        let validity_date = if self.is_validity_checked_now {
            now
        } else {
            signed_on
        };
        let cached = self.chain_cache.get(leaf, intermediate);
        let chain = if let Some(cached) = cached {
            cached
        } else {
            let verified = self.verify_chain(leaf, intermediate, validity_date)?;
            self.chain_cache.insert(leaf, intermediate, verified)
        };
        if validity_date < chain.not_before || validity_date > chain.not_after {
            return Err(SignatureError::CertificateExpired);
        }
        chain
            .key
            .verify_sig(signed.as_bytes(), &signature)
            .map_err(|_| SignatureError::BadSignature)?;
        if !date_claim.is_unambiguous {
            return Err(SignatureError::BadPayload);
        }
        Ok(VerifiedJws { payload, chain })
    }

    fn verify_chain(
        &self,
        leaf: &str,
        intermediate: &str,
        validity_date: Timestamp,
    ) -> Result<CertificateChain, SignatureError> {
        let der = |text: &str| {
            STANDARD
                .decode(text)
                .map(CertificateDer::from)
                .map_err(|_| SignatureError::BadCertificate)
        };
        let parsed = |der: &CertificateDer<'_>| {
            Certificate::from_der(der).map_err(|_| SignatureError::BadCertificate)
        };
        let (leaf, intermediate) = (der(leaf)?, der(intermediate)?);
        let (leaf_facts, intermediate_facts) = (parsed(&leaf)?, parsed(&intermediate)?);

        let end_entity =
            EndEntityCert::try_from(&leaf).map_err(|_| SignatureError::BadCertificate)?;
        let at = UnixTime::since_unix_epoch(Duration::from_millis(
            u64::try_from(validity_date.as_millis()).unwrap_or(0),
        ));
        let anchors: Vec<_> = self.roots.iter().map(|root| root.anchor.clone()).collect();
        let intermediates = [intermediate];
        let path = end_entity
            .verify_for_usage(
                CHAIN_ALGORITHMS,
                &anchors,
                &intermediates,
                at,
                AnyKeyUsage,
                None,
                None,
            )
            .map_err(|error| match error {
                webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
                    SignatureError::CertificateExpired
                }
                webpki::Error::BadDer | webpki::Error::UnsupportedCertVersion => {
                    SignatureError::BadCertificate
                }
                _ => SignatureError::UntrustedChain,
            })?;
        // Apple's chains have an intermediate certificate. A chain that leads from the leaf directly to a root is
        // refused.
        if path.intermediate_certificates().count() != 1
            || !can_issue_certificates(&intermediate_facts)
        {
            return Err(SignatureError::UntrustedChain);
        }
        if !has_extension(&leaf_facts, LEAF_MARKER) {
            return Err(SignatureError::MissingLeafMarker);
        }
        if !has_extension(&intermediate_facts, INTERMEDIATE_MARKER) {
            return Err(SignatureError::MissingIntermediateMarker);
        }
        // webpki does not check the validity period of an anchor. Apple's rules require it.
        let anchor = path.anchor();
        let root = self
            .roots
            .iter()
            .find(|root| {
                root.anchor.subject == anchor.subject
                    && root.anchor.subject_public_key_info == anchor.subject_public_key_info
            })
            .ok_or(SignatureError::UntrustedChain)?;
        let spki = end_entity.subject_public_key_info();
        let point = spki
            .as_ref()
            .strip_prefix(&P256_SPKI_PREFIX)
            .filter(|point| point.len() == 65);
        let key = point
            .and_then(|point| ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).ok())
            .ok_or(SignatureError::BadCertificate)?;
        let subjects = ChainCertificate::new(&leaf, &intermediates[0])
            .zip(ChainCertificate::new(&intermediates[0], &root.der))
            .ok_or(SignatureError::BadCertificate)?;
        let shared_content =
            SharedContent::of_certificate_chain(&[&leaf, &intermediates[0], &root.der]);
        let (leaf, intermediate) = (
            validity_period(&leaf_facts),
            validity_period(&intermediate_facts),
        );
        Ok(CertificateChain {
            key,
            not_before: leaf.0.max(intermediate.0).max(root.not_before),
            not_after: leaf.1.min(intermediate.1).min(root.not_after),
            certificates: subjects.into(),
            shared_content: Arc::new(shared_content),
        })
    }
}

impl std::fmt::Debug for JwsVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({} roots)", self.roots.len())
    }
}

/// Apple's real chain uses ECDSA with SHA-384 throughout. Its test vectors combine P-256 keys with SHA-384.
const CHAIN_ALGORITHMS: &[&dyn rustls::pki_types::SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
];

/// Apple's leaf certificate has no extended key usage, so none is required. The marker extension states its purpose.
struct AnyKeyUsage;

impl ExtendedKeyUsageValidator for AnyKeyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

pub(super) fn has_extension(certificate: &Certificate, marker: ObjectIdentifier) -> bool {
    let extensions = certificate.tbs_certificate().extensions();
    extensions.is_some_and(|all| all.iter().any(|extension| extension.extn_id == marker))
}

/// Whether the certificate's key usage, if it has one, includes signing certificates (RFC 5280, 4.2.1.3). webpki checks
/// that the certificate is a CA, and does not check this.
fn can_issue_certificates(certificate: &Certificate) -> bool {
    match certificate.tbs_certificate().get_extension::<KeyUsage>() {
        Ok(usage) => usage.is_none_or(|(_, usage)| usage.key_cert_sign()),
        Err(_) => false,
    }
}

pub(super) fn validity_period(certificate: &Certificate) -> (Timestamp, Timestamp) {
    let validity = certificate.tbs_certificate().validity();
    let moment = |time: x509_cert::time::Time| {
        Timestamp::from_millis(
            i64::try_from(time.to_unix_duration().as_millis()).unwrap_or(i64::MAX),
        )
    };
    (moment(validity.not_before), moment(validity.not_after))
}

fn parse_root(der: &[u8]) -> Option<RootCertificate> {
    let certificate = CertificateDer::from(der);
    let anchor = anchor_from_trusted_cert(&certificate).ok()?.to_owned();
    let (not_before, not_after) = validity_period(&Certificate::from_der(der).ok()?);
    Some(RootCertificate {
        der: der.to_vec(),
        anchor,
        not_before,
        not_after,
    })
}

/// The certificates of a PEM file, or the certificate of a DER file.
fn parse_roots(bytes: &[u8]) -> Vec<RootCertificate> {
    use rustls::pki_types::pem::PemObject as _;

    let pem: Vec<_> = CertificateDer::pem_slice_iter(bytes)
        .flatten()
        .filter_map(|der| parse_root(&der))
        .collect();
    if pem.is_empty() {
        parse_root(bytes).into_iter().collect()
    } else {
        pem
    }
}
