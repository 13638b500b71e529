//! Which lanes fall to this process, of all that deliver.
//!
//! Rendezvous hashing: each lane falls to the process with the highest hash of process and lane. When a process comes or goes, only the
//! lanes change hands that fall to it. Processes that do not know of each other yet may both take a lane to be theirs; the lock of
//! the lane decides then.

use std::sync::Arc;

use crate::base::id::ReplicaId;
use crate::base::lane::{Lane, LaneSet, SharedLanes};
use crate::crypto::token::sha256;

/// The lanes of this process: all until its first heartbeat. Clones share it.
#[derive(Clone, Debug)]
pub struct LaneShare(Arc<SharedLanes>);

impl Default for LaneShare {
    fn default() -> Self {
        Self(Arc::new(SharedLanes::new(LaneSet::ALL)))
    }
}

impl LaneShare {
    /// Its lanes now.
    pub fn lanes(&self) -> LaneSet {
        self.0.get()
    }

    /// Divides the lanes anew among `own` and the other processes that deliver.
    pub fn update(&self, own: &ReplicaId, others: &[ReplicaId]) {
        self.0.set(lanes_of(own, others));
    }
}

fn lanes_of(own: &ReplicaId, others: &[ReplicaId]) -> LaneSet {
    let is_ours = |lane: &Lane| {
        let ours = weight(own, *lane);
        others.iter().all(|other| weight(other, *lane) < ours)
    };
    Lane::all().filter(is_ours).collect()
}

fn weight(replica: &ReplicaId, lane: Lane) -> [u8; 32] {
    sha256(format!("{} {}", replica.as_str(), lane.number()).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Timestamp;

    fn without(replicas: &[ReplicaId], index: usize) -> Vec<ReplicaId> {
        let mut others = replicas.to_vec();
        others.remove(index);
        others
    }

    #[test]
    fn each_lane_falls_to_one_process_and_changes_hands_only_with_it() {
        for count in 1..=8_usize {
            let mut replicas: Vec<_> = (0..count)
                .map(|_| ReplicaId::mint(Timestamp::from_millis(0)))
                .collect();
            let shares = |replicas: &[ReplicaId]| -> Vec<LaneSet> {
                (0..replicas.len())
                    .map(|index| lanes_of(&replicas[index], &without(replicas, index)))
                    .collect()
            };
            let before = shares(&replicas);
            let together = before.iter().fold(0, |all, share| {
                assert_eq!(all & share.bits(), 0, "two own the same lane");
                all | share.bits()
            });
            assert_eq!(LaneSet::from_bits(together), LaneSet::ALL);
            replicas.push(ReplicaId::mint(Timestamp::from_millis(0)));
            let after = shares(&replicas);
            for (before, after) in before.iter().zip(&after) {
                assert_eq!(after.bits() & !before.bits(), 0, "only the new one gains");
            }
        }
    }

    #[test]
    fn shares_are_even_on_average() {
        let trials: u32 = 200;
        let mine: u32 = (0..trials)
            .map(|_| {
                let [own, other] = [0, 0].map(|at| ReplicaId::mint(Timestamp::from_millis(at)));
                lanes_of(&own, &[other]).bits().count_ones()
            })
            .sum();
        let mean = f64::from(mine) / f64::from(trials);
        assert!((29.0..35.0).contains(&mean), "{mean} of 64");
    }
}
