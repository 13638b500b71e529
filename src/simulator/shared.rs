//! What every part of a running simulator holds on to.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use serde::Serialize;
use tokio::sync::Semaphore;

use super::exchange::{Call, Reply};
use super::identity::{GoogleSigner, Identity, write_private};
use super::state::fault::Faults;
use super::state::notifications::Notifications;
use super::state::pubsub::Messages;
use super::state::{Refused, State};
use crate::clock::{Clock, Timestamp};

/// How many calls the log remembers.
const REMEMBERED: usize = 1000;
/// How many notifications are pushed at once.
const PUSHES_AT_ONCE: usize = 64;
/// The file's name inside the simulator's folder.
const FILE: &str = "purchases.json";

/// Identity, clock and everything that changes.
pub(super) struct Shared {
    pub clock: Clock,
    pub identity: Identity,
    /// Places for pushes on their way.
    pub pushing: Semaphore,
    client: OnceLock<Option<reqwest::Client>>,
    inside: Mutex<Inside>,
    file: Option<PathBuf>,
}

/// Everything that changes.
pub(super) struct Inside {
    pub state: State,
    pub random: fastrand::Rng,
    pub faults: Faults,
    /// Google's access tokens and whom they were given to, until when.
    pub tokens: BTreeMap<String, (String, Timestamp)>,
    /// What Play has published.
    pub messages: Messages,
    /// What the App Store has reported.
    pub notifications: Notifications,
    /// The keys that Google publishes, newest first, once they are others than the identity's.
    pub signers: Vec<GoogleSigner>,
    seen: VecDeque<Seen>,
}

/// A call that the simulated stores received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Seen {
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

impl Shared {
    /// With the purchases kept in `folder`, if one is given.
    pub(super) fn open(
        clock: Clock,
        identity: Identity,
        seed: Option<u64>,
        folder: Option<&Path>,
    ) -> io::Result<Self> {
        let file = folder.map(|folder| folder.join(FILE));
        let state = match file.as_ref().map(fs::read) {
            None => State::default(),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Some(Err(error)) => return Err(error),
            Some(Ok(text)) => serde_json::from_slice(&text).map_err(|error| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!(
                        "{FILE} in the simulator's folder cannot be read ({error}); remove it to begin without purchases"
                    ),
                )
            })?,
        };
        Ok(Self {
            clock,
            identity,
            pushing: Semaphore::new(PUSHES_AT_ONCE),
            client: OnceLock::new(),
            inside: Mutex::new(Inside {
                state,
                random: seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed),
                faults: Faults::default(),
                tokens: BTreeMap::new(),
                messages: Messages::default(),
                notifications: Notifications::default(),
                signers: Vec::new(),
                seen: VecDeque::new(),
            }),
            file,
        })
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// The client that pushes, if one can be made.
    pub(super) fn client(&self) -> Option<&reqwest::Client> {
        let make = || crate::outbound::client().ok();
        self.client.get_or_init(make).as_ref()
    }

    /// The key that Google signs with now.
    pub(super) fn signer(&self) -> GoogleSigner {
        let inside = self.inside();
        let newest = inside.signers.first();
        newest.unwrap_or(self.identity.google_signer()).clone()
    }

    /// The keys that Google publishes, as a JWK set.
    pub(super) fn google_keys(&self) -> serde_json::Value {
        let inside = self.inside();
        if inside.signers.is_empty() {
            return self.identity.google_keys();
        }
        let keys: Vec<_> = inside.signers.iter().map(GoogleSigner::jwk).collect();
        serde_json::json!({ "keys": keys })
    }

    /// Everything that changes, for a look. Never held while waiting.
    pub(super) fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is kept, and keeps it.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&mut State, Timestamp, &mut fastrand::Rng) -> Result<T, Refused>,
    ) -> Result<T, Refused> {
        let mut inside = self.inside();
        let Inside { state, random, .. } = &mut *inside;
        let result = change(state, self.now(), random)?;
        if let Some(file) = &self.file {
            let kept = serde_json::to_vec(state)
                .map_err(io::Error::from)
                .and_then(|text| write_private(file, &text));
            if let Err(error) = kept {
                tracing::warn!(%error, "simulator_purchases_not_kept");
            }
        }
        Ok(result)
    }

    /// Writes a call to the log.
    pub(super) fn log(&self, place: &str, below: &str, call: &Call, reply: &Reply) {
        let seen = Seen {
            at: self.now(),
            place: place.to_owned(),
            method: call.method.clone(),
            path: below.to_owned(),
            status: reply.status,
            remark: reply.remark.clone(),
        };
        let mut inside = self.inside();
        if inside.seen.len() == REMEMBERED {
            inside.seen.pop_front();
        }
        inside.seen.push_back(seen);
    }

    /// The calls received, oldest first.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.inside().seen.iter().cloned().collect()
    }

    /// Forgets the calls received.
    pub(super) fn forget_seen(&self) {
        self.inside().seen.clear();
    }
}
