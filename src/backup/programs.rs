//! `pg_dump` and `pg_restore`, of the server's own release where there are several: a newer one writes dumps that an older
//! server does not take back.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::error::BackupError;
use crate::db::Database;
use crate::embedded_postgres::binaries::{distribution_folders, parse_major_version};

/// Where the programs are looked for.
#[derive(Clone, Debug, Default)]
pub struct PostgresPrograms {
    /// `ATTESTO_PG_BIN`: this folder and no other.
    pub bin_folder: Option<PathBuf>,
    /// `PATH`.
    pub search_path: Option<OsString>,
    /// `HOME`, where libpq looks for passwords and certificates.
    pub home: Option<OsString>,
    /// `PGPASSFILE`.
    pub password_file: Option<OsString>,
}

impl PostgresPrograms {
    /// Runs one of them against this database, with the password in its environment.
    pub(super) async fn run_program<Word: AsRef<OsStr>>(
        &self,
        program: &'static str,
        server: u32,
        database: &Database,
        arguments: impl IntoIterator<Item = Word>,
    ) -> Result<(), BackupError> {
        let path = self.find_program(program, server)?;
        let failed = |said: String| BackupError::ProgramFailed { program, said };
        let mut command = Command::new(&path);
        command
            .args(arguments)
            .env_clear()
            .env("LC_ALL", "C")
            .envs(database.libpq_environment())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        for (name, value) in [
            ("PATH", &self.search_path),
            ("HOME", &self.home),
            ("PGPASSFILE", &self.password_file),
        ] {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        let ran = command
            .output()
            .await
            .map_err(|cause| failed(format!("it cannot be run: {cause}")))?;
        if ran.status.success() {
            return Ok(());
        }
        Err(failed(summarize_stderr(&String::from_utf8_lossy(
            &ran.stderr,
        ))))
    }

    fn find_program(&self, program: &'static str, server: u32) -> Result<PathBuf, BackupError> {
        let folders: Vec<PathBuf> = match &self.bin_folder {
            Some(folder) => vec![folder.clone()],
            None => distribution_folders(program)
                .into_iter()
                .chain(self.search_path.iter().flat_map(std::env::split_paths))
                .collect(),
        };
        let found = folders
            .iter()
            .filter_map(|folder| find_program_version(folder, program));
        choose_version(found.collect(), server).map_err(|newest| match newest {
            Some(found) => BackupError::ProgramTooOld {
                program,
                found,
                server,
            },
            None => BackupError::ProgramNotInstalled { program, server },
        })
    }
}

/// The server's own, else the oldest that is newer. An error names the newest there is.
fn choose_version(mut found: Vec<(u32, PathBuf)>, server: u32) -> Result<PathBuf, Option<u32>> {
    found.sort_by_key(|(major, _)| *major);
    let newest = found.last().map(|(major, _)| *major);
    let fit = found.into_iter().find(|(major, _)| *major >= server);
    fit.map(|(_, path)| path).ok_or(newest)
}

fn find_program_version(folder: &Path, program: &str) -> Option<(u32, PathBuf)> {
    let path = std::path::absolute(folder.join(program)).ok()?;
    if folder.as_os_str().is_empty() || !path.is_file() {
        return None;
    }
    let asked = std::process::Command::new(&path)
        .arg("--version")
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    Some((
        parse_major_version(&String::from_utf8_lossy(&asked.stdout))?,
        path,
    ))
}

/// What a program said at the end, in one line that is not too long. Statements, which may hold rows, are left out.
fn summarize_stderr(said: &str) -> String {
    const MOST: usize = 500;
    let lines = said.lines().map(str::trim).filter(|line| {
        line.contains("error:") || line.contains("detail:") || line.contains("hint:")
    });
    let joined = lines.collect::<Vec<_>>().join("; ");
    let text = if joined.is_empty() {
        said.lines()
            .next_back()
            .unwrap_or("it gave no reason")
            .trim()
    } else {
        &joined
    };
    text.chars().take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_own_release_is_best_and_an_older_one_is_none() {
        let of = |majors: &[u32]| {
            let found = majors
                .iter()
                .map(|major| (*major, PathBuf::from(major.to_string())));
            choose_version(found.collect(), 15).map(|path| path.display().to_string())
        };
        assert_eq!(of(&[17, 15, 14]), Ok("15".to_owned()));
        assert_eq!(of(&[18, 17, 14]), Ok("17".to_owned()));
        assert_eq!(of(&[13, 14]), Err(Some(14)));
        assert_eq!(of(&[]), Err(None));
    }

    #[test]
    fn only_the_reason_is_repeated() {
        let said = "pg_restore: while PROCESSING TOC:\npg_restore: error: could not execute query: ERROR:  no\n\
                    Command was: COPY secrets FROM stdin;\n";
        assert_eq!(
            summarize_stderr(said),
            "pg_restore: error: could not execute query: ERROR:  no"
        );
        assert_eq!(summarize_stderr(""), "it gave no reason");
    }
}
