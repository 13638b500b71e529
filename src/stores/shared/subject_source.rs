//! Asks a store about the purchase that events are about.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::base::id::TenantId;
use crate::events::{EventSource, EventSubject, PurchaseState, StateError};
use crate::http::Problem;

/// Asks one store, as its verify route does.
pub(crate) trait SubjectSource: Send + Sync {
    /// What the purchase with this `subject.key` is worth now. The error is what the verify route answers.
    fn refresh_subject<'a>(
        &'a self,
        tenant: &'a TenantId,
        key: &'a str,
    ) -> BoxFuture<'a, Result<RefreshedSubject, Problem>>;
}

/// What a store says of a purchase.
#[derive(Debug)]
pub(crate) struct RefreshedSubject {
    pub(crate) subject: EventSubject,
    pub(crate) state: Option<PurchaseState>,
    pub(crate) state_error: Option<StateError>,
}

/// The stores, each asked about its own purchases.
#[derive(Clone)]
pub(crate) struct SubjectSources {
    pub(crate) apple: Arc<dyn SubjectSource>,
    pub(crate) google: Arc<dyn SubjectSource>,
}

impl SubjectSources {
    /// Asks the store `source`.
    pub(crate) async fn refresh_subject(
        &self,
        source: EventSource,
        tenant: &TenantId,
        key: &str,
    ) -> Result<RefreshedSubject, Problem> {
        let store = match source {
            EventSource::Apple => &self.apple,
            EventSource::Google => &self.google,
        };
        store.refresh_subject(tenant, key).await
    }
}
