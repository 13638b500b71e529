//! Real processes, killed while notifications are pushed. `bin/chaos` does the same at length.

use std::time::Duration;

use crate::chaos::failover::{self, Failover, Pace};
use crate::chaos::heal;
use crate::chaos::heal::plan::Extent as HealExtent;
use crate::chaos::trials::{self, Trial};
use crate::chaos::{Extent, Run, run};

/// Kills, terminated sessions, crashes and a key rotation, in a short run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_accepted_notification_is_lost() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let verdict = run(&Run {
        seed: fastrand::u64(..1_000_000),
        events: 200,
        rate: 40,
        replicas: 2,
        extent: Extent {
            kills: 5,
            others: 1,
            away: Duration::from_secs(1),
            long: false,
            hurry: true,
        },
    })
    .await;
    assert!(verdict.is_clean(), "{verdict}");
}

/// In a short run: cancelled requests leave no open transaction, and every event answered with 200
/// is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cancelled_requests_leave_no_open_transaction() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    assert!(trials::run(Trial::Cancelled, 300, fastrand::u64(..1_000_000)).await);
}

/// In short rounds: what was answered with 200 is on the standby that takes over, and a key that is revoked there is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_with_everything_that_was_accepted() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let pace = Pace {
        accepted_before: 20,
        away: Duration::from_secs(1),
        is_timed: false,
    };
    let ways = [Failover::StandbyLost];
    assert!(failover::run(&ways, pace, fastrand::u64(..1_000_000)).await);
}

/// In one day: what the stores did while the service, the database and they themselves were away is known exactly once. And the judge
/// finds what is wrong on purpose.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn purchases_heal_after_outages_of_everything() {
    let extent = HealExtent {
        healing: Duration::from_hours(26),
        ..HealExtent::of_days(1)
    };
    let outcome = Box::pin(heal::run::run(1, extent)).await;
    println!("{outcome}");
    assert!(outcome.is_clean(), "{outcome}");
}
