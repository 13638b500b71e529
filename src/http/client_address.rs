//! The address of a client behind proxies, from `X-Forwarded-For` and `Forwarded` (RFC 7239).
//!
//! Anyone can send these headers. Each proxy appends the address that it was called from, so only what the trusted proxies
//! appended counts: the entries are read from the last one on, as long as the proxy that appended an entry is trusted. What
//! stands further left was sent by the client and is not looked at. An entry that is no address ends the search, and the
//! last address that was found is the client's.
//!
//! A proxy appends to one of the two headers and may pass on what a client sent in the other one. If the two name different
//! clients, one of them is made up, and there is no telling which: the address of the proxy counts then, and both are logged.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str;

use axum::http::{HeaderMap, HeaderName};

use super::trusted_proxies::TrustedProxies;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
/// Entries that are looked at. No request passes through so many proxies.
const MAX_ENTRIES: usize = 32;
const BLANKS: [char; 2] = [' ', '\t'];

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress {
    /// The client's address, or that of the last proxy before it of which one is known.
    pub address: IpAddr,
    /// What `X-Forwarded-For` and `Forwarded` name, if they name different clients.
    pub contradiction: Option<(IpAddr, IpAddr)>,
}

impl ClientAddress {
    /// The address at the other end of a connection. An IPv4 address in IPv6 form is taken as IPv4.
    pub(super) fn of_peer(address: IpAddr) -> Self {
        Self {
            address: address.to_canonical(),
            contradiction: None,
        }
    }

    /// The client of a request that a trusted proxy at `self` passes on with these headers.
    pub(super) fn find_client(self, headers: &HeaderMap, proxies: &TrustedProxies) -> Self {
        let appended = [
            headers
                .contains_key(X_FORWARDED_FOR)
                .then(|| self.follow(x_forwarded_for(headers), proxies)),
            headers
                .contains_key(FORWARDED)
                .then(|| self.follow(forwarded(headers), proxies)),
        ];
        match appended {
            [None, None] => self,
            [Some(address), None] | [None, Some(address)] => Self { address, ..self },
            [Some(one), Some(other)] if one == other => Self {
                address: one,
                ..self
            },
            [Some(one), Some(other)] => Self {
                contradiction: Some((one, other)),
                ..self
            },
        }
    }

    /// Follows the entries, from the last one on, to the first that is no trusted proxy.
    fn follow(
        self,
        entries: impl Iterator<Item = Option<IpAddr>>,
        proxies: &TrustedProxies,
    ) -> IpAddr {
        let mut client = self.address;
        for entry in entries.take(MAX_ENTRIES) {
            let Some(address) = entry else {
                break;
            };
            client = address;
            if !proxies.contains(address) {
                break;
            }
        }
        client
    }
}

/// The entries of all lines of the header, from the last one on. `None`: it is no address.
fn x_forwarded_for(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let lines = headers.get_all(X_FORWARDED_FOR).into_iter().rev();
    lines
        .flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','))
        .map(|entry| parse_node(str::from_utf8(entry).ok()?.trim_matches(BLANKS)))
}

/// The same for the other header.
fn forwarded(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let lines = headers.get_all(FORWARDED).into_iter().rev();
    lines
        .flat_map(|line| elements_from_end(line.as_bytes()))
        .map(|element| parse_element(str::from_utf8(element).ok()?))
}

/// The elements of a line of `Forwarded`, from the last one on. A comma in quotes ends none. Because quotes are counted from
/// the end, a quote that a client left open changes nothing about the elements that proxies appended.
fn elements_from_end(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let text = rest?;
        let mut is_quoted = false;
        let comma = text.iter().enumerate().rposition(|(at, byte)| {
            if *byte == b'"' && !is_escaped(text, at) {
                is_quoted = !is_quoted;
            }
            *byte == b',' && !is_quoted
        });
        rest = comma.map(|at| &text[..at]);
        Some(comma.map_or(text, |at| &text[at + 1..]))
    })
}

/// Whether an odd number of backslashes stands before this place.
fn is_escaped(text: &[u8], at: usize) -> bool {
    let before = text[..at].iter().rev();
    before.take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// The address in `for=` of an element such as `for="[2001:db8::1]:4711";proto=https`. `None`: there is none, or the element
/// is not well-formed.
fn parse_element(element: &str) -> Option<IpAddr> {
    let (mut node, mut rest) = (None, element.trim_matches(BLANKS));
    while !rest.is_empty() {
        if let Some(more) = rest.strip_prefix(';') {
            rest = more.trim_start_matches(BLANKS);
            continue;
        }
        let (name, after) = rest.split_once('=')?;
        let (value, after) = split_value(after)?;
        if !is_token(name) || !(after.is_empty() || after.starts_with(';')) {
            return None;
        }
        if name.eq_ignore_ascii_case("for") && node.replace(value).is_some() {
            return None;
        }
        rest = after;
    }
    parse_node(&node?)
}

fn is_token(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_letter)
}

