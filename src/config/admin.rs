//! The settings that administrative commands need: the database, and the keys if the command uses sealed values.
//!
//! Each is read only when a command needs it, so that `attesto tenant list` works without an encryption key.

use secrecy::ExposeSecret;

use super::raw::QUOTED_PROBLEM;
use super::secret_file::{self, EnvLookup};
use crate::crypto::keyring::{Keyring, MasterKey};
use crate::db::ConnectSettings;
use crate::embedded_postgres::EmbeddedOptions;

/// The id of a sealing key that is given without an id.
const DEFAULT_KEY_ID: u8 = 1;

/// The database's connection settings: `flag` if given, or else `DATABASE_URL` or the file that `DATABASE_URL_FILE`
/// names, together with `DATABASE_DIRECT_URL`. `None` if none of them is set. Each problem is one line, which never
/// repeats the URL.
pub fn read_database(
    lookup: EnvLookup<'_>,
    flag: Option<&str>,
) -> Result<Option<ConnectSettings>, Vec<String>> {
    let parse = |name: &str, url: &str| {
        ConnectSettings::from_url(url)
            .map(Some)
            .map_err(|problem| vec![format!("{name}: {problem}")])
    };
    if let Some(url) = flag {
        return parse("--database-url", url);
    }
    let read = |name| match secret_file::read_secret(lookup, name) {
        Ok(Some(url)) => parse(name, url.expose_secret()),
        Ok(None) => Ok(None),
        Err(problem) => Err(vec![problem.to_string()]),
    };
    match (read("DATABASE_URL"), read("DATABASE_DIRECT_URL")) {
        (Ok(None), _) => Ok(None),
        (Ok(Some(pooled)), Ok(direct)) => Ok(Some(match direct {
            Some(direct) => pooled.with_direct(direct),
            None => pooled,
        })),
        (pooled, direct) => {
            let problems = [pooled.err(), direct.err()];
            Err(problems.into_iter().flatten().flatten().collect())
        }
    }
}

/// Whether to run a private database if no URL is given: `ATTESTO_EMBEDDED_POSTGRES`.
pub fn read_embedded_flag(lookup: EnvLookup<'_>) -> Result<bool, Vec<String>> {
    const NAME: &str = "ATTESTO_EMBEDDED_POSTGRES";
    let given = lookup(NAME).unwrap_or_default();
    if secret_file::is_quoted(&given) {
        return Err(vec![format!("{NAME}: {QUOTED_PROBLEM}")]);
    }
    match given.to_string_lossy().trim().to_ascii_lowercase().as_str() {
        "" | "0" | "false" | "no" | "off" => Ok(false),
        "1" | "true" | "yes" | "on" => Ok(true),
        _ => Err(vec![format!("{NAME} must be true or false (or 1 or 0)")]),
    }
}

/// Where and as whom a private database runs.
pub fn read_embedded_options(lookup: EnvLookup<'_>) -> Result<EmbeddedOptions, Vec<String>> {
    let quoted = ["ATTESTO_DATA_DIR", "ATTESTO_PG_BIN", "ATTESTO_PG_USER"]
        .into_iter()
        .filter(|name| lookup(name).is_some_and(|value| secret_file::is_quoted(&value)));
    let problems: Vec<_> = quoted
        .map(|name| format!("{name}: {QUOTED_PROBLEM}"))
        .collect();
    if problems.is_empty() {
        Ok(EmbeddedOptions::from_env(lookup))
    } else {
        Err(problems)
    }
}

/// The encryption keys: `ATTESTO_ENCRYPTION_KEY` seals and unseals, those in `ATTESTO_ENCRYPTION_KEYS_RETIRED` only
/// unseal. Either can come from a `_FILE`. `None` if neither is set. Returns all problems at once; no problem repeats a
/// key.
pub fn read_keyring(lookup: EnvLookup<'_>) -> Result<Option<Keyring>, Vec<String>> {
    const KEY: &str = "ATTESTO_ENCRYPTION_KEY";
    const RETIRED: &str = "ATTESTO_ENCRYPTION_KEYS_RETIRED";

    let mut problems = Vec::new();
    let mut read = |name| {
        secret_file::read_secret(lookup, name).unwrap_or_else(|problem| {
            problems.push(problem.to_string());
            None
        })
    };
    let (sealing, retired_list) = (read(KEY), read(RETIRED));

    let is_set = sealing.is_some();
    let sealing = sealing.and_then(|key| {
        MasterKey::parse(key.expose_secret(), Some(DEFAULT_KEY_ID))
            .map_err(|problem| problems.push(format!("{KEY}: {problem}")))
            .ok()
    });
    let mut retired = Vec::new();
    if let Some(list) = retired_list {
        let entries = list.expose_secret().split(',').enumerate();
        // Empty entries are ignored: the list may be composed of variables of which one is empty.
        for (position, key) in entries.filter(|(_, key)| !key.trim().is_empty()) {
            match MasterKey::parse(key, None) {
                Ok(key) => retired.push(key),
                Err(problem) => problems.push(format!(
                    "{RETIRED}, entry {} (each is <id>:<base64>): {problem}",
                    position + 1
                )),
            }
        }
        if !is_set && problems.is_empty() {
            problems.push(format!(
                "{RETIRED} is set without {KEY}: retired keys open and never seal"
            ));
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let Some(sealing) = sealing else {
        return Ok(None);
    };
    Keyring::new(sealing, retired)
        .map(Some)
        .map_err(|problem| vec![format!("{KEY} and {RETIRED}: {problem}")])
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    fn read_key_ids(set: &[(&str, &str)]) -> Result<Option<Vec<u8>>, Vec<String>> {
        let lookup = |name: &str| {
            set.iter()
                .find(|(set, _)| *set == name)
                .map(|(_, value)| OsString::from(value))
        };
        read_keyring(&lookup).map(|ring| ring.map(|ring| ring.key_ids().collect()))
    }

    #[test]
    fn keys_are_read_and_every_problem_is_said() {
        let key = |fill: u8| STANDARD.encode([fill; 32]);
        let (plain, second, third) = (
            key(1),
            format!("2:{}", key(2)),
            format!("1:{},, 3:{},", key(1), key(3)),
        );
        assert_eq!(read_key_ids(&[]), Ok(None));
        assert_eq!(
            read_key_ids(&[("ATTESTO_ENCRYPTION_KEY", &plain)]),
            Ok(Some(vec![1]))
        );
        assert_eq!(
            read_key_ids(&[
                ("ATTESTO_ENCRYPTION_KEY", &second),
                ("ATTESTO_ENCRYPTION_KEYS_RETIRED", &third),
            ]),
            Ok(Some(vec![1, 2, 3]))
        );
        let problems = read_key_ids(&[
            ("ATTESTO_ENCRYPTION_KEY", "c2hvcnQ="),
            ("ATTESTO_ENCRYPTION_KEYS_RETIRED", &plain),
        ])
        .expect_err("both are wrong");
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(!problems.concat().contains("c2hvcnQ"), "no key is repeated");
        assert!(
            read_key_ids(&[("ATTESTO_ENCRYPTION_KEYS_RETIRED", &second)]).is_err(),
            "something must seal"
        );
        assert!(
            read_key_ids(&[
                ("ATTESTO_ENCRYPTION_KEY", &plain),
                ("ATTESTO_ENCRYPTION_KEYS_RETIRED", &third)
            ])
            .is_err(),
            "two keys of one id"
        );
    }
}
