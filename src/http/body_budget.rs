//! Bounds what the bodies of all requests in hand weigh together, so that no crowd of senders can fill the memory.
//!
//! Two shares: three quarters are for routes that can be called without an API key (the stores' notifications), of which one
//! peer can have a part only; one quarter is for requests with an active API key, so that a crowd of strangers delays no
//! tenant. Bytes are taken as they arrive, and waited for a moment: a body that finds no room is answered with 503, so that
//! a store sends it again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use super::connection_info::PeerNetwork;
use super::problem::{ErrorCode, Problem};
use crate::telemetry::metrics::{Counter, MetricVec, MetricsRegistry, ObservableKind};

/// Bodies that wait at once. Each holds what arrived last and the window of its stream, which are not counted.
const MAX_WAITING_BODIES: usize = 256;
/// Refusals that are delayed at once.
const MAX_DELAYED_REFUSALS: usize = 1024;
/// When to come again after a refusal.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// From this many peers on, those without a body in hand are dropped from the table.
const MIN_CLEANUP_PEERS: usize = 1024;

/// How much memory bodies may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyBudgetLimits {
    /// All bodies together, in bytes.
    pub max_bytes: usize,
    /// The part of the unauthenticated bodies' share that one peer may have, in percent.
    pub peer_share_percent: usize,
    /// How long a body waits for room. In the meantime its sender is not read from.
    pub room_timeout: Duration,
}

impl Default for BodyBudgetLimits {
    /// As the settings' defaults.
    fn default() -> Self {
        Self {
            max_bytes: 32 * 1024 * 1024,
            peer_share_percent: 25,
            room_timeout: Duration::from_secs(1),
        }
    }
}

/// Whose bodies a route reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyKind {
    /// Of anyone who knows the address.
    Unauthenticated,
    /// Of callers with an active API key.
    Authenticated,
}

/// Counts requests that were refused because of what was in hand. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct RefusalMetrics(Option<MetricVec<1, Counter>>);

impl RefusalMetrics {
    /// Shows `reason` with 0 before anything is refused for it.
    pub(crate) fn declare_reason(&self, reason: &'static str) {
        if let Some(refusals) = &self.0 {
            refusals.with_label_values([reason]);
        }
    }

    /// `reason` is one of a few fixed words.
    pub(crate) fn count_refusal(&self, reason: &'static str) {
        if let Some(refusals) = &self.0 {
            refusals.with_label_values([reason]).inc();
        }
    }
}

/// The memory for bodies. Clones share it.
#[derive(Clone, Debug)]
pub struct BodyBudget(Arc<BudgetState>);

#[derive(Debug)]
struct BudgetState {
    unauthenticated: BodyShare,
    authenticated: BodyShare,
    max_peer_bytes: usize,
    peers: Mutex<PeerShares>,
    waiting: AtomicUsize,
    room_timeout: Duration,
    delays: Semaphore,
    refusals: RefusalMetrics,
}

#[derive(Debug)]
struct BodyShare {
    max_bytes: usize,
    free: Arc<Semaphore>,
}

#[derive(Debug)]
struct PeerShares {
    by_peer: HashMap<PeerNetwork, Weak<Semaphore>>,
    cleanup_at: usize,
}

/// Why there is no room for a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoRoomError {
    /// All bodies together take what there is.
    #[error("the request bodies in hand take all memory that they may")]
    Full,
    /// Those of this peer do.
    #[error("the request bodies of this peer take all memory that one peer may")]
    PeerFull,
}

impl NoRoomError {
    fn reason(self) -> &'static str {
        match self {
            Self::Full => "body_memory",
            Self::PeerFull => "body_memory_of_peer",
        }
    }
}

impl From<NoRoomError> for Problem {
    fn from(error: NoRoomError) -> Self {
        Self::new(
            ErrorCode::Unavailable,
            "Attesto has too many requests in hand right now. Send this one again after Retry-After.",
        )
        .with_retry_after(RETRY_AFTER)
        .with_cause(error)
        .with_cause_class(error.reason())
    }
}

