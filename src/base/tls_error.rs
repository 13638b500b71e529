//! Says in one sentence why a TLS connection to a server failed: which host, since when, and what to do.
//!
//! `rustls` reports that an issuer is unknown without the chain that the server sent, and only with it can a missing
//! intermediate be told from a self-signed certificate. So [`ExplainingVerifier`] writes the sentence where the chain is at
//! hand, and [`describe_tls_error`] takes it from the error.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use der::Decode as _;
use der::asn1::ObjectIdentifier;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, DigitallySignedStruct, InvalidMessage, OtherError,
    PeerIncompatible, SignatureScheme,
};
use x509_cert::Certificate;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{AuthorityInfoAccessSyntax, SubjectAltName};
use x509_cert::name::Name;

use super::clock::Timestamp;

/// The access method `id-ad-caIssuers`, which certificates of public authorities have.
const OID_AD_CA_ISSUERS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.2");
/// What `rustls-platform-verifier` says of a certificate that is not for servers.
const PLATFORM_EKU_ERROR: &str = "certificate had invalid extensions";
/// A certificate may hold any number of names of any length.
const MAX_SHOWN_NAMES: usize = 3;
const MAX_SHOWN_NAME_CHARS: usize = 100;

/// The shortest RSA key that `rustls` accepts.
const MIN_RSA_BITS: usize = 2048;
/// `pkcs-1` without its last arc, below which are RSA keys and signatures with them.
const OID_PKCS_1: &str = "1.2.840.113549.1.1.";

/// What a connection is for, which says where its settings are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TlsPurpose {
    /// A call to a store.
    Store,
    /// A delivery to a callback.
    Callback,
    /// A connection to Postgres.
    Database,
}

impl TlsPurpose {
    /// What has the host's name in it.
    fn address(self) -> &'static str {
        match self {
            Self::Store | Self::Callback => "the URL",
            Self::Database => "the host in the database's URL",
        }
    }

    /// The setting that makes a certificate trusted.
    fn trust_setting(self) -> &'static str {
        match self {
            Self::Store | Self::Callback => "SSL_CERT_FILE here",
            Self::Database => "the parameter sslrootcert of the database's URL",
        }
    }

    /// What to do where a server asks for a client certificate.
    fn client_certificate_advice(self) -> &'static str {
        match self {
            Self::Store => "",
            Self::Callback => ": set one with attesto webhook set-config --client-certificate-path",
            Self::Database => {
                ": name it in the parameters sslcert and sslkey of the database's URL"
            }
        }
    }
}

/// The server of a connection, for sentences about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TlsServer<'a> {
    /// Its name or address.
    pub(crate) host: &'a str,
    pub(crate) purpose: TlsPurpose,
    /// Whether it asked for a client certificate, as far as that is known.
    pub(crate) client_certificate: ClientCertificateUse,
}

impl<'a> TlsServer<'a> {
    /// One of which it is not known whether it asked for a client certificate.
    pub(crate) fn new(host: &'a str, purpose: TlsPurpose) -> Self {
        Self {
            host,
            purpose,
            client_certificate: ClientCertificateUse::Unknown,
        }
    }
}

/// What became of a server's question for a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientCertificateUse {
    /// It did not ask, or it is not known whether it did.
    Unknown,
    /// It asked and was shown none.
    Withheld,
    /// It asked and was shown one.
    Shown,
}

/// Notes whether the server asks for a client certificate. In TLS 1.2 its refusal is the same alert as for a missing cipher.
#[derive(Debug)]
pub(crate) struct ClientCertificateNote {
    inner: Arc<dyn ResolvesClientCert>,
    asked: AtomicBool,
}

impl ClientCertificateNote {
    /// In the place of `inner`, for one connection.
    pub(crate) fn new(inner: Arc<dyn ResolvesClientCert>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            asked: AtomicBool::new(false),
        })
    }

    pub(crate) fn outcome(&self) -> ClientCertificateUse {
        match (self.asked.load(Ordering::Relaxed), self.inner.has_certs()) {
            (false, _) => ClientCertificateUse::Unknown,
            (true, false) => ClientCertificateUse::Withheld,
            (true, true) => ClientCertificateUse::Shown,
        }
    }
}

impl ResolvesClientCert for ClientCertificateNote {
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.inner.resolve(authorities, schemes)
    }

    fn has_certs(&self) -> bool {
        self.inner.has_certs()
    }
}

/// A verifier whose refusals say what is wrong with the certificates that the server sent.
#[derive(Debug)]
pub(crate) struct ExplainingVerifier {
    inner: Arc<dyn ServerCertVerifier>,
    purpose: TlsPurpose,
}

