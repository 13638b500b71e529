//! The group `settings`: whether `attesto serve` could read its settings here.

use super::check::Judged;
use super::check_result::CheckResult;
use super::missing_key::explain_missing_key;
use super::runner::CheckContext;
use crate::config::definitions::{SETTINGS, SettingKind, find_setting};
use crate::config::risks::find_setting_risks;
use crate::config::{AppSettings, DeploymentMode, RawSettings};

/// Variables with these prefixes are probably meant for Attesto.
const SETTING_PREFIXES: [&str; 6] = [
    "ATTESTO_",
    "WEBHOOK_",
    "RETENTION_",
    "JOBS_",
    "RATE_LIMIT_",
    "INTAKE_",
];
/// Exceptions: Kubernetes sets these variables in every container if a service is named `attesto`.
const KUBERNETES_PREFIXES: [&str; 2] = ["ATTESTO_SERVICE_", "ATTESTO_PORT"];

pub(super) async fn check_settings(context: &CheckContext<'_>) -> Judged {
    let raw = &context.raw;
    let mut checks = match AppSettings::parse(raw) {
        Ok(settings) => {
            let mut checks = vec![CheckResult::ok(
                "settings.read",
                format!("All settings can be read; ATTESTO_ENV is {}.", settings.mode.as_str()),
            )];
            if settings.is_validation_audit_enabled && settings.retention.validation_audit.is_none() {
                checks.push(CheckResult::warn(
                    "settings.validation_audit",
                    "The validation log is on and kept for ever.",
                    "Set RETENTION_VALIDATION_AUDIT_DAYS, or the table grows without limit.",
                ));
            }
            checks.extend(
                find_setting_risks(raw, &settings)
                    .into_iter()
                    .map(|risk| CheckResult::warn(risk.check, risk.problem, risk.advice)),
            );
            if settings.mode == DeploymentMode::Production {
                checks.push(check_environment_secrets(raw));
            }
            checks
        }
        Err(problems) => explain_missing_key(context.database.as_ref().ok(), problems)
            .await
            .into_iter()
            .map(|problem| {
                CheckResult::fail(
                    "settings.read",
                    problem,
                    "`attesto serve` does not start like this; `attesto serve --help` explains each setting.",
                )
            })
            .collect(),
    };
    checks.extend(
        context
            .variable_names
            .iter()
            .filter(|name| is_unknown_setting(name))
            .map(|name| {
                CheckResult::warn(
                    "settings.unknown",
                    format!("{name} is set, and this release has no such setting."),
                    match nearest_setting(name) {
                        Some(near) => format!("Did you mean {near}? Otherwise remove it."),
                        None => "Remove it, or correct its name.".to_owned(),
                    },
                )
            }),
    );
    checks.into()
}

/// A process's environment can be read by other processes of the same user.
fn check_environment_secrets(raw: &RawSettings<'_>) -> CheckResult {
    let open: Vec<_> = SETTINGS
        .iter()
        .filter(|setting| {
            setting.kind == SettingKind::Secret && raw.find_os_value(setting.name).is_some()
        })
        .map(|setting| setting.name)
        .collect();
    if open.is_empty() {
        return CheckResult::ok("settings.secrets", "Secrets come from files.");
    }
    CheckResult::warn(
        "settings.secrets",
        format!(
            "In the environment, where other processes of this user can read them: {}.",
            open.join(", ")
        ),
        "Put each into a file that only the service may read, and name it by the same variable with _FILE appended.",
    )
}

fn is_unknown_setting(name: &str) -> bool {
    let ours = SETTING_PREFIXES.iter().any(|start| name.starts_with(start));
    let not_ours = KUBERNETES_PREFIXES
        .iter()
        .any(|start| name.starts_with(start));
    let file = name
        .strip_suffix("_FILE")
        .and_then(find_setting)
        .is_some_and(|setting| setting.kind == SettingKind::Secret);
    ours && !not_ours && find_setting(name).is_none() && !file
}

/// The setting with the most similar name, if it differs by at most three letters.
fn nearest_setting(name: &str) -> Option<&'static str> {
    let distances = SETTINGS
        .iter()
        .map(|setting| (edit_distance(name, setting.name), setting.name));
    let (letters, near) = distances.min()?;
    (letters <= 3).then_some(near)
}

/// The Levenshtein distance: the number of letters to add, remove or change.
fn edit_distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, letter) in one.chars().enumerate() {
        let mut corner = row[0];
        row[0] = above + 1;
        for (left, theirs) in other.iter().enumerate() {
            let changed = corner + usize::from(letter != *theirs);
            corner = row[left + 1];
            row[left + 1] = changed.min(corner + 1).min(row[left] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_setting_is_noticed_and_variables_of_other_programs_are_not() {
        assert!(is_unknown_setting("ATTESTO_ENCRYPTION_KEYS"));
        assert!(is_unknown_setting("ATTESTO_ENV_FILE"), "not a secret");
        for known in [
            "ATTESTO_ENV",
            "ATTESTO_ENCRYPTION_KEY_FILE",
            "ATTESTO_PORT_8080_TCP",
            "ATTESTO_SERVICE_HOST",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "PATH",
        ] {
            assert!(!is_unknown_setting(known), "{known}");
        }
        assert_eq!(
            nearest_setting("WEBHOOK_MAX_RETRYS"),
            Some("WEBHOOK_MAX_RETRIES")
        );
        assert_eq!(nearest_setting("ATTESTO_FLAVOUR"), None);
    }
}
