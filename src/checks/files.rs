//! The group `files`: the permissions of files with secrets, and the limit on open files.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::check::Judged;
use super::check_result::CheckResult;
use crate::config::effective::{
    READABLE_BY_EVERYONE, WRITABLE_BY_EVERYONE, WRITABLE_BY_OTHERS, secret_files,
};
use crate::config::{DeploymentMode, RawSettings, read_deployment_mode};

/// With a lower limit, only few clients can be connected at once.
const MIN_OPEN_FILES: u64 = 1024;

pub(super) fn check_files(raw: &RawSettings<'_>) -> Judged {
    let is_production = read_deployment_mode(raw) == Some(DeploymentMode::Production);
    let mut checks: Vec<CheckResult> = secret_files(raw)
        .iter()
        .map(|(setting, path)| check_secret_file(setting, path, is_production))
        .collect();
    checks.push(check_open_file_limit());
    checks.into()
}

fn check_secret_file(variable: &str, path: &Path, is_production: bool) -> CheckResult {
    const NAME: &str = "files.secret";
    // The path is not shown, because it may be the secret itself, entered in the wrong variable.
    let Ok(data) = std::fs::metadata(path) else {
        return CheckResult::fail(
            NAME,
            format!("The file that {variable} names cannot be read."),
            "Name a file that exists and that the user who runs Attesto may read.",
        );
    };
    let mode = data.mode() & 0o777;
    if is_production && mode & WRITABLE_BY_EVERYONE != 0 {
        CheckResult::fail(
            NAME,
            format!(
                "The file that {variable} names can be changed by every user of this machine (mode {mode:03o})."
            ),
            "chmod 400 it: in production `attesto serve` does not start like this.",
        )
    } else if mode & WRITABLE_BY_OTHERS != 0 {
        CheckResult::warn(
            NAME,
            format!(
                "The file that {variable} names can be changed by users other than its owner (mode {mode:03o})."
            ),
            "chmod 400 it: a user who can change it can replace the secret.",
        )
    } else if mode & READABLE_BY_EVERYONE != 0 {
        CheckResult::warn(
            NAME,
            format!(
                "The file that {variable} names can be read by every user of this machine (mode {mode:03o})."
            ),
            "chmod 400 it, or 440 with a group of the service's own; in Kubernetes set defaultMode: 0400.",
        )
    } else {
        CheckResult::ok(NAME, format!("{variable}: mode {mode:03o}."))
    }
}

fn check_open_file_limit() -> CheckResult {
    const NAME: &str = "files.open";
    match getrlimit(Resource::Nofile).maximum {
        Some(limit) if limit < MIN_OPEN_FILES => CheckResult::warn(
            NAME,
            format!("This user's processes may have {limit} files and connections open."),
            "Raise it to 8192 or more: LimitNOFILE= of systemd, ulimits of Compose.",
        ),
        limit => CheckResult::ok(
            NAME,
            match limit {
                Some(limit) => format!("{limit} files and connections may be open."),
                None => "Any number of files and connections may be open.".to_owned(),
            },
        ),
    }
}
