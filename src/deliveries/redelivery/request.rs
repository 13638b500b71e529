//! What is asked for.

use std::str::FromStr;
use std::time::Duration;

use crate::base::id::{EventId, TenantId};
use crate::db::Error;

/// Where an event stands, all of its deliveries considered: delivered when one of them is; else pending when one is
/// still tried; else failed when one has failed. An event that was never to be delivered is none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EventStatus {
    /// Nobody has it yet, and it is being tried.
    Pending,
    /// The tenant has it.
    Delivered,
    /// Nobody has it, and nobody tries.
    Failed,
}

impl EventStatus {
    /// As it is stored and asked for.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

impl FromStr for EventStatus {
    type Err = UnknownEventStatus;

    fn from_str(word: &str) -> Result<Self, UnknownEventStatus> {
        [Self::Pending, Self::Delivered, Self::Failed]
            .into_iter()
            .find(|status| status.as_str() == word)
            .ok_or(UnknownEventStatus)
    }
}

/// Not a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a status is pending, delivered or failed")]
pub struct UnknownEventStatus;

/// Which events of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedeliveryFilter {
    /// Whose.
    pub tenant: TenantId,
    /// Only those that stand here.
    pub status: Option<EventStatus>,
    /// Only those with this word, such as `subscription.renewed`.
    pub event_type: Option<String>,
    /// Only those that were received in this time up to now; `None` goes back to the first.
    pub received_within: Option<Duration>,
}

/// Who asks, and why: kept with every delivery that comes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedeliveryRequest {
    /// A person or a program.
    pub requested_by: String,
    /// In their words.
    pub reason: Option<String>,
}

/// Why nothing is delivered again.
#[derive(Debug, thiserror::Error)]
pub enum RedeliveryError {
    /// There is no such event.
    #[error("no such event: {0}")]
    EventNotFound(EventId),
    /// There is no such tenant.
    #[error("no such tenant: {0}")]
    TenantNotFound(TenantId),
    /// The tenant has no callback, or it is switched off.
    #[error("{0} has no active callback: `attesto webhook set-config` sets one")]
    NoActiveCallback(TenantId),
    /// The database did not do it.
    #[error(transparent)]
    Database(#[from] Error),
}