impl BodyShare {
    fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            free: Arc::new(Semaphore::new(max_bytes)),
        }
    }

    fn bytes_in_hand(&self) -> usize {
        self.max_bytes - self.free.available_permits()
    }
}

impl BodyBudget {
    /// With nothing in hand. The smallest budget has room for one body of every route.
    pub fn new(limits: BodyBudgetLimits) -> Self {
        Self::build(limits, RefusalMetrics::default())
    }

    /// The same, and what is in hand and what was refused is counted in `registry`.
    pub fn with_metrics(limits: BodyBudgetLimits, registry: &MetricsRegistry) -> Self {
        let refusals = registry.register_counter_vec(
            "attesto_requests_refused_total",
            "Requests that were refused because of what was in hand.",
            ["reason"],
        );
        let refusals = RefusalMetrics(Some(refusals));
        for error in [NoRoomError::Full, NoRoomError::PeerFull] {
            refusals.declare_reason(error.reason());
        }
        let budget = Self::build(limits, refusals);
        let observed = budget.clone();
        registry.register_observable(
            "attesto_request_body_bytes",
            "The bodies of requests in hand.",
            move |report| {
                let shares = [
                    ("unauthenticated", &observed.0.unauthenticated),
                    ("authenticated", &observed.0.authenticated),
                ];
                for (kind, share) in shares {
                    #[expect(
                        clippy::cast_precision_loss,
                        reason = "memory is less than 2^53 bytes"
                    )]
                    let bytes = share.bytes_in_hand() as f64;
                    report(Some(("kind", kind)), bytes);
                }
            },
            ObservableKind::Gauge,
        );
        budget
    }

    fn build(limits: BodyBudgetLimits, refusals: RefusalMetrics) -> Self {
        let authenticated = limits.max_bytes / 4;
        let unauthenticated = limits.max_bytes - authenticated;
        Self(Arc::new(BudgetState {
            unauthenticated: BodyShare::new(unauthenticated),
            authenticated: BodyShare::new(authenticated),
            max_peer_bytes: unauthenticated / 100 * limits.peer_share_percent.min(100),
            peers: Mutex::new(PeerShares {
                by_peer: HashMap::new(),
                cleanup_at: MIN_CLEANUP_PEERS,
            }),
            waiting: AtomicUsize::new(0),
            room_timeout: limits.room_timeout,
            delays: Semaphore::new(MAX_DELAYED_REFUSALS),
            refusals,
        }))
    }

    /// For refusals of other kinds.
    pub(crate) fn refusal_metrics(&self) -> &RefusalMetrics {
        &self.0.refusals
    }

    /// Waits before a body is refused that did not wait for room, because too many others did: until it has waited as long as they.
    /// Some senders come again the moment they are refused, and then the server does nothing else.
    pub(super) async fn delay_refusal(&self, since: Instant) {
        if let Ok(_delayed) = self.0.delays.try_acquire() {
            sleep_until(since + self.0.room_timeout).await;
        }
    }

    /// A claim without any bytes yet. Without a peer only the common bound holds.
    pub(super) fn start_claim(&self, kind: BodyKind, peer: Option<PeerNetwork>) -> BodyClaim {
        let has_share = self.0.max_peer_bytes < self.0.unauthenticated.max_bytes;
        let peer = peer.filter(|_| has_share && kind == BodyKind::Unauthenticated);
        BodyClaim {
            budget: self.clone(),
            kind,
            peer: peer.map(|peer| self.0.find_peer_share(peer)),
            held: None,
            held_of_peer: None,
        }
    }
}

impl BudgetState {
    fn find_peer_share(&self, peer: PeerNetwork) -> Arc<Semaphore> {
        let mut peers = self.peers.lock();
        if let Some(share) = peers.by_peer.get(&peer).and_then(Weak::upgrade) {
            return share;
        }
        if peers.by_peer.len() >= peers.cleanup_at {
            peers.by_peer.retain(|_, share| share.strong_count() > 0);
            peers.cleanup_at = MIN_CLEANUP_PEERS.max(peers.by_peer.len() * 2);
        }
        let share = Arc::new(Semaphore::new(self.max_peer_bytes));
        peers.by_peer.insert(peer, Arc::downgrade(&share));
        share
    }

