//! Waits for what another task, another process or the database does. A test waits only here: no test depends on how long
//! something takes.

use std::time::Duration;

/// Ends a test that waits for something that never happens. No machine is so slow that it reaches this limit.
pub(crate) const HANG_LIMIT: Duration = Duration::from_mins(10);
/// Between two looks at a condition that announces nothing.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until the condition holds. `what` completes the sentence "waits in vain until …".
pub(crate) async fn wait_until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    wait_for(what, async || is_so().await.then_some(())).await;
}

/// Waits until something is found.
pub(crate) async fn wait_for<T>(what: &str, mut find: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = find().await {
                return found;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    finished(what, found).await
}

/// The output of a future that ends by itself.
pub(crate) async fn finished<T>(what: &str, future: impl Future<Output = T>) -> T {
    // In a box: what is waited for can be large.
    tokio::time::timeout(HANG_LIMIT, Box::pin(future))
        .await
        .unwrap_or_else(|_| panic!("waits in vain until {what}"))
}

/// Like [`wait_until`], in a test without a runtime.
pub(crate) fn wait_until_blocking(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < HANG_LIMIT, "waits in vain until {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// The pause of a simulated peer or observer between two steps. The test's result must not depend on its length.
pub(crate) async fn pause(duration: Duration) {
    tokio::time::sleep(duration).await;
}
