//! `apple request-test-notification`.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::super::context::{CommandContext, CommandError};
use super::super::duration;
use super::credentials::{build_app_store_client, describe_api_error, no_credentials_error};
use crate::base::clock::Timestamp;
use crate::base::id::{EventId, TenantId};
use crate::db::Database;
use crate::events::{self, EventSource};
use crate::stores::apple::account::{AppleCredentials, AppleEnvironment};
use crate::stores::apple::store;
use crate::stores::apple::test_notification::{self, TestNotificationError};
use crate::stores::shared::credentials::LoadCredentialsError;

/// Arguments of `request-test-notification`.
#[derive(Debug, clap::Args)]
pub(crate) struct RequestTestNotificationArgs {
    /// Whose: the tenant's id
    tenant: TenantId,

    /// Which of the app's two addresses is tried. Left out: production, unless the tenant is set up for the sandbox only
    #[arg(long, value_name = "ENVIRONMENT", value_enum)]
    env: Option<TestNotificationEnvironment>,

    /// How long to wait for the outcome
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::parse_up_to(1))]
    wait: Duration,
}

/// Where a test notification is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TestNotificationEnvironment {
    /// The production address
    Production,
    /// The sandbox address
    Sandbox,
}

impl From<TestNotificationEnvironment> for AppleEnvironment {
    fn from(place: TestNotificationEnvironment) -> Self {
        match place {
            TestNotificationEnvironment::Production => Self::Production,
            TestNotificationEnvironment::Sandbox => Self::Sandbox,
        }
    }
}

/// What `request-test-notification` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TestNotificationView<'a> {
    tenant_id: &'a TenantId,
    bundle_id: &'a str,
    environment: AppleEnvironment,
    /// Apple's word for how it went.
    result: &'a str,
    attempted_at: Option<Timestamp>,
    #[serde(rename = "notificationUUID")]
    notification_uuid: Option<&'a str>,
    /// What was stored of it here.
    event_id: Option<EventId>,
}

pub(super) async fn request_test_notification(
    arguments: RequestTestNotificationArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let RequestTestNotificationArgs { tenant, env, wait } = arguments;
    let database = context.open_database().await?;
    let keyring = context.require_keyring()?;
    let credentials = store::load_credentials(&database, &keyring, &tenant)
        .await
        .map_err(|error| match error {
            LoadCredentialsError::Database(error) => error.into(),
            sealed => CommandError::failed(format!("{sealed}.")),
        })?
        .ok_or_else(|| no_credentials_error(&tenant))?;
    let environment = choose_test_environment(&tenant, &credentials, env)?;
    let app_store = build_app_store_client(context)?;
    let credentials = Arc::new(credentials);
    let outcome = test_notification::request_test_notification(
        &app_store,
        &tenant,
        &credentials,
        environment,
        wait,
    )
    .await;
    // Kept, for nobody asks Apple again behind the operator's back.
    let keep = async |said: &str| {
        store::record_test_notification(&database, &tenant, environment, said).await
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(why) => {
            if why == TestNotificationError::NoNotificationUrl {
                keep(test_notification::RESULT_NO_NOTIFICATION_URL).await?;
            }
            return Err(no_outcome_error(&tenant, &credentials, environment, &why));
        }
    };
    let uuid = outcome.notification_uuid.as_deref();
    let event_id = find_test_event(&database, &tenant, uuid).await?;
    keep(match event_id {
        None if outcome.is_success() => test_notification::RESULT_RECEIVED_ELSEWHERE,
        _ => &outcome.result,
    })
    .await?;
    let tried = TestNotificationView {
        tenant_id: &tenant,
        bundle_id: &credentials.bundle_id,
        environment,
        result: &outcome.result,
        attempted_at: outcome.attempted_at,
        notification_uuid: uuid,
        event_id: event_id.clone(),
    };
    context.output.write_object(&tried)?;
    if !outcome.is_success() {
        let what = explain_send_result(&outcome.result);
        return Err(CommandError::failed(format!(
            "Apple's test notification did not arrive ({}): {what}",
            outcome.result
        )));
    }
    if event_id.is_none() {
        return Err(CommandError::failed(format!(
            "somebody else took Apple's test notification: nothing of it is stored here. The {} address in App Store Connect must be https://<your host>/v1/webhooks/apple/{tenant}, and lead to a service on this database.",
            environment.as_str()
        )));
    }
    Ok(())
}

