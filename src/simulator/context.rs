//! What every part of a running simulator holds on to.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use serde::Serialize;
use tokio::sync::Semaphore;

use super::identity::{GoogleSigningKey, SimulatorIdentity, write_private_file};
use super::request::{SimulatorRequest, SimulatorResponse};
use super::state::apple_notifications::NotificationLog;
use super::state::fault::ActiveFaults;
use super::state::google_notifications::PublishedMessages;
use super::state::{SimulatorError, StoreState};
use crate::base::clock::{Clock, Timestamp};

/// How many calls the log remembers.
const MAX_RECORDED_REQUESTS: usize = 1000;
/// How many notifications are pushed at once.
const MAX_CONCURRENT_PUSHES: usize = 64;
/// The file's name inside the simulator's folder.
const STATE_FILE: &str = "purchases.json";

/// Identity, clock and everything that changes.
pub(super) struct SimulatorContext {
    pub clock: Clock,
    pub identity: SimulatorIdentity,
    /// Places for pushes on their way.
    pub push_permits: Semaphore,
    client: OnceLock<Option<reqwest::Client>>,
    state: Mutex<SimulatorState>,
    state_file: Option<PathBuf>,
}

/// Everything that changes.
pub(super) struct SimulatorState {
    pub stores: StoreState,
    pub random: fastrand::Rng,
    pub faults: ActiveFaults,
    /// Google's access tokens and whom they were given to, until when.
    pub access_tokens: BTreeMap<String, (String, Timestamp)>,
    /// What Play has published.
    pub published_messages: PublishedMessages,
    /// What the App Store has reported.
    pub notification_log: NotificationLog,
    /// The keys that Google publishes, newest first, once they are others than the identity's.
    pub google_signing_keys: Vec<GoogleSigningKey>,
    recorded_requests: VecDeque<RecordedRequest>,
}

/// A call that the simulated stores received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedRequest {
    /// When.
    pub at: Timestamp,
    /// Which store: one of [`Fault::PLACES`](super::state::fault::Fault::PLACES).
    pub place: String,
    /// The HTTP method.
    pub method: String,
    /// The path below the store's base URL, with its query.
    pub path: String,
    /// What was answered.
    pub status: u16,
    /// Why, where the store itself does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
}

impl SimulatorContext {
    /// With the purchases kept in `folder`, if one is given.
    pub(super) fn open(
        clock: Clock,
        identity: SimulatorIdentity,
        seed: Option<u64>,
        folder: Option<&Path>,
    ) -> io::Result<Self> {
        let file = folder.map(|folder| folder.join(STATE_FILE));
        let state = match file.as_ref().map(fs::read) {
            None => StoreState::default(),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => StoreState::default(),
            Some(Err(error)) => return Err(error),
            Some(Ok(text)) => serde_json::from_slice(&text).map_err(|error| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "{STATE_FILE} in the simulator's folder cannot be read ({error}); remove it to begin without purchases"
                    ),
                )
            })?,
        };
        Ok(Self {
            clock,
            identity,
            push_permits: Semaphore::new(MAX_CONCURRENT_PUSHES),
            client: OnceLock::new(),
            state: Mutex::new(SimulatorState {
                stores: state,
                random: seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
                faults: ActiveFaults::default(),
                access_tokens: BTreeMap::new(),
                published_messages: PublishedMessages::default(),
                notification_log: NotificationLog::default(),
                google_signing_keys: Vec::new(),
                recorded_requests: VecDeque::new(),
            }),
            state_file: file,
        })
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The client that pushes, if one can be made.
    pub(super) fn push_client(&self) -> Option<&reqwest::Client> {
        let make = || crate::outbound::build_http_client().ok();
        self.client.get_or_init(make).as_ref()
    }

    /// The key that Google signs with now.
    pub(super) fn google_signing_key(&self) -> GoogleSigningKey {
        let inside = self.lock_state();
        let newest = inside.google_signing_keys.first();
        newest.unwrap_or(self.identity.google_signing_key()).clone()
    }

    /// The keys that Google publishes, as a JWK set.
    pub(super) fn google_jwk_set(&self) -> serde_json::Value {
        let inside = self.lock_state();
        if inside.google_signing_keys.is_empty() {
            return self.identity.google_jwk_set();
        }
        let keys: Vec<_> = inside
            .google_signing_keys
            .iter()
            .map(GoogleSigningKey::to_jwk)
            .collect();
        serde_json::json!({ "keys": keys })
    }

    /// Everything that changes, for a look. Never held while waiting.
    pub(super) fn lock_state(&self) -> MutexGuard<'_, SimulatorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is kept, and keeps it.
    pub(super) fn update_and_save<T>(
        &self,
        change: impl FnOnce(&mut StoreState, Timestamp, &mut fastrand::Rng) -> Result<T, SimulatorError>,
    ) -> Result<T, SimulatorError> {
        let mut inside = self.lock_state();
        let SimulatorState {
            stores: state,
            random,
            ..
        } = &mut *inside;
        let result = change(state, self.now(), random)?;
        if let Some(file) = &self.state_file {
            let kept = serde_json::to_vec(state)
                .map_err(io::Error::from)
                .and_then(|text| write_private_file(file, &text));
            if let Err(error) = kept {
                tracing::warn!(%error, "simulator_purchases_not_kept");
            }
        }
        Ok(result)
    }

    /// Writes a call to the log.
    pub(super) fn record_request(
        &self,
        place: &str,
        below: &str,
        call: &SimulatorRequest,
        reply: &SimulatorResponse,
    ) {
        let seen = RecordedRequest {
            at: self.now(),
            place: place.to_owned(),
            method: call.method.clone(),
            path: below.to_owned(),
            status: reply.status,
            remark: reply.remark.clone(),
        };
        let mut inside = self.lock_state();
        if inside.recorded_requests.len() == MAX_RECORDED_REQUESTS {
            inside.recorded_requests.pop_front();
        }
        inside.recorded_requests.push_back(seen);
    }

    /// The calls received, oldest first.
    pub(super) fn recorded_requests(&self) -> Vec<RecordedRequest> {
        self.lock_state()
            .recorded_requests
            .iter()
            .cloned()
            .collect()
    }

    /// Forgets the calls received.
    pub(super) fn clear_requests(&self) {
        self.lock_state().recorded_requests.clear();
    }
}
