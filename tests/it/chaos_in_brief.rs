//! Real processes, killed while notifications pour in. `bin/chaos` does the same at length.

use std::time::Duration;

use crate::chaos::{Extent, Run, run};

/// R1, R2, R3, R7, R8, in brief.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_was_accepted_is_lost() {
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
        },
    })
    .await;
    assert!(verdict.is_clean(), "{verdict}");
}