impl ExplainingVerifier {
    /// Refuses what `inner` refuses, in other words.
    pub(crate) fn new(inner: Arc<dyn ServerCertVerifier>, purpose: TlsPurpose) -> Self {
        Self { inner, purpose }
    }
}

impl ServerCertVerifier for ExplainingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        // The handshake would fail at the server's signature, where its name is not known.
        let verified = match find_short_rsa_key(end_entity) {
            Some(_) => verified.and(Err(CertificateError::BadSignature.into())),
            None => verified,
        };
        verified.map_err(|error| match error {
            rustls::Error::InvalidCertificate(error) => {
                let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).collect();
                let host = server_name.to_str();
                let server = TlsServer::new(&host, self.purpose);
                let sentence = describe_certificate_error(&error, &server, &chain);
                let explained = OtherError(Arc::new(RefusedCertificate(sentence)));
                CertificateError::Other(explained).into()
            }
            other => other,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A refusal of [`ExplainingVerifier`], in one sentence.
#[derive(Debug)]
struct RefusedCertificate(String);

impl fmt::Display for RefusedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for RefusedCertificate {}

/// The `rustls` error in `error` or below it.
pub(crate) fn find_tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(found) = next {
        if let Some(tls) = found.downcast_ref::<rustls::Error>() {
            return Some(tls);
        }
        // An `io::Error` does not show the error inside it as its source.
        let inner = found
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => found.source(),
        };
    }
    None
}

/// One sentence without a full stop.
pub(crate) fn describe_tls_error(error: &rustls::Error, server: &TlsServer<'_>) -> String {
    use AlertDescription as Alert;
    let host = server.host;
    match error {
        rustls::Error::InvalidCertificate(error) => describe_certificate_error(error, server, &[]),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => format!(
            "{host} answers in plain text at this port: correct the port, or the scheme of the URL"
        ),
        rustls::Error::AlertReceived(
            Alert::HandshakeFailure
            | Alert::BadCertificate
            | Alert::NoCertificate
            | Alert::CertificateUnknown
            | Alert::AccessDenied,
        ) if server.client_certificate == ClientCertificateUse::Withheld => {
            describe_missing_client_certificate(server)
        }
        rustls::Error::AlertReceived(alert @ Alert::HandshakeFailure)
            if server.client_certificate == ClientCertificateUse::Shown =>
        {
            describe_refused_client_certificate(server, *alert)
        }
        rustls::Error::AlertReceived(Alert::ProtocolVersion)
        | rustls::Error::PeerIncompatible(
            PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled,
        ) => format!(
            "{host} speaks no version of TLS that is spoken here (1.2 and 1.3): allow one of them there"
        ),
        rustls::Error::AlertReceived(Alert::HandshakeFailure | Alert::InsufficientSecurity)
        | rustls::Error::PeerIncompatible(
            PeerIncompatible::NoCipherSuitesInCommon
            | PeerIncompatible::NoKxGroupsInCommon
            | PeerIncompatible::NoSignatureSchemesInCommon
            | PeerIncompatible::NoEcPointFormatsInCommon
            | PeerIncompatible::NamedGroupsExtensionRequired
            | PeerIncompatible::KeyShareExtensionRequired,
        ) => format!(
            "{host} has no cipher in common with this side, which speaks TLS 1.3, and TLS 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305: allow one of them there"
        ),
        rustls::Error::AlertReceived(Alert::UnrecognisedName) => format!(
            "{host} has no certificate for this name: correct {}, or set one up there",
            server.purpose.address()
        ),
        rustls::Error::AlertReceived(Alert::InternalError) => format!(
            "{host} reports an error of its own in the TLS handshake, often because it has no certificate for this name: look into its log"
        ),
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            describe_missing_client_certificate(server)
        }
        rustls::Error::AlertReceived(Alert::CertificateExpired) => {
            format!("{host} refuses the client certificate that it was shown: it has expired")
        }
        rustls::Error::AlertReceived(
            alert @ (Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError),
        ) => describe_refused_client_certificate(server, *alert),
        rustls::Error::NoApplicationProtocol
        | rustls::Error::AlertReceived(Alert::NoApplicationProtocol) => {
            format!("{host} does not speak HTTP over TLS at this port: correct the port")
        }
        rustls::Error::AlertReceived(alert) => {
            format!("{host} ended the TLS handshake with the alert {alert:?}: look into its log")
        }
        rustls::Error::InvalidMessage(_) => format!(
            "{host} sends what is not TLS: is the port of {} one for TLS?",
            server.purpose.address()
        ),
        rustls::Error::PeerMisbehaved(_) | rustls::Error::PeerSentOversizedRecord => format!(
            "{host} breaks the rules of TLS: look into its log, or for a proxy that changes what is sent"
        ),
        other => format!("the TLS connection to {host} failed: {other}"),
    }
}

