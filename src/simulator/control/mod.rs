//! What lets things happen in the simulated stores: the same from Rust and over HTTP.
//!
//! - [`apple`], [`google`]: from Rust
//! - `http`: `/control`, which calls those

pub mod apple;
pub mod google;
pub(super) mod http;

pub use apple::AppleScenario;
pub use google::GoogleScenario;
pub(super) use http::environment_variables;
