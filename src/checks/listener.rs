//! The group `listener`: the listening address, and the certificate.

use super::check_result::CheckResult;
use crate::base::clock::Timestamp;
use crate::base::error::to_sentence;
use crate::config::{self, RawSettings, read_tls_files};
use crate::server::ListenSettings;
use crate::server::tls::{TlsCertificate, TlsCertificateError};

/// `None` if the settings cannot be read, which another check reports.
pub(super) fn check_listener(raw: &RawSettings<'_>, now: Timestamp) -> Option<CheckResult> {
    let listen = config::read_listen_settings(raw).ok()?;
    Some(match read_tls_files(raw).ok()? {
        Some(files) => check_listener_certificate(TlsCertificate::from_files(&files, now), now),
        None => check_plain_http(listen),
    })
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
            "Write a new certificate and key to both files: they are used within seconds, without a restart. Did the program that renews them stop?",
        ),
        Ok(pair) => CheckResult::ok(
            NAME,
            format!("The listener's certificate ends at {}.", pair.not_after()),
        ),
        Err(problem) => CheckResult::fail(
            NAME,
            to_sentence(format!(
                "The listener's certificate and key cannot be used: {problem}"
            )),
            "A running service keeps the certificate it has, but would not start again: correct both files.",
        ),
    }
}

/// Usually a proxy in front terminates TLS. That cannot be detected from here, so plain HTTP is never a warning.
fn check_plain_http(listen: ListenSettings) -> CheckResult {
    const NAME: &str = "listener.tls";
    if listen.bind_addr().ip().is_loopback() {
        CheckResult::ok(NAME, "Plain HTTP, for this machine only.")
    } else {
        CheckResult::ok(
            NAME,
            format!(
                "Plain HTTP on {}: terminate TLS in a proxy in front, or set TLS_CERT_PATH and TLS_KEY_PATH.",
                listen.bind_addr()
            ),
        )
    }
}
