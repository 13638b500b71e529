//! `attesto google`: a tenant's Google Play credentials, and what Google is told about its purchases.
//!
//! - [`command`]: the list of commands, and the dispatch to them
//! - [`mod@credentials`] has `set-credentials`, `get-credentials`, `rollback-credentials`
//! - [`mod@answers`] has `acknowledge` and `consume`
//! - [`mod@backfill`] has `backfill`
//! - [`mod@refund_review`] has `refund-review`, `set-default-answer`, `remove-default-answer`
//! - [`mod@orders`] has `order`

mod answers;
mod backfill;
mod command;
mod credentials;
mod orders;
mod refund_review;

pub(super) use command::{GoogleCommand, run};
