//! All settings. Each is defined once: its flag, variable, default and meaning.
//!
//! A flag takes precedence over a variable, and a variable over the default. Parsing is pure and reports all problems
//! at once. No message repeats a value, which may be a secret in the wrong place. Only this room reads the environment.
//!
//! - [`groups`]: settings of common types; a new setting is usually an entry there
//! - [`definitions`]: the list of all settings, from which the flags and their help are made
//! - [`raw`]: the values as text, from flags and variables
//! - `reader`: parses each type of value, and collects the problems
//! - [`settings`]: the parsed settings of the service
//! - [`effective`]: the settings in force, in a form that may be shown
//! - [`risks`]: settings that work and are dangerous
//! - [`mod@fingerprints`]: compares settings that should be the same in all processes
//! - [`admin`]: the database and the keys, which administrative commands need too
//! - [`secret_file`]: a secret from its variable, or from the file that `…_FILE` names

pub mod admin;
pub mod definitions;
pub mod effective;
pub mod fingerprints;
pub mod groups;
pub mod raw;
mod reader;
pub mod risks;
pub mod secret_file;
pub mod settings;

pub use fingerprints::compute_fingerprints;
pub use groups::{StoreSettings, WebhookSettings};
pub use raw::{RawSettings, list_env_vars, read_env_var};
pub(crate) use reader::is_loopback;
pub use settings::{
    AppSettings, DatabaseSource, DeploymentMode, read_deployment_mode, read_egress_proxy,
    read_listen_settings, read_tls_files,
};
