//! What a tenant has, and what of it goes along. A test compares this with the database's own catalogue: a table that is
//! added is found there to be missing here. Columns need no list: all go along that are not made by the database itself.

use serde::{Deserialize, Serialize};

/// What to do with rows that are there already when a tenant is restored over itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictPolicy {
    /// They become what the file says.
    Overwrite,
    /// They go, also those that the file knows nothing of.
    DeleteFirst,
    /// They stay: a key that was revoked since stays revoked, and what was delivered since is delivered.
    KeepExisting,
}

/// One table's share of a tenant.
#[derive(Clone, Copy, Debug)]
pub struct TransferTable {
    /// The table's name.
    pub name: &'static str,
    /// The column with the tenant's id.
    pub tenant_column: &'static str,
    /// Which of the tenant's rows go along, as SQL over `line`.
    pub row_filter: &'static str,
    /// The same, with the whole history.
    pub full_history_filter: &'static str,
    /// What is written in place of what was, as JSON: what was true of the old installation only.
    pub overrides: &'static str,
    /// What becomes of rows that are there already.
    pub on_conflict: ConflictPolicy,
    /// Of those that are kept: which row `here` of the same tenant a row `line` of the file is, as SQL. What is neither written
    /// nor the tenant's own already belongs to another tenant.
    pub match_condition: &'static str,
    /// Whether its rows are noted by the one row about the import, and not each by its own.
    pub is_audited_once: bool,
}

const fn transfer_table(
    table: &'static str,
    which: &'static str,
    present: ConflictPolicy,
) -> TransferTable {
    TransferTable {
        name: table,
        tenant_column: "tenant_id",
        row_filter: which,
        full_history_filter: which,
        overrides: "{}",
        on_conflict: present,
        match_condition: "here.id = line.id",
        is_audited_once: false,
    }
}

const ALL_ROWS: &str = "true";
/// What is still good for something.
const NOT_EXPIRED: &str = "line.expires_at > now()";

/// An event that is not delivered, or so young that its store may report it once more: it has to be recognised. Apple sends
/// six times within about six and a half days; Pub/Sub keeps what was not taken for seven, unless told otherwise.
macro_rules! needed_event_filter {
    ($event:literal) => {
        concat!(
            "(",
            $event,
            ".received_at > now() - interval '7 days' \
              or exists (select from webhook_deliveries waiting \
                          where waiting.event_id = ",
            $event,
            ".id and waiting.status = 'pending') \
              or not exists (select from webhook_deliveries done \
                              where done.event_id = ",
            $event,
            ".id and done.status = 'delivered'))"
        )
    };
}

/// What goes along, in the order in which it can be unpacked.
pub const TRANSFERRED_TABLES: [TransferTable; 14] = [
    TransferTable {
        tenant_column: "id",
        ..transfer_table("tenants", ALL_ROWS, ConflictPolicy::Overwrite)
    },
    // As they are kept: hashes. The keys themselves are nowhere, and go on working.
    transfer_table("api_keys", ALL_ROWS, ConflictPolicy::KeepExisting),
    transfer_table("apple_credentials", ALL_ROWS, ConflictPolicy::DeleteFirst),
    transfer_table("google_credentials", ALL_ROWS, ConflictPolicy::DeleteFirst),
    transfer_table(
        "apple_previous_credentials",
        NOT_EXPIRED,
        ConflictPolicy::DeleteFirst,
    ),
    transfer_table(
        "google_previous_credentials",
        NOT_EXPIRED,
        ConflictPolicy::DeleteFirst,
    ),
    transfer_table("webhook_configs", ALL_ROWS, ConflictPolicy::DeleteFirst),
    transfer_table(
        "webhook_previous_secrets",
        NOT_EXPIRED,
        ConflictPolicy::DeleteFirst,
    ),
    transfer_table(
        "webhook_allowed_networks",
        ALL_ROWS,
        ConflictPolicy::DeleteFirst,
    ),
    TransferTable {
        full_history_filter: ALL_ROWS,
        ..transfer_table(
            "webhook_redeliveries",
            "false",
            ConflictPolicy::KeepExisting,
        )
    },
    // Google forgets a purchase token after 60 days; what was learned of it is nowhere else.
    TransferTable {
        match_condition: "here.token_hash = line.token_hash",
        ..transfer_table("purchase_links", ALL_ROWS, ConflictPolicy::KeepExisting)
    },
    // The next event of a subject gets the next number.
    TransferTable {
        match_condition: "(here.source, here.key_hash) = (line.source, line.key_hash)",
        ..transfer_table("subjects", ALL_ROWS, ConflictPolicy::KeepExisting)
    },
    TransferTable {
        full_history_filter: ALL_ROWS,
        is_audited_once: true,
        match_condition: "here.id = line.id or (here.source, here.external_id) = (line.source, line.external_id)",
        ..transfer_table(
            "webhook_events",
            needed_event_filter!("line"),
            ConflictPolicy::KeepExisting,
        )
    },
    TransferTable {
        full_history_filter: ALL_ROWS,
        // A lease is held by a process of the old installation.
        overrides: r#"{"lease_until": null}"#,
        is_audited_once: true,
        ..transfer_table(
            "webhook_deliveries",
            concat!(
                "exists (select from webhook_events event where event.id = line.event_id and ",
                needed_event_filter!("event"),
                ")"
            ),
            ConflictPolicy::KeepExisting,
        )
    },
];

/// What stays, and why.
pub const EXCLUDED_TABLES: [(&str, &str); 13] = [
    (
        "apple_test_notifications",
        "Apple sends to another address from then on",
    ),
    ("callback_probes", "is learned anew, like webhook_health"),
    (
        "webhook_health",
        "is learned anew: the callback is called from another place",
    ),
    (
        "validation_audit",
        "its identifiers are hashed with the installation's own key",
    ),
    ("validation_audit_keys", "is the installation's"),
    (
        "operator_audit",
        "is a chain, and tells what was done to that installation",
    ),
    ("encryption_canaries", "is the installation's"),
    ("delivery_holds", "is the installation's"),
    ("job_runs", "is the installation's"),
    ("replicas", "is the installation's"),
    ("backups", "is the installation's"),
    ("_sqlx_migrations", "is the installation's"),
    ("schema_promises", "is the installation's"),
];

/// How much of what was received goes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryScope {
    /// What is not delivered, and what a store may report again.
    Needed,
    /// All events and deliveries.
    Whole,
}

impl TransferTable {
    /// Which of the tenant's rows go along.
    pub fn filter_for(&self, history: HistoryScope) -> &'static str {
        match history {
            HistoryScope::Needed => self.row_filter,
            HistoryScope::Whole => self.full_history_filter,
        }
    }
}