/// The sentence about a server that asked for a client certificate and was shown none.
pub(crate) fn describe_missing_client_certificate(server: &TlsServer<'_>) -> String {
    format!(
        "{} asks for a client certificate, and none is configured{}",
        server.host,
        server.purpose.client_certificate_advice()
    )
}

fn describe_refused_client_certificate(server: &TlsServer<'_>, alert: AlertDescription) -> String {
    let host = server.host;
    match server.client_certificate {
        ClientCertificateUse::Shown => format!(
            "{host} refuses the client certificate that it was shown, with the alert {alert:?}: look into its log"
        ),
        ClientCertificateUse::Unknown | ClientCertificateUse::Withheld => format!(
            "{host} refuses the client certificate that it was shown, or asks for one, with the alert {alert:?}: look into its log"
        ),
    }
}

/// `chain` is what the server sent, its own certificate first; it may be empty.
pub(crate) fn describe_certificate_error(
    error: &CertificateError,
    server: &TlsServer<'_>,
    chain: &[&CertificateDer<'_>],
) -> String {
    let host = server.host;
    let parsed = chain
        .iter()
        .map_while(|der| Certificate::from_der(der.as_ref()).ok());
    let parsed: Vec<Certificate> = parsed.collect();
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            describe_expiry(error, host, &parsed)
        }
        CertificateError::NotValidYet => {
            format!("the certificate of {host} is not valid yet: is a clock wrong?")
        }
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "the certificate of {host} is not valid before {}: is a clock wrong?",
            timestamp(*not_before)
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            describe_names(server, parsed.first())
        }
        CertificateError::UnknownIssuer => describe_issuer(server, &parsed),
        CertificateError::Other(OtherError(error)) => {
            match error.downcast_ref::<webpki::Error>() {
                Some(webpki::Error::CaUsedAsEndEntity) => format!(
                    "{host} uses the certificate of a certificate authority, which is what `openssl req -x509` makes: make one with -addext basicConstraints=critical,CA:FALSE and -addext subjectAltName={}, and name it in {}",
                    alternative_name(host),
                    server.purpose.trust_setting()
                ),
                Some(webpki::Error::UnsupportedCertVersion) => format!(
                    "the certificate of {host} has version 1, which names no host: make one of version 3 with -addext subjectAltName={}",
                    alternative_name(host)
                ),
                Some(other) => format!("the certificate of {host} is refused: {other}"),
                // The sentence of `ExplainingVerifier`.
                None if error.is::<RefusedCertificate>() => error.to_string(),
                // The platform's verifier has no public type for it.
                None if error.to_string() == PLATFORM_EKU_ERROR => describe_purpose(host),
                None => format!("the certificate of {host} is refused: {error}"),
            }
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            describe_purpose(host)
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
        | CertificateError::BadSignature => describe_signature(error, server, chain, &parsed),
        CertificateError::BadEncoding => format!("the certificate of {host} cannot be read"),
        CertificateError::Revoked => {
            format!("the certificate of {host} was revoked: renew it")
        }
        other => {
            let cause = rustls::Error::InvalidCertificate(other.clone());
            format!("the certificate of {host} is refused: {cause}")
        }
    }
}

fn describe_purpose(host: &str) -> String {
    format!(
        "the certificate of {host} is for clients and not for servers: make one whose extended key usage has serverAuth"
    )
}

