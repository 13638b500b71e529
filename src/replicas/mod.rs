//! Which processes serve on this database, and with which encryption keys.
//!
//! Promises: a process that serves is known within seconds and forgotten when it stops, or within [`LIVE`] when it was
//! killed; whoever is about to seal with a key finds out first whether everybody who serves can open it.
//!
//! - [`presence`]: a process says that it is there
//! - [`company`]: who is there, and who could not open what
//! - [`upgrade`]: whom a migration would stop

pub mod company;
pub mod presence;
mod store;
pub mod upgrade;

pub use company::{Company, Replica};
pub use presence::{Certificates, LIVE, Presence, host};
pub use upgrade::WouldStop;
