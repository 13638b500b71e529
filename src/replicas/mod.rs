//! Which processes serve on this database, and with which encryption keys.
//!
//! Promises: a process that serves is known within seconds and forgotten when it stops, or within [`LIVE`] when it was
//! killed; whoever is about to seal with a key finds out first whether everybody who serves can open it.
//!
//! - [`presence`]: a process says that it is there
//! - [`Replica`]: a process that serves
//! - [`company`]: who is there, and who could not open what
//! - [`upgrade`]: whom a migration would stop

pub mod company;
pub mod presence;
mod replica;
mod store;
pub mod upgrade;

pub use company::Company;
pub use presence::{Certificates, Presence, host};
pub use replica::{LIVE, Replica};
pub use upgrade::WouldStop;
