//! Verifies an OCSP response about a certificate.
//!
//! The response must be signed by the issuer of the certificate, or by a responder with a certificate from that issuer
//! for signing OCSP responses. It must be about this certificate and currently valid. The rules are those of Apple's
//! server libraries. In addition, a response without `nextUpdate` is refused (RFC 5019, 2.2.4).

use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use der::asn1::{GeneralizedTime, SequenceRef};
use der::{Decode as _, Encode as _};
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, aws_lc_rs as algorithms};
use x509_cert::Certificate;
use x509_cert::ext::Extensions;
use x509_cert::spki::AlgorithmIdentifierOwned;

use super::certificate::{ChainCertificate, public_key_bits};
use super::wire::{
    BasicResponse, CertStatus, OID_OCSP_BASIC, OcspResponse, ResponderId, ResponseData,
    ResponseStatus,
};
use crate::base::clock::Timestamp;

/// How far the responder's clock and ours may differ.
const MAX_CLOCK_SKEW: Duration = Duration::from_mins(1);
/// `id-kp-OCSPSigning`, 1.3.6.1.5.5.7.3.9, in DER without tag and length.
const OID_KP_OCSP_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x09];

/// The status of a certificate in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevocationStatus {
    /// The certificate was not revoked.
    Good,
    /// The certificate was revoked.
    Revoked,
    /// The responder does not know the certificate.
    Unknown,
}

impl RevocationStatus {
    /// The name for logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown",
        }
    }
}

/// The content of a verified response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedOcspResponse {
    /// The status of the certificate.
    pub status: RevocationStatus,
    /// The time at which the status was known to be correct.
    pub this_update: Timestamp,
    /// The time until which the response is valid.
    pub next_update: Timestamp,
}

impl VerifiedOcspResponse {
    /// Whether the response is valid at `now`.
    pub fn is_current(&self, now: Timestamp) -> bool {
        now <= self.next_update.plus(MAX_CLOCK_SKEW)
    }
}

/// Why a response is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OcspResponseError {
    /// It cannot be parsed as an OCSP response.
    #[error("it is not an OCSP response")]
    NotAResponse,
    /// It has an error status. Such responses are not signed.
    #[error("the responder did not answer: {0}")]
    ErrorStatus(&'static str),
    /// It has a critical extension, and none is supported.
    #[error("it has a critical extension that is not understood")]
    CriticalExtension,
    /// The certificate of its signer is neither that of the issuer nor in the response.
    #[error("its signer is neither the issuer of the certificate nor in the response")]
    UnknownSigner,
    /// The signer's certificate was not issued by the issuer for this purpose, or is not valid now.
    #[error("its signer holds no valid certificate of the issuer's for signing OCSP responses")]
    SignerNotAuthorized,
    /// The signature does not match.
    #[error("its signature does not match")]
    BadSignature,
    /// It has no entry about this certificate.
    #[error("it is about another certificate")]
    CertificateMismatch,
    /// Its `thisUpdate` is in the future.
    #[error("it is from the future: check this machine's clock")]
    NotYetValid,
    /// Its `nextUpdate` has passed or is missing.
    #[error("it is out of date")]
    Expired,
}

/// Verifies the response `der` about `subject` at `now`.
pub fn verify_response(
    der: &[u8],
    subject: &ChainCertificate,
    now: Timestamp,
) -> Result<VerifiedOcspResponse, OcspResponseError> {
    let not_a_response = |_| OcspResponseError::NotAResponse;
    let response = OcspResponse::from_der(der).map_err(not_a_response)?;
    check_response_status(response.status)?;
    let response = response.response.ok_or(OcspResponseError::NotAResponse)?;
    if response.kind != OID_OCSP_BASIC {
        return Err(OcspResponseError::NotAResponse);
    }
    let basic = BasicResponse::from_der(response.response.as_bytes()).map_err(not_a_response)?;
    let signed_part = basic.signed.to_der().map_err(not_a_response)?;
    let data = ResponseData::from_der(&signed_part).map_err(not_a_response)?;
    if data.version.is_some_and(|version| version != 0) {
        return Err(OcspResponseError::NotAResponse);
    }

    let certificates = basic.certificates.unwrap_or_default();
    let certificates = certificates.iter().filter_map(|one| one.to_der().ok());
    let signer = find_signer(&data.responder, subject, certificates, now)?;
    let signature = basic
        .signature
        .as_bytes()
        .ok_or(OcspResponseError::BadSignature)?;
    if !is_signature_valid(&signer, &basic.signature_algorithm, &signed_part, signature) {
        return Err(OcspResponseError::BadSignature);
    }

    let mut about = data.responses.iter();
    let about = about
        .find(|single| subject.is_identified_by(&single.certificate))
        .ok_or(OcspResponseError::CertificateMismatch)?;
    if has_critical_extension(data.extensions.as_ref())
        || has_critical_extension(about.extensions.as_ref())
    {
        return Err(OcspResponseError::CriticalExtension);
    }
    let this_update = to_timestamp(about.this_update);
    if this_update > now.plus(MAX_CLOCK_SKEW) {
        return Err(OcspResponseError::NotYetValid);
    }
    let next_update = about
        .next_update
        .map(to_timestamp)
        .ok_or(OcspResponseError::Expired)?;
    let status = match about.status {
        CertStatus::Good(_) => RevocationStatus::Good,
        CertStatus::Revoked(_) => RevocationStatus::Revoked,
        CertStatus::Unknown(_) => RevocationStatus::Unknown,
    };
    let answer = VerifiedOcspResponse {
        status,
        this_update,
        next_update,
    };
    if !answer.is_current(now) {
        return Err(OcspResponseError::Expired);
    }
    Ok(answer)
}

