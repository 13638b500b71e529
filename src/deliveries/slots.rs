//! How many deliveries one process may have in flight.
//!
//! A callback that answers at once uses a slot for a moment. A slow one needs only a socket and a few kilobytes of memory,
//! and must not delay others: after [`MAX_SLOT_TIME`] it is slow, and its slot is free for another delivery. There may be
//! [`MAX_SLOW_PER_SLOT`] slow deliveries for each slot; when there are more, they use slots again.

use std::time::Duration;

/// How long a delivery uses a slot.
pub(crate) const MAX_SLOT_TIME: Duration = Duration::from_millis(500);
/// How many slow deliveries there may be for each slot.
pub(crate) const MAX_SLOW_PER_SLOT: usize = 32;

/// How many more deliveries may start. `ages` says how long each delivery has been in flight.
pub(crate) fn count_free_slots(slots: usize, ages: impl IntoIterator<Item = Duration>) -> usize {
    let (mut quick, mut slow) = (0_usize, 0_usize);
    for age in ages {
        if age < MAX_SLOT_TIME {
            quick += 1;
        } else {
            slow += 1;
        }
    }
    let overflow = slow.saturating_sub(slots * MAX_SLOW_PER_SLOT);
    slots.saturating_sub(quick + overflow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_requests_free_their_slot_up_to_a_limit() {
        let ages = |quick: usize, slow: usize| {
            let quick = std::iter::repeat_n(MAX_SLOT_TIME / 2, quick);
            quick.chain(std::iter::repeat_n(MAX_SLOT_TIME, slow))
        };
        for (quick, slow, expected) in [
            (0, 0, 10),
            (3, 0, 7),
            (10, 0, 0),
            (0, 10, 10),
            (10, 320, 0),
            (0, 320, 10),
            (0, 325, 5),
            (0, 330, 0),
            (3, 325, 2),
            (12, 325, 0),
        ] {
            assert_eq!(
                count_free_slots(10, ages(quick, slow)),
                expected,
                "{quick} + {slow}"
            );
        }
    }
}