/// A value, without its quotes, and what follows it. Senders often leave the quotes out where RFC 7239 asks for them.
fn split_value(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let Some(inside) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        let (value, after) = text.split_at(end);
        let value = value.trim_end_matches(BLANKS);
        let is_good = !value.is_empty() && !value.contains(['"', '\\', ' ', '\t']);
        return is_good.then_some((value.into(), after));
    };
    let mut value = String::new();
    let mut letters = inside.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => {
                let after = inside[at + 1..].trim_start_matches(BLANKS);
                return Some((value.into(), after));
            }
            '\\' => value.push(letters.next()?.1),
            letter => value.push(letter),
        }
    }
    None
}

/// An address, with or without a port: `192.0.2.1`, `192.0.2.1:4711`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:4711`. Not
/// `unknown`, and no name that a proxy made up, such as `_hidden`.
fn parse_node(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, port) = if let Some(inside) = text.strip_prefix('[') {
        let (address, after) = inside.split_once(']')?;
        (IpAddr::from(address.parse::<Ipv6Addr>().ok()?), after)
    } else {
        let (address, after) = text.split_at(text.find(':')?);
        (IpAddr::from(address.parse::<Ipv4Addr>().ok()?), after)
    };
    let is_good = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    is_good.then(|| address.to_canonical())
}

