//! A certificate and its key, read from their files and judged.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::{InconsistentKeys, ServerConfig};
use webpki::KeyUsage;
use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use zeroize::Zeroizing;

use crate::base::certificate::validity_period;
use crate::base::clock::Timestamp;
use crate::crypto::redact::unreadable_file_message;
use crate::crypto::token;

/// The most that either file may weigh. A long chain is a few kilobytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;
/// How long before its end a certificate should have been replaced, unless a third of its life is shorter.
const MAX_EXPIRY_WARNING_PERIOD: Duration = Duration::from_hours(14 * 24);

/// Where the pair is: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// `TLS_CERT_PATH`: the certificate, and those between it and the root.
    pub certificate: PathBuf,
    /// `TLS_KEY_PATH`: its private key.
    pub key: PathBuf,
}

/// Why a pair is not used. Nothing of the key is in it.
#[derive(Debug, thiserror::Error)]
pub enum TlsCertificateError {
    /// A file cannot be read.
    #[error("{setting} {}: {cause}", unreadable_file_message(path))]
    Unreadable {
        /// Which of the two settings.
        setting: &'static str,
        /// The file's path.
        path: PathBuf,
        /// The error of the operating system.
        cause: io::Error,
    },
    /// No certificate is in it, or not the whole of one.
    #[error(
        "the file in TLS_CERT_PATH must be PEM, with the listener's certificate first and those between it and the root after it, each whole"
    )]
    InvalidCertificatePem,
    /// No key is in it, or not the whole of one.
    #[error("the file in TLS_KEY_PATH must be PEM, with a whole private key that is not encrypted")]
    InvalidKeyPem,
    /// The key is another certificate's.
    #[error("the key in TLS_KEY_PATH does not belong to the first certificate in TLS_CERT_PATH")]
    KeyMismatch,
    /// The certificates after the first are another's.
    #[error(
        "none of the certificates after the first in TLS_CERT_PATH issued the first: put its own intermediate there"
    )]
    ChainMismatch,
    /// It cannot be used for TLS.
    #[error("the certificate in TLS_CERT_PATH cannot be used with its key: {0}")]
    Unusable(rustls::Error),
    /// Its time is over.
    #[error("the certificate in TLS_CERT_PATH expired at {0}")]
    Expired(Timestamp),
    /// Its time has not come.
    #[error(
        "the certificate in TLS_CERT_PATH is good only from {0}: is this machine's clock right?"
    )]
    NotYetValid(Timestamp),
}

/// A pair that can be used.
#[derive(Clone, Debug)]
pub struct TlsCertificate {
    certificate: CertificateDer<'static>,
    not_before: Timestamp,
    not_after: Timestamp,
    pub(super) config: Arc<ServerConfig>,
}

/// What both files held at one time.
pub(super) struct PemContents {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl TlsFiles {
    /// What is in them.
    pub(super) fn read_pem(&self) -> Result<PemContents, TlsCertificateError> {
        Ok(PemContents {
            certificate: read_pem_file("TLS_CERT_PATH", &self.certificate)?,
            key: Zeroizing::new(read_pem_file("TLS_KEY_PATH", &self.key)?),
        })
    }
}

impl TlsFiles {
    /// Whether either was written, or another file put in its place, less than `age` before `now`. A clock that was put
    /// back counts as long ago.
    pub fn changed_within(&self, age: Duration, now: Timestamp) -> bool {
        [&self.certificate, &self.key].into_iter().any(|path| {
            let looks = [std::fs::metadata(path), std::fs::symlink_metadata(path)];
            looks.into_iter().flatten().any(|data| {
                let changed = Timestamp::from_millis(data.ctime().saturating_mul(1000));
                changed <= now && now.duration_since(changed) < age
            })
        })
    }
}

fn read_pem_file(setting: &'static str, path: &Path) -> Result<Vec<u8>, TlsCertificateError> {
    let attempt = || {
        // Opening a pipe would wait for who writes.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is no file"));
        }
        let mut bytes = Vec::new();
        File::open(path)?
            .take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(io::Error::from(ErrorKind::FileTooLarge));
        }
        Ok(bytes)
    };
    attempt().map_err(|cause| TlsCertificateError::Unreadable {
        setting,
        path: path.to_owned(),
        cause,
    })
}

impl PemContents {
    /// By which two readings are compared, so that the key's text need not be kept.
    pub(super) fn content_digest(&self) -> [u8; 32] {
        let both = [
            token::sha256(&self.certificate),
            token::sha256(self.key.as_slice()),
        ];
        token::sha256(both.as_flattened())
    }
}

