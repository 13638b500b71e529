//! Why a connection to the database cannot be encrypted, in one sentence with the host's name.
//!
//! sqlx verifies the server with a verifier of its own and reports what that says, without the certificates. So after such a
//! failure the certificates are fetched once more, over a connection on which nothing is sent but the question for TLS.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::connect_error::TLS_NOT_OFFERED;
use super::connect_settings::{ServerList, ssl_mode_name};
use super::{DatabaseConnectError, Error};
use crate::base::tls_error::{
    TlsPurpose, TlsServer, describe_certificate_error, describe_tls_error, find_tls_error,
};

/// The message with which a client asks a server for TLS: its length, and the code of the request.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const SSL_ACCEPTED: u8 = b'S';
const FETCH_TIMEOUT: Duration = Duration::from_secs(1);
/// How long fetched certificates explain further failures, so that an outage does not double the connections.
const CHAIN_TTL: Duration = Duration::from_secs(10);

/// Why TLS failed, explained. It is in an [`Error::Tls`].
#[derive(Debug)]
pub(super) struct DatabaseTlsError {
    pub(super) problem: DatabaseConnectError,
    /// Without a full stop.
    sentence: String,
}

impl fmt::Display for DatabaseTlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl StdError for DatabaseTlsError {}

impl DatabaseTlsError {
    fn into_error(problem: DatabaseConnectError, sentence: String) -> Error {
        Error::Tls(Box::new(Self { problem, sentence }))
    }
}

/// The certificates that a server sent last, and when.
#[derive(Default)]
pub(super) struct FetchedChain(Mutex<Option<(Instant, Vec<CertificateDer<'static>>)>>);

impl FetchedChain {
    async fn get(&self, options: &PgConnectOptions) -> Vec<CertificateDer<'static>> {
        let known = self.0.lock().clone();
        if let Some((fetched_at, chain)) = known
            && fetched_at.elapsed() < CHAIN_TTL
        {
            return chain;
        }
        let fetched = timeout(FETCH_TIMEOUT, fetch_chain(options)).await;
        let chain = fetched.ok().and_then(Result::ok).unwrap_or_default();
        *self.0.lock() = Some((Instant::now(), chain.clone()));
        chain
    }
}

/// The same error, explained if TLS is why the connection failed. `options` are those of one server of the list.
pub(super) async fn explain_connect_failure(
    error: Error,
    options: &PgConnectOptions,
    list: &ServerList,
    fetched: &FetchedChain,
) -> Error {
    let host = options.get_host();
    if let Some(cause) = find_tls_error(&error) {
        let server = TlsServer::new(host, TlsPurpose::Database);
        let sentence = match cause {
            rustls::Error::InvalidCertificate(refused) => {
                let chain = fetched.get(options).await;
                let chain: Vec<_> = chain.iter().collect();
                describe_certificate_error(refused, &server, &chain)
            }
            other => describe_tls_error(other, &server),
        };
        return DatabaseTlsError::into_error(DatabaseConnectError::from_tls_error(cause), sentence);
    }
    let may_be_file = match &error {
        Error::Io(cause) => cause.raw_os_error().is_some() && options.get_socket().is_none(),
        Error::Tls(cause) if cause.is::<DatabaseTlsError>() => return error,
        Error::Tls(cause) if cause.to_string() == TLS_NOT_OFFERED => {
            let mode = ssl_mode_name(options.get_ssl_mode());
            let sentence = format!(
                "{host} offers no TLS, which sslmode={mode} of the database's URL requires: set ssl = on in its postgresql.conf"
            );
            return DatabaseTlsError::into_error(DatabaseConnectError::TlsNotOffered, sentence);
        }
        Error::Tls(_) | Error::Configuration(_) => true,
        _ => false,
    };
    // They were there when the URL was read.
    match list.tls_files.check() {
        Err(problem) if may_be_file => DatabaseTlsError::into_error(
            DatabaseConnectError::TlsFileUnusable,
            format!("the database's URL cannot be used: its parameter {problem}"),
        ),
        _ => error,
    }
}

async fn fetch_chain(options: &PgConnectOptions) -> io::Result<Vec<CertificateDer<'static>>> {
    let host = options.get_host();
    let mut stream = TcpStream::connect((host, options.get_port())).await?;
    stream.write_all(&SSL_REQUEST).await?;
    if stream.read_u8().await? != SSL_ACCEPTED {
        return Ok(Vec::new());
    }
    let recorder = Arc::new(ChainRecorder::default());
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(recorder.clone())
        .with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let connector = TlsConnector::from(Arc::new(config));
    // It ends where the certificates have arrived.
    let _ = connector.connect(name, stream).await;
    Ok(std::mem::take(&mut *recorder.0.lock()))
}

/// Keeps the certificates of a server, and refuses them.
#[derive(Debug, Default)]
struct ChainRecorder(Mutex<Vec<CertificateDer<'static>>>);

impl ServerCertVerifier for ChainRecorder {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = std::iter::once(end_entity).chain(intermediates);
        *self.0.lock() = chain.map(|one| one.clone().into_owned()).collect();
        Err(refuse())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refuse())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(refuse())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn refuse() -> rustls::Error {
    CertificateError::ApplicationVerificationFailure.into()
}
