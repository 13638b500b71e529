//! A process says that it is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::live_replicas::{LiveReplicas, format_name_list};
use super::replica::CertificateValidity;
use super::store;
use crate::base::backoff::spread;
use crate::base::clock::Clock;
use crate::base::id::ReplicaId;
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error, error_class};

/// How often.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(10);
/// How long the farewell may take.
const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(2);

/// The name of this machine.
pub fn host_name() -> String {
    let names = rustix::system::uname();
    names.nodename().to_string_lossy().into_owned()
}

/// Returns, by name, when the certificates are valid that a process depends on.
pub type CertificateExpiries =
    Arc<dyn Fn() -> BTreeMap<&'static str, CertificateValidity> + Send + Sync>;

/// This process, as others see it.
pub struct ReplicaHeartbeat {
    id: ReplicaId,
    database: Database,
    keyring: Arc<Keyring>,
    clock: Clock,
    settings: BTreeMap<&'static str, String>,
    certificates: CertificateExpiries,
}

impl ReplicaHeartbeat {
    /// Nobody knows of it yet.
    pub fn new(database: &Database, keyring: &Arc<Keyring>, clock: &Clock) -> Self {
        Self {
            id: ReplicaId::mint(clock.now()),
            database: database.clone(),
            keyring: keyring.clone(),
            clock: clock.clone(),
            settings: BTreeMap::new(),
            certificates: Arc::new(BTreeMap::new),
        }
    }

    /// The same, and it tells a fingerprint of each group of its settings, so that processes that differ are noticed.
    #[must_use]
    pub fn with_settings(mut self, fingerprints: BTreeMap<&'static str, String>) -> Self {
        self.settings = fingerprints;
        self
    }

    /// The same, and it tells when its certificates end.
    #[must_use]
    pub fn with_certificates(mut self, certificates: CertificateExpiries) -> Self {
        self.certificates = certificates;
        self
    }

    /// Says every few seconds that it is there, until `stop`, and then that it is gone.
    pub async fn run(self, stop: CancellationToken) {
        let mut was_said = false;
        let mut silent_about_it = false;
        loop {
            match stop.run_until_cancelled(self.send_heartbeat()).await {
                None => break,
                Some(Ok(())) => {
                    if !was_said {
                        self.warn_about_missing_keys().await;
                    }
                    (was_said, silent_about_it) = (true, false);
                }
                // Once an outage, not once an attempt.
                Some(Err(error)) if !silent_about_it => {
                    let class = error_class(&error);
                    tracing::warn!(cause = %error, causeClass = class, "could not tell the other processes that this one is there; it is tried again");
                    silent_about_it = true;
                }
                Some(Err(_)) => {}
            }
            let pause = spread(HEARTBEAT_INTERVAL, fastrand::f64());
            if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                break;
            }
        }
        if was_said {
            // Otherwise they find out by its silence.
            let _ = timeout(
                DEREGISTER_TIMEOUT,
                store::delete_replica(&self.database, &self.id),
            )
            .await;
        }
    }

    /// Says it once.
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
        };
        store::upsert_heartbeat(&self.database, &beat, self.clock.lead()).await
    }

    /// A process that seals with a key that others do not have is a mistake in the order of a rotation.
    async fn warn_about_missing_keys(&self) {
        let Ok(company) = LiveReplicas::load(&self.database, self.clock.lead()).await else {
            return;
        };
        let key_id = self.keyring.sealing_key_id();
        let without = company.hosts_without_key(key_id);
        if !without.is_empty() {
            tracing::warn!(
                keyId = key_id,
                hosts = format_name_list(&without),
                "other processes cannot open what this one seals: add the key to their ATTESTO_ENCRYPTION_KEYS_RETIRED"
            );
        }
    }
}
