//! Files that hold secrets, and what this process may have open.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::check_result::CheckResult;
use crate::config::RawSettings;
use crate::config::effective::secret_files;

/// Fewer open files than this leave room for few callers.
const MIN_OPEN_FILES: u64 = 1024;

/// Looks.
pub fn check_files(raw: &RawSettings<'_>) -> CheckResult {
    let mut checks: Vec<CheckResult> = secret_files(raw)
        .iter()
        .map(|(setting, path)| check_secret_file(setting, path))
        .collect();
    checks.push(check_open_file_limit());
    CheckResult::group("files", "Files", checks)
}

fn check_secret_file(variable: &str, path: &Path) -> CheckResult {
    const NAME: &str = "files.secret";
    // The path is not repeated: it may be the secret itself, put in the wrong place.
    let Ok(data) = std::fs::metadata(path) else {
        return CheckResult::fail(
            NAME,
            format!("The file that {variable} names cannot be read."),
            "Name a file that is there, and that the user who runs Attesto may read.",
        );
    };
    let mode = data.mode() & 0o777;
    if mode & 0o022 != 0 {
        CheckResult::warn(
            NAME,
            format!(
                "The file that {variable} names can be changed by others than its owner (mode {mode:03o})."
            ),
            "chmod 400 it; whoever can change it chooses the secret.",
        )
    } else if mode & 0o004 != 0 {
        CheckResult::warn(
            NAME,
            format!(
                "The file that {variable} names can be read by everybody on this machine (mode {mode:03o})."
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
        Some(most) if most < MIN_OPEN_FILES => CheckResult::warn(
            NAME,
            format!("This user's processes may have {most} files and connections open."),
            "Raise it to 16384 or more: LimitNOFILE= of systemd, ulimits of Compose.",
        ),
        most => CheckResult::ok(
            NAME,
            match most {
                Some(most) => format!("{most} files and connections may be open."),
                None => "Any number of files and connections may be open.".to_owned(),
            },
        ),
    }
}
