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

use der::Decode as _;
use der::asn1::ObjectIdentifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
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
/// A certificate may hold any number of names of any length.
const MAX_SHOWN_NAMES: usize = 3;
const MAX_SHOWN_NAME_CHARS: usize = 100;

/// A verifier whose refusals say what is wrong with the certificates that the server sent.
#[derive(Debug)]
pub(crate) struct ExplainingVerifier(pub(crate) Arc<dyn ServerCertVerifier>);

impl ServerCertVerifier for ExplainingVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verified =
            self.0
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        verified.map_err(|error| match error {
            rustls::Error::InvalidCertificate(error) => {
                let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).collect();
                let sentence = describe_certificate_error(&error, &server_name.to_str(), &chain);
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
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
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

/// One sentence without a full stop. `host` is the server's name or address.
pub(crate) fn describe_tls_error(error: &rustls::Error, host: &str) -> String {
    use AlertDescription as Alert;
    match error {
        rustls::Error::InvalidCertificate(error) => describe_certificate_error(error, host, &[]),
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => format!(
            "{host} answers in plain text at this port: correct the port, or the scheme of the URL"
        ),
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
        rustls::Error::AlertReceived(Alert::UnrecognisedName) => {
            format!("{host} has no certificate for this name: correct the URL, or set one up there")
        }
        rustls::Error::AlertReceived(Alert::InternalError) => format!(
            "{host} reports an error of its own in the TLS handshake, often because it has no certificate for this name: look into its log"
        ),
        rustls::Error::AlertReceived(Alert::CertificateRequired) => {
            format!("{host} asks for a client certificate, and none is configured")
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
        ) => format!(
            "{host} refuses the client certificate that it was shown, or asks for one, with the alert {alert:?}: look into its log"
        ),
        rustls::Error::AlertReceived(alert) => {
            format!("{host} ended the TLS handshake with the alert {alert:?}: look into its log")
        }
        other => format!("the TLS connection to {host} failed: {other}"),
    }
}

/// `chain` is what the server sent, its own certificate first; it may be empty.
fn describe_certificate_error(
    error: &CertificateError,
    host: &str,
    chain: &[&CertificateDer<'_>],
) -> String {
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
            describe_names(host, parsed.first())
        }
        CertificateError::UnknownIssuer => describe_issuer(host, &parsed),
        CertificateError::Other(OtherError(error)) => {
            match error.downcast_ref::<webpki::Error>() {
                Some(webpki::Error::CaUsedAsEndEntity) => format!(
                    "{host} uses the certificate of a certificate authority, which is what `openssl req -x509` makes: make one with -addext basicConstraints=critical,CA:FALSE and -addext subjectAltName={}, and trust it here with SSL_CERT_FILE",
                    alternative_name(host)
                ),
                Some(webpki::Error::UnsupportedCertVersion) => format!(
                    "the certificate of {host} has version 1, which names no host: make one of version 3 with -addext subjectAltName={}",
                    alternative_name(host)
                ),
                Some(other) => format!("the certificate of {host} is refused: {other}"),
                // The sentence of `ExplainingVerifier`.
                None if error.is::<RefusedCertificate>() => error.to_string(),
                // Of the platform's verifier.
                None => format!("the certificate of {host} is refused: {error}"),
            }
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("the certificate of {host} is not one for servers (extended key usage)")
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => format!(
            "the certificate of {host} is signed in a way that is no longer secure, such as SHA-1 or a short key: make a new one"
        ),
        CertificateError::BadSignature => format!(
            "the certificate of {host} is not signed by the trusted authority that it names: another one has the same name"
        ),
        CertificateError::BadEncoding => format!("the certificate of {host} cannot be read"),
        other => {
            let cause = rustls::Error::InvalidCertificate(other.clone());
            format!("the certificate of {host} is refused: {cause}")
        }
    }
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

fn describe_names(host: &str, leaf: Option<&Certificate>) -> String {
    let names = leaf.map(presented_names);
    match names {
        Some(names) if names.is_empty() => format!(
            "the certificate of {host} names no host (it has no subjectAltName): make one with -addext subjectAltName={}",
            alternative_name(host)
        ),
        Some(names) => {
            let shown = names.iter().take(MAX_SHOWN_NAMES);
            let mut shown = shown.map(String::as_str).collect::<Vec<_>>().join(", ");
            if names.len() > MAX_SHOWN_NAMES {
                shown.push_str(" and others");
            }
            format!(
                "the certificate of {host} is for {shown} and not for {host}: correct the URL, or set up a certificate for this name there"
            )
        }
        None => format!("the certificate of {host} is not for this name"),
    }
}

fn describe_issuer(host: &str, chain: &[Certificate]) -> String {
    let (Some(leaf), Some(last)) = (chain.first(), chain.last()) else {
        return format!(
            "the certificate of {host} was issued by an authority that is not trusted here"
        );
    };
    let own_authority = "if the authority is your own, name its certificate in SSL_CERT_FILE";
    let (leaf, last) = (leaf.tbs_certificate(), last.tbs_certificate());
    if leaf.subject() == leaf.issuer() {
        format!(
            "the certificate of {host} is self-signed and not trusted here: set up one of a public authority there, or name it in SSL_CERT_FILE here"
        )
    } else if last.subject() == last.issuer() {
        format!(
            "the certificates of {host} end at the authority {}, which is not trusted here: {own_authority}",
            quoted(last.subject())
        )
    } else if chain.len() == 1 && has_public_issuer(&chain[0]) {
        format!(
            "{host} sends its certificate without the intermediate certificate {} that issued it: install the whole chain there (fullchain.pem)",
            quoted(leaf.issuer())
        )
    } else {
        format!(
            "the certificates of {host} end at one that {} issued, which {host} does not send and which is not trusted here: install the whole chain there (fullchain.pem), or, {own_authority}",
            quoted(last.issuer())
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