/// About a signature that does not hold. A trusted certificate may have the same name as one that the server made itself, as
/// `CN=localhost` on many machines, and its key is tried first.
fn describe_signature(
    error: &CertificateError,
    server: &TlsServer<'_>,
    chain: &[&CertificateDer<'_>],
    parsed: &[Certificate],
) -> String {
    let host = server.host;
    if let Some(bits) = chain.iter().find_map(|der| find_short_rsa_key(der)) {
        return format!(
            "the certificate of {host}, or one that it sends with it, has or is signed with an RSA key of {bits} bits, and at least {MIN_RSA_BITS} are required: make a new key and certificate"
        );
    }
    if parsed.first().is_some_and(is_self_signed) {
        return describe_issuer(server, parsed);
    }
    match error {
        CertificateError::UnsupportedSignatureAlgorithmContext { .. } => format!(
            "the certificate of {host} is signed in a way that is no longer secure, such as SHA-1: make a new one"
        ),
        _ => format!(
            "the certificate of {host} is not signed by the trusted authority that it names: another one has the same name"
        ),
    }
}

fn is_self_signed(certificate: &Certificate) -> bool {
    let content = certificate.tbs_certificate();
    content.subject() == content.issuer()
}

/// The length of the RSA key that a certificate has or is signed with, if it is too short to be accepted.
fn find_short_rsa_key(certificate: &CertificateDer<'_>) -> Option<usize> {
    let certificate = Certificate::from_der(certificate.as_ref()).ok()?;
    let is_rsa = |oid: ObjectIdentifier| oid.to_string().starts_with(OID_PKCS_1);
    let key = certificate.tbs_certificate().subject_public_key_info();
    let own = is_rsa(key.algorithm.oid).then(|| {
        let key = RsaPublicKey::from_der(key.subject_public_key.raw_bytes()).ok()?;
        Some(key.modulus.as_bytes().len() * 8)
    });
    let signature = is_rsa(certificate.signature_algorithm().oid)
        .then(|| certificate.signature().raw_bytes().len() * 8);
    let lengths = [own.flatten(), signature];
    lengths
        .into_iter()
        .flatten()
        .find(|bits| *bits < MIN_RSA_BITS)
}

/// RFC 8017, A.1.1.
#[derive(der::Sequence)]
struct RsaPublicKey<'a> {
    modulus: der::asn1::UintRef<'a>,
    exponent: der::asn1::UintRef<'a>,
}

fn describe_expiry(error: &CertificateError, host: &str, chain: &[Certificate]) -> String {
    let CertificateError::ExpiredContext { not_after, .. } = error else {
        return format!("the certificate of {host} has expired: renew it");
    };
    let ended_at = timestamp(*not_after);
    let ends_then = |certificate: &Certificate| {
        let end = certificate.tbs_certificate().validity().not_after;
        end.to_unix_duration().as_secs() == not_after.as_secs()
    };
    match chain.iter().position(ends_then) {
        Some(at) if at > 0 => format!(
            "the intermediate certificate {} that {host} sends expired on {ended_at}: install the current chain there",
            quoted(chain[at].tbs_certificate().subject())
        ),
        _ => format!("the certificate of {host} expired on {ended_at}: renew it"),
    }
}

fn describe_names(server: &TlsServer<'_>, leaf: Option<&Certificate>) -> String {
    let host = server.host;
    let (address, other_mode) = (
        server.purpose.address(),
        match server.purpose {
            TlsPurpose::Database => ", or compare no name with sslmode=verify-ca",
            TlsPurpose::Store | TlsPurpose::Callback => "",
        },
    );
    let names = leaf.map(presented_names);
    match names {
        Some(names) if names.is_empty() => format!(
            "the certificate of {host} names no host (it has no subjectAltName): make one with -addext subjectAltName={}{other_mode}",
            alternative_name(host)
        ),
        Some(names) => {
            let shown = names.iter().take(MAX_SHOWN_NAMES);
            let mut shown = shown.map(String::as_str).collect::<Vec<_>>().join(", ");
            if names.len() > MAX_SHOWN_NAMES {
                shown.push_str(" and others");
            }
            format!(
                "the certificate of {host} is for {shown} and not for {host}: correct {address}, or set up a certificate for this name there{other_mode}"
            )
        }
        None => format!(
            "the certificate of {host} is not for this name: correct {address}, or set up a certificate for it there{other_mode}"
        ),
    }
}

fn describe_issuer(server: &TlsServer<'_>, chain: &[Certificate]) -> String {
    let (host, setting) = (server.host, server.purpose.trust_setting());
    let own_authority = format!("if the authority is your own, name its certificate in {setting}");
    let (Some(leaf), Some(last)) = (chain.first(), chain.last()) else {
        return format!(
            "the certificate of {host} is self-signed or was issued by an authority that is not trusted here: name it, or the authority's, in {setting}"
        );
    };
    let (leaf_content, last_content) = (leaf.tbs_certificate(), last.tbs_certificate());
    if is_self_signed(leaf) {
        let public = match server.purpose {
            TlsPurpose::Database => "",
            TlsPurpose::Store | TlsPurpose::Callback => {
                "set up one of a public authority there, or "
            }
        };
        format!(
            "the certificate of {host} is self-signed and not trusted here: {public}name it in {setting}"
        )
    } else if is_self_signed(last) {
        format!(
            "the certificates of {host} end at the authority {}, which is not trusted here: {own_authority}",
            quoted(last_content.subject())
        )
    } else if chain.len() == 1 && has_public_issuer(leaf) {
        format!(
            "{host} sends its certificate without the intermediate certificate {} that issued it: install the whole chain there (fullchain.pem)",
            quoted(leaf_content.issuer())
        )
    } else {
        format!(
            "the certificates of {host} end at one that {} issued, which {host} does not send and which is not trusted here: install the whole chain there (fullchain.pem), or, {own_authority}",
            quoted(last_content.issuer())
        )
    }
}

