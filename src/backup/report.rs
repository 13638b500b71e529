//! The result of verifying a backup.

use serde::Serialize;

/// The result of verifying a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupVerifyReport {
    /// The backup's id.
    pub id: String,
    /// When the backup's snapshot was taken, in RFC 3339.
    pub created_at: String,
    /// Whether no problem was found.
    pub sound: bool,
    /// Whether the result says something about the backup. False: its only problem is that the given encryption keys are not
    /// those that it was sealed with, or are not all of them.
    pub conclusive: bool,
    /// The age of the backup in seconds: restoring it would lose the changes since then.
    pub age_seconds: u64,
    /// How long restoring took, in milliseconds.
    pub restored_in_ms: u64,
    /// The number of tables in the manifest.
    pub tables: usize,
    /// The number of rows in the manifest.
    pub rows: i64,
    /// The number of migrations of this release that the backup did not have.
    pub migrations_applied: usize,
    /// The number of sampled sealed values that were unsealed.
    pub opened: u64,
    /// Every problem that was found, each as a sentence.
    pub problems: Vec<String>,
}
