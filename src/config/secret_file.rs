//! Reads a secret from its variable, or from the file that the variable with `_FILE` appended names.
//!
//! Docker and Swarm pass secrets as files. Setting both variables is an error, because an order of precedence would be
//! hard to remember. A blank variable counts as unset, as for every other setting, because Compose files set variables
//! to the empty text when they mean to leave them unset. A blank file is an error.

use std::ffi::OsString;
use std::path::PathBuf;

use secrecy::SecretString;
use zeroize::Zeroizing;

use super::raw::{QUOTED_PROBLEM, in_quotes};
use crate::crypto::redact::unreadable_file_message;

/// Looks up an environment variable: in the process environment, or in the table of a test.
pub type EnvLookup<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// Why a secret cannot be read. The message never repeats the value.
#[derive(Debug, thiserror::Error)]
pub enum SecretReadError {
    /// Both variables are set.
    #[error("{name} and {name}_FILE are both set: remove one of them")]
    BothSet {
        /// The variable, without `_FILE`.
        name: String,
    },
    /// The file is empty or contains only white space.
    #[error("{name}_FILE names an empty file: put the value there or remove the variable")]
    EmptyFile {
        /// The variable, without `_FILE`.
        name: String,
    },
    /// The variable's value is in quotes.
    #[error("{name}: {QUOTED_PROBLEM}")]
    Quoted {
        /// The variable, with `_FILE` if it is that one.
        name: String,
    },
    /// The value is not valid UTF-8.
    #[error("{name} is not valid UTF-8")]
    NotUtf8 {
        /// The variable, with `_FILE` if the value came from the file.
        name: String,
    },
    /// The file does not exist or cannot be read.
    #[error("{name}_FILE {}: {cause}", unreadable_file_message(path))]
    UnreadableFile {
        /// The variable, without `_FILE`.
        name: String,
        /// The path that the variable names.
        path: PathBuf,
        /// The error of the operating system.
        cause: std::io::Error,
    },
}

/// Reads `name`, or the file that `name`_FILE names, without one line end at the end of the file. `None` if neither is
/// set.
pub fn read_secret(
    lookup: EnvLookup<'_>,
    name: &str,
) -> Result<Option<SecretString>, SecretReadError> {
    let file_name = format!("{name}_FILE");
    let set = |name: &str| lookup(name).filter(|value| !is_blank(&value.to_string_lossy()));
    let (value, path) = (set(name), set(&file_name));
    for (name, value) in [(name, &value), (&file_name, &path)] {
        if value.as_ref().is_some_and(is_quoted) {
            return Err(SecretReadError::Quoted { name: name.into() });
        }
    }
    match (value, path) {
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err(SecretReadError::BothSet { name: name.into() }),
        (Some(value), None) => {
            let value = value
                .into_string()
                .map_err(|_| SecretReadError::NotUtf8 { name: name.into() })?;
            Ok(Some(SecretString::from(value)))
        }
        (None, Some(path)) => {
            let path = PathBuf::from(path);
            let bytes = std::fs::read(&path).map(Zeroizing::new);
            let bytes = bytes.map_err(|cause| SecretReadError::UnreadableFile {
                name: name.into(),
                path,
                cause,
            })?;
            let Ok(text) = std::str::from_utf8(&bytes) else {
                return Err(SecretReadError::NotUtf8 { name: file_name });
            };
            let text = text.strip_suffix('\n').unwrap_or(text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            if is_blank(text) {
                return Err(SecretReadError::EmptyFile { name: name.into() });
            }
            Ok(Some(SecretString::from(text)))
        }
    }
}

/// Whether a variable's value is in quotes.
pub(super) fn is_quoted(value: &OsString) -> bool {
    in_quotes(value.to_string_lossy().trim()).is_some()
}

/// Whether a text is empty or only white space, which counts as unset.
pub fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    fn read_from(set: &[(&str, &str)]) -> Result<Option<String>, String> {
        let lookup = |name: &str| {
            set.iter()
                .find(|(set, _)| *set == name)
                .map(|(_, value)| OsString::from(value))
        };
        read_secret(&lookup, "SECRET")
            .map(|value| value.map(|value| value.expose_secret().to_owned()))
            .map_err(|problem| problem.to_string())
    }

    #[test]
    fn a_variable_or_a_file_and_never_both() {
        let folder = std::env::temp_dir().join(format!("attesto-secret-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let (good, blank, binary) = (
            file("good", b" s3cret\r\n"),
            file("blank", b"\n"),
            file("binary", &[0xff, 0xfe]),
        );
        let missing = folder.join("missing").to_str().unwrap().to_owned();

        assert_eq!(read_from(&[]), Ok(None));
        assert_eq!(
            read_from(&[("SECRET", "s3cret")]),
            Ok(Some("s3cret".into()))
        );
        assert_eq!(
            read_from(&[("SECRET_FILE", &good)]),
            Ok(Some(" s3cret".into()))
        );
        for blank in ["", " \n"] {
            assert_eq!(
                read_from(&[("SECRET", blank), ("SECRET_FILE", blank)]),
                Ok(None)
            );
            assert_eq!(
                read_from(&[("SECRET", "s3cret"), ("SECRET_FILE", blank)]),
                Ok(Some("s3cret".into()))
            );
            assert_eq!(
                read_from(&[("SECRET", blank), ("SECRET_FILE", &good)]),
                Ok(Some(" s3cret".into()))
            );
        }
        for (set, problem) in [
            (
                vec![("SECRET", "s3cret"), ("SECRET_FILE", good.as_str())],
                "SECRET and SECRET_FILE are both set: remove one of them".to_owned(),
            ),
            (
                vec![("SECRET_FILE", &blank)],
                "SECRET_FILE names an empty file: put the value there or remove the variable"
                    .to_owned(),
            ),
            (
                vec![("SECRET_FILE", &binary)],
                "SECRET_FILE is not valid UTF-8".to_owned(),
            ),
            (
                vec![("SECRET_FILE", &missing)],
                format!(
                    "SECRET_FILE names {missing}, which cannot be read: No such file or directory (os error 2)"
                ),
            ),
        ] {
            assert_eq!(read_from(&set), Err(problem));
        }
        for quoted in ["\"s3cret\"", "'s3cret'", " \"\"\n"] {
            for name in ["SECRET", "SECRET_FILE"] {
                let problem = read_from(&[(name, quoted)]).unwrap_err();
                let start = format!("{name}: its value is in quotes");
                assert!(problem.starts_with(&start), "{problem}");
                assert!(!problem.contains("s3cret"), "{problem}");
            }
        }
        for unquoted in ["\"", "\"s3cret", "s3cret\"", "\"s3cret'"] {
            assert_eq!(
                read_from(&[("SECRET", unquoted)]),
                Ok(Some(unquoted.into()))
            );
        }
        for secret in [
            "postgres://ada:s3cret@db/attesto",
            "s3cret",
            "/s3cret/+s3cret=",
            "/s3cret",
            "-----BEGIN\ns3cret\n",
        ] {
            let problem = read_from(&[("SECRET_FILE", secret)]).unwrap_err();
            assert!(problem.contains("not the secret itself"), "{problem}");
            assert!(!problem.contains("s3cret"), "{problem}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
