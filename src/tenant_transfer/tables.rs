//! The tables of a tenant, and which of their rows are exported. A test compares the list with the database's
//! catalogue, so that a new table cannot be forgotten. Columns are not listed: all are exported, except `lane` and those
//! that Postgres generates.

use serde::{Deserialize, Serialize};

/// What an import with `--replace` does with existing rows of the tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConflictPolicy {
    /// They are updated from the file.
    Overwrite,
    /// They are deleted first, including rows that are not in the file.
    DeleteFirst,
    /// They are kept: a key that was revoked since the export stays revoked, and a delivery that was delivered since
    /// stays delivered.
    KeepExisting,
}

/// A table of the exported tenant.
#[derive(Clone, Copy, Debug)]
pub struct TransferTable {
    /// The table's name.
    pub name: &'static str,
    /// The column that has the tenant's id.
    pub tenant_column: &'static str,
    /// Whether the table has the column `lane`, which follows from the tenant and is not exported.
    pub has_lane: bool,
    /// Which of the tenant's rows are exported, as an SQL condition on `line`. `$2` is the tenant's lane.
    pub row_filter: &'static str,
    /// The same condition with `--with-history`.
    pub full_history_filter: &'static str,
    /// Columns that are written with these values instead of the exported ones, as a JSON object: their values are only
    /// meaningful in the exporting installation.
    pub overrides: &'static str,
    /// What an import does with existing rows.
    pub on_conflict: ConflictPolicy,
    /// For rows that are kept: whether the row `here` of the same tenant is the row `line` of the file, as an SQL
    /// condition. A row of the file that was neither inserted nor matches a row of this tenant belongs to another
    /// tenant.
    pub match_condition: &'static str,
    /// Whether the import's own audit row covers the rows of this table, instead of one audit row for each.
    pub is_audited_once: bool,
}

const fn transfer_table(
    table: &'static str,
    row_filter: &'static str,
    on_conflict: ConflictPolicy,
) -> TransferTable {
    TransferTable {
        name: table,
        tenant_column: "tenant_id",
        has_lane: false,
        row_filter,
        full_history_filter: row_filter,
        overrides: "{}",
        on_conflict,
        match_condition: "here.id = line.id",
        is_audited_once: false,
    }
}

const ALL_ROWS: &str = "true";
/// Rows that have not expired.
const NOT_EXPIRED: &str = "line.expires_at > now()";

/// An event that was not delivered, or that is so recent that its store may send the notification again, which must
/// then be recognised as known. Apple sends it up to six times within about six and a half days; Pub/Sub retains
/// unacknowledged messages for seven days by default.
macro_rules! needed_event_filter {
    ($event:literal) => {
        concat!(
            "(",
            $event,
            ".received_at > '-infinity') and (",
            $event,
            ".received_at > now() - interval '7 days' \
              or exists (select from webhook_deliveries waiting \
                          where waiting.lane = $2 and waiting.event_id = ",
            $event,
            ".id and waiting.status = 'pending') \
              or not exists (select from webhook_deliveries done \
                              where done.lane = $2 and done.event_id = ",
            $event,
            ".id and done.status = 'delivered'))"
        )
    };
}

