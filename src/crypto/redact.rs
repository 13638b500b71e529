//! A secret that was put where something else belongs: an API key for a tenant's id, a key for the path of its file. It
//! must not be found in what is said about that.

use std::path::Path;

/// Whether a text that was given for something else may be a secret: an API key, a URL with a password, the content of a
/// key file. Longer than every id of ours, or of a shape that secrets have.
pub fn looks_like_secret(text: &str) -> bool {
    const LONGEST_HARMLESS: usize = 40;
    text.chars().count() > LONGEST_HARMLESS
        || text.starts_with("attesto_")
        || text.starts_with('{')
        || ["://", "-----BEGIN"].iter().any(|part| text.contains(part))
}

/// Whether a path may be repeated: it leads into a folder that exists, or cannot be taken for a secret.
pub fn is_safe_to_show(path: &Path) -> bool {
    has_existing_parent(path) || !looks_like_secret(&path.to_string_lossy())
}

/// Whether a path leads into a folder that exists, other than the root: no secret does.
fn has_existing_parent(path: &Path) -> bool {
    let folder = path.parent().filter(|folder| folder.parent().is_some());
    folder.is_some_and(Path::is_dir)
}

/// A path as it may be repeated.
pub fn redact_path(path: &Path) -> String {
    if is_safe_to_show(path) {
        path.display().to_string()
    } else {
        "what was given as a file's path (give the path of a file, not the secret itself)"
            .to_owned()
    }
}

/// What is wrong with a setting that names a file which cannot be read, to be said after the setting's name. A secret that
/// was put where its file's path belongs must not reach the log: a path is repeated only if its folder exists.
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
