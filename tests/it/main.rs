//! The integration tests: one binary, one file a topic, one small world for all of them.

#![expect(
    clippy::unwrap_used,
    reason = "a test stops where something is not as it should be"
)]

mod apple_credentials;
mod apple_notifications;
mod apple_ocsp;
mod apple_trust;
mod apple_verify;
mod audit;
#[path = "../chaos/mod.rs"]
mod chaos;
mod chaos_in_brief;
mod cli;
mod credential_grace;
mod database;
mod deploy;
mod dev;
mod disk_full;
mod docs;
mod doctor;
mod embedded;
mod encryption;
mod every_route;
mod google_credentials;
mod google_notifications;
mod google_verify;
mod hard_times;
mod health_command;
mod hold;
mod jobs;
mod leak;
mod leaks;
mod metrics;
mod migration_sql;
mod migrations;
mod moving;
mod openapi;
mod operators;
mod pgbouncer;
mod questions;
mod readonly;
mod receivers;
mod recovery;
mod retention;
mod runbooks;
mod secrets;
mod serve;
mod server_manners;
mod tail;
mod tenants;
mod tidy;
mod tls;
mod traces;
mod upgrade;
mod watch;
mod webhook_config;
mod webhook_delivery;
mod webhook_egress;
mod webhook_loop;
mod world;
