//! The values of settings as text, and where each came from.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::definitions::{SettingKind, find_setting};
use super::secret_file::EnvLookup;

/// Reads a variable of the process environment. Other code gets values from here.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the environment"
)]
pub fn read_env_var(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The names of all environment variables that are valid UTF-8.
pub fn list_env_vars() -> Vec<String> {
    std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .collect()
}

/// What is wrong with a variable whose value is in quotes, after the variable's name.
pub(super) const QUOTED_PROBLEM: &str = "its value is in quotes, which `docker --env-file`, unlike a shell, keeps as a part of it: write the value without them";

/// What stands between the quotes that a text begins and ends with. `None` if it does not.
pub(super) fn in_quotes(text: &str) -> Option<&str> {
    ['"', '\''].into_iter().find_map(|quote| {
        let rest = text.strip_prefix(quote)?;
        rest.strip_suffix(quote)
    })
}

/// The flags and the environment. A flag takes precedence over its variable.
pub struct RawSettings<'a> {
    flags: BTreeMap<String, String>,
    environment: EnvLookup<'a>,
}

/// A value and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenValue {
    /// The value as text, without surrounding white space and quotes.
    pub text: String,
    /// Whether the variable has its value in quotes, which is refused.
    pub(super) is_quoted: bool,
    /// The name of the flag or variable for messages, such as `--port` or `PORT`.
    pub origin: String,
}

impl<'a> RawSettings<'a> {
    /// `flags` has the values of flags by the variable that each stands for: `--port 1` is `PORT`, and
    /// `--encryption-key-file f` is `ATTESTO_ENCRYPTION_KEY_FILE`.
    pub fn new(
        flags: impl IntoIterator<Item = (String, String)>,
        environment: EnvLookup<'a>,
    ) -> Self {
        Self {
            flags: flags.into_iter().collect(),
            environment,
        }
    }

    /// The value for a variable: that of its flag if given, or else that of the variable.
    pub fn find_os_value(&self, name: &str) -> Option<OsString> {
        self.flags
            .get(name)
            .map(OsString::from)
            .or_else(|| (self.environment)(name))
    }

    /// The value of the flag that stands for a variable.
    pub fn find_flag(&self, name: &str) -> Option<&str> {
        self.flags.get(name).map(String::as_str)
    }

    /// The value for a variable as trimmed text. `None` if it is empty or only white space, because Compose files set
    /// variables to the empty text when they mean to leave them unset. `Err` if the value is not valid UTF-8; the
    /// message names the variable. A value in quotes is returned without them, and said to be quoted.
    pub fn find_text(&self, name: &str) -> Result<Option<GivenValue>, String> {
        let (text, origin, is_flag) = match self.flags.get(name) {
            Some(text) => (text.clone(), flag_name(name), true),
            None => match (self.environment)(name).map(OsString::into_string) {
                Some(Ok(text)) => (text, name.to_owned(), false),
                Some(Err(_)) => return Err(format!("{name} is not valid UTF-8")),
                None => return Ok(None),
            },
        };
        let text = text.trim();
        // A shell removes the quotes of a flag's value, so those that are left are meant.
        let quoted = in_quotes(text).filter(|_| !is_flag);
        Ok((!text.is_empty()).then(|| GivenValue {
            text: quoted.unwrap_or(text).trim().to_owned(),
            is_quoted: quoted.is_some(),
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
