//! The operator audit log: a chain of rows, each with the hash of the previous row.
//!
//! The rows are written by triggers (`migrations/0008_audit.sql`) in the transaction of the change, whether the change
//! is made by a command or by SQL. If the row cannot be written, the change fails. This module reads and verifies the
//! rows. It computes the hashes itself and does not ask the database to.
//!
//! The chain reveals rows that were edited, added, or removed from the middle. If the newest rows were removed or the
//! whole chain was rewritten, only a comparison with a [`ChainHead`] that was stored elsewhere reveals it.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::store;
use crate::base::clock::Timestamp;
use crate::db::{Database, Error};

/// The number of rows that one query reads.
const PAGE_SIZE: i64 = 1000;
/// The `previous_hash` of the first row.
const GENESIS_HASH: [u8; 32] = [0; 32];
/// The action of the row that records which rows retention removed.
pub const PRUNE_ACTION: &str = "prune";

/// One change by an operator.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OperatorAuditEntry {
    /// The number of the row: 1, 2, 3 and so on.
    pub seq: i64,
    /// The time of the change, by the database's clock.
    pub occurred_at: Timestamp,
    /// The user of the operating system, or the database role for changes by SQL.
    pub actor: String,
    /// The host name.
    pub host: String,
    /// The command, or the `application_name` of another program.
    pub command: String,
    /// `insert`, `update`, `delete`, or the name of another operation, such as `prune`.
    pub action: String,
    /// The table of the changed row.
    pub object: String,
    /// The key of the changed row.
    pub target: String,
    /// The tenant that the row belongs to.
    pub tenant_id: Option<String>,
    /// The old values. For an update, only those that changed.
    pub before: Option<Box<RawValue>>,
    /// The new values. For an update, only those that changed.
    pub after: Option<Box<RawValue>>,
    /// The hash of the previous row.
    #[serde(skip)]
    pub previous_hash: Vec<u8>,
    /// The hash of this row.
    #[serde(skip)]
    pub hash: Vec<u8>,
}

impl OperatorAuditEntry {
    /// SHA-256 of the previous hash and the fields. Each field is written as `length:text`, or as `-` if it is null,
    /// with commas between them.
    fn compute_hash(&self) -> Vec<u8> {
        let (seq, moment) = (
            self.seq.to_string(),
            self.occurred_at.as_millis().to_string(),
        );
        let fields = [
            Some(seq.as_str()),
            Some(&moment),
            Some(&self.actor),
            Some(&self.host),
            Some(&self.command),
            Some(&self.action),
            Some(&self.object),
            Some(&self.target),
            self.tenant_id.as_deref(),
            self.before.as_deref().map(RawValue::get),
            self.after.as_deref().map(RawValue::get),
        ];
        let mut digest = Sha256::new();
        digest.update(&self.previous_hash);
        for (position, field) in fields.into_iter().enumerate() {
            if position > 0 {
                digest.update(b",");
            }
            match field {
                Some(text) => {
                    digest.update(format!("{}:", text.len()).as_bytes());
                    digest.update(text.as_bytes());
                }
                None => digest.update(b"-"),
            }
        }
        digest.finalize().to_vec()
    }
}

/// The number and the hash of a row, which identify the chain up to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainHead {
    /// The sequence number of the row.
    pub seq: i64,
    /// The hash of the row, over its content and its predecessor's hash.
    pub hash: Vec<u8>,
}

/// Why the chain is not intact, with the number of the first row concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuditChainError {
    /// Its hash does not match its fields.
    #[error("row {0} was changed after it was written")]
    RowModified(i64),
    /// Its `previous_hash` is not the hash of the previous row.
    #[error("row {0} does not follow the row before it, which was changed or replaced")]
    PreviousHashMismatch(i64),
    /// Rows are missing in the middle or at the beginning.
    #[error("rows are missing: {from} to {to}")]
    RowsMissing {
        /// The first missing number.
        from: i64,
        /// The last missing number.
        to: i64,
    },
    /// The expected row is not in the chain.
    #[error(
        "row {0} is not the one that was expected: the chain was rewritten, or its newest rows were removed"
    )]
    HeadMismatch(i64),
}

