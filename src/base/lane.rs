//! Lanes: the deliveries of each tenant belong to one of 64, in which one process at a time claims.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many lanes there are. The same in every installation: rows are stored with their lane.
pub const LANE_COUNT: usize = 64;
/// The number of the last one.
const LAST_LANE: u8 = 63;

/// A lane, from 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(u8);

impl Lane {
    /// The lane of what has this SHA-256: its first byte, modulo 64.
    pub fn of_hash(hash: &[u8; 32]) -> Self {
        Self(hash[0] & LAST_LANE)
    }

    /// The lane with the number that a column holds. `None`: there is no such lane.
    pub fn from_column(number: i16) -> Option<Self> {
        let number = u8::try_from(number).ok()?;
        (number <= LAST_LANE).then_some(Self(number))
    }

    /// Every lane, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..=LAST_LANE).map(Self)
    }

    /// From 0 to 63.
    pub fn number(self) -> u8 {
        self.0
    }

    /// The number, as the columns `lane` have it.
    pub fn column(self) -> i16 {
        i16::from(self.0)
    }
}

/// Some of the lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneSet(u64);

impl LaneSet {
    /// The set without any lane.
    pub const EMPTY: Self = Self(0);
    /// The set of all 64 lanes.
    pub const ALL: Self = Self(u64::MAX);

    /// The set whose bit `n` says whether it has lane `n`.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The reverse of [`from_bits`](Self::from_bits).
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Whether it has no lane.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether it has this lane.
    pub fn contains(self, lane: Lane) -> bool {
        self.0 & Self::from(lane).0 != 0
    }

    /// Adds a lane.
    pub fn insert(&mut self, lane: Lane) {
        self.0 |= Self::from(lane).0;
    }

    /// Removes a lane.
    pub fn remove(&mut self, lane: Lane) {
        self.0 &= !Self::from(lane).0;
    }

    /// The lanes that are in either.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The numbers of its lanes, as a parameter of a statement.
    pub fn columns(self) -> Vec<i16> {
        self.iter().map(Lane::column).collect()
    }

    /// Its lanes, in order.
    pub fn iter(self) -> impl Iterator<Item = Lane> {
        Lane::all().filter(move |lane| self.contains(*lane))
    }
}

impl From<Lane> for LaneSet {
    fn from(lane: Lane) -> Self {
        Self(1 << lane.number())
    }
}

impl FromIterator<Lane> for LaneSet {
    fn from_iter<I: IntoIterator<Item = Lane>>(lanes: I) -> Self {
        let mut set = Self::EMPTY;
        for lane in lanes {
            set.insert(lane);
        }
        set
    }
}

/// A [`LaneSet`] that threads share.
#[derive(Debug, Default)]
pub struct SharedLanes(AtomicU64);

impl SharedLanes {
    /// Begins with these lanes.
    pub fn new(lanes: LaneSet) -> Self {
        Self(AtomicU64::new(lanes.bits()))
    }

    /// The lanes now.
    pub fn get(&self) -> LaneSet {
        LaneSet::from_bits(self.0.load(Ordering::Acquire))
    }

    /// Replaces the lanes.
    pub fn set(&self, lanes: LaneSet) {
        self.0.store(lanes.bits(), Ordering::Release);
    }

    /// Adds these lanes to the others.
    pub fn add(&self, lanes: LaneSet) {
        self.0.fetch_or(lanes.bits(), Ordering::AcqRel);
    }

    /// Removes all lanes, and returns them.
    pub fn take(&self) -> LaneSet {
        LaneSet::from_bits(self.0.swap(0, Ordering::AcqRel))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in() {
        let lane = |number| Lane::from_column(number).unwrap();
        let mut set: LaneSet = [0, 5, 63].map(lane).into_iter().collect();
        assert_eq!(LaneSet::from_bits(set.bits()), set);
        assert_eq!(set.iter().map(Lane::number).collect::<Vec<_>>(), [0, 5, 63]);
        set.remove(lane(5));
        assert!(!set.contains(lane(5)) && set.contains(lane(63)) && !set.is_empty());
        assert_eq!(set.union(LaneSet::ALL), LaneSet::ALL);
        assert_eq!(LaneSet::ALL.iter().count(), LANE_COUNT);
        assert_eq!(Lane::from_column(64), None);
        assert_eq!(Lane::from_column(-1), None);
    }
}
