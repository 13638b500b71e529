//! Every setting, once: its flag, its variable, its default, what it means.
//!
//! Parsing is pure: it is given the texts and gives back either [`Settings`] or every problem at once.

pub mod admin;
pub mod secret_file;

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

/// The process' environment. Everything else is handed what was read from it.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the environment"
)]
pub fn environment(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

/// What kind of place this process runs in. Production refuses what only development may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// On somebody's machine.
    Development,
    /// Real tenants, real money.
    Production,
    /// In a test.
    Test,
}

/// Base URLs and manners of calls to the stores.
#[derive(Clone, Debug)]
pub struct Stores {
    /// `APPLE_PRODUCTION_URL`
    pub apple_production: Url,
    /// `APPLE_SANDBOX_URL`
    pub apple_sandbox: Url,
    /// `APPLE_ROOT_CERTIFICATES`: replaces the built-in roots.
    pub apple_roots: Option<PathBuf>,
    /// `GOOGLE_PLAY_URL`
    pub google_play: Url,
    /// `GOOGLE_TOKEN_URL`
    pub google_token: Url,
    /// `GOOGLE_JWKS_URL`
    pub google_jwks: Url,
    /// `GOOGLE_PUBSUB_URL`
    pub google_pubsub: Url,
    /// `UPSTREAM_TIMEOUT_SECONDS`
    pub timeout: Duration,
}

/// Default limits of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// `RATE_LIMIT_PER_SECOND`
    pub per_second: u32,
    /// `RATE_LIMIT_BURST`
    pub burst: u32,
}
