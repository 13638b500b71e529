//! What `attesto apple backfill` and `attesto google backfill` have in common.

use std::time::Duration;

use super::context::{CommandContext, CommandError};
use super::duration;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::config::groups::RetentionSettings;
use crate::db::{self, Database};
use crate::deliveries::WorkNotifier;
use crate::events::{EventRecorder, events_kept_since};
use crate::tenants::store::{TenantChangeError, find_tenant};

/// The value of `--since`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Since {
    Ago(Duration),
    At(Timestamp),
}

impl Since {
    pub(super) fn to_time(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Ago(ago) => now.minus(ago),
            Self::At(time) => time,
        }
    }
}

pub(super) fn parse_since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = duration::parse_duration(text) {
        return Ok(Since::Ago(ago));
    }
    Timestamp::parse(text)
        .or_else(|| Timestamp::parse(&format!("{text}T00:00:00Z")))
        .map(Since::At)
        .ok_or_else(|| {
            "must be a whole number and a unit (90s, 30m, 24h, 7d), a date (2026-04-01) or a time (2026-04-01T14:22:10Z)"
                .to_owned()
        })
}

/// The tenant that was named, or all `active` ones of the store.
pub(super) async fn choose_tenants(
    database: &Database,
    named: Option<TenantId>,
    active: impl Future<Output = Result<Vec<TenantId>, db::Error>>,
) -> Result<Vec<TenantId>, CommandError> {
    match named {
        Some(tenant) => {
            ensure_can_backfill(database, &tenant).await?;
            Ok(vec![tenant])
        }
        None => Ok(active.await?),
    }
}

async fn ensure_can_backfill(database: &Database, tenant: &TenantId) -> Result<(), CommandError> {
    let found = find_tenant(database, tenant).await?;
    let found = found.ok_or_else(|| TenantChangeError::TenantNotFound(tenant.clone()))?;
    if !found.is_active {
        return Err(CommandError::failed(format!(
            "{tenant} is deactivated, and gets no events. To change that: attesto tenant activate {tenant}"
        )));
    }
    Ok(())
}

/// A recorder, and the notifier that wakes the dispatchers of the service for what it stores.
pub(super) fn new_recorder(
    database: &Database,
    context: &CommandContext,
) -> (EventRecorder, WorkNotifier) {
    let wake = WorkNotifier::default();
    let notify = wake.clone();
    let recorder = EventRecorder::new(database, &context.clock, move |tenant| {
        notify.notify_work(tenant);
    });
    (recorder, wake)
}

/// From when on all events are kept: see [`events_kept_since`].
pub(super) async fn load_kept_since(
    database: &Database,
    context: &CommandContext,
) -> Result<Option<Timestamp>, CommandError> {
    let retention = context.read_settings(RetentionSettings::from_raw)?.events;
    Ok(events_kept_since(database, retention, context.clock.now()).await?)
}

/// Exit 1 with a sentence for each failure, exit 0 without any.
pub(super) fn fail_with(failures: &[String]) -> Result<(), CommandError> {
    match failures {
        [] => Ok(()),
        failures => Err(CommandError::failed(failures.join("\n"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_is_a_duration_a_date_or_a_time() {
        let at = |text| Ok(Since::At(Timestamp::parse(text).unwrap()));
        for (text, expected) in [
            ("7d", Ok(Since::Ago(Duration::from_hours(7 * 24)))),
            ("2026-04-01", at("2026-04-01T00:00:00Z")),
            ("2026-04-01T14:22:10Z", at("2026-04-01T14:22:10Z")),
        ] {
            assert_eq!(parse_since(text), expected, "{text}");
        }
        for text in ["", "7", "yesterday", "2026-13-01", "2026-04-01T", "-1d"] {
            assert!(parse_since(text).is_err(), "{text}");
        }
    }
}
