//! What a trial of a backup found.

use serde::Serialize;

/// What a trial found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackupVerifyReport {
    /// The backup's id.
    pub id: String,
    /// The moment whose state it holds.
    pub created_at: String,
    /// Whether everything is as it should be.
    pub sound: bool,
    /// What would be lost by going back to it: seconds since it was made.
    pub age_seconds: u64,
    /// How long restoring took, in milliseconds.
    pub restored_in_ms: u64,
    /// Tables in it.
    pub tables: usize,
    /// Rows in it.
    pub rows: i64,
    /// Migrations that this release added.
    pub migrations_applied: usize,
    /// Sealed values that were opened.
    pub opened: u64,
    /// What is wrong with it, in sentences.
    pub problems: Vec<String>,
}