/// The exported tables, in the order in which their references allow to import them.
pub const TRANSFERRED_TABLES: [TransferTable; 20] = [
    TransferTable {
        tenant_column: "id",
        ..transfer_table("tenants", ALL_ROWS, ConflictPolicy::Overwrite)
    },
    // The table has hashes of the keys. The keys themselves are not stored, and remain valid.
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
        "webhook_client_certificates",
        ALL_ROWS,
        ConflictPolicy::DeleteFirst,
    ),
    transfer_table(
        "webhook_allowed_networks",
        ALL_ROWS,
        ConflictPolicy::DeleteFirst,
    ),
    TransferTable {
        has_lane: true,
        full_history_filter: ALL_ROWS,
        ..transfer_table(
            "webhook_redeliveries",
            "false",
            ConflictPolicy::KeepExisting,
        )
    },
    // Google deletes a purchase token after 60 days, so what was learned about it cannot be requested again.
    TransferTable {
        has_lane: true,
        match_condition: "here.token_hash = line.token_hash",
        ..transfer_table("purchase_links", ALL_ROWS, ConflictPolicy::KeepExisting)
    },
    // A process of the new installation tells of what is due: a lease of the old one ends soon.
    TransferTable {
        has_lane: true,
        match_condition: "here.token_hash = line.token_hash",
        ..transfer_table(
            "owed_acknowledgements",
            ALL_ROWS,
            ConflictPolicy::KeepExisting,
        )
    },
    // A process of the new installation answers what is due: a lease of the old one ends soon.
    TransferTable {
        has_lane: true,
        match_condition: "(here.source, here.question_hash) = (line.source, line.question_hash)",
        ..transfer_table("refund_questions", ALL_ROWS, ConflictPolicy::KeepExisting)
    },
    // What was refunded is known where the events are.
    TransferTable {
        has_lane: true,
        match_condition: "here.refund_hash = line.refund_hash",
        ..transfer_table("voided_purchases", ALL_ROWS, ConflictPolicy::KeepExisting)
    },
    // With the key, hashes of the new installation are equal to those of the old one.
    transfer_table("first_seen_keys", ALL_ROWS, ConflictPolicy::DeleteFirst),
    TransferTable {
        has_lane: true,
        match_condition: "here.purchase_hash = line.purchase_hash",
        ..transfer_table(
            "first_seen_purchases",
            ALL_ROWS,
            ConflictPolicy::KeepExisting,
        )
    },
    // The number of a subject's next event continues from this row.
    TransferTable {
        has_lane: true,
        match_condition: "(here.source, here.key_hash) = (line.source, line.key_hash)",
        ..transfer_table("subjects", ALL_ROWS, ConflictPolicy::KeepExisting)
    },
    TransferTable {
        has_lane: true,
        // Always true: it allows the index on tenant and time.
        full_history_filter: "line.received_at > '-infinity'",
        // Events are numbered in the order in which one database got them.
        overrides: r#"{"feed_position": null}"#,
        is_audited_once: true,
        match_condition: "here.id = line.id or (here.source, here.external_id) = (line.source, line.external_id)",
        ..transfer_table(
            "webhook_events",
            needed_event_filter!("line"),
            ConflictPolicy::KeepExisting,
        )
    },
    TransferTable {
        has_lane: true,
        full_history_filter: ALL_ROWS,
        // A lease belongs to a process of the exporting installation.
        overrides: r#"{"lease_until": null}"#,
        is_audited_once: true,
        ..transfer_table(
            "webhook_deliveries",
            concat!(
                "exists (select from webhook_events event where event.lane = $2 and event.id = line.event_id and ",
                needed_event_filter!("event"),
                ")"
            ),
            ConflictPolicy::KeepExisting,
        )
    },
];

/// The tables that are not exported, and why.
pub const EXCLUDED_TABLES: [(&str, &str); 21] = [
    (
        "google_voided_reads",
        "is begun anew: the refunds of the last week are read after the import",
    ),
    (
        "apple_history_reads",
        "is begun anew: the history of the last week is read after the import",
    ),
    (
        "apple_test_notifications",
        "Apple sends to another address from then on",
    ),
    ("callback_probes", "is collected again, like webhook_health"),
    (
        "event_feeds",
        "numbers the events of one database: a reader begins again, and recognises by eventId what it has",
    ),
    (
        "unresolved_states",
        "is made anew of the events that the import brings",
    ),
    (
        "webhook_health",
        "is collected again: the callback is called from another network",
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
    (
        "body_dictionaries",
        "is the installation's: what is sent goes along as text",
    ),
    ("encryption_canaries", "is the installation's"),
    ("delivery_holds", "is the installation's"),
    ("delivery_lanes", "is the installation's"),
    ("process_locks", "is the installation's"),
    ("pruned_events", "is the installation's"),
    ("job_runs", "is the installation's"),
    ("replicas", "is the installation's"),
    ("backups", "is the installation's"),
    ("_sqlx_migrations", "is the installation's"),
    ("schema_promises", "is the installation's"),
];

/// Which events and deliveries are exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryScope {
    /// Those that were not delivered, and those that a store may report again.
    Needed,
    /// All events and deliveries.
    Whole,
}

impl TransferTable {
    /// Which of the tenant's rows are exported, as an SQL condition on `line`.
    pub fn filter_for(&self, history: HistoryScope) -> &'static str {
        match history {
            HistoryScope::Needed => self.row_filter,
            HistoryScope::Whole => self.full_history_filter,
        }
    }

    /// That a row of the table, called `row`, is in the lane that is parameter `number` of the statement, as an SQL condition.
    pub fn lane_condition(&self, row: &str, number: u8) -> String {
        if self.has_lane {
            format!("{row}.lane = ${number}")
        } else {
            format!("${number}::int2 is not null")
        }
    }

    /// Which rows of a file are imported, as an SQL condition on `given`. `$5` is the tenant, `$6` its lane, and `$7` all lanes.
    pub fn import_condition(&self) -> &'static str {
        match self.name {
            // Its event exists and belongs to this tenant.
            "webhook_deliveries" => {
                "exists (select from webhook_events event \
                    where event.lane = $6 and event.id = given.event_id and event.tenant_id = $5) \
                 and not exists (select from webhook_deliveries other \
                    where other.lane = any($7) and other.id = given.id and other.tenant_id <> $5)"
            }
            // Operators name an event by its id alone, so no other tenant may have one with this id, in any lane.
            "webhook_events" => {
                "not exists (select from webhook_events other \
                    where other.lane = any($7) and other.id = given.id and other.tenant_id <> $5)"
            }
            "webhook_redeliveries" => {
                "not exists (select from webhook_redeliveries other \
                    where other.lane = any($7) and other.id = given.id and other.tenant_id <> $5)"
            }
            _ => "true",
        }
    }
}
