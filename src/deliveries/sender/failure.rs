//! Why an attempt failed: one sentence for operators, with a name and with what to do.

use std::error::Error as _;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::header::{HeaderMap, LOCATION};
use url::Url;

use super::connect::MAX_RESPONSE_HEADERS;
use super::connect::{CallbackConnection, ConnectError, ConnectPhase, MAX_RESPONSE_HEAD_BYTES};
use super::send::MAX_RESPONSE_BYTES;
use crate::base::id::TenantId;
use crate::base::tls_error::{
    ClientCertificateUse, TlsPurpose, TlsServer, describe_missing_client_certificate,
    describe_tls_error, find_tls_error,
};
use crate::deliveries::outcome::{AttemptOutcome, OutcomeClass};
use crate::egress::{
    AddressRejection, CallbackHost, CallbackTarget, CallbackUrlError, EgressError, EgressProxy,
    LookupError, ProxyError, RejectionRemedy,
};

/// A sentence may quote what a receiver sent.
const MAX_SENTENCE_BYTES: usize = 500;
const MAX_LOCATION_CHARS: usize = 200;

/// Why no answer arrived.
pub(super) enum AttemptError {
    Url(CallbackUrlError),
    Address {
        rejection: AddressRejection,
        port: u16,
    },
    Refused(OutcomeClass, String),
    /// The whole attempt took too long. Completes the sentence "… within 10s".
    TimedOut {
        what: String,
        advice: &'static str,
    },
    /// Nothing was sent, and the callback did nothing wrong.
    OwnFault(OutcomeClass, String),
}

impl AttemptError {
    /// `timeout` is that of an attempt. Without a tenant, commands in the sentence name none.
    pub(super) fn into_outcome(
        self,
        timeout: Duration,
        tenant: Option<&TenantId>,
    ) -> AttemptOutcome {
        match self {
            Self::Url(error) => refused(OutcomeClass::Blocked, &error.to_string()),
            Self::Address { rejection, port } => {
                let mut sentence = rejection.to_string();
                if rejection.remedy == RejectionRemedy::AllowNetwork {
                    let address = SocketAddr::new(rejection.address, port);
                    let tenant = tenant.map_or("TENANT", TenantId::as_str);
                    // Writing to a `String` cannot fail.
                    let _ = write!(
                        sentence,
                        ": to allow it, attesto webhook allow {tenant} {address}"
                    );
                }
                refused(OutcomeClass::Blocked, &sentence)
            }
            Self::Refused(class, sentence) => refused(class, &sentence),
            Self::TimedOut { what, advice } => {
                let sentence = format!("{what} within {timeout:?}: {advice}");
                refused(OutcomeClass::Timeout, &sentence)
            }
            Self::OwnFault(class, sentence) => AttemptOutcome::NotAttempted {
                class,
                detail: bounded(&sentence),
            },
        }
    }

    /// With a proxy, names are resolved on this machine all the same, which an operator may not expect.
    pub(super) fn from_egress_error(
        error: &EgressError,
        target: &CallbackTarget,
        proxy: Option<&EgressProxy>,
    ) -> Self {
        let host = host_text(target);
        let resolved_here = match proxy {
            Some(_) => " (the names of callbacks are resolved here, not by the egress proxy)",
            None => "",
        };
        match error {
            EgressError::Rejected(rejection) => Self::Address {
                rejection: *rejection,
                port: target.port,
            },
            EgressError::Lookup(LookupError::ResolverUnavailable) => Self::OwnFault(
                OutcomeClass::Dns,
                format!(
                    "the DNS resolver of this machine does not answer, so nothing was sent{resolved_here}"
                ),
            ),
            EgressError::Lookup(LookupError::NameServerUnresponsive) => Self::Refused(
                OutcomeClass::Dns,
                format!("the name servers of {host} do not answer"),
            ),
            EgressError::Lookup(LookupError::NoAddress) => Self::Refused(
                OutcomeClass::Dns,
                format!(
                    "the name {host} does not exist in DNS, or has no address: correct the callback's URL or the name's records{resolved_here}"
                ),
            ),
        }
    }

    pub(super) fn from_connect_error(error: ConnectError, target: &CallbackTarget) -> Self {
        let server = server_text(target);
        match error {
            ConnectError::TimedOut(phase) => match phase {
                ConnectPhase::Tcp => Self::TimedOut {
                    what: format!("{server} accepted no connection"),
                    advice: "is it running, and does a firewall drop the connection?",
                },
                ConnectPhase::Tls => Self::TimedOut {
                    what: format!("{server} accepted a connection and finished no TLS handshake"),
                    advice: "is the port of the URL one for TLS?",
                },
            },
            ConnectError::Connect { address, cause } => Self::Refused(
                OutcomeClass::Connect,
                describe_tcp_error(&cause, target, address),
            ),
            ConnectError::Proxy(error) => Self::from_proxy_error(&error, target),
            ConnectError::NoAddress => {
                Self::Refused(OutcomeClass::Connect, format!("{server} has no address"))
            }
            ConnectError::Tls {
                cause,
                client_certificate,
            } => {
                let host = host_text(target);
                let peer = tls_server(&host, client_certificate);
                let sentence = match find_tls_error(&cause) {
                    Some(error) => describe_tls_error(error, &peer),
                    None if client_certificate == ClientCertificateUse::Withheld => {
                        describe_missing_client_certificate(&peer)
                    }
                    None => format!(
                        "{server} closed the connection in the TLS handshake: is the port of the URL one for TLS, and is there a certificate for this name?"
                    ),
                };
                Self::Refused(OutcomeClass::Tls, sentence)
            }
            ConnectError::Http(cause) => Self::Refused(
                OutcomeClass::Connect,
                format!("the connection to {server} failed: {cause}"),
            ),
        }
    }

