//! What the operating system knows of this process, under the names that every Prometheus client uses. Where there is
//! no `/proc`, nothing is shown.

use std::fs;

use super::registry::{MetricsRegistry, ObservableKind};
use crate::base::clock::Clock;

/// Adds them.
pub fn register_process_metrics(registry: &MetricsRegistry, clock: &Clock) {
    let begun = clock.now().as_millis();
    registry.register_observable(
        "process_start_time_seconds",
        "When this process began, in seconds since the Unix epoch.",
        move |tell| {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a moment in milliseconds has 41 bits"
            )]
            tell("", begun as f64 / 1000.0);
        },
        ObservableKind::Gauge,
    );
    registry.register_observable(
        "process_resident_memory_bytes",
        "Memory that this process has.",
        |tell| {
            if let Some(kilobytes) = read_proc_status("VmRSS:") {
                tell("", kilobytes * 1024.0);
            }
        },
        ObservableKind::Gauge,
    );
    registry.register_observable(
        "process_open_fds",
        "Files and connections that this process has open.",
        |tell| {
            if let Ok(files) = fs::read_dir("/proc/self/fd") {
                // One of them is the folder itself.
                let count = files.count().saturating_sub(1);
                tell("", f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
            }
        },
        ObservableKind::Gauge,
    );
    registry.register_observable(
        "process_threads",
        "Threads of this process.",
        |tell| {
            if let Some(threads) = read_proc_status("Threads:") {
                tell("", threads);
            }
        },
        ObservableKind::Gauge,
    );
}

/// A number of `/proc/self/status`.
fn read_proc_status(field: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}
