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
pub mod catalogue;
pub mod fingerprints;
pub mod raw;
pub mod secret_file;
pub mod settings;
pub mod shown;

pub use fingerprints::fingerprints;
pub use raw::{Raw, environment, variables};
pub use settings::{DatabaseSource, Mode, Settings, Stores, Webhooks, listen, own_certificate};
