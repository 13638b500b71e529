//! The HTTP proxy that calls to the stores and to callbacks go through, if the operator names one.
//!
//! Every connection is a tunnel: the proxy is asked for it with `CONNECT`, also for a target in plain HTTP, and TLS is spoken with
//! the target through it. So the proxy sees which target is called and nothing of what is sent to it by TLS.
//!
//! A callback's name is resolved and judged on this side, and the proxy is asked for the judged address. If it were asked for the
//! name, it would resolve it again, and a tenant whose DNS changes its answer between the two could make it connect to an
//! address of the operator's network. A store's name is passed on, because the operator chose it, and networks in which names of
//! the Internet resolve only at the proxy must be able to use the stores.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use url::{Host, Url};
use zeroize::Zeroizing;

use super::resolver::Resolver;
use crate::base::error::root_cause;

/// For the head of the proxy's answer.
const MAX_RESPONSE_HEAD_BYTES: usize = 16 * 1024;
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// The operator's proxy. The operator named it, so its address is not judged as those of callbacks are. Clones are cheap.
#[derive(Clone)]
pub struct EgressProxy(Arc<ProxySettings>);

struct ProxySettings {
    /// A name, or an address without brackets.
    host: String,
    port: u16,
    /// The value of `Proxy-Authorization`, marked as sensitive.
    authorization: Option<HeaderValue>,
    resolver: Resolver,
}

/// Why a text does not name a proxy. The messages do not repeat it, because it may contain a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EgressProxyUrlError {
    /// It is not a URL of that form.
    #[error(
        "must be http://host:port or http://user:password@host:port, in which a character like : / ? # @ or % of the user name and the password is percent-encoded (%40 for @)"
    )]
    Malformed,
    /// Another kind of proxy.
    #[error(
        "must begin with http://: the proxy is asked with CONNECT in plain HTTP, and TLS goes through it to the target; proxies that speak TLS themselves or SOCKS are not supported"
    )]
    Scheme,
    /// Basic authentication cannot express it.
    #[error(
        "has a user name with a colon in it, or a control character, which a proxy cannot be sent"
    )]
    Credentials,
}

/// Why there is no tunnel. The messages name the proxy without its user name and its password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// There is no connection to the proxy.
    #[error(
        "the egress proxy {proxy} cannot be reached ({cause}): is it running, and is ATTESTO_EGRESS_PROXY right?"
    )]
    Unreachable {
        /// The proxy as in [`EgressProxy`]'s `Display`.
        proxy: String,
        /// Why not, in a few words.
        cause: String,
    },
    /// Its answer is not one to `CONNECT`.
    #[error(
        "the egress proxy {proxy} does not answer as an HTTP proxy does ({cause}): is ATTESTO_EGRESS_PROXY right?"
    )]
    BadAnswer {
        /// The proxy as in [`EgressProxy`]'s `Display`.
        proxy: String,
        /// What is wrong with the answer.
        cause: String,
    },
    /// The proxy did not answer in time. It usually waits for the target then.
    #[error(
        "the egress proxy {proxy} made no connection to {target} in time: is that server running, and can the proxy reach it?"
    )]
    NoAnswer {
        /// The proxy as in [`EgressProxy`]'s `Display`.
        proxy: String,
        /// The host and the port that it was asked for.
        target: String,
    },
    /// The proxy answered with another status than 2xx.
    #[error("{}", describe_refusal(proxy, target, *status, *had_credentials))]
    Refused {
        /// The proxy as in [`EgressProxy`]'s `Display`.
        proxy: String,
        /// The host and the port that it was asked for.
        target: String,
        /// The HTTP status of its answer.
        status: u16,
        /// Whether it was sent a user name and a password.
        had_credentials: bool,
    },
}

impl ProxyError {
    /// Whether it concerns this one target, so that calls to others may succeed.
    pub(crate) fn is_about_target(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            // Some proxies answer 500 where they cannot connect to the target.
            Self::Refused { status, .. } => !matches!(status, 400 | 401 | 405 | 407),
            Self::Unreachable { .. } | Self::BadAnswer { .. } => false,
        }
    }
}

