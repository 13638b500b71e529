//! The courier of the real world: it signs each parcel with what signs at that moment, and sends it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::endpoint::store;
use super::outcome::{AttemptOutcome, OutcomeClass};
use super::sender::{DeliveryAttempt, Sender};
use super::transport::{ClaimedDelivery, DeliveryTransport};
use crate::base::clock::Clock;
use crate::base::id::TenantId;
use crate::crypto::keyring::Keyring;
use crate::db::Database;

/// How long the secrets may take to be read.
const LOAD_ENDPOINTS_TIMEOUT: Duration = Duration::from_secs(10);

/// What it takes to send a parcel.
#[derive(Clone)]
struct SigningTransport {
    sender: Sender,
    database: Database,
    keyring: Arc<Keyring>,
    clock: Clock,
}

/// A courier that sends with `sender`. What signs is read anew for parcels that are claimed together, in one statement,
/// so that a secret that was set a moment ago signs and one that was retired does not.
pub fn build_signing_transport(
    sender: Sender,
    database: &Database,
    keyring: &Arc<Keyring>,
    clock: &Clock,
) -> DeliveryTransport {
    let post = SigningTransport {
        sender,
        database: database.clone(),
        keyring: keyring.clone(),
        clock: clock.clone(),
    };
    DeliveryTransport::new(move |parcels| post.send_batch(parcels))
}

impl SigningTransport {
    fn send_batch(&self, parcels: Vec<ClaimedDelivery>) -> Vec<BoxFuture<'static, AttemptOutcome>> {
        let tenants: BTreeSet<TenantId> = parcels
            .iter()
            .map(|parcel| parcel.tenant_id.clone())
            .collect();
        let post = self.clone();
        let endpoints = async move { post.load_endpoints(tenants.into_iter().collect()).await };
        let endpoints = endpoints.boxed().shared();
        let send = |parcel: ClaimedDelivery| {
            let (endpoints, sender) = (endpoints.clone(), self.sender.clone());
            async move {
                let endpoints = match endpoints.await {
                    Ok(endpoints) => endpoints,
                    Err(unsigned) => return unsigned,
                };
                let endpoint = match endpoints.get(&parcel.tenant_id) {
                    Some(Ok(endpoint)) => endpoint.clone(),
                    Some(Err(problem)) => return unsigned_outcome(problem.to_string()),
                    None => {
                        return unsigned_outcome(
                            "the tenant has no webhook configuration".to_owned(),
                        );
                    }
                };
                let attempt = DeliveryAttempt {
                    delivery_id: parcel.id,
                    event_id: parcel.event_id,
                    event_type: parcel.event_type,
                    attempt_number: parcel.attempt_number,
                    callback_url: parcel.callback_url,
                    body: parcel.body,
                    secrets: endpoint.secrets,
                    allow_list: endpoint.allow_list,
                };
                sender.send(&attempt).await
            }
            .boxed()
        };
        parcels.into_iter().map(send).collect()
    }

    async fn load_endpoints(
        &self,
        tenants: Vec<TenantId>,
    ) -> Result<Arc<store::EndpointsByTenant>, AttemptOutcome> {
        let lead = self.clock.lead();
        let reading = store::load_endpoints(&self.database, &self.keyring, &tenants, lead);
        let endpoints = match timeout(LOAD_ENDPOINTS_TIMEOUT, reading).await {
            Ok(Ok(endpoints)) => endpoints,
            Ok(Err(error)) => {
                return Err(unsigned_outcome(format!(
                    "the secrets cannot be read: {error}"
                )));
            }
            Err(_) => {
                return Err(unsigned_outcome(
                    "the secrets cannot be read in time".to_owned(),
                ));
            }
        };
        for problem in endpoints.values().filter_map(|found| found.as_ref().err()) {
            tracing::error!(tenantId = %problem.tenant, error = %problem, "webhook_secret_unreadable");
        }
        Ok(Arc::new(endpoints))
    }
}

/// Nothing was sent, and not for anything that the callback did.
fn unsigned_outcome(detail: String) -> AttemptOutcome {
    AttemptOutcome::NotAttempted {
        class: OutcomeClass::Unsigned,
        detail,
    }
}
