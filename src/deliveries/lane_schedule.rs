//! Which lanes a process claims in, and when. Pure.
//!
//! A process remembers for each lane when something may be claimed there: a survey of the database says it, and so does each
//! notification of new work. After a claim that left free slots, nothing more can be claimed in its lanes until the next survey
//! of these lanes, or until a notification.
//!
//! A busy process claims in its own lanes: those that fall to it when all processes that deliver share them. One that has free slots
//! helps in the others. A lane that has been due for [`NEGLECT_TIMEOUT`] is claimed in by every process: the process that it
//! falls to may be stopped.

use std::time::Duration;

use tokio::time::Instant;

use crate::base::lane::{LANE_COUNT, Lane, LaneSet};

/// How long a lane of another process may be due before a busy process claims there.
const NEGLECT_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct LaneSchedule {
    /// When something may be claimed, by lane. `None`: not before a survey or a notification says so.
    due_at: [Option<Instant>; LANE_COUNT],
    /// The lanes that the next survey looks at.
    unknown: LaneSet,
    neglect_timeout: Duration,
}

impl LaneSchedule {
    /// Nothing is known of any lane.
    pub(super) fn new() -> Self {
        Self {
            due_at: [None; LANE_COUNT],
            unknown: LaneSet::ALL,
            neglect_timeout: NEGLECT_TIMEOUT,
        }
    }

    /// Sets another time than [`NEGLECT_TIMEOUT`].
    pub(super) fn set_neglect_timeout(&mut self, timeout: Duration) {
        self.neglect_timeout = timeout;
    }

    /// Something may be claimed in these lanes now.
    pub(super) fn mark_due(&mut self, lanes: LaneSet, now: Instant) {
        for lane in lanes.iter() {
            let due_at = &mut self.due_at[usize::from(lane.number())];
            *due_at = Some(due_at.map_or(now, |earlier| earlier.min(now)));
        }
    }

    /// The next survey looks at these lanes too.
    pub(super) fn mark_unknown(&mut self, lanes: LaneSet) {
        self.unknown = self.unknown.union(lanes);
    }

    /// The lanes that are to be surveyed.
    pub(super) fn unknown(&self) -> LaneSet {
        self.unknown
    }

    /// The lanes to claim in now. `own` are those that fall to this process.
    pub(super) fn lanes_to_claim(&self, own: LaneSet, is_busy: bool, now: Instant) -> LaneSet {
        Lane::all()
            .filter(|lane| {
                let claim_at = self.claim_at(*lane, own, is_busy);
                claim_at.is_some_and(|moment| moment <= now)
            })
            .collect()
    }

    /// When [`lanes_to_claim`](Self::lanes_to_claim) is next not empty.
    pub(super) fn next_claim_at(&self, own: LaneSet, is_busy: bool) -> Option<Instant> {
        Lane::all()
            .filter_map(|lane| self.claim_at(lane, own, is_busy))
            .min()
    }

    fn claim_at(&self, lane: Lane, own: LaneSet, is_busy: bool) -> Option<Instant> {
        let due_at = self.due_at[usize::from(lane.number())]?;
        if is_busy && !own.contains(lane) {
            Some(due_at + self.neglect_timeout)
        } else {
            Some(due_at)
        }
    }

    /// The lanes in which something is due.
    pub(super) fn due_lanes(&self, now: Instant) -> LaneSet {
        self.lanes_to_claim(LaneSet::ALL, false, now)
    }

    /// After a claim in `locked`. `has_more`: it was ended by the number of free slots.
    pub(super) fn record_claim(&mut self, locked: LaneSet, has_more: bool, now: Instant) {
        for lane in locked.iter() {
            self.due_at[usize::from(lane.number())] = has_more.then_some(now);
            if !has_more {
                self.unknown.insert(lane);
            }
        }
    }

    /// Another process was claiming in these lanes.
    pub(super) fn record_locked(&mut self, lanes: LaneSet, retry_at: Instant) {
        for lane in lanes.iter() {
            self.due_at[usize::from(lane.number())] = Some(retry_at);
        }
    }