impl EgressProxy {
    /// Parses `http://host:port` or `http://user:password@host:port`.
    pub fn parse(text: &str) -> Result<Self, EgressProxyUrlError> {
        let url = Url::parse(text.trim()).map_err(|_| EgressProxyUrlError::Malformed)?;
        match url.scheme() {
            "http" => {}
            "https" | "socks4" | "socks4a" | "socks5" | "socks5h" => {
                return Err(EgressProxyUrlError::Scheme);
            }
            _ => return Err(EgressProxyUrlError::Malformed),
        }
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(EgressProxyUrlError::Malformed);
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err(EgressProxyUrlError::Malformed),
        };
        let port = url.port_or_known_default().filter(|port| *port > 0);
        Ok(Self(Arc::new(ProxySettings {
            host,
            port: port.ok_or(EgressProxyUrlError::Malformed)?,
            authorization: basic_authorization(&url)?,
            resolver: Resolver::from_system(),
        })))
    }

    /// Whether the proxy accepts a connection until `deadline`. It is asked for nothing.
    pub(crate) async fn check_reachable(&self, deadline: Instant) -> Result<(), ProxyError> {
        self.connect(deadline).await.map(drop)
    }

    /// A connection to `target`, which is `host:port`, through the proxy.
    pub(crate) async fn open_tunnel(
        &self,
        target: &str,
        deadline: Instant,
    ) -> Result<TcpStream, ProxyError> {
        let stream = self.connect(deadline).await?;
        let asking = self.request_tunnel(stream, target);
        timeout_at(deadline, asking).await.unwrap_or_else(|_| {
            Err(ProxyError::NoAnswer {
                proxy: self.to_string(),
                target: target.to_owned(),
            })
        })
    }

    async fn connect(&self, deadline: Instant) -> Result<TcpStream, ProxyError> {
        let unreachable = |cause: String| ProxyError::Unreachable {
            proxy: self.to_string(),
            cause,
        };
        let connecting = async {
            let found = self
                .0
                .resolver
                .resolve_name(self.0.host.clone(), RESOLVE_TIMEOUT)
                .await
                .map_err(|error| unreachable(error.to_string()))?;
            let addresses: Vec<_> = found
                .into_iter()
                .map(|address| SocketAddr::new(address, self.0.port))
                .collect();
            let stream = TcpStream::connect(&addresses[..]).await;
            let stream = stream.map_err(|error| unreachable(error.to_string()))?;
            stream
                .set_nodelay(true)
                .map_err(|error| unreachable(error.to_string()))?;
            Ok(stream)
        };
        timeout_at(deadline, connecting)
            .await
            .unwrap_or_else(|_| Err(unreachable("it accepts no connection in time".to_owned())))
    }

    async fn request_tunnel(
        &self,
        stream: TcpStream,
        target: &str,
    ) -> Result<TcpStream, ProxyError> {
        let bad_answer = |cause: String| ProxyError::BadAnswer {
            proxy: self.to_string(),
            cause,
        };
        let (mut requests, connection) = http1::Builder::new()
            .max_buf_size(MAX_RESPONSE_HEAD_BYTES)
            .title_case_headers(true)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| bad_answer(root_cause(&error)))?;
        let _driver = AbortOnDropHandle::new(tokio::spawn(connection.with_upgrades()));
        let request = self.connect_request(target).map_err(|_| {
            bad_answer("the target's name cannot be written into a request".to_owned())
        })?;
        let answer = requests.send_request(request).await;
        let answer = answer.map_err(|error| bad_answer(root_cause(&error)))?;
        if !answer.status().is_success() {
            return Err(ProxyError::Refused {
                proxy: self.to_string(),
                target: target.to_owned(),
                status: answer.status().as_u16(),
                had_credentials: self.0.authorization.is_some(),
            });
        }
        take_tunnel(answer).await.map_err(bad_answer)
    }

    fn connect_request(&self, target: &str) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
        let mut request = Request::connect(target)
            .header(HOST, target)
            .header(USER_AGENT, concat!("Attesto/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &self.0.authorization {
            request = request.header(PROXY_AUTHORIZATION, authorization);
        }
        request.body(Empty::new())
    }
}

/// The connection below an answer to `CONNECT`. The error says what is wrong with it.
async fn take_tunnel(answer: Response<Incoming>) -> Result<TcpStream, String> {
    let upgraded = hyper::upgrade::on(answer).await;
    let upgraded = upgraded.map_err(|error| root_cause(&error))?;
    let parts = upgraded
        .downcast::<TokioIo<TcpStream>>()
        .map_err(|_| "the connection is lost".to_owned())?;
    // The target does not speak first, neither by TLS nor by HTTP.
    if !parts.read_buf.is_empty() {
        return Err("it sends more than the head of its answer".to_owned());
    }
    Ok(parts.io.into_inner())
}

