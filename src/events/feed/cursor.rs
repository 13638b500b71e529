//! The cursor of a reader: the event that it got last.

use std::fmt;
use std::str::FromStr;

use crate::base::id::EventId;

/// The last event that a reader got. As text: its number, a dash, and the ULID of its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedCursor {
    pub(super) position: i64,
    /// Tells the event from another one with the same number, in a database that was restored or is another installation's.
    pub(super) event: EventId,
}

/// A text is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a cursor: send `next` of an earlier answer, or leave it out to begin with the oldest event"
)]
pub struct MalformedCursorError;

impl FromStr for FeedCursor {
    type Err = MalformedCursorError;

    fn from_str(text: &str) -> Result<Self, MalformedCursorError> {
        let (number, ulid) = text.split_once('-').ok_or(MalformedCursorError)?;
        let is_number = !number.starts_with('0') && number.bytes().all(|b| b.is_ascii_digit());
        let position = number.parse().ok().filter(|_| is_number);
        let event = format!("{}{ulid}", EventId::PREFIX).parse().ok();
        Ok(Self {
            position: position.ok_or(MalformedCursorError)?,
            event: event.ok_or(MalformedCursorError)?,
        })
    }
}

impl fmt::Display for FeedCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.event.as_str();
        let ulid = id.strip_prefix(EventId::PREFIX).unwrap_or(id);
        write!(f, "{}-{ulid}", self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_has_one_spelling() {
        let good = "120-01J9ZQ4T5W6X7Y8Z9A0B1C2D3E";
        let cursor: FeedCursor = good.parse().expect("a cursor");
        assert_eq!(
            (cursor.position, cursor.to_string()),
            (120, good.to_owned())
        );
        for bad in [
            "",
            "120",
            "-01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
            "0-01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
            "0120-01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
            "+1-01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
            "99999999999999999999-01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
            "120-evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
            "120-01j9zq4t5w6x7y8z9a0b1c2d3e",
        ] {
            assert_eq!(
                bad.parse::<FeedCursor>(),
                Err(MalformedCursorError),
                "{bad}"
            );
        }
    }
}
