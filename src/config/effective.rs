//! The settings in force, in a form that may be shown: a secret by a fingerprint or a summary, never by its value.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use reqwest::header::HeaderName;
use serde::Serialize;
use url::Url;

use super::definitions::{SETTINGS, SettingDefinition, SettingKind};
use super::raw::RawSettings;
use super::secret_file::is_blank;
use super::settings::{AppSettings, DatabaseSource};
use crate::crypto::redact;

/// A setting with the value that the service would use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveSetting {
    /// The environment variable.
    pub name: &'static str,
    /// The value. `None`: there is none, it is invalid, or it is a secret that may not be shown.
    pub value: Option<String>,
    /// The source of the value: `flag`, `environment`, `file` or `default`.
    pub origin: &'static str,
}

/// Every setting, in the order of `--help`. `settings` is the result of parsing `raw`. An invalid value is not shown,
/// because it may be a secret in the wrong place.
pub fn effective_settings(
    raw: &RawSettings<'_>,
    settings: &Result<AppSettings, Vec<String>>,
) -> Vec<EffectiveSetting> {
    let is_wrong = |setting: &SettingDefinition| {
        let problems = settings.as_ref().err().into_iter().flatten();
        let names = [setting.name.to_owned(), format!("--{}", setting.flag)];
        problems.into_iter().any(|problem| {
            names.iter().any(|name| {
                let rest = problem.strip_prefix(name.as_str());
                rest.is_some_and(|rest| rest.starts_with([':', ' ', ',']))
            })
        })
    };
    let each = SETTINGS.iter().map(|setting| EffectiveSetting {
        name: setting.name,
        origin: setting_origin(raw, setting),
        value: match (setting.kind, settings) {
            _ if is_wrong(setting) => None,
            (SettingKind::Secret, Ok(settings)) => secret_summary(setting.name, settings),
            (SettingKind::Secret, Err(_)) => None,
            (SettingKind::Plain | SettingKind::Switch, _) => plain_value(raw, setting),
        },
    });
    each.collect()
}

/// The files that contain secrets, each with the setting that names it.
pub fn secret_files(raw: &RawSettings<'_>) -> Vec<(String, PathBuf)> {
    let secrets = SETTINGS.iter().filter(|it| it.kind == SettingKind::Secret);
    let files = secrets.filter_map(|setting| {
        let name = format!("{}_FILE", setting.name);
        let path = raw
            .find_os_value(&name)
            .filter(|path| !is_blank(&path.to_string_lossy()))?;
        Some((name, PathBuf::from(path)))
    });
    let key = raw.find_text("TLS_KEY_PATH").ok().flatten();
    let key = key.map(|given| ("TLS_KEY_PATH".to_owned(), PathBuf::from(given.text)));
    files.chain(key).collect()
}

/// The permission of every user of a machine to read a file.
pub const READABLE_BY_EVERYONE: u32 = 0o004;
/// The permission of every user of a machine to change a file.
pub const WRITABLE_BY_EVERYONE: u32 = 0o002;
/// The permissions of users other than the owner to change a file.
pub const WRITABLE_BY_OTHERS: u32 = 0o022;

/// Those files with secrets that have at least one of these permissions, which are bits of a file's mode.
pub fn secret_files_with_mode(raw: &RawSettings<'_>, mode: u32) -> Vec<(String, PathBuf)> {
    let mut files = secret_files(raw);
    files.retain(|(_, path)| {
        std::fs::metadata(path).is_ok_and(|data| data.permissions().mode() & mode != 0)
    });
    files
}

fn setting_origin(raw: &RawSettings<'_>, setting: &SettingDefinition) -> &'static str {
    let file = format!("{}_FILE", setting.name);
    let is_given = |name: &str| {
        let text = raw.find_os_value(name);
        text.is_some_and(|text| !is_blank(&text.to_string_lossy()))
    };
    if raw.find_flag(setting.name).is_some() || raw.find_flag(&file).is_some() {
        "flag"
    } else if setting.kind == SettingKind::Secret && is_given(&file) {
        "file"
    } else if raw
        .find_text(setting.name)
        .is_ok_and(|given| given.is_some())
        || node_env_alias(raw, setting).is_some()
    {
        "environment"
    } else {
        "default"
    }
}

/// The value of `NODE_ENV`, which is used if `ATTESTO_ENV` is not set.
fn node_env_alias(raw: &RawSettings<'_>, setting: &SettingDefinition) -> Option<String> {
    if setting.name != "ATTESTO_ENV" {
        return None;
    }
    Some(raw.find_text("NODE_ENV").ok()??.text)
}

fn plain_value(raw: &RawSettings<'_>, setting: &SettingDefinition) -> Option<String> {
    let given = raw.find_text(setting.name).ok().flatten();
    let text = given
        .map(|given| given.text)
        .or_else(|| node_env_alias(raw, setting));
    let text = text.unwrap_or_else(|| setting.default.to_owned());
    let is_pasted = matches!(setting.value_name, "PATH" | "FOLDER" | "FILE")
        && !redact::is_safe_to_show(text.as_ref());
    if is_pasted {
        return Some("…".to_owned());
    }
    (!text.is_empty()).then(|| redact_password(&text))
}

/// Replaces a password in a URL. URLs with passwords are refused, but `config check` shows them.
fn redact_password(text: &str) -> String {
    match Url::parse(text) {
        Ok(mut url) if url.password().is_some() => {
            // This can only fail for a URL without a host.
            let _ = url.set_password(Some("…"));
            url.to_string()
        }
        _ => text.to_owned(),
    }
}

/// A summary of a secret: the fingerprint of a key, or a URL without its password. No fingerprint of the
/// password is shown: a chosen password can be guessed and compared with it.
fn secret_summary(name: &str, settings: &AppSettings) -> Option<String> {
    let keyring = &settings.keyring;
    match (name, &settings.database) {
        ("DATABASE_URL", DatabaseSource::Url(connect)) => Some(connect.redacted_url()),
        ("ATTESTO_ENCRYPTION_KEY", _) => keyring.key_fingerprint(keyring.sealing_key_id()),
        ("ATTESTO_ENCRYPTION_KEYS_RETIRED", _) => {
            let retired = keyring
                .key_ids()
                .filter(|id| *id != keyring.sealing_key_id());
            let retired: Vec<_> = retired
                .filter_map(|id| keyring.key_fingerprint(id))
                .collect();
            (!retired.is_empty()).then(|| retired.join(","))
        }
        // Only the names of the headers are shown, because their values are secrets.
        ("OTEL_EXPORTER_OTLP_HEADERS", _) => {
            let headers = &settings.traces.as_ref()?.headers;
            let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
            (!names.is_empty()).then(|| names.join(","))
        }
        ("ATTESTO_EGRESS_PROXY", _) => Some(settings.egress_proxy.as_ref()?.to_string()),
        _ => None,
    }
}
