//! The state that every part of a running simulator shares.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use serde::Serialize;
use tokio::sync::Semaphore;

use super::identity::{GoogleSigningKey, SimulatorIdentity, write_private_file};
use super::request::{SimulatorRequest, SimulatorResponse};
use super::state::apple_notifications::NotificationLog;
use super::state::bounded_log::BoundedLog;
use super::state::fault::{ActiveFaults, Fault, StoreCall};
use super::state::google_notifications::PublishedMessages;
use super::state::{SimulatorError, StoreState};
use crate::base::clock::{Clock, Timestamp};

/// The request log keeps the newest calls only.
const MAX_RECORDED_REQUESTS: usize = 1000;
const MAX_CONCURRENT_PUSHES: usize = 64;
/// Inside the simulator's folder.
const STATE_FILE: &str = "purchases.json";

/// One for each running simulator.
pub(super) struct SimulatorContext {
    pub clock: Clock,
    pub identity: SimulatorIdentity,
    /// Bounds the pushes of both stores that are under way.
    pub push_permits: Semaphore,
    client: OnceLock<Option<reqwest::Client>>,
    state: Mutex<SimulatorState>,
    state_file: Option<PathBuf>,
}

/// Everything that changes. Only `stores` survives a restart.
pub(super) struct SimulatorState {
    pub stores: StoreState,
    pub random: fastrand::Rng,
    pub faults: ActiveFaults,
    /// Google's access tokens: the service account of each, and when it expires.
    pub access_tokens: BTreeMap<String, (String, Timestamp)>,
    pub published_messages: PublishedMessages,
    pub notification_log: NotificationLog,
    /// The keys that Google publishes after a rotation, newest first. Empty before: then it is the identity's key.
    pub google_signing_keys: Vec<GoogleSigningKey>,
    recorded_requests: BoundedLog<RecordedRequest, MAX_RECORDED_REQUESTS>,
}

/// A call that the simulated stores received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedRequest {
    /// The time at the simulator's clock.
    pub at: Timestamp,
    /// Which store: one of [`Fault::PLACES`](super::state::fault::Fault::PLACES).
    pub place: String,
    /// The HTTP method, in capitals.
    pub method: String,
    /// The path below the store's base URL, with its query.
    pub path: String,
    /// The HTTP status of the answer.
    pub status: u16,
    /// The reason of a refusal, where the store's answer does not give it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remark: Option<String>,
}

impl SimulatorContext {
    /// Loads the purchases from `folder` and saves them there, if one is given.
    pub(super) fn open(
        clock: Clock,
        identity: SimulatorIdentity,
        seed: Option<u64>,
        folder: Option<&Path>,
    ) -> io::Result<Self> {
        let file = folder.map(|folder| folder.join(STATE_FILE));
        let stores = match file.as_ref().map(fs::read) {
            None => StoreState::default(),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => StoreState::default(),
            Some(Err(error)) => return Err(error),
            Some(Ok(text)) => serde_json::from_slice(&text).map_err(|error| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "{STATE_FILE} in the simulator's folder cannot be read ({error}); remove it to start without purchases"
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
                stores,
                random: seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
                faults: ActiveFaults::default(),
                access_tokens: BTreeMap::new(),
                published_messages: PublishedMessages::default(),
                notification_log: NotificationLog::default(),
                google_signing_keys: Vec::new(),
                recorded_requests: BoundedLog::default(),
            }),
            state_file: file,
        })
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// `None` when no HTTP client can be built.
    pub(super) fn push_client(&self) -> Option<&reqwest::Client> {
        self.client
            .get_or_init(|| crate::outbound::build_http_client().ok())
            .as_ref()
    }

    /// The key that Google signs with now.
    pub(super) fn google_signing_key(&self) -> GoogleSigningKey {
        let state = self.lock_state();
        let newest = state.google_signing_keys.first();
        newest.unwrap_or(self.identity.google_signing_key()).clone()
    }

    /// The keys that Google publishes, as a JWK set.
    pub(super) fn google_jwk_set(&self) -> serde_json::Value {
        let state = self.lock_state();
        if state.google_signing_keys.is_empty() {
            return self.identity.google_jwk_set();
        }
        let keys: Vec<_> = state
            .google_signing_keys
            .iter()
            .map(GoogleSigningKey::to_jwk)
            .collect();
        serde_json::json!({ "keys": keys })
    }

    /// Locks everything that changes. Never held across an `await`.
    pub(super) fn lock_state(&self) -> MutexGuard<'_, SimulatorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the stores, then saves them to the folder if there is one.
    pub(super) fn update_and_save<T>(
        &self,
        change: impl FnOnce(&mut StoreState, Timestamp, &mut fastrand::Rng) -> Result<T, SimulatorError>,
    ) -> Result<T, SimulatorError> {
        let mut state = self.lock_state();
        let SimulatorState { stores, random, .. } = &mut *state;
        let result = change(stores, self.now(), random)?;
        if let Some(file) = &self.state_file {
            let saved = serde_json::to_vec(stores)
                .map_err(io::Error::from)
                .and_then(|text| write_private_file(file, &text));
            if let Err(error) = saved {
                tracing::warn!(%error, "simulator_purchases_not_kept");
            }
        }
        Ok(result)
    }

    /// The fault for a call, which counts as made. `sold_at` says when the purchase of this id was made.
    pub(super) fn take_fault(
        &self,
        place: &str,
        app: Option<&str>,
        id: Option<&str>,
        sold_at: impl FnOnce(&StoreState, &str) -> Option<Timestamp>,
    ) -> Option<Fault> {
        let now = self.now();
        let mut state = self.lock_state();
        let sold = id.and_then(|id| sold_at(&state.stores, id));
        let call = StoreCall {
            place,
            app,
            id,
            age_of_purchase: sold.map(|sold| now.duration_since(sold)),
        };
        state.faults.take_matching(&call)
    }

    pub(super) fn record_request(
        &self,
        place: &str,
        request: &SimulatorRequest,
        response: &SimulatorResponse,
    ) {
        let path_below_place = request.path.get(place.len() + 1..).unwrap_or_default();
        let recorded = RecordedRequest {
            at: self.now(),
            place: place.to_owned(),
            method: request.method.clone(),
            path: path_below_place.to_owned(),
            status: response.status.as_u16(),
            remark: response.remark.clone(),
        };
        self.lock_state().recorded_requests.add(recorded);
    }

    pub(super) fn recorded_requests(&self) -> Vec<RecordedRequest> {
        self.lock_state()
            .recorded_requests
            .iter()
            .cloned()
            .collect()
    }

    pub(super) fn clear_requests(&self) {
        self.lock_state().recorded_requests.clear();
    }
}