    /// What is wrong with the proxy itself is no fault of the callback, and does not count as an attempt.
    fn from_proxy_error(error: &ProxyError, target: &CallbackTarget) -> Self {
        if !error.is_about_target() {
            return Self::OwnFault(OutcomeClass::Proxy, error.to_string());
        }
        // The proxy was asked for an address.
        let sentence = match &target.host {
            CallbackHost::Name(name) => format!("{name}: {error}"),
            CallbackHost::Address(_) => error.to_string(),
        };
        Self::Refused(OutcomeClass::Proxy, sentence)
    }

    /// For a connection that was made and brought no answer.
    pub(super) fn from_exchange_error(
        error: &hyper::Error,
        connection: &CallbackConnection,
        target: &CallbackTarget,
    ) -> Self {
        let server = server_text(target);
        if connection.read_budget.is_exhausted() {
            let kib = MAX_RESPONSE_BYTES / 1024;
            let sentence = format!("{server} sent more than {kib} KiB before its answer ended");
            return Self::Refused(OutcomeClass::BodyLimit, sentence);
        }
        if error.is_parse_too_large() {
            let read = connection.read_budget.bytes_read_of(MAX_RESPONSE_BYTES);
            let sentence = if read < MAX_RESPONSE_HEAD_BYTES {
                format!(
                    "the head of the answer of {server} has more than {MAX_RESPONSE_HEADERS} lines"
                )
            } else {
                let kib = MAX_RESPONSE_HEAD_BYTES / 1024;
                format!("the head of the answer of {server} is larger than {kib} KiB")
            };
            return Self::Refused(OutcomeClass::BodyLimit, sentence);
        }
        if !target.is_https && connection.read_budget.is_tls_record() {
            return Self::Refused(OutcomeClass::Connect, https_sentence(&server));
        }
        let host = host_text(target);
        let peer = tls_server(&host, connection.client_certificate);
        if let Some(cause) = find_tls_error(error) {
            return Self::Refused(OutcomeClass::Tls, describe_tls_error(cause, &peer));
        }
        if error.is_parse() {
            let sentence =
                format!("{server} does not answer in HTTP: is the port of the URL right?");
            return Self::Refused(OutcomeClass::Connect, sentence);
        }
        // With TLS 1.3 the server refuses a client only after the handshake; some close the connection without a word.
        if connection.client_certificate == ClientCertificateUse::Withheld {
            let sentence = describe_missing_client_certificate(&peer);
            return Self::Refused(OutcomeClass::Tls, sentence);
        }
        let ended = if is_reset(error) { "reset" } else { "closed" };
        let question = if target.is_https {
            "look into its log"
        } else {
            "is the port of the URL one for https://?"
        };
        let sentence = format!("{server} {ended} the connection before it answered: {question}");
        Self::Refused(OutcomeClass::Connect, sentence)
    }

    pub(super) fn no_answer(target: &CallbackTarget) -> Self {
        Self::TimedOut {
            what: format!(
                "{} took the request and did not answer",
                server_text(target)
            ),
            advice: "let it answer at once and do its work afterwards",
        }
    }
}

/// The sentence about an answer whose status is not 2xx. `body` is its beginning, and `location` the URL of a redirect; neither
/// is given where the content of answers must not be kept.
pub(super) fn describe_refusal(
    code: u16,
    target: &CallbackTarget,
    location: Option<&str>,
    body: Option<&[u8]>,
    client_certificate: ClientCertificateUse,
) -> String {
    let server = server_text(target);
    let is_certificate_missing = body.is_some_and(is_complaint_about_missing_certificate)
        && client_certificate != ClientCertificateUse::Shown;
    let may_be_missing =
        client_certificate == ClientCertificateUse::Withheld && matches!(code, 400 | 401 | 403);
    if is_certificate_missing || may_be_missing {
        let host = host_text(target);
        let missing = describe_missing_client_certificate(&tls_server(&host, client_certificate));
        return format!("{server} answered {code}: {missing}");
    }
    if code == 400 && !target.is_https && body.is_some_and(is_complaint_about_plain_http) {
        return https_sentence(&server);
    }
    let answered = format!("{server} answered {code}");
    match code {
        300..=399 => {
            let location =
                location.map_or(String::new(), |url| format!(" with the location {url}"));
            format!(
                "{answered}{location}: redirects are not followed, set the final URL with attesto webhook set-config"
            )
        }
        401 | 403 => format!(
            "{answered}: it, or what stands before it, refuses the request; deliveries have a signature and no other credentials"
        ),
        404 => format!("{answered}: is the path of the callback's URL right?"),
        405 => format!("{answered}: it must accept POST at the callback's URL"),
        410 => format!("{answered}, which ends the delivery at once"),
        413 => format!("{answered}: it must accept larger bodies"),
        429 => format!("{answered}: it gets more requests than it takes"),
        502..=504 => format!(
            "{answered}: the proxy before the receiver did not reach it, or did not get an answer in time"
        ),
        _ => answered,
    }
}

