//! The HTTP client: HTTP/2 where offered, no redirects, no proxy from the environment.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

/// A connection that takes longer than this is not going to be useful to a caller who waits.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The HTTP client for calls to stores.
pub fn client() -> Result<reqwest::Client, NoClient> {
    Ok(builder().build()?)
}

/// The same for a service of one's own at this machine, whose certificate is judged by itself: not by who issued it, for
/// which name and until when.
pub fn client_believing(whom: Believed) -> Result<reqwest::Client, NoClient> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let judge = Arc::new(Judge {
        whom,
        algorithms: provider.signature_verification_algorithms,
    });
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(judge)
        .with_no_client_auth();
    Ok(builder().tls_backend_preconfigured(tls).build()?)
}

/// Why no client can be made. In practice there is one reason: a machine, most often a small image, without anybody whose
/// certificates it trusts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "nobody can be called over TLS ({0}): install the system's root certificates (the package ca-certificates), or correct SSL_CERT_FILE and SSL_CERT_DIR where they are set"
)]
pub struct NoClient(String);

impl From<reqwest::Error> for NoClient {
    fn from(error: reqwest::Error) -> Self {
        let said = root_cause(&error.without_url());
        Self(said.trim_end_matches('.').to_owned())
    }
}

/// Whose certificate convinces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Believed {
    /// Exactly this one, to the byte.
    Only(CertificateDer<'static>),
    /// Whoever is there. Nothing may be sent that is not for everybody.
    Anybody,
}

/// Compares certificates. That the other side has the key is checked as always.
#[derive(Debug)]
struct Judge {
    whom: Believed,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.whom {
            Believed::Only(expected) if expected != certificate => Err(rustls::Error::General(
                "another certificate is there than expected".to_owned(),
            )),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(Duration::from_mins(1))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .user_agent(concat!("Attesto/", env!("CARGO_PKG_VERSION")))
}

/// The innermost cause says "connection refused" where the outer ones say "error sending request".
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
