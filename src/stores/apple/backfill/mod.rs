//! Reads Apple's history of notifications, and stores those that are missing here.
//!
//! Each takes the way of a notification that Apple posts: the same verification, the same event, and the same recognition of a
//! repeat by its `notificationUUID`. Its event says `"recovered": true`.
//!
//! - [`reader`]: reads the history of one app in one environment, for the job and for `attesto apple backfill`
//! - [`mod@round`]: reads the histories that are due, for the job
//! - [`store`]: how far each history has been read

mod reader;
pub(crate) mod round;
pub(crate) mod store;

pub use reader::{
    AppleBackfill, BackfillError, BackfillMode, BackfillReport, HistoryPeriod, HistoryReader,
    RefusedNotification, backfill_environments,
};