    /// `None` when there are not so many in time, or too many bodies wait already.
    async fn take_permits(
        &self,
        semaphore: &Arc<Semaphore>,
        count: usize,
    ) -> Option<OwnedSemaphorePermit> {
        let count = u32::try_from(count).ok()?;
        if let Ok(permit) = semaphore.clone().try_acquire_many_owned(count) {
            return Some(permit);
        }
        let waits = WaitingBody::start(&self.waiting)?;
        let permit = semaphore.clone().acquire_many_owned(count);
        let permit = timeout(self.room_timeout, permit).await;
        drop(waits);
        permit.ok()?.ok()
    }
}

/// The bytes that one body has of the budget, until it is dropped.
#[derive(Debug)]
pub(super) struct BodyClaim {
    budget: BodyBudget,
    kind: BodyKind,
    peer: Option<Arc<Semaphore>>,
    held: Option<OwnedSemaphorePermit>,
    held_of_peer: Option<OwnedSemaphorePermit>,
}

impl BodyClaim {
    /// Takes `bytes` more, and waits for them a moment.
    pub(super) async fn take_bytes(&mut self, bytes: usize) -> Result<(), NoRoomError> {
        let taken = self.try_take_bytes(bytes).await;
        if let Err(error) = taken {
            self.budget.0.refusals.count_refusal(error.reason());
        }
        taken
    }

    async fn try_take_bytes(&mut self, bytes: usize) -> Result<(), NoRoomError> {
        let state = self.budget.0.clone();
        let share = match self.kind {
            BodyKind::Unauthenticated => &state.unauthenticated,
            BodyKind::Authenticated => &state.authenticated,
        };
        if let Some(peer) = &self.peer {
            let permit = state.take_permits(peer, bytes).await;
            add_permit(&mut self.held_of_peer, permit.ok_or(NoRoomError::PeerFull)?);
        }
        let permit = state.take_permits(&share.free, bytes).await;
        add_permit(&mut self.held, permit.ok_or(NoRoomError::Full)?);
        Ok(())
    }
}

fn add_permit(held: &mut Option<OwnedSemaphorePermit>, more: OwnedSemaphorePermit) {
    match held {
        Some(held) => held.merge(more),
        None => *held = Some(more),
    }
}

/// A body that waits for room.
struct WaitingBody<'a>(&'a AtomicUsize);

impl<'a> WaitingBody<'a> {
    fn start(waiting: &'a AtomicUsize) -> Option<Self> {
        let before = waiting.fetch_add(1, Ordering::Relaxed);
        let waits = Self(waiting);
        (before < MAX_WAITING_BODIES).then_some(waits)
    }
}

impl Drop for WaitingBody<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where a request's claim is held until its answer is made. A request extension, set by the request layer.
#[derive(Clone, Debug)]
pub(super) struct BodyAdmission {
    pub(super) budget: BodyBudget,
    claim: Arc<Mutex<Option<BodyClaim>>>,
}

impl BodyAdmission {
    pub(super) fn new(budget: BodyBudget) -> Self {
        Self {
            budget,
            claim: Arc::default(),
        }
    }

    /// Keeps a claim until the answer is made or [`BodyAdmission::release`] is called.
    pub(super) fn hold(&self, claim: BodyClaim) {
        *self.claim.lock() = Some(claim);
    }