fn check_response_status(status: ResponseStatus) -> Result<(), OcspResponseError> {
    Err(OcspResponseError::ErrorStatus(match status {
        ResponseStatus::Successful => return Ok(()),
        ResponseStatus::MalformedRequest => "malformedRequest",
        ResponseStatus::InternalError => "internalError",
        ResponseStatus::TryLater => "tryLater",
        ResponseStatus::SigRequired => "sigRequired",
        ResponseStatus::Unauthorized => "unauthorized",
    }))
}

fn has_critical_extension(extensions: Option<&Extensions>) -> bool {
    extensions.is_some_and(|all| all.iter().any(|extension| extension.critical))
}

fn to_timestamp(time: GeneralizedTime) -> Timestamp {
    let millis = time.to_unix_duration().as_millis();
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}

/// The certificate of the response's signer: the issuer's, or one that the issuer issued for signing responses.
fn find_signer(
    id: &ResponderId,
    subject: &ChainCertificate,
    certificates: impl Iterator<Item = Vec<u8>>,
    now: Timestamp,
) -> Result<Certificate, OcspResponseError> {
    let (issuer, issuer_der) = subject.issuer();
    if is_responder(id, issuer) {
        return Ok(issuer.clone());
    }
    let mut error = OcspResponseError::UnknownSigner;
    for der in certificates {
        let Ok(certificate) = Certificate::from_der(&der) else {
            continue;
        };
        if is_responder(id, &certificate) {
            if is_authorized_responder(&CertificateDer::from(der), issuer_der, now) {
                return Ok(certificate);
            }
            error = OcspResponseError::SignerNotAuthorized;
        }
    }
    Err(error)
}

fn is_responder(id: &ResponderId, certificate: &Certificate) -> bool {
    match id {
        ResponderId::Name(name) => certificate.tbs_certificate().subject() == name,
        ResponderId::KeyHash(hash) => public_key_bits(certificate)
            .is_some_and(|key| digest(&SHA1_FOR_LEGACY_USE_ONLY, key).as_ref() == hash.as_bytes()),
    }
}

/// Whether `issuer` issued the certificate for signing OCSP responses, and it is valid now.
fn is_authorized_responder(
    responder: &CertificateDer<'_>,
    issuer: &CertificateDer<'_>,
    now: Timestamp,
) -> bool {
    let (Ok(responder), Ok(anchor)) = (
        EndEntityCert::try_from(responder),
        anchor_from_trusted_cert(issuer),
    ) else {
        return false;
    };
    let now = UnixTime::since_unix_epoch(Duration::from_millis(
        u64::try_from(now.as_millis()).unwrap_or(0),
    ));
    let usage = KeyUsage::required(OID_KP_OCSP_SIGNING);
    // Without intermediates, the responder must be issued by the anchor itself.
    let anchors = [anchor];
    let path = responder.verify_for_usage(OCSP_ALGORITHMS, &anchors, &[], now, usage, None, None);
    path.is_ok()
}

/// Whether the key of `signer` made `signature` over `message`.
fn is_signature_valid(
    signer: &Certificate,
    algorithm: &AlgorithmIdentifierOwned,
    message: &[u8],
    signature: &[u8],
) -> bool {
    let key = signer.tbs_certificate().subject_public_key_info();
    let (Some(bits), Some(key), Some(algorithm)) = (
        key.subject_public_key.as_bytes(),
        sequence_contents(&key.algorithm),
        sequence_contents(algorithm),
    ) else {
        return false;
    };
    OCSP_ALGORITHMS
        .iter()
        .filter(|known| {
            known.signature_alg_id().as_ref() == algorithm
                && known.public_key_alg_id().as_ref() == key
        })
        .any(|known| known.verify_signature(bits, message, signature).is_ok())
}

/// The content of an algorithm identifier's sequence in DER, which is the form that webpki compares.
fn sequence_contents(algorithm: &AlgorithmIdentifierOwned) -> Option<Vec<u8>> {
    let der = algorithm.to_der().ok()?;
    let inside = <&SequenceRef>::from_der(&der).ok()?;
    Some(inside.as_bytes().to_vec())
}

/// Apple's chain uses ECDSA throughout. A responder's own key may be RSA.
const OCSP_ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
];
