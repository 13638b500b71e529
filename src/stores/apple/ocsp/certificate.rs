//! A certificate of a verified chain, and the OCSP request about it.

use std::sync::Arc;

use aws_lc_rs::digest::{Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use der::asn1::{Any, ObjectIdentifier, OctetString};
use der::{Decode as _, Encode as _};
use rustls::pki_types::CertificateDer;
use url::Url;
use x509_cert::Certificate;
use x509_cert::ext::pkix::AuthorityInfoAccessSyntax;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::AlgorithmIdentifierOwned;

use super::wire::{CertId, OID_SHA1, OID_SHA256, OcspRequest, SingleRequest, TbsRequest};
use crate::crypto::token;

/// The access method `id-ad-ocsp`, whose location is the URL of a responder.
const OID_AD_OCSP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1");

/// A certificate of a verified chain, and the certificate of its issuer. Clones are cheap.
#[derive(Clone)]
pub struct ChainCertificate(Arc<ChainCertificateData>);

struct ChainCertificateData {
    digest: [u8; 32],
    serial_number: SerialNumber,
    issuer_name: Vec<u8>,
    issuer: Certificate,
    issuer_der: CertificateDer<'static>,
    responder_url: Option<Url>,
    request_der: Vec<u8>,
}

impl ChainCertificate {
    /// The certificate `der`, which `issuer` issued. `None` if one of them cannot be parsed.
    pub fn new(der: &[u8], issuer: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        let facts = certificate.tbs_certificate();
        let mut facts = ChainCertificateData {
            digest: token::sha256(der),
            serial_number: facts.serial_number().clone(),
            issuer_name: facts.issuer().to_der().ok()?,
            issuer: Certificate::from_der(issuer).ok()?,
            issuer_der: CertificateDer::from(issuer).into_owned(),
            responder_url: find_responder_url(&certificate),
            request_der: Vec::new(),
        };
        let request = OcspRequest {
            tbs_request: TbsRequest {
                request_list: vec![SingleRequest {
                    certificate: facts.cert_id(OID_SHA256)?,
                }],
            },
        };
        facts.request_der = request.to_der().ok()?;
        Some(Self(Arc::new(facts)))
    }

    /// The SHA-256 of the certificate, which identifies it in caches.
    pub fn digest(&self) -> [u8; 32] {
        self.0.digest
    }

    /// The serial number, in hexadecimal with colons.
    pub fn serial_number(&self) -> String {
        self.0.serial_number.to_string()
    }

    /// The URL of the responder, if the certificate has one.
    pub fn responder_url(&self) -> Option<&Url> {
        self.0.responder_url.as_ref()
    }

    /// The OCSP request about this certificate, in DER.
    pub fn request_der(&self) -> &[u8] {
        &self.0.request_der
    }

    /// The certificate of the issuer, parsed and in DER.
    pub(super) fn issuer(&self) -> (&Certificate, &CertificateDer<'static>) {
        (&self.0.issuer, &self.0.issuer_der)
    }

    /// Whether `id` identifies this certificate, with SHA-1 or SHA-256.
    pub(super) fn is_identified_by(&self, id: &CertId) -> bool {
        self.0.cert_id(id.hash_algorithm.oid).is_some_and(|own| {
            own.serial_number == id.serial_number
                && own.issuer_name_hash == id.issuer_name_hash
                && own.issuer_key_hash == id.issuer_key_hash
        })
    }
}

impl ChainCertificateData {
    fn cert_id(&self, algorithm: ObjectIdentifier) -> Option<CertId> {
        let digest_algorithm = match algorithm {
            OID_SHA256 => &SHA256,
            OID_SHA1 => &SHA1_FOR_LEGACY_USE_ONLY,
            _ => return None,
        };
        Some(CertId {
            hash_algorithm: AlgorithmIdentifierOwned {
                oid: algorithm,
                parameters: Some(Any::null()),
            },
            issuer_name_hash: hash_bytes(digest_algorithm, &self.issuer_name)?,
            issuer_key_hash: hash_bytes(digest_algorithm, public_key_bits(&self.issuer)?)?,
            serial_number: self.serial_number.clone(),
        })
    }
}

impl std::fmt::Debug for ChainCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Subject({})", self.serial_number())
    }
}

fn hash_bytes(algorithm: &'static Algorithm, bytes: &[u8]) -> Option<OctetString> {
    OctetString::new(digest(algorithm, bytes).as_ref()).ok()
}

/// The public key of a certificate, without its algorithm.
pub(super) fn public_key_bits(certificate: &Certificate) -> Option<&[u8]> {
    let key = certificate.tbs_certificate().subject_public_key_info();
    key.subject_public_key.as_bytes()
}

/// The first responder with an HTTP or HTTPS URL.
fn find_responder_url(certificate: &Certificate) -> Option<Url> {
    let access = certificate.tbs_certificate().get_extension();
    let (_, AuthorityInfoAccessSyntax(access)) = access.ok()??;
    access
        .iter()
        .find_map(|place| match &place.access_location {
            GeneralName::UniformResourceIdentifier(address)
                if place.access_method == OID_AD_OCSP =>
            {
                let url = Url::parse(address.as_str()).ok()?;
                let is_plain = url.username().is_empty() && url.password().is_none();
                (matches!(url.scheme(), "http" | "https") && url.has_host() && is_plain)
                    .then_some(url)
            }
            _ => None,
        })
}