impl AuditChainError {
    /// The number of the first row that is wrong or missing.
    pub fn seq(self) -> i64 {
        match self {
            Self::RowModified(seq) | Self::PreviousHashMismatch(seq) | Self::HeadMismatch(seq) => {
                seq
            }
            Self::RowsMissing { from, .. } => from,
        }
    }
}

/// The result of [`verify_chain`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainReport {
    /// The number of rows that were read.
    pub rows: u64,
    /// The number of the oldest row.
    pub first_seq: Option<i64>,
    /// The newest row.
    pub head: Option<ChainHead>,
    /// The first problem. `None` if the chain is intact.
    pub error: Option<AuditChainError>,
}

/// Verifies rows in order.
#[derive(Debug, Default)]
struct ChainVerifier {
    report: ChainReport,
    /// The `previous_hash` of the first row that was read.
    first_previous_hash: Vec<u8>,
    /// Whether a row records that retention removed the rows before the first one.
    is_prune_recorded: bool,
}

impl ChainVerifier {
    /// Returns false if the row is not valid, which ends the verification.
    fn check_entry(&mut self, entry: &OperatorAuditEntry, expected: Option<&ChainHead>) -> bool {
        let error = self.find_error(entry, expected);
        self.report.rows += 1;
        if error.is_some() {
            self.report.error = error;
            return false;
        }
        self.report.head = Some(ChainHead {
            seq: entry.seq,
            hash: entry.hash.clone(),
        });
        true
    }

    fn find_error(
        &mut self,
        entry: &OperatorAuditEntry,
        expected: Option<&ChainHead>,
    ) -> Option<AuditChainError> {
        match &self.report.head {
            None => {
                self.report.first_seq = Some(entry.seq);
                self.first_previous_hash.clone_from(&entry.previous_hash);
                if entry.seq == 1 && entry.previous_hash != GENESIS_HASH {
                    return Some(AuditChainError::PreviousHashMismatch(entry.seq));
                }
            }
            Some(last) if last.seq + 1 != entry.seq => {
                return Some(AuditChainError::RowsMissing {
                    from: last.seq + 1,
                    to: entry.seq - 1,
                });
            }
            Some(last) if last.hash != entry.previous_hash => {
                return Some(AuditChainError::PreviousHashMismatch(entry.seq));
            }
            Some(_) => {}
        }
        if entry.hash != entry.compute_hash() {
            return Some(AuditChainError::RowModified(entry.seq));
        }
        if expected.is_some_and(|head| head.seq == entry.seq && head.hash != entry.hash) {
            return Some(AuditChainError::HeadMismatch(entry.seq));
        }
        if entry.action == PRUNE_ACTION && self.records_prune(entry) {
            self.is_prune_recorded = true;
        }
        None
    }

    /// Whether this row records that retention removed everything before the first row.
    fn records_prune(&self, entry: &OperatorAuditEntry) -> bool {
        let before = entry.before.as_deref().map(RawValue::get);
        let record: Option<PruneRecord> =
            before.and_then(|before| serde_json::from_str(before).ok());
        record.is_some_and(|record| {
            Some(record.through + 1) == self.report.first_seq
                && record.hash == crate::crypto::token::encode_hex(&self.first_previous_hash)
        })
    }

    fn finish_report(mut self, expected: Option<&ChainHead>) -> ChainReport {
        let checked = &mut self.report;
        if checked.error.is_none() {
            let last = checked.head.as_ref().map_or(0, |head| head.seq);
            checked.error = match (checked.first_seq, expected) {
                (Some(first), _) if first > 1 && !self.is_prune_recorded => {
                    Some(AuditChainError::RowsMissing {
                        from: 1,
                        to: first - 1,
                    })
                }
                (_, Some(head)) if head.seq > last => Some(AuditChainError::HeadMismatch(head.seq)),
                _ => None,
            };
        }
        self.report
    }
}

/// The column `before` of a row with [`PRUNE_ACTION`].
#[derive(serde::Deserialize)]
struct PruneRecord {
    /// The number of the last removed row.
    through: i64,
    /// The hash of the last removed row, in hexadecimal.
    hash: String,
}

