//! Why a connection to the database cannot be encrypted, in one sentence with the host's name.
//!
//! sqlx verifies the server with a verifier of its own and reports what that says, without the certificates. So after such a
//! failure the certificates are fetched once more, over a connection on which nothing is sent but the question for TLS.

use std::collections::HashMap;
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
/// Of how many servers the certificates are remembered. A URL that names more is unusual; those fetched longest ago are forgotten.
const MAX_CHAINS: usize = 16;
/// How long the files of the URL may take to be read, which may be on a network's file system.
const FILE_TIMEOUT: Duration = Duration::from_secs(5);

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

/// A host and its port.
type ServerAddress = (String, u16);

/// The certificates that each server sent last, and when.
#[derive(Default)]
pub(super) struct FetchedChains(Mutex<HashMap<ServerAddress, FetchedChain>>);

struct FetchedChain {
    fetched_at: Instant,
    certificates: Vec<CertificateDer<'static>>,
}

impl FetchedChains {
    async fn get(&self, options: &PgConnectOptions) -> Vec<CertificateDer<'static>> {
        let server = (options.get_host().to_owned(), options.get_port());
        if let Some(known) = self.find(&server, Instant::now()) {
            return known;
        }
        let fetched = timeout(FETCH_TIMEOUT, fetch_chain(options)).await;
        let chain = fetched.ok().and_then(Result::ok).unwrap_or_default();
        self.insert(server, chain.clone(), Instant::now());
        chain
    }

    fn find(&self, server: &ServerAddress, now: Instant) -> Option<Vec<CertificateDer<'static>>> {
        let known = self.0.lock();
        let chain = known.get(server)?;
        let is_recent = now.saturating_duration_since(chain.fetched_at) < CHAIN_TTL;
        is_recent.then(|| chain.certificates.clone())
    }

    fn insert(
        &self,
        server: ServerAddress,
        certificates: Vec<CertificateDer<'static>>,
        now: Instant,
    ) {
        let mut known = self.0.lock();
        if known.len() >= MAX_CHAINS && !known.contains_key(&server) {
            let by_age = known.iter().min_by_key(|(_, chain)| chain.fetched_at);
            if let Some(oldest) = by_age.map(|(server, _)| server.clone()) {
                known.remove(&oldest);
            }
        }
        let fetched = FetchedChain {
            fetched_at: now,
            certificates,
        };
        known.insert(server, fetched);
    }
}

/// The same error, explained if TLS is why the connection failed. `options` are those of one server of the list.
pub(super) async fn explain_connect_failure(
    error: Error,
    options: &PgConnectOptions,
    list: &ServerList,
    fetched: &FetchedChains,
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
    if !may_be_file {
        return error;
    }
    // They were there when the URL was read.
    let files = list.tls_files.clone();
    let checking = tokio::task::spawn_blocking(move || files.check());
    match timeout(FILE_TIMEOUT, checking).await {
        Ok(Ok(Err(problem))) => DatabaseTlsError::into_error(
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

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::super::ConnectSettings;
    use super::*;

    fn server(number: u16) -> ServerAddress {
        ("db.example.com".to_owned(), number)
    }

    #[test]
    fn each_server_has_the_certificates_that_it_sent_and_no_other() {
        let (chains, now) = (FetchedChains::default(), Instant::now());
        let chain = |byte: u8| vec![CertificateDer::from(vec![byte])];
        chains.insert(server(1), chain(1), now);
        let other = ("other.example.com".to_owned(), 1);
        assert_eq!(chains.find(&other, now), None);
        assert_eq!(chains.find(&server(2), now), None);
        chains.insert(server(2), chain(2), now);
        assert_eq!(chains.find(&server(1), now), Some(chain(1)));
        assert_eq!(chains.find(&server(2), now), Some(chain(2)));
        assert_eq!(chains.find(&server(2), now + CHAIN_TTL), None);
        // However many there are, few are remembered, and those are the newest.
        let mut later = now;
        for number in 3..100 {
            later += Duration::from_millis(1);
            chains.insert(server(number), chain(3), later);
        }
        assert_eq!(chains.0.lock().len(), MAX_CHAINS);
        assert_eq!(chains.find(&server(1), later), None);
        assert_eq!(chains.find(&server(99), later), Some(chain(3)));
    }

    /// A named pipe gives nothing until it is written to, which this runtime's only thread does here.
    #[tokio::test]
    async fn a_file_that_is_slow_to_read_holds_up_nothing_else() {
        let folder = std::env::temp_dir().join(format!("attesto-slow-{:x}", fastrand::u64(..)));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("root.pem");
        let made = rcgen::generate_simple_self_signed(["db".to_owned()]).unwrap();
        std::fs::write(&path, made.cert.pem()).unwrap();
        let url = format!(
            "postgres://db/x?sslmode=verify-full&sslrootcert={}",
            path.display()
        );
        let list = ConnectSettings::from_url(&url).unwrap().servers;
        std::fs::remove_file(&path).unwrap();
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let (options, fetched) = (list.servers[0].clone(), FetchedChains::default());
        let error = Error::Configuration("the file cannot be read".into());
        let explaining = explain_connect_failure(error, &options, &list, &fetched);
        let writing = tokio::fs::write(&path, "no certificate");
        let (explained, written) = tokio::join!(explaining, writing);
        written.unwrap();
        assert!(explained.to_string().contains("sslrootcert"), "{explained}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
