//! The messages of OCSP in DER (RFC 6960, 4.1 and 4.2), as far as they are needed, without interpretation.
//!
//! Signed parts and certificates are kept as bytes, because a signature is over the bytes that were sent.

#![expect(clippy::unnested_or_patterns, reason = "what der writes for a choice")]

use der::asn1::{Any, BitString, GeneralizedTime, Null, ObjectIdentifier, OctetString};
use der::{Choice, Enumerated, Sequence};
use x509_cert::ext::Extensions;
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::AlgorithmIdentifierOwned;

/// `id-pkix-ocsp-basic`: the only type of response.
pub(super) const OID_OCSP_BASIC: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1.1");
/// The algorithm identifier `id-sha1`.
pub(super) const OID_SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");
/// The algorithm identifier `id-sha256`.
pub(super) const OID_SHA256: ObjectIdentifier =
    ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.2.1");

/// A request without a signature or extensions.
#[derive(Debug, Sequence)]
pub(super) struct OcspRequest {
    pub(super) tbs_request: TbsRequest,
}

#[derive(Debug, Sequence)]
pub(super) struct TbsRequest {
    pub(super) request_list: Vec<SingleRequest>,
}

#[derive(Debug, Sequence)]
pub(super) struct SingleRequest {
    pub(super) certificate: CertId,
}

/// Identifies a certificate by digests of its issuer and its serial number.
#[derive(Clone, Debug, Sequence)]
pub(super) struct CertId {
    pub(super) hash_algorithm: AlgorithmIdentifierOwned,
    /// The digest of the issuer's name in DER.
    pub(super) issuer_name_hash: OctetString,
    /// The digest of the issuer's public key, without its algorithm.
    pub(super) issuer_key_hash: OctetString,
    pub(super) serial_number: SerialNumber,
}

#[derive(Debug, Sequence)]
pub(super) struct OcspResponse {
    pub(super) status: ResponseStatus,
    #[asn1(context_specific = "0", optional = "true", tag_mode = "EXPLICIT")]
    pub(super) response: Option<ResponseBytes>,
}

/// The status of the response itself, which is not signed.
#[derive(Clone, Copy, Debug, Enumerated, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum ResponseStatus {
    Successful = 0,
    MalformedRequest = 1,
    InternalError = 2,
    TryLater = 3,
    SigRequired = 5,
    Unauthorized = 6,
}

#[derive(Debug, Sequence)]
pub(super) struct ResponseBytes {
    pub(super) kind: ObjectIdentifier,
    pub(super) response: OctetString,
}

#[derive(Debug, Sequence)]
pub(super) struct BasicResponse {
    /// The signed part: a [`ResponseData`] in DER.
    pub(super) signed: Any,
    pub(super) signature_algorithm: AlgorithmIdentifierOwned,
    pub(super) signature: BitString,
    #[asn1(context_specific = "0", optional = "true", tag_mode = "EXPLICIT")]
    pub(super) certificates: Option<Vec<Any>>,
}

#[derive(Debug, Sequence)]
pub(super) struct ResponseData {
    #[asn1(context_specific = "0", optional = "true", tag_mode = "EXPLICIT")]
    pub(super) version: Option<u8>,
    pub(super) responder: ResponderId,
    pub(super) produced_at: GeneralizedTime,
    pub(super) responses: Vec<SingleResponse>,
    #[asn1(context_specific = "1", optional = "true", tag_mode = "EXPLICIT")]
    pub(super) extensions: Option<Extensions>,
}

/// The signer of a response, by name or by the SHA-1 of its key.
#[derive(Clone, Debug, Choice)]
pub(super) enum ResponderId {
    #[asn1(context_specific = "1", tag_mode = "EXPLICIT", constructed = "true")]
    Name(Name),
    /// The SHA-1 of the public key, without its algorithm.
    #[asn1(context_specific = "2", tag_mode = "EXPLICIT", constructed = "true")]
    KeyHash(OctetString),
}

#[derive(Debug, Sequence)]
pub(super) struct SingleResponse {
    pub(super) certificate: CertId,
    pub(super) status: CertStatus,
    pub(super) this_update: GeneralizedTime,
    #[asn1(context_specific = "0", optional = "true", tag_mode = "EXPLICIT")]
    pub(super) next_update: Option<GeneralizedTime>,
    #[asn1(context_specific = "1", optional = "true", tag_mode = "EXPLICIT")]
    pub(super) extensions: Option<Extensions>,
}

/// The status of a certificate.
#[derive(Clone, Debug, Choice)]
pub(super) enum CertStatus {
    #[asn1(context_specific = "0", tag_mode = "IMPLICIT")]
    Good(Null),
    #[asn1(context_specific = "1", tag_mode = "IMPLICIT", constructed = "true")]
    Revoked(RevokedInfo),
    #[asn1(context_specific = "2", tag_mode = "IMPLICIT")]
    Unknown(Null),
}

#[derive(Clone, Debug, Sequence)]
pub(super) struct RevokedInfo {
    pub(super) revoked_at: GeneralizedTime,
    /// The reason (RFC 5280, 5.3.1). It is not interpreted, so an unknown value is no error.
    #[asn1(context_specific = "0", optional = "true", tag_mode = "EXPLICIT")]
    pub(super) reason: Option<Any>,
}