/// `None` if the URL has neither a user name nor a password.
fn basic_authorization(url: &Url) -> Result<Option<HeaderValue>, EgressProxyUrlError> {
    let decode = |text: &str| Zeroizing::new(percent_decode_str(text).collect::<Vec<u8>>());
    let (user, password) = (decode(url.username()), url.password().map(decode));
    if user.is_empty() && password.is_none() {
        return Ok(None);
    }
    let password = password.unwrap_or_default();
    let is_control = |byte: &u8| byte.is_ascii_control();
    if user.contains(&b':') || user.iter().chain(password.iter()).any(is_control) {
        return Err(EgressProxyUrlError::Credentials);
    }
    let both = Zeroizing::new([user.as_slice(), b":", password.as_slice()].concat());
    let text = Zeroizing::new(format!("Basic {}", STANDARD.encode(&*both)));
    let mut value = HeaderValue::from_str(&text).map_err(|_| EgressProxyUrlError::Credentials)?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn describe_refusal(proxy: &str, target: &str, status: u16, had_credentials: bool) -> String {
    match status {
        407 if had_credentials => format!(
            "the egress proxy {proxy} refuses the user name and the password in ATTESTO_EGRESS_PROXY (407): correct them"
        ),
        407 => format!(
            "the egress proxy {proxy} requires a user name and a password (407): put them into ATTESTO_EGRESS_PROXY, as http://user:password@host:port"
        ),
        403 => format!(
            "the egress proxy {proxy} does not allow connections to {target} (403): allow them there"
        ),
        500 | 502..=504 => format!(
            "the egress proxy {proxy} cannot connect to {target} ({status}): is that server running, and can the proxy reach it?"
        ),
        _ => format!(
            "the egress proxy {proxy} answered {status} to CONNECT {target}: it must be an HTTP proxy that allows CONNECT to this port"
        ),
    }
}

/// The URL, with `…` for the user name and the password: with some proxies the user name alone is the secret.
impl fmt::Display for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let credentials = if self.0.authorization.is_some() {
            "…@"
        } else {
            ""
        };
        match self.0.host.parse() {
            Ok(IpAddr::V6(address)) => write!(f, "http://{credentials}[{address}]:{}", self.0.port),
            _ => write!(f, "http://{credentials}{}:{}", self.0.host, self.0.port),
        }
    }
}

impl fmt::Debug for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EgressProxy({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_read_and_shown_without_its_credentials() {
        for (text, shown, credentials) in [
            (
                "http://proxy.example:3128",
                "http://proxy.example:3128",
                None,
            ),
            ("http://proxy.example/", "http://proxy.example:80", None),
            (" http://10.0.0.1:8080\n", "http://10.0.0.1:8080", None),
            ("http://[fd00::1]:3128", "http://[fd00::1]:3128", None),
            (
                "http://user:hunter2@proxy:3128",
                "http://…@proxy:3128",
                Some("user:hunter2"),
            ),
            (
                "http://token@proxy:3128",
                "http://…@proxy:3128",
                Some("token:"),
            ),
            (
                "http://us%40er:p%3A%2F%23ss%25@proxy:3128",
                "http://…@proxy:3128",
                Some("us@er:p:/#ss%"),
            ),
        ] {
            let proxy = EgressProxy::parse(text).expect(text);
            assert_eq!(proxy.to_string(), shown, "{text}");
            assert_eq!(format!("{proxy:?}"), format!("EgressProxy({shown})"));
            let expected = credentials.map(|both| format!("Basic {}", STANDARD.encode(both)));
            let sent = proxy.0.authorization.as_ref();
            assert_eq!(
                sent.map(|value| value.to_str().unwrap().to_owned()),
                expected,
                "{text}"
            );
            assert!(sent.is_none_or(HeaderValue::is_sensitive));
        }
    }

    #[test]
    fn what_does_not_name_a_proxy_is_refused_without_being_repeated() {
        use EgressProxyUrlError::{Credentials, Malformed, Scheme};
        for (text, problem) in [
            ("hunter2", Malformed),
            ("hunter2:3128", Malformed),
            ("http://", Malformed),
            ("http://proxy:0", Malformed),
            ("http://user:hunter2#@proxy:3128", Malformed),
            ("http://user:hunter2/@proxy:3128", Malformed),
            ("http://user:1/hunter2@proxy:3128", Malformed),
            ("http://proxy:3128/hunter2", Malformed),
            ("http://proxy:3128?hunter2", Malformed),
            ("ftp://hunter2:3128", Malformed),
            ("https://user:hunter2@proxy:3128", Scheme),
            ("socks5://user:hunter2@proxy:1080", Scheme),
            ("http://us%3Aer:hunter2@proxy:3128", Credentials),
            ("http://user:hunter2%0A@proxy:3128", Credentials),
        ] {
            let error = EgressProxy::parse(text).expect_err(text);
            assert_eq!(error, problem, "{text}");
            assert!(!error.to_string().contains("hunter2"), "{text}");
        }
    }
}
