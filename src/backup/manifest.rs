//! What a dump must hold. It lies beside the dump, under the same name with `.manifest.json` appended, and has nothing
//! secret in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::BackupError;
use crate::crypto::token::encode_hex;

/// The shape of the manifests that this release writes and reads.
pub const MANIFEST_FORMAT: u32 = 1;

/// What a dump must hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupManifest {
    /// [`MANIFEST_FORMAT`].
    pub format: u32,
    /// `backup_…`
    pub id: String,
    /// The moment whose state it holds, as RFC 3339.
    pub created_at: String,
    /// The release of Attesto that made it.
    pub attesto: String,
    /// The major version of the server it was made of.
    pub postgres: u32,
    /// The newest migration of its tables.
    pub schema_version: i64,
    /// The encryption keys that something in it is sealed with.
    pub key_ids: BTreeSet<u8>,
    /// Rows of each table, by its full name.
    pub tables: BTreeMap<String, i64>,
    /// The dump's length.
    pub bytes: u64,
    /// The dump's SHA-256, in hex.
    pub sha256: String,
}

impl BackupManifest {
    /// Where the manifest of a dump is.
    pub fn path_for(dump: &Path) -> PathBuf {
        let mut name = dump.as_os_str().to_owned();
        name.push(".manifest.json");
        PathBuf::from(name)
    }

    /// Reads the manifest of a dump.
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

    /// Rows in all tables.
    pub fn total_rows(&self) -> i64 {
        self.tables.values().sum()
    }
}

/// A file's length and SHA-256.
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
