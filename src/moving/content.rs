//! What a tenant has, and what of it goes along. A test compares this with the database's own catalogue: a table that is
//! added is found there to be missing here. Columns need no list: all go along that are not made by the database itself.

use serde::{Deserialize, Serialize};

/// What to do with rows that are there already when a tenant is restored over itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Present {
    /// They become what the file says.
    Overwritten,
    /// They go, also those that the file knows nothing of.
    Removed,
    /// They stay: a key that was revoked since stays revoked, and what was delivered since is delivered.
    Kept,
}

/// One table's share of a tenant.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The table's name.
    pub table: &'static str,
    /// The column with the tenant's id.
    pub key: &'static str,
    /// Which of the tenant's rows go along, as SQL over `line`.
    pub which: &'static str,
    /// The same, with the whole history.
    pub which_of_history: &'static str,
    /// What is written in place of what was, as JSON: what was true of the old installation only.
    pub instead: &'static str,
    /// What becomes of rows that are there already.
    pub present: Present,
    /// Of those that are kept: which row `here` of the same tenant a row `line` of the file is, as SQL. What is neither written
    /// nor the tenant's own already is somebody else's.
    pub same: &'static str,
    /// Whether its rows are noted by the one row about the import, and not each by its own.
    pub noted_together: bool,
}

const fn part(table: &'static str, which: &'static str, present: Present) -> Part {
    Part {
        table,
        key: "tenant_id",
        which,
        which_of_history: which,
        instead: "{}",
        present,
        same: "here.id = line.id",
        noted_together: false,
    }
}

const ALL_ROWS: &str = "true";
/// What is still good for something.
const LIVE: &str = "line.expires_at > now()";

/// An event that is not delivered, or so young that its store may report it once more: it has to be recognised. Apple sends
/// six times within about six and a half days; Pub/Sub keeps what was not taken for seven, unless told otherwise.
macro_rules! needed {
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
pub const MOVED: [Part; 13] = [
    Part {
        key: "id",
        ..part("tenants", ALL_ROWS, Present::Overwritten)
    },
    // As they are kept: hashes. The keys themselves are nowhere, and go on working.
    part("api_keys", ALL_ROWS, Present::Kept),
    part("apple_credentials", ALL_ROWS, Present::Removed),
    part("google_credentials", ALL_ROWS, Present::Removed),
    part("apple_previous_credentials", LIVE, Present::Removed),
    part("google_previous_credentials", LIVE, Present::Removed),
    part("webhook_configs", ALL_ROWS, Present::Removed),
    part("webhook_previous_secrets", LIVE, Present::Removed),
    part("webhook_allowed_networks", ALL_ROWS, Present::Removed),
    Part {
        which_of_history: ALL_ROWS,
        ..part("webhook_redeliveries", "false", Present::Kept)
    },
    // Google forgets a purchase token after 60 days; what was learned of it is nowhere else.
    Part {
        same: "here.token_hash = line.token_hash",
        ..part("purchase_links", ALL_ROWS, Present::Kept)
    },
    Part {
        which_of_history: ALL_ROWS,
        noted_together: true,
        same: "here.id = line.id or (here.source, here.external_id) = (line.source, line.external_id)",
        ..part("webhook_events", needed!("line"), Present::Kept)
    },
    Part {
        which_of_history: ALL_ROWS,
        // Whoever held it does so in the old installation.
        instead: r#"{"lease_until": null}"#,
        noted_together: true,
        ..part(
            "webhook_deliveries",
            concat!(
                "exists (select from webhook_events event where event.id = line.event_id and ",
                needed!("event"),
                ")"
            ),
            Present::Kept,
        )
    },
];

/// What stays, and why.
pub const LEFT: [(&str, &str); 13] = [
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
pub enum History {
    /// What is not delivered, and what a store may report again.
    Needed,
    /// Everything.
    Whole,
}

impl Part {
    /// Which of the tenant's rows go along.
    pub fn rows(&self, history: History) -> &'static str {
        match history {
            History::Needed => self.which,
            History::Whole => self.which_of_history,
        }
    }
}
