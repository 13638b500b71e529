//! Parses and checks the URL of a callback.

use std::net::IpAddr;

use hyper::http::HeaderValue;
use hyper::http::uri::PathAndQuery;
use url::{Host, Url};

use super::{AddressClass, AllowList, EgressPolicy};

const MAX_URL_BYTES: usize = 2048;

/// A parsed callback URL. Requests are built from this and the text is not parsed again, because two parsers could
/// disagree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallbackTarget {
    /// Whether the scheme is https; otherwise it is http.
    pub is_https: bool,
    /// The host. A name is in ASCII and lower case.
    pub host: CallbackHost,
    /// The port of the URL, or the scheme's default.
    pub port: u16,
    /// The value of the header `Host`: the host, and the port unless it is the scheme's default.
    pub authority: HeaderValue,
    /// The path and query for the request line.
    pub path_and_query: PathAndQuery,
}

/// The host of a callback.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CallbackHost {
    /// A host name. It may end in a dot.
    Name(String),
    /// An address, in whatever form it was written.
    Address(IpAddr),
}

/// Why a URL cannot be a callback. The messages do not repeat it: its query may contain a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallbackUrlError {
    /// Longer than the limit.
    #[error("the callback URL is longer than {MAX_URL_BYTES} bytes")]
    TooLong,
    /// The text is not a URL.
    #[error("the callback URL cannot be read: it looks like https://example.com/webhooks/attesto")]
    Malformed,
    /// The scheme is not https.
    #[error(
        "the callback URL must begin with https:// (http is for private networks that an operator allowed for it: attesto webhook allow TENANT NETWORK:PORT --http; for development also WEBHOOK_ALLOW_PRIVATE_CALLBACKS=true)"
    )]
    Scheme,
    /// Its host is an address that is never called. Holds what the address is.
    #[error("the callback URL's host is {0}: that can never be a callback")]
    NeverCalled(&'static str),
    /// It contains a user name or a password.
    #[error(
        "the callback URL must not hold a user name or a password: deliveries are signed, check the signature instead"
    )]
    UserInfo,
    /// It contains `#`.
    #[error("the callback URL must not have a fragment (#…), which is never sent")]
    Fragment,
    /// The port is 0.
    #[error("the callback URL must name a port from 1 to 65535")]
    Port,
    /// The host name has a meaning only inside a private network.
    #[error(
        "the callback URL's host is a name of a private network: use a public name (an operator can allow addresses of a private one: attesto webhook allow)"
    )]
    PrivateName,
}

impl EgressPolicy {
    /// Parses and checks the URL of a callback. Does not resolve its host.
    pub fn parse_target(
        &self,
        url: &str,
        allowed: &AllowList,
    ) -> Result<CallbackTarget, CallbackUrlError> {
        if url.len() > MAX_URL_BYTES {
            return Err(CallbackUrlError::TooLong);
        }
        // The URL parser would remove these silently.
        if url.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
            return Err(CallbackUrlError::Malformed);
        }
        let url = Url::parse(url).map_err(|_| CallbackUrlError::Malformed)?;
        let tls = match url.scheme() {
            "https" => true,
            // Each address is compared with these networks when it is known.
            "http" if self.is_private_allowed() || allowed.has_http() => false,
            // To begin it with https would not help, nor would allowing http.
            _ => return Err(find_forbidden_host(&url).unwrap_or(CallbackUrlError::Scheme)),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(CallbackUrlError::UserInfo);
        }
        if url.fragment().is_some() {
            return Err(CallbackUrlError::Fragment);
        }
        let (host, port) = match (url.host(), url.port_or_known_default()) {
            (None, _) | (_, None) => return Err(CallbackUrlError::Malformed),
            (_, Some(0)) => return Err(CallbackUrlError::Port),
            (Some(host), Some(port)) => (host, port),
        };
        let authority = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        };
        let host = match host {
            Host::Ipv4(address) => CallbackHost::Address(address.into()),
            Host::Ipv6(address) => CallbackHost::Address(address.into()),
            Host::Domain(name) => {
                // The hosts of an allowed private network may be reached by their private names.
                let may_be_private = self.is_private_allowed() || !allowed.is_empty();
                if is_private_name(name) && !may_be_private {
                    return Err(CallbackUrlError::PrivateName);
                }
                CallbackHost::Name(name.to_owned())
            }
        };
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        Ok(CallbackTarget {
            is_https: tls,
            host,
            port,
            authority: authority
                .try_into()
                .map_err(|_| CallbackUrlError::Malformed)?,
            path_and_query: path.try_into().map_err(|_| CallbackUrlError::Malformed)?,
        })
    }
}

fn find_forbidden_host(url: &Url) -> Option<CallbackUrlError> {
    let address: IpAddr = match url.host()? {
        Host::Ipv4(address) => address.into(),
        Host::Ipv6(address) => address.into(),
        Host::Domain(_) => return None,
    };
    match AddressClass::from_ip(address) {
        AddressClass::Forbidden(what) => Some(CallbackUrlError::NeverCalled(what)),
        AddressClass::Public | AddressClass::Private(_) => None,
    }
}

/// Whether the name is not part of the public DNS: it has no dot, or a top-level domain for private use.
fn is_private_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or_default();
    !name.contains('.') || ["localhost", "local", "internal", "localdomain", "lan"].contains(&last)
}

