//! Each process regularly writes a row that says that it serves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::lane_share::LaneShare;
use super::live_replicas::{LiveReplicaCount, LiveReplicas, format_name_list};
use super::replica::{CertificateValidity, ReplicaNotices};
use super::store;
use crate::base::backoff::spread;
use crate::base::clock::Clock;
use crate::base::id::ReplicaId;
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error, error_class, is_missing_table};

const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// How long a first heartbeat waits for the tables to be made.
const MISSING_TABLE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// How long each of two may take at the end: a heartbeat that was begun, and deleting the row. Together that is less than a background
/// task has to stop.
const DEREGISTER_TIMEOUT: Duration = Duration::from_millis(2400);

/// The host name of this machine.
pub fn host_name() -> String {
    let names = rustix::system::uname();
    names.nodename().to_string_lossy().into_owned()
}

/// Returns, by name, when the certificates are valid that a process depends on.
pub type CertificateExpiries =
    Arc<dyn Fn() -> BTreeMap<&'static str, CertificateValidity> + Send + Sync>;

/// Returns what this process does not do now.
pub type NoticeSource = Arc<dyn Fn() -> ReplicaNotices + Send + Sync>;

/// Writes this process's row. Clones write the same one.
#[derive(Clone)]
pub struct ReplicaHeartbeat {
    id: ReplicaId,
    database: Database,
    keyring: Arc<Keyring>,
    clock: Clock,
    settings: BTreeMap<&'static str, String>,
    certificates: CertificateExpiries,
    notices: NoticeSource,
    live_replicas: LiveReplicaCount,
    lane_share: LaneShare,
    delivers: bool,
    /// Whether the row was written. Locked while it is, so that no earlier count replaces a later one.
    is_registered: Arc<Mutex<bool>>,
}

impl ReplicaHeartbeat {
    /// Writes nothing yet.
    pub fn new(database: &Database, keyring: &Arc<Keyring>, clock: &Clock) -> Self {
        Self {
            id: ReplicaId::mint(clock.now()),
            database: database.clone(),
            keyring: keyring.clone(),
            clock: clock.clone(),
            settings: BTreeMap::new(),
            certificates: Arc::new(BTreeMap::new),
            notices: Arc::new(ReplicaNotices::default),
            live_replicas: LiveReplicaCount::default(),
            lane_share: LaneShare::default(),
            delivers: true,
            is_registered: Arc::default(),
        }
    }

    /// How many processes serve, counted with each heartbeat.
    pub fn live_replica_count(&self) -> LiveReplicaCount {
        self.live_replicas.clone()
    }

    /// Which lanes fall to this process, determined with each heartbeat.
    pub fn lane_share(&self) -> LaneShare {
        self.lane_share.clone()
    }

    /// Sets whether this process claims deliveries.
    #[must_use]
    pub fn with_delivering(mut self, delivers: bool) -> Self {
        self.delivers = delivers;
        self
    }

    /// Adds a fingerprint of each group of settings, so that differences between processes are noticed.
    #[must_use]
    pub fn with_settings(mut self, fingerprints: BTreeMap<&'static str, String>) -> Self {
        self.settings = fingerprints;
        self
    }

    /// Adds when the certificates of this process are valid.
    #[must_use]
    pub fn with_certificates(mut self, certificates: CertificateExpiries) -> Self {
        self.certificates = certificates;
        self
    }

    /// Adds what this process does not do.
    #[must_use]
    pub fn with_notices(mut self, notices: NoticeSource) -> Self {
        self.notices = notices;
        self
    }

    /// Writes the row every ten seconds until `stop`, and then deletes it.
    pub async fn run(self, stop: CancellationToken) {
        let mut is_first = true;
        let mut was_failure_logged = false;
        loop {
            let mut interval = HEARTBEAT_INTERVAL;
            match self.send_heartbeat_until(&stop).await {
                None => break,
                Some(Ok(())) => {
                    if is_first {
                        self.warn_about_missing_keys().await;
                    }
                    (is_first, was_failure_logged) = (false, false);
                }
                // `/ready` says that the database was not migrated.
                Some(Err(error)) if is_missing_table(&error) => {
                    interval = MISSING_TABLE_RETRY_INTERVAL;
                }
                // Logged once for each outage, not for each attempt.
                Some(Err(error)) if !was_failure_logged => {
                    let class = error_class(&error);
                    tracing::warn!(
                        cause = crate::db::describe_cause(&error),
                        causeClass = class,
                        hint = "it is tried again",
                        "heartbeat_not_written"
                    );
                    was_failure_logged = true;
                }
                Some(Err(_)) => {}
            }
            let pause = spread(interval, fastrand::f64());
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                break;
            }
        }
        if *self.is_registered.lock().await {
            // If this fails, the row expires.
            let _ = timeout(
                DEREGISTER_TIMEOUT,
                store::delete_replica(&self.database, &self.id),
            )
            .await;
        }
    }

    /// `None`: it was stopped. A heartbeat that has begun is finished even so. Postgres would go on with a statement whose connection
    /// was given up, and might write the row after it was deleted.
    async fn send_heartbeat_until(&self, stop: &CancellationToken) -> Option<Result<(), Error>> {
        if stop.is_cancelled() {
            return None;
        }
        let mut beat = std::pin::pin!(self.send_heartbeat());
        let beaten = stop.run_until_cancelled(beat.as_mut()).await;
        if beaten.is_none() {
            let _ = timeout(DEREGISTER_TIMEOUT, beat).await;
        }
        beaten
    }

    /// Writes the row once, counts the processes that serve, and measures how far the database's clock is ahead.
    pub async fn send_heartbeat(&self) -> Result<(), Error> {
        let beat = store::HeartbeatRow {
            id: &self.id,
            host: &host_name(),
            pid: i32::try_from(std::process::id()).unwrap_or(0),
            version: crate::VERSION,
            sealing_key_id: self.keyring.sealing_key_id(),
            opening_key_ids: self.keyring.key_ids().collect(),
            settings: json!(self.settings),
            certificates: json!((self.certificates)()),
            notices: json!((self.notices)()),
            delivers: self.delivers,
        };
        let mut is_registered = self.is_registered.lock().await;
        let asked = self.clock.now();
        let written = store::upsert_heartbeat(&self.database, &beat).await?;
        *is_registered = true;
        self.live_replicas.set(written.live_replicas);
        self.lane_share.update(&self.id, &written.others_delivering);
        self.database
            .record_database_time(&self.clock, asked, written.seen_at);
        Ok(())
    }

    /// Others lack this process's key when the steps of a key rotation were done in the wrong order.
    async fn warn_about_missing_keys(&self) {
        let Ok(live) = LiveReplicas::load(&self.database).await else {
            return;
        };
        let key_id = self.keyring.sealing_key_id();
        let without = live.hosts_without_key(key_id);
        if !without.is_empty() {
            tracing::warn!(
                keyId = key_id,
                hosts = format_name_list(&without),
                hint = "add the key to ATTESTO_ENCRYPTION_KEYS_RETIRED on these hosts",
                "key_missing_on_other_processes"
            );
        }
    }
}
