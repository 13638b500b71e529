//! Makes purchases in the simulated stores and changes them: the same operations from Rust and over HTTP.
//!
//! - [`apple`], [`google`]: from Rust
//! - `api`: `/control` over HTTP, and the operations that concern both stores
//! - `apple_api`, `google_api`: one table for each store, which routes its operations and documents them

mod api;
pub mod apple;
mod apple_api;
pub mod google;
mod google_api;

pub(super) use api::{environment_variables, router};
pub use apple::AppleScenario;
pub use google::GoogleScenario;