impl TlsCertificate {
    /// Reads and judges what is in `files`. It reads two small files: where that may not wait, call it where waiting is
    /// allowed.
    pub fn from_files(files: &TlsFiles, now: Timestamp) -> Result<Self, TlsCertificateError> {
        Self::from_pem(&files.read_pem()?, now)
    }

    /// Whether it can be used at `now`.
    pub(super) fn from_pem(
        texts: &PemContents,
        now: Timestamp,
    ) -> Result<Self, TlsCertificateError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&texts.certificate)
            .collect::<Result<_, _>>()
            .map_err(|_| TlsCertificateError::InvalidCertificatePem)?;
        let parsed: Vec<_> = chain
            .iter()
            .map(|certificate| Certificate::from_der(certificate))
            .collect::<Result<_, _>>()
            .map_err(|_| TlsCertificateError::InvalidCertificatePem)?;
        let (first, others) = parsed
            .split_first()
            .ok_or(TlsCertificateError::InvalidCertificatePem)?;
        let key = PrivateKeyDer::from_pem_slice(&texts.key)
            .map_err(|_| TlsCertificateError::InvalidKeyPem)?;

        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(chain.clone(), key)
            })
            .map_err(|problem| match problem {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                    TlsCertificateError::KeyMismatch
                }
                problem => TlsCertificateError::Unusable(problem),
            })?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

        let issued = chain
            .iter()
            .zip(&parsed)
            .skip(1)
            .filter(|(_, other)| {
                other.tbs_certificate().subject() == first.tbs_certificate().issuer()
            })
            .any(|(other, _)| is_issued_by(&chain[0], other, now));
        if !others.is_empty() && !issued {
            return Err(TlsCertificateError::ChainMismatch);
        }
        let (not_before, not_after) = validity_period(first);
        if not_after <= now {
            return Err(TlsCertificateError::Expired(not_after));
        }
        if not_before > now {
            return Err(TlsCertificateError::NotYetValid(not_before));
        }
        let certificate = chain
            .into_iter()
            .next()
            .ok_or(TlsCertificateError::InvalidCertificatePem)?;
        Ok(Self {
            certificate,
            not_before,
            not_after,
            config: Arc::new(config),
        })
    }

    /// The listener's certificate itself, without those above it.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// When the certificate expires.
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// From when on it is valid.
    pub(crate) fn not_before(&self) -> Timestamp {
        self.not_before
    }

    /// Whether the certificate should be renewed: see [`is_renewal_due`].
    pub fn is_expiring_soon(&self, now: Timestamp) -> bool {
        is_renewal_due(Some(self.not_before), self.not_after, now)
    }

    /// SHA-256 of the certificate, in hexadecimal, as `openssl x509 -fingerprint -sha256` has it but for the colons.
    pub fn fingerprint(&self) -> String {
        token::encode_hex(&token::sha256(&self.certificate))
    }
}

/// The rule for warnings about the listener's certificate: in its last 14 days, or in the last third of its life when that is
/// shorter, because a certificate that lives for days is replaced every few days.
pub(crate) fn is_renewal_due(
    not_before: Option<Timestamp>,
    not_after: Timestamp,
    now: Timestamp,
) -> bool {
    let third = not_before.map(|not_before| not_after.duration_since(not_before) / 3);
    let period = third.map_or(MAX_EXPIRY_WARNING_PERIOD, |third| {
        third.min(MAX_EXPIRY_WARNING_PERIOD)
    });
    not_after.duration_since(now) < period
}

/// Whether the one certificate carries the other's signature: a name alone is also borne by an issuer's next certificate,
/// with another key.
fn is_issued_by(
    certificate: &CertificateDer<'_>,
    issuer: &CertificateDer<'_>,
    now: Timestamp,
) -> bool {
    let (Ok(certificate), Ok(issuer)) = (
        webpki::EndEntityCert::try_from(certificate),
        webpki::anchor_from_trusted_cert(issuer),
    ) else {
        return false;
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(
        u64::try_from(now.as_secs()).unwrap_or(0),
    ));
    let issuers = [issuer];
    let found = certificate.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &issuers,
        &[],
        now,
        KeyUsage::server_auth(),
        None,
        None,
    );
    // Everything else that may be wrong with it is said by name, or is the caller's to judge.
    !matches!(
        found,
        Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey)
    )
}
