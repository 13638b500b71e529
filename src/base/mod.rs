//! Small tools without knowledge of purchases.
//!
//! - [`clock`]: the time, and how a moment is written
//! - [`id`]: a type for each kind of identifier
//! - [`shutdown`]: the signal that ends the process

pub mod clock;
pub mod id;
pub mod shutdown;
