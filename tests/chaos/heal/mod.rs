//! Purchases that go on while the service, the database and both stores are away, in any order; and what is known of them when
//! all are back.
//!
//! Customers buy, renew, cancel, replace and refund on the simulated stores for nine days. Meanwhile the process of Attesto is killed
//! again and again, once for two days; the database crashes; the stores' APIs fail; what the stores send does not arrive, and some of
//! it never. Requests, deliveries and jobs are under way when something goes down. Then everything is there again for three days, and
//! these must hold:
//!
//! - Every change that the stores made is one event, by its `eventId`, at the callbacks and in the feed that is read back.
//!
//! - `recovered` is true in exactly the events whose notification did not arrive.
//!
//! - No acknowledgement and no answer about a refund came after its deadline, where the store could be called in time.
//!
//! - The newest `state` of each purchase is what the stores' own records say.
//!
//! Google lists refunds alone. So messages about other changes are pushed until they arrive, within the week that Pub/Sub keeps them,
//! and only those about refunds are lost for good.
//!
//! Time is simulated: the clocks of the process, the stores and the database are moved step by step. The process is the real service in
//! a runtime of its own, which ends where it stands when the process is killed.

mod backend;
mod customer;
pub(crate) mod judge;
mod ledger;
mod owed;
pub(crate) mod plan;
mod planted;
mod process;
pub(crate) mod run;
mod stage;
mod timeline;
