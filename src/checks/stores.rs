//! The group `stores`: whether the stores can be reached from here, and whether Apple's root certificates are still
//! valid.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;
use url::Url;

use super::check::Judged;
use super::check_result::CheckResult;
use super::expiry::APPLE_ROOT_WARNING_PERIOD;
use crate::base::clock::Timestamp;
use crate::base::error::to_sentence;
use crate::config::{self, RawSettings, StoreSettings, is_loopback};
use crate::outbound::{RetryDecision, StoreClients, Upstream, server_text};
use crate::stores::apple::trust::{JwsVerifier, root_expiries};

/// How long a store may take to answer.
const STORE_TIMEOUT: Duration = Duration::from_secs(8);
const PROXY_TIMEOUT: Duration = Duration::from_secs(3);
const SETTINGS_UNREADABLE: &str = "stores: skipped because of the settings";

/// With `attesto doctor --offline`, no store is called.
pub(super) async fn check_stores_reachable(raw: &RawSettings<'_>, is_online: bool) -> Judged {
    let Ok(stores) = StoreSettings::from_raw(raw) else {
        return Judged::GroupSkipped(SETTINGS_UNREADABLE);
    };
    if !is_online {
        let reason = "The stores were not called (--offline).";
        return CheckResult::skipped("stores.reachable", reason).into();
    }
    // What the service itself calls. Pub/Sub pushes to it, and its API is called by nothing here.
    let stores = [
        ("Apple's production API", &stores.apple_production_url),
        ("Apple's sandbox API", &stores.apple_sandbox_url),
        ("Google's Play API", &stores.google_play_url),
        ("Google's token server", &stores.google_token_url),
        ("Google's server of push keys", &stores.google_jwks_url),
    ];
    let Ok(proxy) = config::read_egress_proxy(raw) else {
        return Judged::GroupSkipped(SETTINGS_UNREADABLE);
    };
    let clients = match StoreClients::new(proxy.as_ref()) {
        Ok(clients) => clients,
        Err(error) => {
            return CheckResult::fail(
                "stores.reachable",
                format!("No HTTP client can be created: {}", to_sentence(error)),
                "The service would not start either.",
            )
            .into();
        }
    };
    let upstream = Upstream::new(clients, STORE_TIMEOUT);
    join_all(stores.map(|(what, url)| check_store_reachable(&upstream, what, url)))
        .await
        .into()
}

/// No result without a proxy.
pub(super) async fn check_egress_proxy(raw: &RawSettings<'_>, is_online: bool) -> Judged {
    const NAME: &str = "stores.egress_proxy";
    let proxy = match config::read_egress_proxy(raw) {
        Ok(Some(proxy)) => proxy,
        Ok(None) => return Judged::Results(Vec::new()),
        Err(_) => return Judged::GroupSkipped(SETTINGS_UNREADABLE),
    };
    let used = format!("Calls to the stores and callbacks go through the proxy {proxy}");
    if !is_online {
        return CheckResult::skipped(NAME, format!("{used}, which was not tried (--offline)."))
            .into();
    }
    match proxy.check_reachable(Instant::now() + PROXY_TIMEOUT).await {
        Ok(()) => CheckResult::ok(NAME, format!("{used}, which accepts connections.")).into(),
        // None of the stores can be reached.
        Err(error) => Judged::LastResults(vec![CheckResult::fail(
            NAME,
            format!("{used}, and none can be made: {}", to_sentence(error)),
            "Start the proxy, or correct or remove ATTESTO_EGRESS_PROXY.",
        )]),
    }
}

/// Any HTTP response is sufficient: this checks name resolution, the connection and the certificate.
async fn check_store_reachable(upstream: &Upstream, what: &str, url: &Url) -> CheckResult {
    const NAME: &str = "stores.reachable";
    let host = server_text(url);
    let asking =
        upstream.send_with_retries(|client| client.head(url.clone()), |_| RetryDecision::Final);
    match asking.await {
        Ok(_) => CheckResult::ok(NAME, format!("{what} answers ({host}).")),
        Err(error) => CheckResult::fail(
            NAME,
            format!("{what} cannot be reached ({host}): {}", to_sentence(error)),
            if is_loopback(url) {
                "Start the server on this machine that the setting names, such as `attesto simulator`, or correct the setting."
            } else {
                "Does the name resolve here, may this machine connect to port 443 outside, and are its root certificates up to date?"
            },
        ),
    }
}

pub(super) fn check_apple_roots(raw: &RawSettings<'_>, now: Timestamp) -> Judged {
    match StoreSettings::from_raw(raw) {
        Ok(stores) => judge_apple_roots(&stores, now).into(),
        Err(_) => Judged::GroupSkipped(SETTINGS_UNREADABLE),
    }
}

fn judge_apple_roots(stores: &StoreSettings, now: Timestamp) -> CheckResult {
    const NAME: &str = "stores.roots";
    let verifier = match &stores.apple_root_certificates {
        None => Ok(JwsVerifier::with_apple_roots()),
        Some(path) => JwsVerifier::with_roots_from(path),
    };
    let expiries = match verifier {
        Ok(verifier) => root_expiries(&verifier),
        Err(problem) => {
            return CheckResult::fail(
                NAME,
                to_sentence(format!("APPLE_ROOT_CERTIFICATES: {problem}")),
                "Correct it, or remove it to trust Apple's own roots.",
            );
        }
    };
    // One valid root is sufficient, because Apple starts to use a new one long before the old one expires.
    let last = expiries.into_iter().max().unwrap_or(now);
    let message = format!("The last trusted root certificate of Apple ends on {last}.");
    if last <= now {
        CheckResult::fail(
            NAME,
            message,
            "Upgrade Attesto, or correct this machine's clock.",
        )
    } else if last < now.plus(APPLE_ROOT_WARNING_PERIOD) {
        CheckResult::warn(
            NAME,
            message,
            "Upgrade to a release that contains the next one.",
        )
    } else {
        CheckResult::ok(NAME, message)
    }
}
