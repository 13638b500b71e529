//! The integration tests: one binary, one file a topic, one small world for all of them.

mod embedded;
mod migrations;
mod world;
