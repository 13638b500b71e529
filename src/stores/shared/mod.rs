//! What both stores need and neither owns: calls with bearer tokens, stored credentials, router states.
//!
//! Only plumbing stands here. What an answer, a status or a notification of a store means stays in that store's room.
//!
//! - [`client`]: calls to a store's API
//! - [`credentials`]: a tenant's credentials: loaded, cached, or why not
//! - [`first_seen`]: whether a purchase was verified before for another user
//! - [`fresh_ids`]: asking again about a purchase that its store does not know yet
//! - [`notifications`]: which tenants receive notifications
//! - [`refund_questions`]: what the stores ask about refunds, and who answers in time
//! - [`state_completer`]: tells the states of purchases that were not known when their events were stored
//! - [`subject_source`]: asks a store about the purchase that events are about
//! - [`subject_routes`]: reading the state of a purchase back
//! - [`worker`]: the loop that takes what is due off a list
//! - [`routes`]: the parts of the verify and notification routes that are the same for both stores

pub(crate) mod client;
pub mod credentials;
pub mod first_seen;
pub(crate) mod fresh_ids;
pub(crate) mod notifications;
pub mod refund_questions;
pub(crate) mod routes;
pub mod state_completer;
pub(crate) mod subject_routes;
pub(crate) mod subject_source;
pub(crate) mod worker;
