//! Where the service listens, and with which certificate.

use super::finding::Check;
use crate::clock::Timestamp;
use crate::config::{self, Raw, own_certificate};
use crate::server::Listen;
use crate::server::tls::{BadPair, Pair};

/// Looks. `None` when the settings do not say where, which is a finding of theirs.
pub fn look(raw: &Raw<'_>, now: Timestamp) -> Option<Check> {
    let listen = config::listen(raw).ok()?;
    let check = match own_certificate(raw).ok()? {
        Some(files) => certificate(Pair::read(&files, now), now),
        None => plain(listen),
    };
    Some(Check::group("listener", "Listener", vec![check]))
}

fn certificate(pair: Result<Pair, BadPair>, now: Timestamp) -> Check {
    const NAME: &str = "listener.tls";
    match pair {
        Ok(pair) if pair.ends_soon(now) => Check::warn(
            NAME,
            format!("The listener's certificate ends at {}.", pair.not_after()),
            "Put another into both files: it is in use within seconds, and nothing restarts. Did what renews it stop?",
        ),
        Ok(pair) => Check::ok(
            NAME,
            format!("The listener's certificate ends at {}.", pair.not_after()),
        ),
        Err(problem) => Check::fail(
            NAME,
            format!("What is there for the listener cannot be used: {problem}."),
            "A service that runs goes on with the pair it had and does not start again without one: mend both files.",
        ),
    }
}

/// That TLS ends in front is the usual way, and cannot be seen from here: nothing is wrong.
fn plain(listen: Listen) -> Check {
    const NAME: &str = "listener.tls";
    if listen.socket().ip().is_loopback() {
        Check::ok(NAME, "Plain HTTP, for this machine only.")
    } else {
        Check::ok(
            NAME,
            format!(
                "Plain HTTP on {}: what stands in front has to end TLS, or TLS_CERT_PATH and TLS_KEY_PATH are set.",
                listen.socket()
            ),
        )
    }
}
