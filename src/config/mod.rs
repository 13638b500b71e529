//! Every setting, once: its flag, its variable, its default, what it means.
//!
//! Promises: a flag wins over a variable, a variable over the default; parsing is pure and says everything that is
//! wrong at once; no message repeats a value, which may be a secret in the wrong place. Only here is the environment
//! read.
//!
//! - [`catalogue`]: the list of settings, from which the flags and their help are made
//! - [`raw`]: the texts as they were given
//! - [`settings`]: what the service runs with, and how it is read from the texts
//! - [`shown`]: what is in force, as it may be shown
//! - [`mod@fingerprints`]: what should be the same in every process
//! - [`admin`]: the two settings that an administrator's command needs
//! - [`secret_file`]: a secret from its variable, or from the file that `…_FILE` names

pub mod admin;
pub mod definitions;
pub mod effective;
pub mod fingerprints;
pub mod raw;
pub mod secret_file;
pub mod settings;

pub use fingerprints::compute_fingerprints;
pub use raw::{RawSettings, list_env_vars, read_env_var};
pub use settings::{
    AppSettings, DatabaseSource, DeploymentMode, StoreSettings, WebhookSettings,
    read_listen_settings, read_tls_files,
};
