//! Why a signed thing of Apple's is believed, or refused.
//!
//! A JWS is believed when its signature is by a key whose certificate chain leads to a pinned root, the chain carries
//! Apple's two marker extensions, and every certificate was valid on the day the payload says it was signed. The rules
//! and their order are those of Apple's own server libraries. Two things that are easily got wrong:
//!
//! - `x5c` has three certificates and the third is ignored. Trust comes from the pinned roots alone.
//! - The day that counts is the payload's `signedDate`, not today: what a device kept since before Apple changed its
//!   signing certificate is still genuine.
//!
//! With `APPLE_OCSP=on`, both differ as in Apple's libraries: today counts ([`JwsVerifier::check_validity_at_now`]), and the caller
//! asks [`super::ocsp`] about the chain's certificates afterwards. Here nothing waits for anything.
//!
//! The chain is judged once and remembered with the window in which it holds; the signature is checked every time,
//! over the bytes as they were sent.

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
use super::payload::{self, SignedPart};
use crate::base::clock::Timestamp;
use crate::crypto::redact;

/// Marks the leaf that signs for the App Store.
pub(super) const LEAF_MARKER: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113635.100.6.11.1");
/// Marks Apple's Worldwide Developer Relations intermediate.
pub(super) const INTERMEDIATE_MARKER: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.2.840.113635.100.6.2.1");
/// Real transactions are 5 to 6 KB; renewal and offer details may grow.
const MAX_JWS_BYTES: usize = 128 * 1024;
/// How far ahead of our clock Apple's may be.
const MAX_CLOCK_SKEW: Duration = Duration::from_mins(5);
/// What stands before the 65 bytes of a P-256 point in a `SubjectPublicKeyInfo` of 91 bytes.
const P256_SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Apple's roots, as published. A list, so that a successor can stand beside it before it is used.
const APPLE_ROOT_CERTIFICATES: [&[u8]; 1] = [include_bytes!("roots/AppleRootCA-G3.cer")];

/// Why a JWS is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SignatureError {
    /// Not three parts of base64url, or larger than anything Apple signs.
    #[error("it is not a compact JWS: three parts of base64url without padding, joined by dots")]
    NotAJws,
    /// The header is not the JSON of a JWS header.
    #[error("its header is not readable")]
    BadHeader,
    /// `alg` is not ES256.
    #[error("its algorithm is not ES256, the only one Apple signs with")]
    WrongAlgorithm,
    /// `x5c` has another number of certificates than three.
    #[error("its header does not hold a chain of exactly three certificates")]
    WrongChainLength,
    /// Signed on the developer's own machine, with a certificate of its own.
    #[error(
        "Xcode's local StoreKit signed it, with a certificate of its own; test with the sandbox or TestFlight, whose transactions Apple signs"
    )]
    SignedByXcode,
    /// A certificate cannot be read.
    #[error("a certificate of its chain cannot be read")]
    BadCertificate,
    /// The chain does not lead to a trusted root, or one of its certificates may not do what it does.
    #[error("its certificates do not lead to a trusted Apple root")]
    UntrustedChain,
    /// A certificate was not valid on the day of signing.
    #[error("a certificate of its chain was not valid on the day it says it was signed")]
    CertificateExpired,
    /// The leaf lacks Apple's marker.
    #[error("its signing certificate is not one for App Store receipts")]
    MissingLeafMarker,
    /// The intermediate lacks Apple's marker.
    #[error("its intermediate certificate is not Apple's Worldwide Developer Relations")]
    MissingIntermediateMarker,
    /// The payload is not readable JSON.
    #[error("its payload is not readable")]
    BadPayload,
    /// It is genuine, and something else than a transaction.
    #[error("it names no transaction: it is something else of Apple's")]
    NotATransaction,
    /// It says it was signed in the future.
    #[error("it says it was signed in the future")]
    SignedInTheFuture,
    /// The signature is not by the leaf's key over these bytes.
    #[error("its signature does not match: it was altered, or signed with another key")]
    BadSignature,
    /// Apple revoked a certificate of the chain.
    #[error("a certificate of its chain was revoked")]
    CertificateRevoked,
    /// Apple's responder knows nothing of a certificate of the chain.
    #[error("Apple's responder knows nothing of a certificate of its chain")]
    CertificateUnknown,
    /// A certificate of the chain names no responder that may be asked.
    #[error(
        "a certificate of its chain names no responder of Apple's that could be asked about it"
    )]
    NoOcspResponder,
    /// The responder cannot be asked now whether a certificate of the chain was revoked. Nothing is wrong so far.
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
    /// A short word for programs and tables.
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

/// A chain that was judged good: the key that signs, and the window in which every certificate of it is valid.
pub(super) struct CertificateChain {
    key: ParsedPublicKey,
    not_before: Timestamp,
    not_after: Timestamp,
    /// The leaf and the intermediate, to be asked about.
    pub(super) certificates: [ChainCertificate; 2],
}

/// A verified JWS whose certificates were not checked for revocation yet.
pub(super) struct VerifiedJws {
    /// The payload's JSON.
    pub(super) payload: Vec<u8>,
    /// What it was signed under.
    pub(super) chain: Arc<CertificateChain>,
}

/// Decides whether something signed is Apple's. Clones share what was judged already.
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
        /// What the operating system said.
        cause: std::io::Error,
    },
    /// A file holds no certificate.
    #[error("{path} holds no certificate: give DER or PEM files, or a folder of them")]
    NoCertificate {
        /// The file or folder that was given.
        path: String,
    },
}

