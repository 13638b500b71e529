//! What operators changed: a chain of rows, each holding the hash of the one before it.
//!
//! The rows are written by triggers (`migrations/0008_audit.sql`), in the change's own transaction, whoever makes the
//! change and by whichever door: a change that cannot be noted is not made. Here they are read and checked, with a hash
//! made by this program and not by the database.
//!
//! The chain shows that a row was edited, added, or taken away from the middle. Whoever takes the newest rows away, or
//! writes the whole chain anew, is found out only by somebody who has kept a [`Head`] elsewhere.

use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use serde::Serialize;
use serde_json::value::RawValue;

use super::store;
use crate::clock::Timestamp;
use crate::db::{Database, Error};

/// Rows that are read at once.
const PAGE: i64 = 1000;
/// What stands before the first row.
const BEGINNING: [u8; 32] = [0; 32];
/// The action of the row that vouches for rows which were taken away because they were old.
pub const PRUNED: &str = "prune";

/// One change.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// 1, 2, 3 and so on.
    pub seq: i64,
    /// When.
    pub occurred_at: Timestamp,
    /// The user of the operating system, or of the database where Attesto was not between.
    pub actor: String,
    /// The machine.
    pub host: String,
    /// The command, or what the program calls itself.
    pub command: String,
    /// `insert`, `update`, `delete`, or a job's own word.
    pub action: String,
    /// The table.
    pub object: String,
    /// Which of its rows.
    pub target: String,
    /// Whose it is.
    pub tenant_id: Option<String>,
    /// What was; of an update only what changed.
    pub before: Option<Box<RawValue>>,
    /// What is.
    pub after: Option<Box<RawValue>>,
    /// The hash of the row before.
    #[serde(skip)]
    pub previous_hash: Vec<u8>,
    /// The hash of this row.
    #[serde(skip)]
    pub hash: Vec<u8>,
}

impl Entry {
    /// What this row's hash must be: of the hash before it, then each field as `length:text`, `-` where there is none,
    /// with commas between.
    fn expected_hash(&self) -> Vec<u8> {
        let (seq, moment) = (self.seq.to_string(), self.occurred_at.millis().to_string());
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
        let mut digest = Context::new(&SHA256);
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
        digest.finish().as_ref().to_vec()
    }
}

/// A row by which the chain up to it can be recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub seq: i64,
    /// Its hash.
    pub hash: Vec<u8>,
}

/// What is wrong with the first link that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It is not what was written.
    #[error("row {0} was changed after it was written")]
    Changed(i64),
    /// It does not follow the one before it.
    #[error("row {0} does not follow the row before it, which was changed or replaced")]
    Detached(i64),
    /// Rows are missing before it.
    #[error("rows are missing: {from} to {to}")]
    Missing {
        /// The first.
        from: i64,
        /// The last.
        to: i64,
    },
    /// The row that was kept elsewhere is not in the chain.
    #[error(
        "row {0} is not the one that was expected: the chain was written anew, or cut off before it"
    )]
    Unexpected(i64),
}

impl Broken {
    /// The number of the row.
    pub fn seq(self) -> i64 {
        match self {
            Self::Changed(seq) | Self::Detached(seq) | Self::Unexpected(seq) => seq,
            Self::Missing { from, .. } => from,
        }
    }
}

/// What checking found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Rows that were looked at.
    pub rows: u64,
    /// The first row that is there.
    pub first: Option<i64>,
    /// The newest.
    pub head: Option<Head>,
    /// The first link that does not hold.
    pub broken: Option<Broken>,
}

/// Checks rows in their order.
#[derive(Debug, Default)]
struct Checker {
    checked: Checked,
    /// What the first row holds as the hash of the one before it.
    before_first: Vec<u8>,
    /// Whether the rows that are missing at the beginning were taken away by a job that says so.
    vouched: bool,
}

impl Checker {
    /// One more. `false`: this or an earlier one is broken.
    fn take(&mut self, entry: &Entry, expected: Option<&Head>) -> bool {
        let broken = self.judge(entry, expected);
        self.checked.rows += 1;
        if broken.is_some() {
            self.checked.broken = broken;
            return false;
        }
        self.checked.head = Some(Head {
            seq: entry.seq,
            hash: entry.hash.clone(),
        });
        true
    }

    fn judge(&mut self, entry: &Entry, expected: Option<&Head>) -> Option<Broken> {
        match &self.checked.head {
            None => {
                self.checked.first = Some(entry.seq);
                self.before_first.clone_from(&entry.previous_hash);
                if entry.seq == 1 && entry.previous_hash != BEGINNING {
                    return Some(Broken::Detached(entry.seq));
                }
            }
            Some(last) if last.seq + 1 != entry.seq => {
                return Some(Broken::Missing {
                    from: last.seq + 1,
                    to: entry.seq - 1,
                });
            }
            Some(last) if last.hash != entry.previous_hash => {
                return Some(Broken::Detached(entry.seq));
            }
            Some(_) => {}
        }
        if entry.hash != entry.expected_hash() {
            return Some(Broken::Changed(entry.seq));
        }
        if expected.is_some_and(|head| head.seq == entry.seq && head.hash != entry.hash) {
            return Some(Broken::Unexpected(entry.seq));
        }
        if entry.action == PRUNED && self.vouches(entry) {
            self.vouched = true;
        }
        None
    }

