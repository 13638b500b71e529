//! The integration tests: one binary, one file a topic, one small world for all of them.

mod cli;
mod database;
mod embedded;
mod migrations;
mod openapi;
mod serve;
mod server_manners;
mod tenants;
mod world;
