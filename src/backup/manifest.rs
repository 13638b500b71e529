//! The manifest says what a dump must contain. It is a JSON file beside the dump, with the dump's name and
//! `.manifest.json` appended, and contains no secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::BackupError;
use crate::crypto::token::encode_hex;

/// The version of the manifest's format that this release writes and reads.
pub const MANIFEST_FORMAT: u32 = 1;

/// What a dump must contain. The JSON file beside the dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupManifest {
    /// The version of the format: [`MANIFEST_FORMAT`].
    pub format: u32,
    /// The id of the backup, such as `backup_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E`.
    pub id: String,
    /// When the snapshot was taken, in RFC 3339.
    pub created_at: String,
    /// The release of Attesto that made the backup.
    pub attesto: String,
    /// The major version of the database server.
    pub postgres: u32,
    /// The number of the newest migration that had been applied.
    pub schema_version: i64,
    /// The ids of the encryption keys that values in the dump are sealed with.
    pub key_ids: BTreeSet<u8>,
    /// The number of rows of each table, by its name with its schema.
    pub tables: BTreeMap<String, i64>,
    /// The size of the dump in bytes.
    pub bytes: u64,
    /// The SHA-256 of the dump, in hex.
    pub sha256: String,
}

impl BackupManifest {
    /// The path of a dump's manifest.
    pub fn path_for(dump: &Path) -> PathBuf {
        let mut name = dump.as_os_str().to_owned();
        name.push(".manifest.json");
        PathBuf::from(name)
    }

    /// Reads and checks the manifest of a dump.
    pub fn read_for(dump: &Path) -> Result<Self, BackupError> {
        let path = Self::path_for(dump);
        let text = std::fs::read(&path).map_err(|cause| BackupError::FileIo {
            path: path.clone(),
            cause,
        })?;
        let unreadable = |why: String| BackupError::InvalidManifest {
            path: path.clone(),
            why,
        };
        let manifest: Self =
            serde_json::from_slice(&text).map_err(|problem| unreadable(problem.to_string()))?;
        if manifest.format != MANIFEST_FORMAT {
            return Err(unreadable(format!(
                "its format is {}, and this release knows {MANIFEST_FORMAT}",
                manifest.format
            )));
        }
        Ok(manifest)
    }

    /// The schema of our tables. `None`: no schema, or more than one, has tables of ours.
    pub(super) fn tables_schema(&self) -> Option<String> {
        let mut schemas = self.tables.keys().filter_map(|name| {
            let schema = name.strip_suffix("._sqlx_migrations")?;
            let has_events = self
                .tables
                .contains_key(&format!("{schema}.webhook_events"));
            has_events.then_some(schema)
        });
        let schema = schemas.next().filter(|_| schemas.next().is_none())?;
        // As `format('%I')` writes an identifier.
        let quoted = schema.strip_prefix('"').and_then(|it| it.strip_suffix('"'));
        Some(quoted.map_or_else(|| schema.to_owned(), |quoted| quoted.replace("\"\"", "\"")))
    }

    /// The number of rows in all tables.
    pub fn total_rows(&self) -> i64 {
        self.tables.values().sum()
    }
}

/// The size in bytes and the SHA-256 of a file, in hex.
pub fn fingerprint_dump(path: &Path) -> Result<(u64, String), BackupError> {
    hash_file(path).map_err(|cause| BackupError::FileIo {
        path: path.to_owned(),
        cause,
    })
}

pub(crate) fn hash_file(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    let (mut digest, mut bytes, mut buffer) = (Sha256::new(), 0, vec![0; 64 * 1024]);
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        digest.update(&buffer[..read]);
        bytes += read as u64;
    }
    Ok((bytes, encode_hex(&digest.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema_of(tables: &[&str]) -> Option<String> {
        let manifest = BackupManifest {
            format: MANIFEST_FORMAT,
            id: String::new(),
            created_at: String::new(),
            attesto: String::new(),
            postgres: 17,
            schema_version: 1,
            key_ids: BTreeSet::new(),
            tables: tables.iter().map(|name| ((*name).to_owned(), 0)).collect(),
            bytes: 0,
            sha256: String::new(),
        };
        manifest.tables_schema()
    }

    #[test]
    fn the_schema_of_our_tables_is_read_from_their_names() {
        for (tables, schema) in [
            (
                &["public._sqlx_migrations", "public.webhook_events"][..],
                Some("public"),
            ),
            (
                &[
                    "\"a \"\"b\"\"\"._sqlx_migrations",
                    "\"a \"\"b\"\"\".webhook_events",
                ],
                Some("a \"b\""),
            ),
            // Another program that uses sqlx.
            (
                &[
                    "other._sqlx_migrations",
                    "shop._sqlx_migrations",
                    "shop.webhook_events",
                ],
                Some("shop"),
            ),
            // Two installations in one database.
            (
                &[
                    "a._sqlx_migrations",
                    "a.webhook_events",
                    "b._sqlx_migrations",
                    "b.webhook_events",
                ],
                None,
            ),
            (&[], None),
        ] {
            assert_eq!(schema_of(tables).as_deref(), schema, "{tables:?}");
        }
    }
}