#[cfg(test)]
mod tests {
    use super::super::AllowedNetwork;
    use super::*;

    fn strict(url: &str) -> Result<CallbackTarget, CallbackUrlError> {
        EgressPolicy::new(false).parse_target(url, &AllowList::default())
    }

    #[test]
    fn a_url_is_taken_apart() {
        let target = strict("https://Hooks.Example.com:8443/a%20b/?x=1&y={z}").unwrap();
        assert_eq!(target.host, CallbackHost::Name("hooks.example.com".into()));
        assert_eq!((target.is_https, target.port), (true, 8443));
        assert_eq!(target.authority, "hooks.example.com:8443");
        assert_eq!(target.path_and_query, "/a%20b/?x=1&y={z}");
        let target = strict("https://bücher.example").unwrap();
        assert_eq!(target.authority, "xn--bcher-kva.example");
        assert_eq!(target.path_and_query, "/");
    }

    #[test]
    fn what_a_callback_must_not_say() {
        let long = format!("https://example.com/{}", "a".repeat(2048));
        for (url, problem) in [
            ("", CallbackUrlError::Malformed),
            ("example.com/hook", CallbackUrlError::Malformed),
            ("https://", CallbackUrlError::Malformed),
            ("https://example.com/a b", CallbackUrlError::Malformed),
            ("https://example.com/\n", CallbackUrlError::Malformed),
            ("https://exa\tmple.com/", CallbackUrlError::Malformed),
            ("https://[fe80::1%25eth0]/", CallbackUrlError::Malformed),
            ("https://256.1.1.1/", CallbackUrlError::Malformed),
            ("http://example.com/", CallbackUrlError::Scheme),
            ("file:///etc/passwd", CallbackUrlError::Scheme),
            ("gopher://example.com/", CallbackUrlError::Scheme),
            ("https://user@example.com/", CallbackUrlError::UserInfo),
            ("https://:password@example.com/", CallbackUrlError::UserInfo),
            (
                "https://example.com#@127.0.0.1/",
                CallbackUrlError::Fragment,
            ),
            ("https://example.com/#", CallbackUrlError::Fragment),
            ("https://example.com:0/", CallbackUrlError::Port),
            ("https://localhost/", CallbackUrlError::PrivateName),
            ("https://localhost./", CallbackUrlError::PrivateName),
            ("https://LOCALHOST/", CallbackUrlError::PrivateName),
            ("https://db/", CallbackUrlError::PrivateName),
            ("https://a.localhost/", CallbackUrlError::PrivateName),
            ("https://printer.local/", CallbackUrlError::PrivateName),
            (
                "https://metadata.google.internal/",
                CallbackUrlError::PrivateName,
            ),
            (
                "https://metadata.google.internal./",
                CallbackUrlError::PrivateName,
            ),
            (&long, CallbackUrlError::TooLong),
        ] {
            assert_eq!(strict(url), Err(problem), "{url}");
        }
    }

    #[test]
    fn every_spelling_of_an_address_is_that_address() {
        let loopback = CallbackHost::Address([127, 0, 0, 1].into());
        for host in [
            "127.0.0.1",
            "127.1",
            "127.0.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "017700000001",
            "127.0.0.1.",
            "１２７.0.0.1",
            "127。0。0。1",
            "%31%32%37.0.0.1",
            "⑫7.0.0.1",
        ] {
            let target = strict(&format!("https://{host}/")).expect(host);
            assert_eq!(target.host, loopback, "{host}");
        }
        for (host, address) in [
            ("[::ffff:127.0.0.1]", "::ffff:7f00:1"),
            ("[::127.0.0.1]", "::7f00:1"),
            ("[0:0:0:0:0:0:0:1]", "::1"),
        ] {
            let target = strict(&format!("https://{host}/")).expect(host);
            let address = CallbackHost::Address(address.parse().unwrap());
            assert_eq!(target.host, address, "{host}");
        }
        // The part before the @ is the user name and never the host.
        for decoy in [
            "https://example.com@127.0.0.1/",
            "https://example.com:443@127.0.0.1/",
            "https://127.0.0.1@example.com/",
        ] {
            assert_eq!(strict(decoy), Err(CallbackUrlError::UserInfo), "{decoy}");
        }
        assert_eq!(
            strict("https://example.com\\@127.0.0.1/").unwrap().host,
            CallbackHost::Name("example.com".into()),
            "a backslash ends the host"
        );
    }

    #[test]
    fn a_developer_and_an_operator_may_say_more() {
        let developer = EgressPolicy::new(true);
        let none = AllowList::default();
        let target = developer.parse_target("http://localhost:9000/hook", &none);
        assert_eq!(target.map(|target| target.is_https), Ok(false));
        let opened = AllowList::new(vec!["10.1.0.0/16:443".parse().unwrap()]);
        let operator = EgressPolicy::new(false);
        assert!(
            operator
                .parse_target("https://hooks.internal/", &opened)
                .is_ok()
        );
        assert_eq!(
            operator.parse_target("http://hooks.internal/", &opened),
            Err(CallbackUrlError::Scheme)
        );
        let opening: AllowedNetwork = "10.1.0.0/16:80".parse().unwrap();
        let opened = AllowList::new(vec![opening.with_http(true)]);
        let target = operator.parse_target("http://hooks.internal/", &opened);
        assert_eq!(target.map(|target| target.is_https), Ok(false));
    }
}
