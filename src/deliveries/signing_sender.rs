//! Sends jobs in production: signs each with the secrets that are valid at that moment.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::endpoint::store::{self, EndpointsByCallback};
use super::job::{DeliveryJob, JobSender};
use super::outcome::{AttemptOutcome, OutcomeClass};
use super::sender::Sender;
use crate::base::id::TenantId;
use crate::crypto::keyring::Keyring;
use crate::db::Database;

const LOAD_ENDPOINTS_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the secrets of all jobs that were claimed together in one statement, after the claim: a secret that was set
/// before it signs, and a secret that was retired before it does not.
#[derive(Clone)]
pub struct SigningSender {
    sender: Sender,
    database: Database,
    keyring: Arc<Keyring>,
}

impl SigningSender {
    /// `database` and `keyring` hold the secrets, `sender` makes the requests.
    pub fn new(sender: Sender, database: &Database, keyring: &Arc<Keyring>) -> Self {
        Self {
            sender,
            database: database.clone(),
            keyring: keyring.clone(),
        }
    }

    /// The error is the reason why nothing can be signed.
    async fn load_endpoints(
        self,
        tenants: BTreeSet<TenantId>,
    ) -> Result<Arc<EndpointsByCallback>, String> {
        let tenants: Vec<TenantId> = tenants.into_iter().collect();
        let loading = store::load_endpoints(&self.database, &self.keyring, &tenants);
        let endpoints = timeout(LOAD_ENDPOINTS_TIMEOUT, loading)
            .await
            .map_err(|_| "the secrets could not be read in time".to_owned())?
            .map_err(|error| {
                let cause = crate::db::describe_cause(&error);
                format!("the secrets could not be read: {cause}")
            })?;
        for error in endpoints.values().filter_map(|found| found.as_ref().err()) {
            tracing::error!(
                tenantId = %error.tenant,
                callback = error.callback.column(),
                error = %error,
                "webhook_secret_unreadable"
            );
        }
        Ok(Arc::new(endpoints))
    }
}

impl JobSender for SigningSender {
    fn send_batch(&self, jobs: Vec<Arc<DeliveryJob>>) -> Vec<BoxFuture<'static, AttemptOutcome>> {
        let tenants = jobs.iter().map(|job| job.tenant_id.clone()).collect();
        let endpoints = self.clone().load_endpoints(tenants).boxed().shared();
        let send = |job| send_signed(self.sender.clone(), job, endpoints.clone()).boxed();
        jobs.into_iter().map(send).collect()
    }
}

async fn send_signed(
    sender: Sender,
    job: Arc<DeliveryJob>,
    endpoints: impl Future<Output = Result<Arc<EndpointsByCallback>, String>>,
) -> AttemptOutcome {
    // Nothing was sent, and the callback did nothing wrong.
    let unsigned = |detail| AttemptOutcome::NotAttempted {
        class: OutcomeClass::Unsigned,
        detail,
    };
    match endpoints.await {
        Ok(endpoints) => match endpoints.get(&(job.tenant_id.clone(), job.callback)) {
            Some(Ok(endpoint)) => sender.send(&job, endpoint).await,
            Some(Err(error)) => unsigned(error.to_string()),
            None => unsigned("the tenant has no such callback any more".to_owned()),
        },
        Err(detail) => unsigned(detail),
    }
}
