//! The commands of `attesto apple`.

use super::super::context::{CommandContext, CommandError};
use super::credentials::{self, SetAppleCredentialsArgs};
use super::test_notification::{self, RequestTestNotificationArgs};
use crate::base::id::TenantId;

/// The commands of `attesto apple`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum AppleCommand {
    /// Store what Attesto needs to ask the App Store, in place of what was stored before
    SetCredentials(SetAppleCredentialsArgs),
    /// Print everything but the key
    GetCredentials {
        /// Whose: the tenant's id
        tenant: TenantId,
    },
    /// Go back to the credentials that were replaced last; once more leads forward again
    RollbackCredentials {
        /// Whose: the tenant's id
        tenant: TenantId,
    },
    /// Have Apple send a test notification, wait until Apple says how that went, and print it
    RequestTestNotification(RequestTestNotificationArgs),
}

/// Runs one of them.
pub(crate) async fn run(
    command: AppleCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        AppleCommand::SetCredentials(arguments) => {
            credentials::set_credentials(arguments, context).await
        }
        AppleCommand::GetCredentials { tenant } => {
            credentials::get_credentials(&tenant, context).await
        }
        AppleCommand::RollbackCredentials { tenant } => {
            credentials::rollback_credentials(&tenant, context).await
        }
        AppleCommand::RequestTestNotification(arguments) => {
            test_notification::request_test_notification(arguments, context).await
        }
    }
}
