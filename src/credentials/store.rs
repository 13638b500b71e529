//! The canaries' rows, and what is sealed with which key.

use crate::db::{Database, Error};

/// Every canary: the key's id and the sealed text.
pub(super) async fn canaries(database: &Database) -> Result<Vec<(u8, Vec<u8>)>, Error> {
    let rows = sqlx::query!("select key_id, canary_enc from encryption_canaries order by key_id")
        .fetch_all(database.pool())
        .await?;
    // The column's check constraint keeps ids from 1 to 255.
    Ok(rows
        .into_iter()
        .filter_map(|row| Some((u8::try_from(row.key_id).ok()?, row.canary_enc)))
        .collect())
}

/// Adds the canary of a key that has none yet; leaves one that is there.
pub(super) async fn add_canary(
    database: &Database,
    key_id: u8,
    canary: &[u8],
) -> Result<(), Error> {
    sqlx::query!(
        "insert into encryption_canaries (key_id, canary_enc) values ($1, $2) on conflict (key_id) do nothing",
        i16::from(key_id),
        canary
    )
    .execute(database.pool())
    .await?;
    Ok(())
}

/// Whether anything but a canary is sealed with this key: the key's id is a sealed value's first byte.
pub(super) async fn is_in_use(database: &Database, key_id: u8) -> Result<bool, Error> {
    sqlx::query_scalar!(
        r#"
        select exists (select from apple_credentials where get_byte(private_key_enc, 0) = $1)
            or exists (select from google_credentials where get_byte(service_account_enc, 0) = $1)
            or exists (select from webhook_configs where get_byte(secret_enc, 0) = $1)
            or exists (select from webhook_previous_secrets where get_byte(secret_enc, 0) = $1)
            or exists (select from validation_audit_keys where get_byte(key_enc, 0) = $1)
            as "in_use!"
        "#,
        i32::from(key_id)
    )
    .fetch_one(database.pool())
    .await
}