/// Reads and verifies the chain up to the first invalid row. If `expected` is given, that row must be in the chain.
pub async fn verify_chain(
    database: &Database,
    expected: Option<&ChainHead>,
) -> Result<ChainReport, Error> {
    let mut checker = ChainVerifier::default();
    let mut after = 0;
    loop {
        let page = store::list_chain_page(database, after, PAGE_SIZE).await?;
        for entry in &page {
            if !checker.check_entry(entry, expected) {
                return Ok(checker.finish_report(expected));
            }
            after = entry.seq;
        }
        if page.is_empty() {
            return Ok(checker.finish_report(expected));
        }
    }
}

/// Removes the oldest rows that are older than `kept`, and adds a row that records it. The newest row is always kept.
/// Returns how many rows were removed, at most a few thousand: call it until it returns 0.
pub async fn prune_operator_audit(database: &Database, kept: Duration) -> Result<u64, Error> {
    store::delete_old_operator_audit(database, kept).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(count: i64) -> Vec<OperatorAuditEntry> {
        let mut previous = GENESIS_HASH.to_vec();
        (1..=count)
            .map(|seq| {
                let mut entry = OperatorAuditEntry {
                    seq,
                    occurred_at: Timestamp::from_millis(seq * 1000),
                    actor: "ann".into(),
                    host: "here".into(),
                    command: "tenant create".into(),
                    action: "insert".into(),
                    object: "tenants".into(),
                    target: format!("tenant_{seq}"),
                    tenant_id: None,
                    before: None,
                    after: RawValue::from_string(r#"{"name": "grün"}"#.into()).ok(),
                    previous_hash: previous.clone(),
                    hash: Vec::new(),
                };
                entry.hash = entry.compute_hash();
                previous.clone_from(&entry.hash);
                entry
            })
            .collect()
    }

    fn check(entries: &[OperatorAuditEntry], expected: Option<&ChainHead>) -> ChainReport {
        let mut checker = ChainVerifier::default();
        for entry in entries {
            if !checker.check_entry(entry, expected) {
                break;
            }
        }
        checker.finish_report(expected)
    }

    #[test]
    fn a_chain_is_intact_until_a_row_is_changed() {
        let whole = chain(5);
        let checked = check(&whole, None);
        assert_eq!((checked.rows, checked.error), (5, None));
        assert_eq!(check(&[], None).error, None);

        let broken = |change: &dyn Fn(&mut Vec<OperatorAuditEntry>)| {
            let mut entries = chain(5);
            change(&mut entries);
            check(&entries, None).error
        };
        assert_eq!(
            broken(&|entries| entries[2].actor = "eve".into()),
            Some(AuditChainError::RowModified(3))
        );
        assert_eq!(
            broken(&|entries| entries[2].tenant_id = Some(String::new())),
            Some(AuditChainError::RowModified(3))
        );
        assert_eq!(
            broken(&|entries| {
                entries[2].actor = "eve".into();
                entries[2].hash = entries[2].compute_hash();
            }),
            Some(AuditChainError::PreviousHashMismatch(4)),
            "a new hash does not match the next row"
        );
        assert_eq!(
            broken(&|entries| drop(entries.remove(2))),
            Some(AuditChainError::RowsMissing { from: 3, to: 3 })
        );
        assert_eq!(
            broken(&|entries| drop(entries.remove(0))),
            Some(AuditChainError::RowsMissing { from: 1, to: 1 })
        );
        assert_eq!(broken(&|entries| drop(entries.pop())), None);
    }

    #[test]
    fn a_head_stored_elsewhere_reveals_that_the_newest_rows_were_removed() {
        let whole = chain(5);
        let head = ChainHead {
            seq: 4,
            hash: whole[3].hash.clone(),
        };
        assert_eq!(check(&whole, Some(&head)).error, None);
        assert_eq!(
            check(&whole[..3], Some(&head)).error,
            Some(AuditChainError::HeadMismatch(4))
        );
        let other = ChainHead {
            seq: 4,
            hash: vec![1; 32],
        };
        assert_eq!(
            check(&whole, Some(&other)).error,
            Some(AuditChainError::HeadMismatch(4))
        );
    }
}