    /// Gives the bytes back.
    pub(super) fn release(&self) {
        self.claim.lock().take();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const LIMITS: BodyBudgetLimits = BodyBudgetLimits {
        max_bytes: 4000,
        peer_share_percent: 50,
        room_timeout: Duration::ZERO,
    };

    fn peer(number: u8) -> PeerNetwork {
        PeerNetwork::from_address([192, 0, 2, number].into())
    }

    fn take(claim: &mut BodyClaim, bytes: usize) -> Option<Result<(), NoRoomError>> {
        claim.take_bytes(bytes).now_or_never()
    }

    #[tokio::test]
    async fn a_peer_has_a_part_and_strangers_leave_room_for_callers() {
        let budget = BodyBudget::new(LIMITS);
        let claim = |kind, number| budget.start_claim(kind, Some(peer(number)));
        let mut first = claim(BodyKind::Unauthenticated, 1);
        assert_eq!(take(&mut first, 1000), Some(Ok(())));
        assert_eq!(take(&mut first, 500), Some(Ok(())));
        let mut same = claim(BodyKind::Unauthenticated, 1);
        assert_eq!(same.take_bytes(1).await, Err(NoRoomError::PeerFull));
        let mut other = claim(BodyKind::Unauthenticated, 2);
        assert_eq!(take(&mut other, 1500), Some(Ok(())));
        let mut third = claim(BodyKind::Unauthenticated, 3);
        assert_eq!(third.take_bytes(1).await, Err(NoRoomError::Full));
        let mut caller = claim(BodyKind::Authenticated, 1);
        assert_eq!(take(&mut caller, 1000), Some(Ok(())));
        assert_eq!(budget.0.unauthenticated.bytes_in_hand(), 3000);
        drop((first, other));
        assert_eq!(budget.0.unauthenticated.bytes_in_hand(), 0);
        assert_eq!(take(&mut same, 1500), Some(Ok(())));
    }

    #[tokio::test]
    async fn a_body_waits_for_room_and_only_so_many_do() {
        let budget = BodyBudget::new(BodyBudgetLimits {
            room_timeout: Duration::from_hours(1),
            ..LIMITS
        });
        let mut all = budget.start_claim(BodyKind::Unauthenticated, None);
        all.take_bytes(3000).await.expect("it is free");
        let mut waiting = budget.start_claim(BodyKind::Unauthenticated, None);
        let (taken, ()) = tokio::join!(waiting.take_bytes(10), async {
            tokio::task::yield_now().await;
            drop(all);
        });
        assert_eq!(taken, Ok(()));

        let mut all = budget.start_claim(BodyKind::Unauthenticated, None);
        all.take_bytes(2990).await.expect("it is free");
        let mut crowd: Vec<_> = (0..=MAX_WAITING_BODIES)
            .map(|_| budget.start_claim(BodyKind::Unauthenticated, None))
            .collect();
        let mut waits: Vec<_> = crowd
            .iter_mut()
            .map(|claim| Box::pin(claim.take_bytes(1)))
            .collect();
        let last = waits.pop().expect("there is one");
        for wait in &mut waits {
            assert_eq!(wait.now_or_never(), None);
        }
        assert_eq!(last.now_or_never(), Some(Err(NoRoomError::Full)), "at once");
    }

    #[tokio::test]
    async fn a_refusal_is_delayed_as_long_as_others_waited_and_only_so_many_are() {
        let now = Instant::now();
        // Others wait for no time.
        BodyBudget::new(LIMITS).delay_refusal(now).await;

        let budget = BodyBudget::new(BodyBudgetLimits {
            room_timeout: Duration::from_hours(1),
            ..LIMITS
        });
        let mut delayed: Vec<_> = (0..=MAX_DELAYED_REFUSALS)
            .map(|_| Box::pin(budget.delay_refusal(now)))
            .collect();
        let last = delayed.pop().expect("there is one");
        for refusal in &mut delayed {
            assert_eq!(refusal.now_or_never(), None);
        }
        assert_eq!(last.now_or_never(), Some(()));
        delayed.pop();
        assert_eq!(budget.delay_refusal(now).now_or_never(), None);
    }

    #[test]
    fn peers_without_a_body_are_forgotten() {
        let budget = BodyBudget::new(LIMITS);
        for number in 0..5000_u32 {
            let address = PeerNetwork::from_address(std::net::Ipv4Addr::from(number).into());
            drop(budget.start_claim(BodyKind::Unauthenticated, Some(address)));
        }
        assert!(budget.0.peers.lock().by_peer.len() <= MIN_CLEANUP_PEERS);
    }
}
