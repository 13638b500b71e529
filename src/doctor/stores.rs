//! The stores: can they be reached from here, and whom do we trust as Apple.

use std::time::Duration;

use futures_util::future::join_all;
use url::Url;

use super::finding::Check;
use crate::apple::trust::{Verifier, root_expiries};
use crate::clock::{Clock, Timestamp};
use crate::config::Stores;
use crate::outbound;

/// How long a store may take to answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// Roots that expire sooner than this should be replaced.
const SOON: Duration = Duration::from_hours(24 * 180);

/// Looks. Without being `online` it calls nobody.
pub async fn look(stores: &Stores, online: bool, clock: &Clock) -> Check {
    let mut checks = vec![roots(stores, clock.now())];
    let places = [
        ("Apple's production API", &stores.apple_production),
        ("Apple's sandbox API", &stores.apple_sandbox),
        ("Google's Play API", &stores.google_play),
        ("Google's token server", &stores.google_token),
        ("Google's push keys", &stores.google_jwks),
        ("Google's Pub/Sub API", &stores.google_pubsub),
    ];
    if online {
        checks.extend(join_all(places.map(|(what, url)| reach(what, url))).await);
    } else {
        checks.push(Check::skipped(
            "stores.reachable",
            "Nobody was called (--offline).",
        ));
    }
    Check::group("stores", "Stores", checks)
}

/// Any answer will do: what is looked at is the name, the way and the certificate.
async fn reach(what: &str, url: &Url) -> Check {
    const NAME: &str = "stores.reachable";
    let host = url.host_str().unwrap_or_default();
    let client = match outbound::client() {
        Ok(client) => client,
        Err(error) => {
            return Check::fail(
                NAME,
                format!("No client can be made: {error}."),
                "The service does not start like this either.",
            );
        }
    };
    match client.head(url.clone()).timeout(PATIENCE).send().await {
        Ok(_) => Check::ok(NAME, format!("{what} answers ({host}).")),
        Err(error) => {
            let mut why = String::new();
            let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
            while let Some(next) = cause {
                why = next.to_string();
                cause = next.source();
            }
            if error.is_timeout() {
                why = format!("no answer within {} s", PATIENCE.as_secs());
            }
            Check::fail(
                NAME,
                format!("{what} cannot be reached ({host}): {why}."),
                "Does the name resolve here, may this machine connect to port 443 outside, and are its root certificates up to date?",
            )
        }
    }
}

fn roots(stores: &Stores, now: Timestamp) -> Check {
    const NAME: &str = "stores.roots";
    let verifier = match &stores.apple_roots {
        None => Ok(Verifier::with_apple_roots()),
        Some(path) => Verifier::with_roots_at(path),
    };
    let ends = match verifier {
        Ok(verifier) => root_expiries(&verifier),
        Err(problem) => {
            return Check::fail(
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
        Check::fail(
            NAME,
            told,
            "Upgrade Attesto, or correct this machine's clock.",
        )
    } else if last < now.plus(SOON) {
        Check::warn(NAME, told, "Upgrade to a release that knows the next one.")
    } else {
        Check::ok(NAME, told)
    }
}
