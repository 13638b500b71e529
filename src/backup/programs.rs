//! Finds and runs `pg_dump` and `pg_restore`. The version of the server is preferred over newer ones, because a newer
//! `pg_dump` can write dumps that an older server cannot restore.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::error::BackupError;
use crate::db::Database;
use crate::embedded_postgres::binaries::{distribution_folders, parse_major_version};

/// Where the Postgres client programs are looked for.
#[derive(Clone, Debug, Default)]
pub struct PostgresPrograms {
    /// The value of `ATTESTO_PG_BIN`: if set, no other folder is used.
    pub bin_folder: Option<PathBuf>,
    /// The value of `PATH`.
    pub search_path: Option<OsString>,
    /// `HOME`, where libpq looks for passwords and certificates.
    pub home: Option<OsString>,
    /// The value of `PGPASSFILE`.
    pub password_file: Option<OsString>,
}

impl PostgresPrograms {
    /// Runs a program against this database. The password is passed in the environment, because a command line can be
    /// read by every user of the machine.
    pub(super) async fn run_program<Word: AsRef<OsStr>>(
        &self,
        program: &'static str,
        server: u32,
        database: &Database,
        arguments: impl IntoIterator<Item = Word>,
    ) -> Result<(), BackupError> {
        let path = self.find_program(program, server)?;
        let failed = |reason: String| BackupError::ProgramFailed { program, reason };
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
        let output = command
            .output()
            .await
            .map_err(|cause| failed(format!("it cannot be run: {cause}")))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(summarize_stderr(&String::from_utf8_lossy(
            &output.stderr,
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

/// Chooses the version of the server, or else the oldest newer one. An error has the newest version that was found.
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
    let output = std::process::Command::new(&path)
        .arg("--version")
        .env_clear()
        .env("LC_ALL", "C")
        .env("PATH", "/usr/bin:/bin")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    Some((
        parse_major_version(&String::from_utf8_lossy(&output.stdout))?,
        path,
    ))
}

/// The error lines of a program's standard error output, in one line. Other lines are left out: they can contain SQL
/// with the values of rows.
fn summarize_stderr(stderr: &str) -> String {
    const MAX_CHARS: usize = 500;
    let lines = stderr.lines().map(str::trim).filter(|line| {
        line.contains("error:") || line.contains("detail:") || line.contains("hint:")
    });
    let joined = lines.collect::<Vec<_>>().join("; ");
    let text = if joined.is_empty() {
        stderr
            .lines()
            .next_back()
            .unwrap_or("it gave no reason")
            .trim()
    } else {
        &joined
    };
    text.chars().take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_the_server_is_preferred_and_older_ones_are_not_used() {
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
    fn only_error_lines_are_repeated() {
        let stderr = "pg_restore: while PROCESSING TOC:\npg_restore: error: could not execute query: ERROR:  no\n\
                    Command was: COPY secrets FROM stdin;\n";
        assert_eq!(
            summarize_stderr(stderr),
            "pg_restore: error: could not execute query: ERROR:  no"
        );
        assert_eq!(summarize_stderr(""), "it gave no reason");
    }
}
