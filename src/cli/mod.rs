//! The command line, `attesto` with a noun and a verb. One file or folder for each noun.
//!
//! Results go to stdout, as one JSON object a line unless stdout is a terminal; diagnostics go to stderr. A secret is never
//! printed, except a new API key or a generated secret, once. Exit codes: 0 done; 1 not found, already in that state, or
//! something outside failed; 2 wrong usage or a wrong setting.
//!
//! What every command uses:
//!
//! - [`command`]: the tree of commands, and [`run`]
//! - [`colon_aliases`]: `key:revoke` for `key revoke`, and `serve` when no command is given
//! - [`context`]: the settings, the database and the keys of one run, and how a command fails
//! - [`output`]: JSON lines, or tables and text; [`progress`]: a progress bar
//! - [`operator`]: the user name for the operator audit
//! - [`duration`], [`input_file`]: how arguments are read
//! - [`callback_receiver`]: the callback of [`dev`] and [`receive`]
//! - [`service_manager`]: tells systemd when [`serve`] is ready
//! - [`store_credentials`], [`backfill`]: what [`apple`] and [`google`] share
//!
//! The commands:
//!
//! - [`serve`], [`dev`], [`simulator`], [`receive`]: programs that run until they are stopped
//! - [`tenant`], [`key`], [`apple`], [`google`], [`webhook`]: what belongs to a tenant
//! - [`verify`], [`verify_batch`], [`inspect`], [`event`], [`subject`], [`tail`], [`audit`]: purchases and what happened to them
//! - [`migrate`], [`database`], [`backup`], [`encryption`]: the database and its keys
//! - [`deliveries`], [`jobs`], [`prune`]: what the service does in the background
//! - [`doctor`], [`health`], [`config`]: diagnosis
//! - [`openapi`], [`completions`]: the API description, shell completion, manual pages

mod apple;
mod audit;
mod backfill;
mod backup;
mod callback_receiver;
mod changes;
pub mod colon_aliases;
pub mod command;
mod completions;
mod config;
mod context;
mod database;
mod deliveries;
mod dev;
mod doctor;
mod duration;
mod encryption;
mod event;
mod google;
mod health;
mod input_file;
mod inspect;
mod jobs;
mod key;
mod migrate;
mod openapi;
mod operator;
mod output;
mod progress;
mod prune;
mod receive;
mod refund_question;
mod serve;
mod service_manager;
mod simulator;
mod state_text;
mod store_credentials;
mod subject;
mod tail;
mod tenant;
mod verify;
mod verify_batch;
mod webhook;

pub use command::run;
