//! The stores: can they be reached from here, and whom do we trust as Apple.

use std::time::Duration;

use futures_util::future::join_all;
use url::Url;

use super::check_result::CheckResult;
use crate::base::clock::{Clock, Timestamp};
use crate::config::StoreSettings;
use crate::outbound;
use crate::stores::apple::trust::{JwsVerifier, root_expiries};

/// How long a store may take to answer.
const STORE_TIMEOUT: Duration = Duration::from_secs(8);
/// Roots that expire sooner than this should be replaced.
const ROOT_EXPIRY_WARNING: Duration = Duration::from_hours(24 * 180);

/// Looks. Without being `online` it calls nobody.
pub async fn check_stores(stores: &StoreSettings, online: bool, clock: &Clock) -> CheckResult {
    let mut checks = vec![check_apple_roots(stores, clock.now())];
    let places = [
        ("Apple's production API", &stores.apple_production_url),
        ("Apple's sandbox API", &stores.apple_sandbox_url),
        ("Google's Play API", &stores.google_play_url),
        ("Google's token server", &stores.google_token_url),
        ("Google's push keys", &stores.google_jwks_url),
        ("Google's Pub/Sub API", &stores.google_pubsub_url),
    ];
    if online {
        checks.extend(join_all(places.map(|(what, url)| check_store_reachable(what, url))).await);
    } else {
        checks.push(CheckResult::skipped(
            "stores.reachable",
            "Nobody was called (--offline).",
        ));
    }
    CheckResult::group("stores", "Stores", checks)
}

/// Any answer will do: what is looked at is the name, the way and the certificate.
async fn check_store_reachable(what: &str, url: &Url) -> CheckResult {
    const NAME: &str = "stores.reachable";
    let host = url.host_str().unwrap_or_default();
    let client = match outbound::build_http_client() {
        Ok(client) => client,
        Err(error) => {
            return CheckResult::fail(
                NAME,
                format!("No client can be made: {error}."),
                "The service does not start like this either.",
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

fn check_apple_roots(stores: &StoreSettings, now: Timestamp) -> CheckResult {
    const NAME: &str = "stores.roots";
    let verifier = match &stores.apple_root_certificates {
        None => Ok(JwsVerifier::with_apple_roots()),
        Some(path) => JwsVerifier::with_roots_from(path),
    };
    let ends = match verifier {
        Ok(verifier) => root_expiries(&verifier),
        Err(problem) => {
            return CheckResult::fail(
                NAME,
                format!("APPLE_ROOT_CERTIFICATES: {problem}."),
                "Correct it, or remove it to trust Apple's own roots.",
            );
        }
    };
    // One is enough to sign with; Apple replaces them long before.
    let last = ends.into_iter().max().unwrap_or(now);
    let told = format!("The last of Apple's roots that is trusted here ends on {last}.");
    if last <= now {
        CheckResult::fail(
            NAME,
            told,
            "Upgrade Attesto, or correct this machine's clock.",
        )
    } else if last < now.plus(ROOT_EXPIRY_WARNING) {
        CheckResult::warn(NAME, told, "Upgrade to a release that knows the next one.")
    } else {
        CheckResult::ok(NAME, told)
    }
}