/// A number, or a name that a proxy made up.
fn is_port(text: &str) -> bool {
    let is_number = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_made_up = text.strip_prefix('_').is_some_and(|name| {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !name.is_empty() && name.bytes().all(is_letter)
    });
    is_number || is_made_up
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// The proxies of these tests are `10.0.0.0/8` and `fd00::/8`; the request arrives from `10.0.0.1`.
    fn find(headers: &[(HeaderName, &str)]) -> ClientAddress {
        let proxies = TrustedProxies::parse("10.0.0.0/8,fd00::/8").expect("these are good");
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a header's value");
            map.append(name.clone(), value);
        }
        let peer = "::ffff:10.0.0.1".parse().expect("an address");
        ClientAddress::of_peer(peer).find_client(&map, &proxies)
    }

    fn assert_found(name: &HeaderName, lines: &[&str], expected: &str) {
        let headers: Vec<_> = lines.iter().map(|line| (name.clone(), *line)).collect();
        let found = find(&headers);
        assert_eq!(found.address.to_string(), expected, "{lines:?}");
        assert_eq!(found.contradiction, None, "{lines:?}");
    }

    #[test]
    fn x_forwarded_for_is_read_from_its_end_as_far_as_proxies_are_trusted() {
        let far = format!("192.0.2.1{}", ", 10.0.0.9".repeat(MAX_ENTRIES));
        let near = format!("192.0.2.1{}", ", 10.0.0.9".repeat(MAX_ENTRIES - 1));
        for (lines, expected) in [
            (&["192.0.2.1"][..], "192.0.2.1"),
            (&["2001:db8::1"], "2001:db8::1"),
            (&["::ffff:192.0.2.1"], "192.0.2.1"),
            (&["192.0.2.1:4711"], "192.0.2.1"),
            (&["[2001:db8::1]:4711"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            // What the client sent, before what the proxies appended.
            (&["203.0.113.9, 192.0.2.1"], "192.0.2.1"),
            (&["203.0.113.9,192.0.2.1 ,\tfd00::2, 10.0.0.2"], "192.0.2.1"),
            (&["10.0.0.9, 192.0.2.1"], "192.0.2.1"),
            (&["garbage\u{fc}, 192.0.2.1"], "192.0.2.1"),
            (&["203.0.113.9", "192.0.2.1"], "192.0.2.1"),
            (
                &["203.0.113.9, 192.0.2.1", "10.0.0.3, 10.0.0.2"],
                "192.0.2.1",
            ),
            // All are proxies: the first one made the request itself.
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            // What is no address ends the search.
            (&[""], "10.0.0.1"),
            (&["192.0.2.1, "], "10.0.0.1"),
            (&["192.0.2.1", ""], "10.0.0.1"),
            (&["unknown"], "10.0.0.1"),
            (&["192.0.2.1, unix:"], "10.0.0.1"),
            (&["192.0.2.1, nonsense, 10.0.0.2"], "10.0.0.2"),
            (&["192.0.2.256"], "10.0.0.1"),
            (&["192.0.2.1:"], "10.0.0.1"),
            (&["192.0.2.1:123456"], "10.0.0.1"),
            (&["[2001:db8::1"], "10.0.0.1"),
            (&["[192.0.2.1]"], "10.0.0.1"),
            (&["fe80::1%eth0"], "10.0.0.1"),
            (&["\"192.0.2.1\""], "10.0.0.1"),
            (&["192.0.2.1 203.0.113.9"], "10.0.0.1"),
            // So many proxies there are not.
            (&[near.as_str()], "192.0.2.1"),
            (&[far.as_str()], "10.0.0.9"),
        ] {
            assert_found(&X_FORWARDED_FOR, lines, expected);
        }
    }

    #[test]
    fn forwarded_is_read_in_the_same_way() {
        for (lines, expected) in [
            (&["for=192.0.2.1"][..], "192.0.2.1"),
            (&["For=\"192.0.2.1:4711\""], "192.0.2.1"),
            (&["for=192.0.2.1:4711"], "192.0.2.1"),
            (&["for=\"192.0.2.1:_port\""], "192.0.2.1"),
            (&["for=\"[2001:db8::1]\""], "2001:db8::1"),
            (&["proto=https;FOR=\"[2001:db8::1]:80\""], "2001:db8::1"),
            (&["for=\"2001:db8::1\""], "2001:db8::1"),
            (&["for=[2001:db8::1]:80"], "2001:db8::1"),
            (&["for=\"\\1\\9\\2.0.2.1\""], "192.0.2.1"),
            (&["for=192.0.2.1 ; proto=https;;by=10.0.0.1;"], "192.0.2.1"),
            (&["for=203.0.113.9, for=192.0.2.1"], "192.0.2.1"),
            (
                &["for=192.0.2.1;host=\"a,b;c\\\",d\", for=10.0.0.2"],
                "192.0.2.1",
            ),
            (
                &["for=203.0.113.9", "for=192.0.2.1, for=\"[fd00::2]\""],
                "192.0.2.1",
            ),
            (&["for=10.0.0.2;by=10.0.0.1"], "10.0.0.2"),
            // A quote that the client left open.
            (&["for=\", for=192.0.2.1"], "192.0.2.1"),
            (&["for=\"\\, for=192.0.2.1"], "192.0.2.1"),
            (&["\u{fc}\", for=\"192.0.2.1\""], "192.0.2.1"),
            // The host that a client asked for, quoted by a proxy.
            (&["for=192.0.2.1;host=\"a, for=203.0.113.9\""], "192.0.2.1"),
            (
                &["for=192.0.2.1;host=\"a\\\", for=203.0.113.9;b=\\\"\""],
                "192.0.2.1",
            ),
            // Clients that are not named, and elements that are not well-formed.
            (&["for=unknown"], "10.0.0.1"),
            (&["for=_hidden"], "10.0.0.1"),
            (
                &["for=192.0.2.1, for=\"_hidden:80\", for=10.0.0.2"],
                "10.0.0.2",
            ),
            (&["proto=https"], "10.0.0.1"),
            (&[""], "10.0.0.1"),
            (&["for=192.0.2.1,"], "10.0.0.1"),
            (&["192.0.2.1"], "10.0.0.1"),
            (&["for=192.0.2.1;for=203.0.113.9"], "10.0.0.1"),
            (&["for=\"192.0.2.1"], "10.0.0.1"),
            (&["for=192.0.2.1\""], "10.0.0.1"),
            (&["for=\"192.0.2.1\"x"], "10.0.0.1"),
            (&["for=\"192.0.2.1\\"], "10.0.0.1"),
            (&["for=192.0.2.1 proto=https"], "10.0.0.1"),
            (&["for =192.0.2.1"], "10.0.0.1"),
            (&["=;for=192.0.2.1"], "10.0.0.1"),
            (&["=a;for=192.0.2.1"], "10.0.0.1"),
            (&["for="], "10.0.0.1"),
            (&["for=\"\""], "10.0.0.1"),
            (&["for=\"[2001:db8::1]x\""], "10.0.0.1"),
            (&["for=\"192.0.2.1:_\""], "10.0.0.1"),
        ] {
            assert_found(&FORWARDED, lines, expected);
        }
    }

    #[test]
    fn two_headers_count_only_if_they_name_the_same_client() {
        let find = |list: &str, element: &str| {
            let found = find(&[(X_FORWARDED_FOR, list), (FORWARDED, element)]);
            let both = found.contradiction;
            (
                found.address.to_string(),
                both.map(|(one, other)| format!("{one} {other}")),
            )
        };
        let agreed = |address: &str| (address.to_owned(), None);
        let contradicting = |both: &str| ("10.0.0.1".to_owned(), Some(both.to_owned()));
        assert_eq!(
            find("192.0.2.1, 10.0.0.2", "for=192.0.2.1"),
            agreed("192.0.2.1")
        );
        assert_eq!(find("nonsense", "for=unknown"), agreed("10.0.0.1"));
        assert_eq!(
            find("192.0.2.1", "for=203.0.113.9"),
            contradicting("192.0.2.1 203.0.113.9")
        );
        assert_eq!(
            find("192.0.2.1", "for=unknown"),
            contradicting("192.0.2.1 10.0.0.1")
        );
        assert_eq!(
            find("", "for=192.0.2.1"),
            contradicting("10.0.0.1 192.0.2.1")
        );
    }

    proptest! {
        /// A proxy appends to what the client sent, in the same line.
        #[test]
        fn nothing_that_a_client_sends_changes_what_a_proxy_appends(
            sent in "[\"\\\\,;=for:. 019\\[\\]_\u{fc}]{0,80}",
            is_v6: bool,
        ) {
            let client = if is_v6 { "2001:db8::1" } else { "192.0.2.1" };
            let list = format!("{sent}, {client}");
            assert_found(&X_FORWARDED_FOR, &[&list], client);
            let elements = format!("{sent}, for=\"[::ffff:c000:201]:80\";host=\"a\", for=\"[fd00::2]\"");
            assert_found(&FORWARDED, &[&elements], "192.0.2.1");
        }
    }
}
