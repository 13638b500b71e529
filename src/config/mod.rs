//! Every setting, once: its flag, its variable, its default, what it means.
//!
//! A flag wins over a variable, a variable over the default. Parsing is pure and reports every problem at once. No message
//! repeats a value, which may be a secret in the wrong place. Only this room reads the environment.
//!
//! - [`groups`]: settings that are read alike; to add a setting, add an entry there
//! - [`definitions`]: the list of all settings, from which the flags and their help are made
//! - [`raw`]: the texts as they were given
//! - `reader`: reads each kind of value, and collects the problems
//! - [`settings`]: what the service runs with
//! - [`effective`]: the settings in force, as they may be shown
//! - [`mod@fingerprints`]: which settings should be the same in every process
//! - [`admin`]: the database and the keys, which administrators' commands need too
//! - [`secret_file`]: a secret from its variable, or from the file that `…_FILE` names

pub mod admin;
pub mod definitions;
pub mod effective;
pub mod fingerprints;
pub mod groups;
pub mod raw;
mod reader;
pub mod secret_file;
pub mod settings;

pub use fingerprints::compute_fingerprints;
pub use groups::{StoreSettings, WebhookSettings};
pub use raw::{RawSettings, list_env_vars, read_env_var};
pub use settings::{
    AppSettings, DatabaseSource, DeploymentMode, read_listen_settings, read_tls_files,
};
