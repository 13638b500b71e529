//! Which `postgres` and `initdb`: the folder the operator names, else one on `PATH`, else the newest of the places where
//! distributions put them. Debian and its kin keep them off `PATH` on purpose.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::EmbeddedError;
use crate::db::OLDEST_MAJOR;

/// A folder that holds the programs of one Postgres.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    folder: PathBuf,
    major: u32,
}

impl Binaries {
    /// Everything usable on this machine, best first. `named` is `ATTESTO_PG_BIN` and shuts out everything else;
    /// `search_path` is `PATH`.
    pub fn all(
        named: Option<&Path>,
        search_path: Option<&OsStr>,
    ) -> Result<Vec<Self>, EmbeddedError> {
        let mut found = Vec::new();
        if let Some(folder) = named {
            let binaries = Self::in_folder(folder).ok_or_else(|| EmbeddedError::NotThere {
                folder: folder.to_owned(),
            })?;
            found.push(binaries);
        } else {
            let on_path = search_path.into_iter().flat_map(std::env::split_paths);
            found.extend(on_path.filter_map(|folder| Self::in_folder(&folder)));
            let usual = usual_places("postgres");
            let mut usual: Vec<_> = usual
                .iter()
                .filter_map(|place| Self::in_folder(place))
                .collect();
            usual.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
            found.extend(usual);
        }
        let Some(first) = found.first().cloned() else {
            return Err(EmbeddedError::NotInstalled);
        };
        found.retain(|binaries| binaries.major >= OLDEST_MAJOR);
        if found.is_empty() {
            return Err(EmbeddedError::TooOld {
                folder: first.folder,
                major: first.major,
            });
        }
        Ok(found)
    }

    fn in_folder(folder: &Path) -> Option<Self> {
        if folder.as_os_str().is_empty() || !folder.join("initdb").is_file() {
            return None;
        }
        let asked = Command::new(folder.join("postgres"))
            .arg("--version")
            .env_clear()
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        Some(Self {
            folder: std::path::absolute(folder).ok()?,
            major: major_of(&String::from_utf8_lossy(&asked.stdout))?,
        })
    }

    /// The major version: 15 of 15.18.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The path of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// 15 of `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, 18 of `postgres (PostgreSQL) 18beta1`.
pub(crate) fn major_of(version: &str) -> Option<u32> {
    let (_, number) = version.split_once("(PostgreSQL) ")?;
    let digits = number
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(number.len());
    number[..digits].parse().ok()
}

/// Where distributions and Homebrew put the programs of each release, as far as this one is there.
pub(crate) fn usual_places(program: &str) -> Vec<PathBuf> {
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
            // Alpine keeps the programs in the folder itself, everybody else in its bin.
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
            assert_eq!(major_of(printed), major, "{printed}");
        }
    }

    #[test]
    fn the_named_folder_is_the_only_one_asked() {
        let nowhere = Path::new("/nowhere");
        assert!(matches!(
            Binaries::all(Some(nowhere), Some(OsStr::new("/usr/bin"))),
            Err(EmbeddedError::NotThere { folder }) if folder == nowhere
        ));
    }
}
