//! Every sealed column there is. What is not in this list cannot be found when keys are rotated.

use serde::Serialize;

use crate::crypto::keyring::SealContext;

/// A column that holds sealed values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SealedColumn {
    /// The table's name.
    pub table: &'static str,
    /// The column's name; every one ends in `_enc`.
    pub column: &'static str,
    /// The column of the same table whose text names the row in [`SealContext`].
    #[serde(skip)]
    pub row: &'static str,
}

impl SealedColumn {
    /// The place of one row: `row` is what stands in the column that [`SealedColumn::row`] names.
    pub fn context_for(self, row: &str) -> SealContext<'_> {
        SealContext {
            table: self.table,
            column: self.column,
            row,
        }
    }
}

/// Of a table whose rows are tenants'.
const fn tenant_column(table: &'static str, column: &'static str) -> SealedColumn {
    SealedColumn {
        table,
        column,
        row: "tenant_id",
    }
}

/// A tenant's `.p8` file.
pub const APPLE_PRIVATE_KEY: SealedColumn = tenant_column("apple_credentials", "private_key_enc");
/// A tenant's service-account JSON.
pub const GOOGLE_SERVICE_ACCOUNT: SealedColumn =
    tenant_column("google_credentials", "service_account_enc");
/// The `.p8` file that was replaced last.
pub const APPLE_PREVIOUS_KEY: SealedColumn =
    tenant_column("apple_previous_credentials", "private_key_enc");
/// The service-account JSON that was replaced last.
pub const GOOGLE_PREVIOUS_ACCOUNT: SealedColumn =
    tenant_column("google_previous_credentials", "service_account_enc");
/// What signs a tenant's deliveries.
pub const WEBHOOK_SECRET: SealedColumn = tenant_column("webhook_configs", "secret_enc");
/// What signed them before, and still does for a while.
pub const WEBHOOK_PREVIOUS_SECRET: SealedColumn =
    tenant_column("webhook_previous_secrets", "secret_enc");
/// What the identifiers of the validation log are hashed with; the row is named by the key's number.
pub const VALIDATION_AUDIT_KEY: SealedColumn = SealedColumn {
    table: "validation_audit_keys",
    column: "key_enc",
    row: "number",
};
/// A known text; the row is named by the key's id.
pub const ENCRYPTION_CANARY: SealedColumn = SealedColumn {
    table: "encryption_canaries",
    column: "canary_enc",
    row: "key_id",
};

/// All of them. A test compares this with the database's own catalogue.
pub const ALL_SEALED_COLUMNS: [SealedColumn; 8] = [
    APPLE_PRIVATE_KEY,
    GOOGLE_SERVICE_ACCOUNT,
    APPLE_PREVIOUS_KEY,
    GOOGLE_PREVIOUS_ACCOUNT,
    WEBHOOK_SECRET,
    WEBHOOK_PREVIOUS_SECRET,
    VALIDATION_AUDIT_KEY,
    ENCRYPTION_CANARY,
];

/// All but the canaries: what becomes unreadable without its key.
pub fn secret_columns() -> impl Iterator<Item = SealedColumn> {
    ALL_SEALED_COLUMNS
        .into_iter()
        .filter(|column| *column != ENCRYPTION_CANARY)
}
