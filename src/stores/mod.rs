//! The app stores: what Apple and Google say of a purchase, verified.
//!
//! - [`apple`]: the App Store
//! - [`google`]: Google Play
//!
//! - [`shared`]: the plumbing of both
//!
//! The two never name each other.

pub mod apple;
pub mod google;
pub mod shared;