/// The URL of a redirect, without its query, which may hold a secret.
pub(super) fn redirect_location(headers: &HeaderMap, callback_url: &str) -> Option<String> {
    let location = headers.get(LOCATION)?.to_str().ok()?;
    let mut url = Url::parse(callback_url).ok()?.join(location).ok()?;
    url.set_query(None);
    url.set_fragment(None);
    let _ = url.set_password(None);
    let _ = url.set_username("");
    Some(url.as_str().chars().take(MAX_LOCATION_CHARS).collect())
}

pub(super) fn refused(class: OutcomeClass, sentence: &str) -> AttemptOutcome {
    AttemptOutcome::Refused {
        class,
        code: None,
        retry_after: None,
        excerpt: None,
        detail: bounded(sentence),
    }
}

/// A sentence that can be stored and shown: no control characters, at most [`MAX_SENTENCE_BYTES`].
pub(super) fn bounded(sentence: &str) -> String {
    let mut text = sentence.replace(char::is_control, " ");
    if text.len() > MAX_SENTENCE_BYTES {
        text.truncate(text.floor_char_boundary(MAX_SENTENCE_BYTES - '…'.len_utf8()));
        text.push('…');
    }
    text
}

/// The host and, unless it is the scheme's own, the port.
pub(super) fn server_text(target: &CallbackTarget) -> String {
    String::from_utf8_lossy(target.authority.as_bytes()).into_owned()
}

fn host_text(target: &CallbackTarget) -> String {
    match &target.host {
        CallbackHost::Name(name) => name.clone(),
        CallbackHost::Address(address) => address.to_string(),
    }
}

fn describe_tcp_error(cause: &io::Error, target: &CallbackTarget, address: SocketAddr) -> String {
    let server = match &target.host {
        CallbackHost::Name(_) => format!("{} ({address})", host_text(target)),
        CallbackHost::Address(_) => address.to_string(),
    };
    match cause.kind() {
        io::ErrorKind::ConnectionRefused => format!(
            "{server} refuses connections: is the receiver running, and is the port of the URL right?"
        ),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            format!("{server} cannot be reached from this machine: there is no route to it")
        }
        _ => format!("the connection to {server} failed: {cause}"),
    }
}

fn https_sentence(server: &str) -> String {
    format!(
        "{server} expects TLS and was sent plain HTTP: let the callback's URL begin with https://"
    )
}

fn is_reset(error: &hyper::Error) -> bool {
    let cause = error.source();
    let cause = cause.and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::ConnectionReset)
}

/// The words of nginx, of Go's and Apache's servers, and of Node.js' proxies.
fn is_complaint_about_plain_http(body: &[u8]) -> bool {
    contains_any(
        body,
        &[
            "http request was sent to https port",
            "http request to an https server",
            "plain http to an ssl-enabled server port",
        ],
    )
}

/// The words of nginx, which asks for a client certificate and lets the handshake pass without one.
fn is_complaint_about_missing_certificate(body: &[u8]) -> bool {
    contains_any(body, &["no required ssl certificate was sent"])
}

fn contains_any(body: &[u8], each: &[&str]) -> bool {
    let text = String::from_utf8_lossy(body).to_ascii_lowercase();
    each.iter().any(|words| text.contains(words))
}

fn tls_server(host: &str, client_certificate: ClientCertificateUse) -> TlsServer<'_> {
    TlsServer {
        client_certificate,
        ..TlsServer::new(host, TlsPurpose::Callback)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_can_be_stored_and_shown() {
        assert_eq!(bounded("a\0b\u{1b}[2J\n"), "a b [2J ");
        let long = bounded(&"ü".repeat(1000));
        assert!(long.len() <= MAX_SENTENCE_BYTES && long.ends_with("ü…"));
    }

    #[test]
    fn a_location_is_shown_without_what_may_be_secret() {
        for (location, shown) in [
            (
                "https://b.example/hook?key=1#x",
                Some("https://b.example/hook"),
            ),
            ("/new/", Some("https://a.example/new/")),
            ("//user:password@b.example", Some("https://b.example/")),
            ("http://", None),
        ] {
            let headers = HeaderMap::from_iter([(LOCATION, location.parse().unwrap())]);
            let found = redirect_location(&headers, "https://a.example/hook?key=1");
            assert_eq!(found.as_deref(), shown, "{location}");
        }
    }
}
