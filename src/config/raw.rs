//! The settings as they were given: texts, and where each came from.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::definitions::{SettingKind, find_setting};
use super::secret_file::EnvLookup;

/// The process' environment. Everything else is handed what was read from it.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the environment"
)]
pub fn read_env_var(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The names of all variables there are.
pub fn list_env_vars() -> Vec<String> {
    std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .collect()
}

/// Flags over variables.
pub struct RawSettings<'a> {
    flags: BTreeMap<String, String>,
    environment: EnvLookup<'a>,
}

/// A text that was given, and how to name where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenValue {
    /// The value, not parsed yet.
    pub text: String,
    /// `--port` or `PORT`.
    pub origin: String,
}

impl<'a> RawSettings<'a> {
    /// `flags` by the variable each stands for: `--port 1` is `PORT`, `--encryption-key-file f` is
    /// `ATTESTO_ENCRYPTION_KEY_FILE`.
    pub fn new(
        flags: impl IntoIterator<Item = (String, String)>,
        environment: EnvLookup<'a>,
    ) -> Self {
        Self {
            flags: flags.into_iter().collect(),
            environment,
        }
    }

    /// What is given under a variable's name, the flag before the variable.
    pub fn find_os_value(&self, name: &str) -> Option<OsString> {
        self.flags
            .get(name)
            .map(OsString::from)
            .or_else(|| (self.environment)(name))
    }

    /// The value of a flag, by the variable it stands for.
    pub fn find_flag(&self, name: &str) -> Option<&str> {
        self.flags.get(name).map(String::as_str)
    }

    /// What is given under a variable's name, trimmed. Nothing but blanks is nothing: compose files set variables to
    /// the empty text when they mean to leave them out. `Err` names the variable whose bytes are no text.
    pub fn find_text(&self, name: &str) -> Result<Option<GivenValue>, String> {
        let (text, origin) = match self.flags.get(name) {
            Some(text) => (text.clone(), flag_name(name)),
            None => match (self.environment)(name).map(OsString::into_string) {
                Some(Ok(text)) => (text, name.to_owned()),
                Some(Err(_)) => return Err(format!("{name} is not valid UTF-8")),
                None => return Ok(None),
            },
        };
        let text = text.trim();
        Ok((!text.is_empty()).then(|| GivenValue {
            text: text.to_owned(),
            origin,
        }))
    }
}

fn flag_name(name: &str) -> String {
    match find_setting(name) {
        Some(setting) if setting.kind != SettingKind::Secret => format!("--{}", setting.flag),
        _ => name.to_owned(),
    }
}
