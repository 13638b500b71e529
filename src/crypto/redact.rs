//! Keeps secrets out of messages when they were entered in the place of something else: an API key in the place of a
//! tenant's id, or the content of a key file in the place of its path.

use std::path::Path;

/// The most of a sender's text that stands in one field of the log.
const MAX_LOG_FIELD_BYTES: usize = 200;

/// The beginning of a text that a sender chose, for the log.
pub(crate) fn truncate_log_field(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_LOG_FIELD_BYTES)]
}

/// Whether an argument may be a secret: an API key, a URL with a password, the content of a key file. True if it is
/// longer than every id of Attesto, or looks like one of these.
pub fn looks_like_secret(text: &str) -> bool {
    const LONGEST_HARMLESS: usize = 40;
    text.chars().count() > LONGEST_HARMLESS
        || text.starts_with("attesto_")
        || text.starts_with('{')
        || ["://", "-----BEGIN"].iter().any(|part| text.contains(part))
}

/// Whether a path may be shown: its parent folder exists, or it does not look like a secret.
pub fn is_safe_to_show(path: &Path) -> bool {
    has_existing_parent(path) || !looks_like_secret(&path.to_string_lossy())
}

/// Whether the path's parent folder exists and is not the root folder. This is not true of any secret.
fn has_existing_parent(path: &Path) -> bool {
    let folder = path.parent().filter(|folder| folder.parent().is_some());
    folder.is_some_and(Path::is_dir)
}

/// The path, or a placeholder if it may be a secret.
pub fn redact_path(path: &Path) -> String {
    if is_safe_to_show(path) {
        path.display().to_string()
    } else {
        "what was given as a file's path (give the path of a file, not the secret itself)"
            .to_owned()
    }
}

/// The problem with a setting that names an unreadable file, to be printed after the setting's name. The path is shown
/// only if its parent folder exists, because a secret may have been entered in its place.
pub fn unreadable_file_message(path: &Path) -> String {
    if has_existing_parent(path) {
        format!("names {}, which cannot be read", path.display())
    } else {
        "must be the path of a file that can be read, not the secret itself".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_repeated_and_a_secret_is_not() {
        let here = env!("CARGO_MANIFEST_DIR");
        let missing = format!("{here}/{}", "long".repeat(20));
        for path in ["key.p8", "keys/key.p8", "/nowhere/key.p8", &missing] {
            assert_eq!(redact_path(Path::new(path)), path);
        }
        for secret in [
            "attesto_live_x",
            "{\"private_key\":1}",
            "postgres://ada:lovelace@db/x",
            &"5ATsOg+DxEMVrAGOKDxDewcFCO1pAH/".repeat(2),
            &format!("/{}", "s3cret".repeat(10)),
        ] {
            assert!(!redact_path(Path::new(secret)).contains(secret), "{secret}");
        }
    }
}
