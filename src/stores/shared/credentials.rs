//! Why a tenant's credentials for a store cannot be loaded or set.

use crate::base::id::TenantId;
use crate::crypto::keyring::UnsealError;
use crate::db;
use crate::http::Problem;

/// Why stored credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LoadCredentialsError {
    /// The database did not answer.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] db::Error),
    /// None of the configured encryption keys opens the sealed value.
    #[error("the {field} of {tenant} cannot be opened: {cause}")]
    CannotUnseal {
        /// The field's name in a sentence, such as "private key".
        field: &'static str,
        /// The tenant whose credentials they are.
        tenant: TenantId,
        /// Why it does not open.
        cause: UnsealError,
    },
    /// The stored value is not what the command that sets it accepts: another release wrote it, or it was edited.
    #[error("the stored {field} of {tenant} is not valid: {cause}")]
    Malformed {
        /// The field's name in a sentence.
        field: &'static str,
        /// The tenant whose credentials they are.
        tenant: TenantId,
        /// What is wrong with the value. Never contains the value of a secret.
        cause: String,
    },
}

impl From<&LoadCredentialsError> for Problem {
    fn from(error: &LoadCredentialsError) -> Self {
        match error {
            LoadCredentialsError::Database(cause) => cause.into(),
            unusable => Self::internal_error(unusable),
        }
    }
}

/// Why credentials were not stored.
#[derive(Debug, thiserror::Error)]
pub enum SetCredentialsError {
    /// There is no tenant with this id.
    #[error("no such tenant: {0}")]
    UnknownTenant(TenantId),
    /// The database did not store them.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] db::Error),
}
