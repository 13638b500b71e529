//! The outages of a run, derived from the seed.

use std::time::Duration;

use fastrand::Rng;

/// What is away, or goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outage {
    /// Attesto's process is killed, and a new one is started at the end.
    Service,
    /// The database crashes.
    Database,
    /// The App Store answers no call.
    AppleApi,
    /// Google answers no call: neither Play, nor the token endpoint, nor the one with Google's keys.
    GoogleApi,
    /// What Apple posts does not arrive. Apple posts it again, as long as it does.
    ApplePushes,
    /// The same of Pub/Sub.
    GooglePushes,
    /// Notifications that Apple makes never arrive: each of its attempts fails.
    AppleLoss,
    /// Messages about refunds that Google publishes never arrive. Of other changes Google has no list that could be read.
    GoogleLoss,
}

impl Outage {
    /// Whether something stops to work, in the middle of what it does. The others are on the way between a store and Attesto.
    pub(crate) fn goes_down(self) -> bool {
        matches!(
            self,
            Self::Service | Self::Database | Self::AppleApi | Self::GoogleApi
        )
    }
}

/// An outage, by the time since the begin of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedOutage {
    pub(crate) outage: Outage,
    pub(crate) begin: Duration,
    pub(crate) end: Duration,
}

/// How long a run is, and how much happens in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// How long customers act and outages come.
    pub(crate) length: Duration,
    /// How often each kind of outage comes, besides the long stop.
    pub(crate) outages: usize,
    /// How long the service is stopped once.
    pub(crate) stop: Duration,
    /// How long everything is there after that, until what is known is compared.
    pub(crate) healing: Duration,
    /// Lives of purchases.
    pub(crate) customers: usize,
}

impl Extent {
    /// For so many simulated days.
    pub(crate) fn of_days(days: u32) -> Self {
        let length = Duration::from_hours(24) * days;
        Self {
            length,
            outages: 2,
            stop: Duration::from_hours(48).min(length / 3),
            // Until the last purchase must be acknowledged.
            healing: Duration::from_hours(76),
            customers: usize::try_from(days).unwrap_or(1) * 18,
        }
    }
}

/// Of each kind: how many minutes it lasts at least, and how many hours at most.
const LENGTHS: [(Outage, u64, u64); 8] = [
    (Outage::Service, 1, 9),
    (Outage::Database, 1, 2),
    (Outage::AppleApi, 10, 14),
    (Outage::GoogleApi, 10, 14),
    (Outage::ApplePushes, 10, 40),
    (Outage::GooglePushes, 10, 40),
    (Outage::AppleLoss, 30, 10),
    (Outage::GoogleLoss, 120, 30),
];

/// The outages in the order of their begin. Those of one kind do not overlap; others may.
pub(crate) fn plan(seed: u64, extent: Extent) -> Vec<PlannedOutage> {
    let mut rng = Rng::with_seed(seed);
    let mut planned = vec![place(&mut rng, Outage::Service, extent.stop, extent.length)];
    for (outage, minutes, hours) in LENGTHS {
        for _ in 0..extent.outages {
            // Most are short.
            let longest = Duration::from_hours(hours).min(extent.length / 4);
            let lasts = Duration::from_mins(minutes) + longest.mul_f64(rng.f64() * rng.f64());
            let next = place(&mut rng, outage, lasts, extent.length);
            let is_apart = |one: &PlannedOutage| {
                one.outage != outage || next.end < one.begin || one.end < next.begin
            };
            if planned.iter().all(is_apart) {
                planned.push(next);
            }
        }
    }
    planned.sort_by_key(|one| one.begin);
    planned
}

fn place(rng: &mut Rng, outage: Outage, lasts: Duration, length: Duration) -> PlannedOutage {
    let begin = length.saturating_sub(lasts).mul_f64(rng.f64());
    PlannedOutage {
        outage,
        begin,
        end: begin + lasts,
    }
}
