//! Attesto tells a mobile app's backend whether an in-app purchase is real, and tells it again whenever that changes.
//!
//! There are three layers of rooms. A room may use those below it and none above it; `tests/it/tidy.rs` has the order and
//! checks it.
//!
//! *Assembly* sees everything: [`cli`], [`config`], [`app`] (builds the features), [`server`] (serves them),
//! [`backup`], [`tenant_transfer`], [`jobs`] and [`retention`] (what runs periodically), [`checks`] (whether the installation is
//! healthy: `attesto doctor`, jobs, gauges), [`tail`] (what happens now).
//!
//! *Features*, lowest first: [`replicas`], [`tenants`], [`credentials`], [`deliveries`], [`events`], [`audit`], [`stores`]
//! (Apple and Google, which never use each other), [`simulator`] (both stores, simulated).
//!
//! *Tools* know nothing of purchases: [`http`], [`outbound`], [`crypto`], [`db`], [`telemetry`], [`egress`], [`embedded_postgres`], [`base`].

pub mod app;
pub mod audit;
pub mod backup;
pub mod base;
pub mod checks;
pub mod cli;
pub mod config;
pub mod credentials;
pub mod crypto;
pub mod db;
pub mod deliveries;
pub mod egress;
pub mod embedded_postgres;
pub mod events;
pub mod http;
pub mod jobs;
pub mod outbound;
pub mod replicas;
pub mod retention;
pub mod server;
pub mod simulator;
pub mod stores;
pub mod tail;
pub mod telemetry;
pub mod tenant_transfer;
pub mod tenants;

/// This release, as sent in every answer.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