    /// After a survey of these lanes: `due_at` has those in which something will be due. In those of `unwritten` an attempt has ended
    /// whose result is not in the database: the survey counted it as one that still takes a place of its callback.
    pub(super) fn record_survey(
        &mut self,
        surveyed: LaneSet,
        due_at: &[(Lane, Instant)],
        unwritten: LaneSet,
    ) {
        for lane in surveyed.iter() {
            self.unknown.remove(lane);
            if !unwritten.contains(lane) {
                self.due_at[usize::from(lane.number())] = None;
            }
        }
        for (lane, moment) in due_at {
            let due_at = &mut self.due_at[usize::from(lane.number())];
            *due_at = Some(due_at.map_or(*moment, |earlier| earlier.min(*moment)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(numbers: &[i16]) -> LaneSet {
        numbers
            .iter()
            .map(|number| Lane::from_column(*number).unwrap())
            .collect()
    }

    #[test]
    fn a_busy_process_leaves_the_lanes_of_others_to_them_for_two_seconds() {
        let now = Instant::now();
        let mut schedule = LaneSchedule::new();
        assert_eq!(schedule.next_claim_at(LaneSet::ALL, false), None);
        schedule.mark_due(lanes(&[1, 2]), now);
        let own = lanes(&[1, 3]);
        assert_eq!(schedule.lanes_to_claim(own, false, now), lanes(&[1, 2]));
        assert_eq!(schedule.lanes_to_claim(own, true, now), lanes(&[1]));
        assert_eq!(schedule.due_lanes(now), lanes(&[1, 2]));
        let later = now + NEGLECT_TIMEOUT;
        // Notified again: it waits since the first time.
        schedule.mark_due(lanes(&[2]), later);
        assert_eq!(schedule.lanes_to_claim(own, true, later), lanes(&[1, 2]));
        let nothing = LaneSet::EMPTY;
        assert_eq!(schedule.next_claim_at(nothing, true), Some(later));
    }

    #[test]
    fn a_lane_is_claimed_in_again_when_there_may_be_more() {
        let now = Instant::now();
        let mut schedule = LaneSchedule::new();
        schedule.record_survey(LaneSet::ALL, &[], LaneSet::EMPTY);
        assert_eq!(schedule.unknown(), LaneSet::EMPTY);
        let soon = now + Duration::from_millis(30);
        for (has_more, due_at, unknown) in [
            (true, Some(now), LaneSet::EMPTY),
            (false, None, lanes(&[7])),
        ] {
            schedule.mark_due(lanes(&[7]), now);
            schedule.record_claim(lanes(&[7]), has_more, now);
            assert_eq!(schedule.next_claim_at(LaneSet::ALL, false), due_at);
            assert_eq!(schedule.unknown(), unknown);
        }
        let seven = Lane::from_column(7).unwrap();
        schedule.record_survey(lanes(&[7]), &[(seven, soon)], LaneSet::EMPTY);
        assert_eq!(schedule.next_claim_at(LaneSet::ALL, false), Some(soon));
        assert_eq!(schedule.unknown(), LaneSet::EMPTY);
        schedule.record_locked(lanes(&[7]), now);
        assert_eq!(schedule.next_claim_at(LaneSet::ALL, false), Some(now));
    }

    #[test]
    fn a_survey_does_not_hide_what_an_unwritten_result_makes_room_for() {
        let now = Instant::now();
        let mut schedule = LaneSchedule::new();
        // Attempts ended in both lanes, and all places of their callbacks are taken as far as the database knows.
        schedule.mark_due(lanes(&[1, 2]), now);
        schedule.record_survey(LaneSet::ALL, &[], lanes(&[2]));
        assert_eq!(schedule.due_lanes(now), lanes(&[2]));
        assert_eq!(schedule.unknown(), LaneSet::EMPTY);
    }
}
