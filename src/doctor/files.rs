//! Files that hold secrets, and what this process may have open.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::finding::Check;
use crate::config::Raw;
use crate::config::shown::secret_files;

/// Fewer open files than this leave room for few callers.
const FEW_FILES: u64 = 1024;

/// Looks.
pub fn look(raw: &Raw<'_>) -> Check {
    let mut checks: Vec<Check> = secret_files(raw)
        .iter()
        .map(|(setting, path)| secret(setting, path))
        .collect();
    checks.push(open_files());
    Check::group("files", "Files", checks)
}

fn secret(variable: &str, path: &Path) -> Check {
    const NAME: &str = "files.secret";
    // The path is not repeated: it may be the secret itself, put in the wrong place.
    let Ok(data) = std::fs::metadata(path) else {
        return Check::fail(
            NAME,
            format!("The file that {variable} names cannot be read."),
            "Name a file that is there, and that the user who runs Attesto may read.",
        );
    };
    let mode = data.mode() & 0o777;
    if mode & 0o022 != 0 {
        Check::warn(
            NAME,
            format!(
                "The file that {variable} names can be changed by others than its owner (mode {mode:03o})."
            ),
            "chmod 400 it; whoever can change it chooses the secret.",
        )
    } else if mode & 0o004 != 0 {
        Check::warn(
            NAME,
            format!(
                "The file that {variable} names can be read by everybody on this machine (mode {mode:03o})."
            ),
            "chmod 400 it, or 440 with a group of the service's own; in Kubernetes set defaultMode: 0400.",
        )
    } else {
        Check::ok(NAME, format!("{variable}: mode {mode:03o}."))
    }
}

fn open_files() -> Check {
    const NAME: &str = "files.open";
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < FEW_FILES => Check::warn(
            NAME,
            format!("This user's processes may have {most} files and connections open."),
            "Raise it to 16384 or more: LimitNOFILE= of systemd, ulimits of Compose.",
        ),
        most => Check::ok(
            NAME,
            match most {
                Some(most) => format!("{most} files and connections may be open."),
                None => "Any number of files and connections may be open.".to_owned(),
            },
        ),
    }
}
