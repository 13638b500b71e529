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

#[derive(Debug, clap::Args)]
pub(crate) struct RequestTestNotificationArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,

    /// Environment whose notification URL is tested [default: production, unless the tenant uses the sandbox only]
    #[arg(long, value_name = "ENVIRONMENT", value_enum)]
    env: Option<TestNotificationEnvironment>,

    /// How long to wait for the result: 30s, 5m
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration::parse_up_to(1))]
    wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TestNotificationEnvironment {
    /// The production URL
    Production,
    /// The sandbox URL
    Sandbox,
}

impl From<TestNotificationEnvironment> for AppleEnvironment {
    fn from(environment: TestNotificationEnvironment) -> Self {
        match environment {
            TestNotificationEnvironment::Production => Self::Production,
            TestNotificationEnvironment::Sandbox => Self::Sandbox,
        }
    }
}

/// The output of `request-test-notification`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TestNotificationView<'a> {
    tenant_id: &'a TenantId,
    bundle_id: &'a str,
    environment: AppleEnvironment,
    /// The value of `sendAttemptResult` in Apple's answer.
    result: &'a str,
    attempted_at: Option<Timestamp>,
    #[serde(rename = "notificationUUID")]
    notification_uuid: Option<&'a str>,
    /// The stored event; `None` when the notification did not arrive here.
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
            sealed => CommandError::from_cause(sealed),
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
    // Stored for `attesto doctor`, which does not send a test notification itself.
    let record = async |result: &str| {
        store::record_test_notification(&database, &tenant, environment, result).await
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(why) => {
            if why == TestNotificationError::NoNotificationUrl {
                record(test_notification::RESULT_NO_NOTIFICATION_URL).await?;
            }
            return Err(no_outcome_error(&tenant, &credentials, environment, &why));
        }
    };
    let uuid = outcome.notification_uuid.as_deref();
    let event_id = find_test_event(&database, &tenant, uuid).await?;
    record(match event_id {
        None if outcome.is_success() => test_notification::RESULT_RECEIVED_ELSEWHERE,
        _ => &outcome.result,
    })
    .await?;
    let shown = TestNotificationView {
        tenant_id: &tenant,
        bundle_id: &credentials.bundle_id,
        environment,
        result: &outcome.result,
        attempted_at: outcome.attempted_at,
        notification_uuid: uuid,
        event_id: event_id.clone(),
    };
    context.output.write_object(&shown)?;
    if !outcome.is_success() {
        let what = explain_send_result(&outcome.result);
        return Err(CommandError::failed(format!(
            "Apple's test notification did not arrive ({}): {what}",
            outcome.result
        )));
    }
    if event_id.is_none() {
        return Err(CommandError::failed(format!(
            "another server received Apple's test notification: it is not stored here. The {} URL in App Store Connect must be https://<your host>/v1/webhooks/apple/{tenant}, and lead to a service that uses this database.",
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

/// `requested`, or the first environment whose notifications this tenant accepts.
fn choose_test_environment(
    tenant: &TenantId,
    credentials: &AppleCredentials,
    requested: Option<TestNotificationEnvironment>,
) -> Result<AppleEnvironment, CommandError> {
    let choice = credentials.environment;
    let environment = match requested {
        Some(environment) => environment.into(),
        None if choice.allows_environment(AppleEnvironment::Production) => {
            AppleEnvironment::Production
        }
        None => AppleEnvironment::Sandbox,
    };
    if !choice.allows_environment(environment) {
        return Err(CommandError::usage_error(format!(
            "{tenant} uses {} only and refuses notifications of {}. To change that: attesto apple set-credentials --environment.",
            choice.as_str(),
            environment.as_str()
        )));
    }
    if environment == AppleEnvironment::Production && credentials.app_apple_id.is_none() {
        return Err(CommandError::usage_error(format!(
            "{tenant} has no app Apple ID and refuses production notifications without it. Add it with `attesto apple set-credentials --app-apple-id`, or try --env sandbox.",
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
            "Apple has no {place} notification URL for {app}: enter https://<your host>/v1/webhooks/apple/{tenant} in App Store Connect, under App Information, App Store Server Notifications."
        ),
        TestNotificationError::Timeout(waited) => format!(
            "Apple accepted the request but did not report a result within {waited:?}. Look for the event with `attesto webhook list-events {tenant}`, or wait longer with --wait."
        ),
        TestNotificationError::Api(failure) => {
            describe_api_error(app, environment, failure, "--env")
        }
    })
}

/// Explains a `sendAttemptResult` other than `SUCCESS`, and what to do.
fn explain_send_result(result: &str) -> &'static str {
    match result {
        "TIMED_OUT" => "the server at the URL did not answer in time.",
        "TLS_ISSUE" => {
            "no TLS connection was made. The server needs TLS 1.2 or newer and a publicly trusted certificate with its whole chain."
        }
        "CIRCULAR_REDIRECT" => {
            "the URL redirects in a circle. Enter the URL that answers without a redirect."
        }
        "NO_RESPONSE" | "SOCKET_ISSUE" | "PREMATURE_CLOSE" => {
            "the connection failed or broke. Check that the URL is reachable from the internet and that the service is running."
        }
        "UNSUCCESSFUL_HTTP_RESPONSE_CODE" => {
            "the server at the URL answered with an error. If it is Attesto, the http_request line in its log has the reason."
        }
        "UNSUPPORTED_CHARSET" | "INVALID_RESPONSE" => {
            "Apple could not read the answer. Check that the URL leads to Attesto."
        }
        _ => "Apple gives no further reason.",
    }
}
