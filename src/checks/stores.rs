//! The group `stores`: whether the stores can be reached from here, and whether Apple's root certificates are still
//! valid.

use std::time::Duration;

use futures_util::future::join_all;
use url::Url;

use super::check::Judged;
use super::check_result::CheckResult;
use super::expiry::APPLE_ROOT_WARNING_PERIOD;
use crate::base::clock::Timestamp;
use crate::config::{RawSettings, StoreSettings};
use crate::outbound;
use crate::stores::apple::trust::{JwsVerifier, root_expiries};

/// How long a store may take to answer.
const STORE_TIMEOUT: Duration = Duration::from_secs(8);
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
    let stores = [
        ("Apple's production API", &stores.apple_production_url),
        ("Apple's sandbox API", &stores.apple_sandbox_url),
        ("Google's Play API", &stores.google_play_url),
        ("Google's token server", &stores.google_token_url),
        ("Google's push keys", &stores.google_jwks_url),
        ("Google's Pub/Sub API", &stores.google_pubsub_url),
    ];
    join_all(stores.map(|(what, url)| check_store_reachable(what, url)))
        .await
        .into()
}

/// Any HTTP response is sufficient: this checks name resolution, the connection and the certificate.
async fn check_store_reachable(what: &str, url: &Url) -> CheckResult {
    const NAME: &str = "stores.reachable";
    let host = url.host_str().unwrap_or_default();
    let client = match outbound::build_http_client() {
        Ok(client) => client,
        Err(error) => {
            return CheckResult::fail(
                NAME,
                format!("No HTTP client can be created: {error}."),
                "The service would not start either.",
            );
        }
    };
    match client.head(url.clone()).timeout(STORE_TIMEOUT).send().await {
        Ok(_) => CheckResult::ok(NAME, format!("{what} answers ({host}).")),
        Err(error) => {
            let mut why = String::new();
            let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
            while let Some(next) = cause {
                why = next.to_string();
                cause = next.source();
            }
            if error.is_timeout() {
                why = format!("no answer within {} s", STORE_TIMEOUT.as_secs());
            }
            CheckResult::fail(
                NAME,
                format!("{what} cannot be reached ({host}): {why}."),
                "Does the name resolve here, may this machine connect to port 443 outside, and are its root certificates up to date?",
            )
        }
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
                format!("APPLE_ROOT_CERTIFICATES: {problem}."),
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
