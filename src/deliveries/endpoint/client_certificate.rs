//! The certificate that Attesto shows to one callback, for TLS in both directions.

use std::fmt;
use std::sync::Arc;

use rustls::InconsistentKeys;
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use serde::Serialize;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use zeroize::Zeroizing;

use crate::base::certificate::validity_period;
use crate::base::clock::Timestamp;
use crate::crypto::token;

/// A certificate, those between it and its root, and its private key. Its `Debug` does not show the key.
#[derive(Clone)]
pub struct ClientCertificate {
    certified: Arc<CertifiedKey>,
    /// DER, as it is sealed.
    key: Arc<Zeroizing<Vec<u8>>>,
    /// SHA-256 of the certificate.
    fingerprint: [u8; 32],
    not_before: Timestamp,
    not_after: Timestamp,
}

/// Why a certificate and a key are not used. Nothing of the key is in it.
#[derive(Debug, thiserror::Error)]
pub enum ClientCertificateError {
    /// No certificate is in the text, or not the whole of one.
    #[error(
        "the file of the client certificate must be PEM, with the certificate first and those between it and the root after it, each whole"
    )]
    InvalidCertificate,
    /// A passphrase protects the key.
    #[error(
        "the client certificate's key is encrypted: write it without a passphrase with `openssl pkey -in KEY.pem -out PLAIN.pem`; it is stored encrypted"
    )]
    EncryptedKey,
    /// No key is in the text, or not the whole of one.
    #[error("the file of the client certificate's key must be PEM, with a whole private key")]
    InvalidKey,
    /// The key is another certificate's.
    #[error(
        "the key does not belong to the client certificate: the certificate must be the first one in its file"
    )]
    KeyMismatch,
    /// The TLS library does not support the key.
    #[error("the client certificate cannot be used with its key: {0}")]
    Unusable(rustls::Error),
    /// It is no longer valid.
    #[error("the client certificate expired at {0}: ask the receiver for a new one")]
    Expired(Timestamp),
    /// It is not valid yet.
    #[error("the client certificate is not valid before {0}: is this machine's clock right?")]
    NotYetValid(Timestamp),
}

/// What may be shown of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientCertificateSummary {
    /// The name in it, such as `CN=attesto`.
    pub subject: String,
    /// The name of who issued it.
    pub issuer: String,
    /// SHA-256 of the certificate, in hexadecimal, as `openssl x509 -fingerprint -sha256` has it but for the colons.
    pub fingerprint: String,
    /// From when on it is valid.
    pub not_before: Timestamp,
    /// When it expires.
    pub not_after: Timestamp,
}

impl ClientCertificate {
    /// Reads PEM files, and accepts only what is valid at `now`. A key in the certificate's file is ignored.
    pub fn from_pem(
        certificates: &[u8],
        key: &[u8],
        now: Timestamp,
    ) -> Result<Self, ClientCertificateError> {
        let chain = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| ClientCertificateError::InvalidCertificate)?;
        // In the title of PKCS #8 files, and in a header of older ones.
        if key.windows(9).any(|word| word == b"ENCRYPTED") {
            return Err(ClientCertificateError::EncryptedKey);
        }
        let key =
            PrivateKeyDer::from_pem_slice(key).map_err(|_| ClientCertificateError::InvalidKey)?;
        let read = Self::from_parts(chain, key)?;
        if read.not_after <= now {
            return Err(ClientCertificateError::Expired(read.not_after));
        }
        if read.not_before > now {
            return Err(ClientCertificateError::NotYetValid(read.not_before));
        }
        Ok(read)
    }

    /// Reads what was stored, also after it has expired: only the receiver's clock counts.
    pub(super) fn from_der(
        chain: Vec<Vec<u8>>,
        key: &[u8],
    ) -> Result<Self, ClientCertificateError> {
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::try_from(key).map_err(|_| ClientCertificateError::InvalidKey)?;
        Self::from_parts(chain, key.clone_key())
    }

    fn from_parts(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, ClientCertificateError> {
        let parsed = chain
            .iter()
            .map(|certificate| Certificate::from_der(certificate))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| ClientCertificateError::InvalidCertificate)?;
        let (Some(first), Some(parsed)) = (chain.first(), parsed.first()) else {
            return Err(ClientCertificateError::InvalidCertificate);
        };
        let fingerprint = token::sha256(first);
        let (not_before, not_after) = validity_period(parsed);
        let key_der = Zeroizing::new(key.secret_der().to_vec());
        let certified = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider());
        let certified = certified.map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                ClientCertificateError::KeyMismatch
            }
            error => ClientCertificateError::Unusable(error),
        })?;
        Ok(Self {
            certified: Arc::new(certified),
            key: Arc::new(key_der),
            fingerprint,
            not_before,
            not_after,
        })
    }

    /// What a TLS handshake shows.
    pub(crate) fn resolver(&self) -> Arc<dyn ResolvesClientCert> {
        Arc::new(SingleCertAndKey::from(self.certified.clone()))
    }

    /// SHA-256 of the certificate. Connections are shared only among callbacks with the same one.
    pub(crate) fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// DER: the certificate, and those between it and its root.
    pub(super) fn chain(&self) -> Vec<Vec<u8>> {
        let chain = self.certified.cert.iter();
        chain.map(|certificate| certificate.to_vec()).collect()
    }

    /// The private key, DER.
    pub(super) fn key(&self) -> &[u8] {
        &self.key
    }

    pub(super) fn not_before(&self) -> Timestamp {
        self.not_before
    }

    pub(super) fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

impl ClientCertificateSummary {
    /// `certificate` is DER. `None`: it cannot be read.
    pub(super) fn from_der(certificate: &[u8]) -> Option<Self> {
        let parsed = Certificate::from_der(certificate).ok()?;
        let (not_before, not_after) = validity_period(&parsed);
        Some(Self {
            subject: parsed.tbs_certificate().subject().to_string(),
            issuer: parsed.tbs_certificate().issuer().to_string(),
            fingerprint: token::encode_hex(&token::sha256(certificate)),
            not_before,
            not_after,
        })
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ClientCertificate({})",
            token::encode_hex(&self.fingerprint)
        )
    }
}