/// Whether the certificate says where its issuer's certificate can be downloaded. Those of public authorities do.
fn has_public_issuer(certificate: &Certificate) -> bool {
    let access = certificate.tbs_certificate().get_extension();
    let Ok(Some((_, AuthorityInfoAccessSyntax(access)))) = access else {
        return false;
    };
    access
        .iter()
        .any(|place| place.access_method == OID_AD_CA_ISSUERS)
}

fn presented_names(certificate: &Certificate) -> Vec<String> {
    let names = certificate
        .tbs_certificate()
        .get_extension::<SubjectAltName>();
    let names = names
        .ok()
        .flatten()
        .map_or(Vec::new(), |(_, names)| names.0);
    let shown = names.iter().filter_map(|name| match name {
        GeneralName::DnsName(name) => Some(shortened(name.as_str())),
        GeneralName::IpAddress(bytes) => {
            let bytes = bytes.as_bytes();
            let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            let v6 = <[u8; 16]>::try_from(bytes).map(IpAddr::from);
            v4.or(v6).ok().map(|address| address.to_string())
        }
        _ => None,
    });
    shown.collect()
}

/// As `openssl` takes it.
fn alternative_name(host: &str) -> String {
    if host.parse::<IpAddr>().is_ok() {
        format!("IP:{host}")
    } else {
        format!("DNS:{host}")
    }
}

fn quoted(name: &Name) -> String {
    format!("\"{}\"", shortened(&name.to_string()))
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_SHOWN_NAME_CHARS).collect()
}

fn timestamp(moment: UnixTime) -> Timestamp {
    let millis = moment.as_secs().saturating_mul(1000);
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// A self-signed certificate of localhost with an RSA key of 1024 bits, as `openssl` makes it.
    const SHORT_RSA_KEY: &str = "MIICFzCCAYCgAwIBAgIUeIcLRSnch0ewh5sZHEyz6tDRWMEwDQYJKoZIhvcNAQELBQAwFDESMBAGA1UEAwwJbG9jYWxob3N0 \
        MB4XDTI2MTIwMTA2NTA0MFoXDTM2MTEyODA2NTA0MFowFDESMBAGA1UEAwwJbG9jYWxob3N0MIGfMA0GCSqGSIb3DQEBAQUA \
        A4GNADCBiQKBgQDBh/QEdu0mPZZVwy9yyQpdvzLjzDUy5HCv/lmmkRYtXxCEY5bSnVtKAYQ4dVTgzANRczm7hIiMFHhqVN5Q \
        kNkQDmYiqdpxflj7KsnXakk+i8wFWgevW3QcQP4A7Tgi/al59Cwy27PBQ1K3Lgdx9k0Ozowrs+04s2e+4OZF1bJ9ZwIDAQAB \
        o2YwZDAdBgNVHQ4EFgQUQ1+xox+nSgQluRdv1NEb/E9S8B8wHwYDVR0jBBgwFoAUQ1+xox+nSgQluRdv1NEb/E9S8B8wFAYD \
        VR0RBA0wC4IJbG9jYWxob3N0MAwGA1UdEwEB/wQCMAAwDQYJKoZIhvcNAQELBQADgYEAU6rQSlQdYS1JZHwgf8hKhcEx15DU \
        k8AxjMlF1HSBvYWrQWYVS6Xb51gAqNaCCMWt2RzXx/CQwyIbzUbvvQ/0udu+nhCV83E41eSmEcTd7lGQ74ZnXUEHI0qJhsbI \
        GWF39IaV3qkLPcYlF2R6NV1tNjiKpOQgpynp/sM2K7Z4AME=";

    #[test]
    fn a_short_rsa_key_is_named_by_its_length() {
        let base64: String = SHORT_RSA_KEY.split_whitespace().collect();
        let der = CertificateDer::from(STANDARD.decode(base64).unwrap());
        let server = TlsServer::new("localhost", TlsPurpose::Callback);
        let said = describe_certificate_error(&CertificateError::BadSignature, &server, &[&der]);
        assert!(said.contains("RSA key of 1024 bits"), "{said}");
    }
}
