//! The HTTP clients: HTTP/2 if the server offers it, no redirects, no proxy from the environment.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::tunnel_client::TunnelClient;
use crate::base::tls_error::{ExplainingVerifier, TlsPurpose};
use crate::egress::EgressProxy;

/// A connection that takes longer is of no use to a caller that waits for the answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);
const USER_AGENT: &str = concat!("Attesto/", env!("CARGO_PKG_VERSION"));

/// Builds requests to a store, and sends them directly or through the egress proxy. Clones share the connections.
#[derive(Clone)]
pub(super) struct StoreClient {
    pub(super) reqwest: reqwest::Client,
    tunnels: Option<TunnelClient>,
}

impl StoreClient {
    pub(super) fn new(proxy: Option<&EgressProxy>) -> Result<Self, HttpClientError> {
        let tunnels = proxy.map(|proxy| {
            let tls = Arc::new(store_tls_config()?);
            let proxy = proxy.clone();
            Ok::<_, HttpClientError>(TunnelClient::new(proxy, tls, CONNECT_TIMEOUT, IDLE_TIMEOUT))
        });
        Ok(Self {
            reqwest: build_http_client()?,
            tunnels: tunnels.transpose()?,
        })
    }

    /// Sends a request that was built with `reqwest`. The error has no URL.
    pub(super) async fn execute(
        &self,
        request: reqwest::Request,
    ) -> Result<reqwest::Response, Box<dyn std::error::Error + Send + Sync>> {
        if let Some(tunnels) = &self.tunnels {
            return tunnels.execute(request, USER_AGENT).await;
        }
        let response = self.reqwest.execute(request).await;
        response.map_err(|error| error.without_url().into())
    }
}

impl From<reqwest::Client> for StoreClient {
    /// Sends its requests directly.
    fn from(reqwest: reqwest::Client) -> Self {
        Self {
            reqwest,
            tunnels: None,
        }
    }
}

/// The HTTP client that stores are called with. The requests it builds must be sent by [`StoreClient`]; others use it as it
/// is, and never through the egress proxy.
pub fn build_http_client() -> Result<reqwest::Client, HttpClientError> {
    let tls = store_tls_config()?;
    Ok(client_builder().tls_backend_preconfigured(tls).build()?)
}

fn store_tls_config() -> Result<rustls::ClientConfig, HttpClientError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ExplainingVerifier::new(
            super::system_verifier()?,
            TlsPurpose::Store,
        )))
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

/// A client for a service of the operator on this machine. Its certificate is compared with the expected one; the
/// issuer, the name and the validity are not checked.
pub fn build_local_http_client(
    trust: CertificateTrust,
) -> Result<reqwest::Client, HttpClientError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let judge = Arc::new(PinnedCertificateVerifier {
        trust,
        algorithms: provider.signature_verification_algorithms,
    });
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(judge)
        .with_no_client_auth();
    Ok(client_builder().tls_backend_preconfigured(tls).build()?)
}

/// Why no client can be created. In practice the only reason is a machine without root certificates, usually a small
/// container image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no server can be called over TLS ({0}): install the system's root certificates (the package ca-certificates), or correct SSL_CERT_FILE and SSL_CERT_DIR where they are set"
)]
pub struct HttpClientError(String);

impl From<rustls::Error> for HttpClientError {
    fn from(error: rustls::Error) -> Self {
        let cause = match error {
            rustls::Error::General(cause) => cause,
            other => other.to_string(),
        };
        Self(cause.trim_end_matches('.').to_owned())
    }
}

impl From<reqwest::Error> for HttpClientError {
    fn from(error: reqwest::Error) -> Self {
        let cause = super::root_cause(&error.without_url());
        Self(cause.trim_end_matches('.').to_owned())
    }
}

/// Which certificates are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateTrust {
    /// Only this certificate, compared byte by byte.
    Pinned(CertificateDer<'static>),
    /// Any certificate. Nothing secret may be sent.
    AnyCertificate,
}

/// Compares the certificate. The server must still prove that it has the private key.
#[derive(Debug)]
struct PinnedCertificateVerifier {
    trust: CertificateTrust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedCertificateVerifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.trust {
            CertificateTrust::Pinned(expected) if expected != certificate => Err(
                rustls::Error::General("another certificate is there than expected".to_owned()),
            ),
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

fn client_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .user_agent(USER_AGENT)
}
