//! The integration tests: one test binary, one file for each topic, shared helpers in `world`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod access_control;
mod admission;
mod apple_credentials;
mod apple_notifications;
mod apple_ocsp;
mod apple_signatures;
mod apple_state;
mod apple_verify;
mod audit;
mod backup_restore;
#[path = "../chaos/mod.rs"]
mod chaos;
mod chaos_short;
mod checks;
mod cli;
mod cli_verify_inspect;
mod connection_limits;
mod credential_rotation;
mod database;
mod database_outages;
mod delivery_hold;
mod deploy;
mod dev_command;
mod disk_full;
mod docs;
mod doctor;
mod embedded;
mod encryption;
mod google_credentials;
mod google_notifications;
mod google_state;
mod google_verify;
mod health_command;
#[path = "../histories/mod.rs"]
mod histories;
mod jobs;
mod late_states;
mod leak_runbook;
mod metrics;
mod migration_sql;
mod migrations;
mod openapi;
mod operators;
mod pgbouncer;
mod read_only_role;
mod receiver_examples;
mod reference_receiver;
mod retention;
mod runbooks;
mod secret_leaks;
mod secrets_in_output;
mod serve;
mod tail;
mod tenant_transfer;
mod tenants;
mod tidy;
mod tls;
mod traces;
mod upgrade;
mod webhook_config;
mod webhook_delivery;
mod webhook_egress;
mod webhook_end_to_end;
mod world;
