//! The list of all sealed columns. A column that is missing here would be missed when keys are rotated.

use serde::Serialize;

use crate::crypto::keyring::SealContext;

/// A column that holds sealed values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct SealedColumn {
    /// The table's name.
    pub table: &'static str,
    /// The column's name, which ends in `_enc`.
    pub column: &'static str,
    /// The column of the same table whose value, as text, is the row's name in [`SealContext`].
    #[serde(skip)]
    pub row: &'static str,
}

impl SealedColumn {
    /// The seal context of one row. `row` is the value of the column that [`SealedColumn::row`] names.
    pub fn context_for(self, row: &str) -> SealContext<'_> {
        SealContext {
            table: self.table,
            column: self.column,
            row,
        }
    }
}

/// A column of a table that has one row for each tenant.
const fn tenant_column(table: &'static str, column: &'static str) -> SealedColumn {
    SealedColumn {
        table,
        column,
        row: "tenant_id",
    }
}

/// A tenant's In-App Purchase key: the `.p8` file.
pub const APPLE_PRIVATE_KEY: SealedColumn = tenant_column("apple_credentials", "private_key_enc");
/// A tenant's service account: the JSON key file.
pub const GOOGLE_SERVICE_ACCOUNT: SealedColumn =
    tenant_column("google_credentials", "service_account_enc");
/// The `.p8` file that was last replaced.
pub const APPLE_PREVIOUS_KEY: SealedColumn =
    tenant_column("apple_previous_credentials", "private_key_enc");
/// The JSON key file that was last replaced.
pub const GOOGLE_PREVIOUS_ACCOUNT: SealedColumn =
    tenant_column("google_previous_credentials", "service_account_enc");
/// The secret that signs a tenant's deliveries.
pub const WEBHOOK_SECRET: SealedColumn = tenant_column("webhook_configs", "secret_enc");
/// The secret that was last replaced; it signs deliveries too until its grace period ends.
pub const WEBHOOK_PREVIOUS_SECRET: SealedColumn =
    tenant_column("webhook_previous_secrets", "secret_enc");
/// The private key of the client certificate that a tenant's callback is shown.
pub const CLIENT_CERTIFICATE_KEY: SealedColumn =
    tenant_column("webhook_client_certificates", "key_enc");
/// The key of the hashes of first verifications.
pub const FIRST_SEEN_KEY: SealedColumn = tenant_column("first_seen_keys", "key_enc");
/// The key that the validation audit hashes purchase ids with. The row is named by the key's number.
pub const VALIDATION_AUDIT_KEY: SealedColumn = SealedColumn {
    table: "validation_audit_keys",
    column: "key_enc",
    row: "number",
};
/// A known text. The row is named by the encryption key's id.
pub const ENCRYPTION_CANARY: SealedColumn = SealedColumn {
    table: "encryption_canaries",
    column: "canary_enc",
    row: "key_id",
};

/// All sealed columns. A test compares this with the database's catalogue.
pub const ALL_SEALED_COLUMNS: [SealedColumn; 10] = [
    APPLE_PRIVATE_KEY,
    GOOGLE_SERVICE_ACCOUNT,
    APPLE_PREVIOUS_KEY,
    GOOGLE_PREVIOUS_ACCOUNT,
    WEBHOOK_SECRET,
    WEBHOOK_PREVIOUS_SECRET,
    CLIENT_CERTIFICATE_KEY,
    FIRST_SEEN_KEY,
    VALIDATION_AUDIT_KEY,
    ENCRYPTION_CANARY,
];

/// All sealed columns except canaries: the values that are lost if their key is lost.
pub fn secret_columns() -> impl Iterator<Item = SealedColumn> {
    ALL_SEALED_COLUMNS
        .into_iter()
        .filter(|column| *column != ENCRYPTION_CANARY)
}
