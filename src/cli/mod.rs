//! The command line: the same functions as HTTP, through another door. One file a noun.
//!
//! Promises: results go to stdout and are one JSON object a line unless a person is watching; everything else goes to
//! stderr; a secret is never printed, except a new API key, once. Exit codes: 0 done, 1 not found, already so, or
//! something failed, 2 asked wrongly.
//!
//! - [`command`]: the tree of commands, and [`run`]
//! - [`spelling`]: `key:revoke` for `key revoke`, and `serve` when nothing is said
//! - [`context`]: what every command is given, and how it fails
//! - [`output`]: JSON lines, or tables and prose
//! - [`operator`]: who is at the keyboard
//! - [`progress`]: how far something is that takes a while
//! - [`duration`]: how long, as people write it
//! - [`upload`]: a secret from a file or from standard input
//! - [`serve`], [`dev`], [`simulator`], [`migrate`]: things that run
//! - [`health`], [`verify`], [`inspect`]: things that are asked
//! - [`openapi`]: for those who write clients
//! - [`completions`]: for shells, and for readers of manuals
//! - [`tenant`], [`key`], [`apple`], [`google`], [`webhook`]: things that are kept
//! - [`moving`]: a tenant, packed
//! - [`encryption`]: what they are sealed with
//! - [`config`]: the settings
//! - [`jobs`], [`prune`]: what runs periodically
//! - [`backup`]: what can be gone back to
//! - [`database`]: who else may look into it
//! - [`deliveries`]: whether anything is sent
//! - [`audit`]: what was asked
//! - [`tail`]: what happens now

pub mod apple;
pub mod audit;
pub mod backup;
pub mod colon_aliases;
pub mod command;
pub mod completions;
pub mod config;
pub mod context;
pub mod database;
pub mod deliveries;
pub mod dev;
pub mod doctor;
pub mod duration;
pub mod encryption;
pub mod google;
pub mod health;
pub mod input_file;
pub mod inspect;
pub mod jobs;
pub mod key;
pub mod migrate;
pub mod openapi;
pub mod operator;
pub mod output;
pub mod progress;
pub mod prune;
pub mod serve;
pub mod simulator;
pub mod tail;
pub mod tenant;
pub mod tenant_transfer;
pub mod verify;
pub mod verify_signature;
pub mod webhook;

pub use command::run;
pub use context::{CommandContext, CommandError};
pub use output::OutputWriter;
