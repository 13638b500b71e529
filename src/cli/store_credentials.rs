//! What `attesto apple` and `attesto google` share: replacing a tenant's credentials and going back to the previous ones.

use super::context::{CommandContext, CommandError};
use crate::base::error::to_sentence;
use crate::base::id::TenantId;
use crate::config::settings::CredentialGracePeriod;
use crate::credentials::history::{CredentialHistory, PreviousOutcome, RollbackError};
use crate::db::Database;
use crate::stores::shared::credentials::SetCredentialsError;

/// Warns when the replaced credentials could not be kept.
pub(super) fn check_replacement(
    replaced: Result<PreviousOutcome, SetCredentialsError>,
) -> Result<(), CommandError> {
    match replaced {
        Ok(PreviousOutcome::NotOpened(cause)) => {
            eprintln!(
                "attesto: warning: there is no going back to the previous credentials: {}",
                to_sentence(cause)
            );
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(SetCredentialsError::Database(error)) => Err(error.into()),
        Err(error) => Err(CommandError::from_cause(error)),
    }
}

/// Goes back to the previous credentials. `store` is the store's name in a sentence.
pub(super) async fn rollback(
    history: CredentialHistory,
    store: &str,
    tenant: &TenantId,
    context: &CommandContext,
) -> Result<Database, CommandError> {
    let database = context.open_database().await?;
    let keyring = context.load_verified_keyring(&database).await?;
    let CredentialGracePeriod(grace) = context.read_settings(CredentialGracePeriod::from_raw)?;
    history
        .rollback(&database, &keyring, tenant, grace)
        .await
        .map_err(|why| match why {
            RollbackError::Database(error) => error.into(),
            why => CommandError::failed(to_sentence(format!(
                "the {store} credentials of {tenant} are unchanged: {why}"
            ))),
        })?;
    Ok(database)
}
