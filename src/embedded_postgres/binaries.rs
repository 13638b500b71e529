//! Finds the programs `postgres` and `initdb`: in the folder that the operator names, or else in a folder of `PATH`, or
//! else in the folders that distributions use, newest version first. Debian and its derivatives keep these programs out
//! of `PATH`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::EmbeddedError;
use crate::db::MIN_POSTGRES_MAJOR;

/// A folder that has the programs of one Postgres version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresBinaries {
    folder: PathBuf,
    major_version: u32,
}

impl PostgresBinaries {
    /// Every usable installation of this machine, the preferred one first. `named` is `ATTESTO_PG_BIN`: if set, no
    /// other folder is searched. `search_path` is `PATH`.
    pub fn find_all(
        named: Option<&Path>,
        search_path: Option<&OsStr>,
    ) -> Result<Vec<Self>, EmbeddedError> {
        let mut found = Vec::new();
        if let Some(folder) = named {
            let binaries =
                Self::find_in_folder(folder).ok_or_else(|| EmbeddedError::MissingPrograms {
                    folder: folder.to_owned(),
                })?;
            found.push(binaries);
        } else {
            let on_path = search_path.into_iter().flat_map(std::env::split_paths);
            found.extend(on_path.filter_map(|folder| Self::find_in_folder(&folder)));
            let usual = distribution_folders("postgres");
            let mut usual: Vec<_> = usual
                .iter()
                .filter_map(|place| Self::find_in_folder(place))
                .collect();
            usual.sort_by_key(|binaries| std::cmp::Reverse(binaries.major_version));
            found.extend(usual);
        }
        let Some(first) = found.first().cloned() else {
            return Err(EmbeddedError::NotInstalled);
        };
        found.retain(|binaries| binaries.major_version >= MIN_POSTGRES_MAJOR);
        if found.is_empty() {
            return Err(EmbeddedError::TooOld {
                folder: first.folder,
                major: first.major_version,
            });
        }
        Ok(found)
    }

    fn find_in_folder(folder: &Path) -> Option<Self> {
        if folder.as_os_str().is_empty() || !folder.join("initdb").is_file() {
            return None;
        }
        let output = Command::new(folder.join("postgres"))
            .arg("--version")
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        Some(Self {
            folder: std::path::absolute(folder).ok()?,
            major_version: parse_major_version(&String::from_utf8_lossy(&output.stdout))?,
        })
    }

    /// The major version, such as 15 for 15.18.
    pub fn major_version(&self) -> u32 {
        self.major_version
    }

    /// The path of one of the installation's programs.
    pub fn program_path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// Reads the major version: 15 from `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, 18 from `postgres
/// (PostgreSQL) 18beta1`.
pub(crate) fn parse_major_version(version: &str) -> Option<u32> {
    let (_, number) = version.split_once("(PostgreSQL) ")?;
    let digits = number
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(number.len());
    number[..digits].parse().ok()
}

/// The folders in which distributions and Homebrew install the programs of each version, as far as they contain
/// `program`.
pub(crate) fn distribution_folders(program: &str) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for (parent, prefix) in [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql@"),
        ("/usr/local/opt", "postgresql@"),
        ("/home/linuxbrew/.linuxbrew/opt", "postgresql@"),
        ("/usr/libexec", "postgresql"),
    ] {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        {
            // Alpine has the programs in the folder itself, the others in its `bin` folder.
            places.push(entry.path().join("bin"));
            places.push(entry.path());
        }
    }
    places.push(PathBuf::from("/usr/local/pgsql/bin"));
    places.retain(|place| place.join(program).is_file());
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_as_postgres_prints_it() {
        for (printed, major) in [
            (
                "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n",
                Some(15),
            ),
            ("postgres (PostgreSQL) 18beta1\n", Some(18)),
            ("postgres (PostgreSQL) 17devel", Some(17)),
            ("postgres (PostgreSQL) 9.6.24", Some(9)),
            ("postgres (EnterpriseDB) 15", None),
            ("", None),
        ] {
            assert_eq!(parse_major_version(printed), major, "{printed}");
        }
    }

    #[test]
    fn the_named_folder_is_the_only_one_asked() {
        let nowhere = Path::new("/nowhere");
        assert!(matches!(
            PostgresBinaries::find_all(Some(nowhere), Some(OsStr::new("/usr/bin"))),
            Err(EmbeddedError::MissingPrograms { folder }) if folder == nowhere
        ));
    }
}
