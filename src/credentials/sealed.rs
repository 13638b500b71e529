//! Every sealed column there is. What is not in this list cannot be found when keys are rotated.

use crate::crypto::keyring::Place;

/// A column that holds sealed values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SealedColumn {
    /// The table's name.
    pub table: &'static str,
    /// The column's name; every one ends in `_enc`.
    pub column: &'static str,
}

impl SealedColumn {
    /// The place of one row: `row` is the tenant's id, except where the column's own words say otherwise.
    pub fn of(self, row: &str) -> Place<'_> {
        Place {
            table: self.table,
            column: self.column,
            row,
        }
    }
}

/// A tenant's `.p8` file.
pub const APPLE_PRIVATE_KEY: SealedColumn = SealedColumn {
    table: "apple_credentials",
    column: "private_key_enc",
};
/// A tenant's service-account JSON.
pub const GOOGLE_SERVICE_ACCOUNT: SealedColumn = SealedColumn {
    table: "google_credentials",
    column: "service_account_enc",
};
/// What signs a tenant's deliveries.
pub const WEBHOOK_SECRET: SealedColumn = SealedColumn {
    table: "webhook_configs",
    column: "secret_enc",
};
/// What signed them before, and still does for a while.
pub const WEBHOOK_PREVIOUS_SECRET: SealedColumn = SealedColumn {
    table: "webhook_previous_secrets",
    column: "secret_enc",
};
/// What the identifiers of the validation log are hashed with; the row is named by the key's number.
pub const VALIDATION_AUDIT_KEY: SealedColumn = SealedColumn {
    table: "validation_audit_keys",
    column: "key_enc",
};
/// A known text; the row is named by the key's id.
pub const CANARY: SealedColumn = SealedColumn {
    table: "encryption_canaries",
    column: "canary_enc",
};

/// All of them. A test compares this with the database's own catalogue.
pub const ALL: [SealedColumn; 6] = [
    APPLE_PRIVATE_KEY,
    GOOGLE_SERVICE_ACCOUNT,
    WEBHOOK_SECRET,
    WEBHOOK_PREVIOUS_SECRET,
    VALIDATION_AUDIT_KEY,
    CANARY,
];