/// What is needed of the header. Borrowed: a chain seen before is found by its text, without decoding it.
#[derive(Deserialize)]
struct AppleJwsHeader<'a> {
    #[serde(borrow)]
    alg: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    x5c: Vec<std::borrow::Cow<'a, str>>,
    /// Only what Xcode signs has one.
    #[serde(borrow, default)]
    kid: Option<std::borrow::Cow<'a, str>>,
    /// Anything critical is not understood here (RFC 7515, 4.1.11). Apple sends none.
    #[serde(default)]
    crit: Option<serde::de::IgnoredAny>,
}

/// When each root that is trusted ends.
pub fn root_expiries(verifier: &JwsVerifier) -> Vec<Timestamp> {
    let roots = verifier.roots.iter();
    roots.map(|root| root.not_after).collect()
}

/// When the chain ends that Apple signs with, the newest of those that were seen. `None`: nothing signed was seen yet.
pub fn signing_chain_expiry(verifier: &JwsVerifier) -> Option<Timestamp> {
    let chains = verifier.chain_cache.values();
    chains.iter().map(|chain| chain.not_after).max()
}

/// Whether Xcode's local StoreKit signed it, by what it says of itself.
fn is_of_xcode(header: &AppleJwsHeader<'_>, payload: &[u8]) -> bool {
    header.kid.as_deref() == Some("Apple_Xcode_Key")
        || serde_json::from_slice::<SignedPart>(payload)
            .is_ok_and(|claimed| claimed.environment.as_deref() == Some("Xcode"))
}

/// What a JWS says, with nothing checked: no more than a name to note it under.
pub(super) fn decode_unverified_payload(jws: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(jws.split('.').nth(1)?).ok()
}

impl JwsVerifier {
    /// Trusts Apple's own roots.
    pub fn with_apple_roots() -> Self {
        let roots = APPLE_ROOT_CERTIFICATES
            .iter()
            .map(|der| parse_root(der).expect("Apple's root is a certificate"));
        Self::new(roots.collect())
    }

    /// Trusts only the certificates of `path`: a DER or PEM file, or a folder of them.
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

    /// Trusts one root certificate in DER. `None` when it is not a certificate.
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

    /// The same, and certificates must be valid today instead of on the day of signing: whether one was revoked is only
    /// known of today.
    #[must_use]
    pub fn check_validity_at_now(self) -> Self {
        Self {
            is_validity_checked_now: true,
            ..self
        }
    }

    /// The payload's JSON, when `jws` is Apple's. `now` is used to refuse what claims to be from the future, and as the
    /// day of signing when the payload has none.
    pub fn verify_payload(&self, jws: &str, now: Timestamp) -> Result<Vec<u8>, SignatureError> {
        let believed = self.verify_jws(jws, now)?;
        Ok(believed.payload)
    }

    /// The same, with the chain.
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

    /// The same for what holds others of its kind, by a caller who bounds it.
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
            return Err(if is_of_xcode(&header, &payload) {
                SignatureError::SignedByXcode
            } else {
                SignatureError::WrongChainLength
            });
        };
        let glance = payload::peek_signed_date(&payload).ok_or(SignatureError::BadPayload)?;
        let signed_on = glance.signed_date.unwrap_or(now);
        if signed_on > now.plus(MAX_CLOCK_SKEW) {
            return Err(SignatureError::SignedInTheFuture);
        }
        let day = if self.is_validity_checked_now {
            now
        } else {
            signed_on
        };
        let known = self.chain_cache.get(leaf, intermediate);
        let chain = if let Some(known) = known {
            known
        } else {
            let judged = self.verify_chain(leaf, intermediate, day)?;
            self.chain_cache.insert(leaf, intermediate, judged)
        };
        if day < chain.not_before || day > chain.not_after {
            return Err(SignatureError::CertificateExpired);
        }
        chain
            .key
            .verify_sig(signed.as_bytes(), &signature)
            .map_err(|_| SignatureError::BadSignature)?;
        if !glance.is_unambiguous {
            return Err(SignatureError::BadPayload);
        }
        Ok(VerifiedJws { payload, chain })
    }

    fn verify_chain(
        &self,
        leaf: &str,
        intermediate: &str,
        day: Timestamp,
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
            u64::try_from(day.as_millis()).unwrap_or(0),
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
        // A chain that leads straight from the leaf to a root is not Apple's: the intermediate must be part of it.
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
        // webpki does not look at an anchor's dates; Apple's rule does.
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
        let (leaf, intermediate) = (
            validity_period(&leaf_facts),
            validity_period(&intermediate_facts),
        );
        Ok(CertificateChain {
            key,
            not_before: leaf.0.max(intermediate.0).max(root.not_before),
            not_after: leaf.1.min(intermediate.1).min(root.not_after),
            certificates: subjects.into(),
        })
    }
}

impl std::fmt::Debug for JwsVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({} roots)", self.roots.len())
    }
}

/// Apple's real chain is ECDSA with SHA-384 throughout; its test vectors mix P-256 keys with SHA-384.
const CHAIN_ALGORITHMS: &[&dyn rustls::pki_types::SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
];

/// Apple's leaf names no extended usage, so none is asked for; the marker extensions say what it is for.
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

/// Whether a certificate that says what its key is for says that it is for certificates too (RFC 5280, 4.2.1.3). webpki, which
/// looks at whether it is an authority, does not look at this.
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

/// Every certificate of a PEM file, or the one of a DER file.
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
