//! Metrics of this process from the operating system, with the names that all Prometheus clients use. On a system
//! without `/proc`, only the start time is reported.

use std::fs;

use super::metrics::{MetricsRegistry, ObservableKind};
use crate::base::clock::Clock;

/// Adds the metrics to `registry`.
pub fn register_process_metrics(registry: &MetricsRegistry, clock: &Clock) {
    let started_at = clock.now().as_millis();
    registry.register_observable(
        "process_start_time_seconds",
        "When this process began, in seconds since the Unix epoch.",
        move |record| {
            #[expect(
                clippy::cast_precision_loss,
                reason = "a moment in milliseconds has 41 bits"
            )]
            record(None, started_at as f64 / 1000.0);
        },
        ObservableKind::Gauge,
    );
    registry.register_observable(
        "process_resident_memory_bytes",
        "Memory that this process has.",
        |record| {
            if let Some(kilobytes) = read_proc_status("VmRSS:") {
                record(None, kilobytes * 1024.0);
            }
        },
        ObservableKind::Gauge,
    );
    registry.register_observable(
        "process_open_fds",
        "Files and connections that this process has open.",
        |record| {
            if let Ok(files) = fs::read_dir("/proc/self/fd") {
                // One of the entries is the folder that is being read.
                let count = files.count().saturating_sub(1);
                record(None, f64::from(u32::try_from(count).unwrap_or(u32::MAX)));
            }
        },
        ObservableKind::Gauge,
    );
    registry.register_observable(
        "process_threads",
        "Threads of this process.",
        |record| {
            if let Some(threads) = read_proc_status("Threads:") {
                record(None, threads);
            }
        },
        ObservableKind::Gauge,
    );
}

/// The first number after `field` in `/proc/self/status`.
fn read_proc_status(field: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}
