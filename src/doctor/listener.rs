//! Where the service listens, and with which certificate.

use super::check_result::CheckResult;
use crate::base::clock::Timestamp;
use crate::config::{self, RawSettings, read_tls_files};
use crate::server::ListenSettings;
use crate::server::tls::{TlsCertificate, TlsCertificateError};

/// Looks. `None` when the settings do not say where, which is a finding of theirs.
pub fn check_listener(raw: &RawSettings<'_>, now: Timestamp) -> Option<CheckResult> {
    let listen = config::read_listen_settings(raw).ok()?;
    let check = match read_tls_files(raw).ok()? {
        Some(files) => check_listener_certificate(TlsCertificate::from_files(&files, now), now),
        None => check_plain_http(listen),
    };
    Some(CheckResult::group("listener", "Listener", vec![check]))
}

fn check_listener_certificate(
    pair: Result<TlsCertificate, TlsCertificateError>,
    now: Timestamp,
) -> CheckResult {
    const NAME: &str = "listener.tls";
    match pair {
        Ok(pair) if pair.is_expiring_soon(now) => CheckResult::warn(
            NAME,
            format!("The listener's certificate ends at {}.", pair.not_after()),
            "Put another into both files: it is in use within seconds, and nothing restarts. Did what renews it stop?",
        ),
        Ok(pair) => CheckResult::ok(
            NAME,
            format!("The listener's certificate ends at {}.", pair.not_after()),
        ),
        Err(problem) => CheckResult::fail(
            NAME,
            format!("What is there for the listener cannot be used: {problem}."),
            "A service that runs goes on with the pair it had and does not start again without one: mend both files.",
        ),
    }
}

/// That TLS ends in front is the usual way, and cannot be seen from here: nothing is wrong.
fn check_plain_http(listen: ListenSettings) -> CheckResult {
    const NAME: &str = "listener.tls";
    if listen.bind_addr().ip().is_loopback() {
        CheckResult::ok(NAME, "Plain HTTP, for this machine only.")
    } else {
        CheckResult::ok(
            NAME,
            format!(
                "Plain HTTP on {}: what stands in front has to end TLS, or TLS_CERT_PATH and TLS_KEY_PATH are set.",
                listen.bind_addr()
            ),
        )
    }
}
