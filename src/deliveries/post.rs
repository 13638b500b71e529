//! The courier of the real world: it signs each parcel with what signs at that moment, and sends it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::courier::{Courier, Parcel};
use super::endpoint::store;
use super::outcome::{Class, Outcome};
use super::sender::{Attempt, Sender};
use crate::clock::Clock;
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::id::TenantId;

/// How long the secrets may take to be read.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it takes to send a parcel.
#[derive(Clone)]
struct Post {
    sender: Sender,
    database: Database,
    keyring: Arc<Keyring>,
    clock: Clock,
}

/// A courier that sends with `sender`. What signs is read anew for parcels that are claimed together, in one statement,
/// so that a secret that was set a moment ago signs and one that was retired does not.
pub fn courier(
    sender: Sender,
    database: &Database,
    keyring: &Arc<Keyring>,
    clock: &Clock,
) -> Courier {
    let post = Post {
        sender,
        database: database.clone(),
        keyring: keyring.clone(),
        clock: clock.clone(),
    };
    Courier::new(move |parcels| post.carry(parcels))
}

impl Post {
    fn carry(&self, parcels: Vec<Parcel>) -> Vec<BoxFuture<'static, Outcome>> {
        let tenants: BTreeSet<TenantId> =
            parcels.iter().map(|parcel| parcel.tenant.clone()).collect();
        let post = self.clone();
        let endpoints = async move { post.endpoints(tenants.into_iter().collect()).await };
        let endpoints = endpoints.boxed().shared();
        let send = |parcel: Parcel| {
            let (endpoints, sender) = (endpoints.clone(), self.sender.clone());
            async move {
                let endpoints = match endpoints.await {
                    Ok(endpoints) => endpoints,
                    Err(unsigned) => return unsigned,
                };
                let endpoint = match endpoints.get(&parcel.tenant) {
                    Some(Ok(endpoint)) => endpoint.clone(),
                    Some(Err(problem)) => return unsigned(problem.to_string()),
                    None => return unsigned("the tenant has no webhook configuration".to_owned()),
                };
                let attempt = Attempt {
                    delivery: parcel.delivery,
                    event: parcel.event,
                    word: parcel.word,
                    number: parcel.number,
                    url: parcel.url,
                    body: parcel.body,
                    secrets: endpoint.secrets,
                    allowed: endpoint.allowed,
                };
                sender.send(&attempt).await
            }
            .boxed()
        };
        parcels.into_iter().map(send).collect()
    }

    async fn endpoints(&self, tenants: Vec<TenantId>) -> Result<Arc<store::Endpoints>, Outcome> {
        let lead = self.clock.lead();
        let reading = store::for_delivery(&self.database, &self.keyring, &tenants, lead);
        let endpoints = match timeout(PATIENCE, reading).await {
            Ok(Ok(endpoints)) => endpoints,
            Ok(Err(error)) => {
                return Err(unsigned(format!("the secrets cannot be read: {error}")));
            }
            Err(_) => return Err(unsigned("the secrets cannot be read in time".to_owned())),
        };
        for problem in endpoints.values().filter_map(|found| found.as_ref().err()) {
            tracing::error!(tenantId = %problem.tenant, error = %problem, "webhook_secret_unreadable");
        }
        Ok(Arc::new(endpoints))
    }
}

/// Nothing was sent, and not for anything that the callback did.
fn unsigned(detail: String) -> Outcome {
    Outcome::NotAttempted {
        class: Class::Unsigned,
        detail,
    }
}