async fn find_test_event(
    database: &Database,
    tenant: &TenantId,
    uuid: Option<&str>,
) -> Result<Option<EventId>, CommandError> {
    match uuid {
        Some(uuid) => Ok(events::find_event(database, tenant, EventSource::Apple, uuid).await?),
        None => Ok(None),
    }
}

/// Which address is tried: one whose notifications this tenant takes.
fn choose_test_environment(
    tenant: &TenantId,
    credentials: &AppleCredentials,
    asked: Option<TestNotificationEnvironment>,
) -> Result<AppleEnvironment, CommandError> {
    let choice = credentials.environment;
    let environment = match asked {
        Some(place) => place.into(),
        None if choice.allows_environment(AppleEnvironment::Production) => {
            AppleEnvironment::Production
        }
        None => AppleEnvironment::Sandbox,
    };
    if !choice.allows_environment(environment) {
        return Err(CommandError::usage_error(format!(
            "{tenant} is set up for {} only, and refuses notifications of {}: see `attesto apple set-credentials --environment`.",
            choice.as_str(),
            environment.as_str()
        )));
    }
    if environment == AppleEnvironment::Production && credentials.app_apple_id.is_none() {
        return Err(CommandError::usage_error(format!(
            "{tenant} has no app Apple id, and refuses notifications of production without it: add it with `attesto apple set-credentials --app-apple-id`, or try --env sandbox.",
        )));
    }
    Ok(environment)
}

fn no_outcome_error(
    tenant: &TenantId,
    credentials: &AppleCredentials,
    environment: AppleEnvironment,
    why: &TestNotificationError,
) -> CommandError {
    let (app, place) = (&credentials.bundle_id, environment.as_str());
    CommandError::failed(match why {
        TestNotificationError::NoNotificationUrl => format!(
            "Apple knows no {place} address for the notifications of {app}: enter https://<your host>/v1/webhooks/apple/{tenant} in App Store Connect, under App Information, App Store Server Notifications."
        ),
        TestNotificationError::Timeout(patience) => format!(
            "Apple took the request and has not said within {patience:?} how sending it went. Look for it with `attesto webhook list-events {tenant}`, or wait longer with --wait."
        ),
        TestNotificationError::Api(failure) => describe_api_error(app, environment, failure),
    })
}

/// What Apple's word for a failed attempt means for whoever has to mend it.
fn explain_send_result(result: &str) -> &'static str {
    match result {
        "TIMED_OUT" => "the server at the address did not answer in time.",
        "TLS_ISSUE" => {
            "no secure connection was made. The address needs TLS 1.2 or newer and a certificate that is publicly trusted, with its whole chain."
        }
        "CIRCULAR_REDIRECT" => {
            "the address redirects in a circle. Enter the address that answers without redirecting."
        }
        "NO_RESPONSE" | "SOCKET_ISSUE" | "PREMATURE_CLOSE" => {
            "the connection failed or broke. Is the address reachable from the internet, and is something listening there?"
        }
        "UNSUCCESSFUL_HTTP_RESPONSE_CODE" => {
            "the server at the address answered with an error. If it is Attesto, its log has an http_request line for it that says why."
        }
        "UNSUPPORTED_CHARSET" | "INVALID_RESPONSE" => {
            "the answer could not be read. Does the address lead to Attesto?"
        }
        _ => "Apple does not say more.",
    }
}