    /// Whether a row says that everything before the first was taken away by a job.
    fn vouches(&self, entry: &Entry) -> bool {
        let before = entry.before.as_deref().map(RawValue::get);
        let said: Option<Pruned> = before.and_then(|before| serde_json::from_str(before).ok());
        said.is_some_and(|said| {
            Some(said.through + 1) == self.checked.first
                && said.hash == crate::crypto::token::hex(&self.before_first)
        })
    }

    fn end(mut self, expected: Option<&Head>) -> Checked {
        let checked = &mut self.checked;
        if checked.broken.is_none() {
            let last = checked.head.as_ref().map_or(0, |head| head.seq);
            checked.broken = match (checked.first, expected) {
                (Some(first), _) if first > 1 && !self.vouched => Some(Broken::Missing {
                    from: 1,
                    to: first - 1,
                }),
                (_, Some(head)) if head.seq > last => Some(Broken::Unexpected(head.seq)),
                _ => None,
            };
        }
        self.checked
    }
}

/// What a job that took old rows away leaves in `before`.
#[derive(serde::Deserialize)]
struct Pruned {
    /// The last row that was taken away.
    through: i64,
    /// Its hash, in hexadecimal.
    hash: String,
}

/// Follows the whole chain, up to the first link that does not hold. With `expected`, that row must be in it.
pub async fn verify(database: &Database, expected: Option<&Head>) -> Result<Checked, Error> {
    let mut checker = Checker::default();
    let mut after = 0;
    loop {
        let page = store::chain(database, after, PAGE).await?;
        for entry in &page {
            if !checker.take(entry, expected) {
                return Ok(checker.end(expected));
            }
            after = entry.seq;
        }
        if page.is_empty() {
            return Ok(checker.end(expected));
        }
    }
}

/// Takes rows away that are older than `kept`, and leaves a row that vouches for it. The newest row always stays. `lead`
/// is how far ahead of the database's clock the caller lives. Returns how many went; a few thousand at most, so that it
/// is called again until there are none.
pub async fn prune(database: &Database, kept: Duration, lead: Duration) -> Result<u64, Error> {
    store::prune_operators(database, kept, lead).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(count: i64) -> Vec<Entry> {
        let mut previous = BEGINNING.to_vec();
        (1..=count)
            .map(|seq| {
                let mut entry = Entry {
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
                entry.hash = entry.expected_hash();
                previous.clone_from(&entry.hash);
                entry
            })
            .collect()
    }

    fn check(entries: &[Entry], expected: Option<&Head>) -> Checked {
        let mut checker = Checker::default();
        for entry in entries {
            if !checker.take(entry, expected) {
                break;
            }
        }
        checker.end(expected)
    }

    #[test]
    fn a_chain_holds_until_somebody_touches_it() {
        let whole = chain(5);
        let checked = check(&whole, None);
        assert_eq!((checked.rows, checked.broken), (5, None));
        assert_eq!(check(&[], None).broken, None);

        let broken = |change: &dyn Fn(&mut Vec<Entry>)| {
            let mut entries = chain(5);
            change(&mut entries);
            check(&entries, None).broken
        };
        assert_eq!(
            broken(&|entries| entries[2].actor = "eve".into()),
            Some(Broken::Changed(3))
        );
        assert_eq!(
            broken(&|entries| entries[2].tenant_id = Some(String::new())),
            Some(Broken::Changed(3))
        );
        assert_eq!(
            broken(&|entries| {
                entries[2].actor = "eve".into();
                entries[2].hash = entries[2].expected_hash();
            }),
            Some(Broken::Detached(4)),
            "whoever hashes anew has to go on to the end"
        );
        assert_eq!(
            broken(&|entries| drop(entries.remove(2))),
            Some(Broken::Missing { from: 3, to: 3 })
        );
        assert_eq!(
            broken(&|entries| drop(entries.remove(0))),
            Some(Broken::Missing { from: 1, to: 1 })
        );
        assert_eq!(broken(&|entries| drop(entries.pop())), None);
    }

    #[test]
    fn whoever_kept_a_row_elsewhere_finds_out_that_the_newest_are_gone() {
        let whole = chain(5);
        let head = Head {
            seq: 4,
            hash: whole[3].hash.clone(),
        };
        assert_eq!(check(&whole, Some(&head)).broken, None);
        assert_eq!(
            check(&whole[..3], Some(&head)).broken,
            Some(Broken::Unexpected(4))
        );
        let other = Head {
            seq: 4,
            hash: vec![1; 32],
        };
        assert_eq!(
            check(&whole, Some(&other)).broken,
            Some(Broken::Unexpected(4))
        );
    }
}
