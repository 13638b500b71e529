//! Asks Apple about the purchase that events are about.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::verify::{AppleVerifier, AppleVerifyRequest, PurchaseRef};
use crate::base::id::TenantId;
use crate::http::Problem;
use crate::stores::shared::subject_source::{RefreshedSubject, SubjectSource};

impl SubjectSource for AppleVerifier {
    fn refresh_subject<'a>(
        &'a self,
        tenant: &'a TenantId,
        key: &'a str,
    ) -> BoxFuture<'a, Result<RefreshedSubject, Problem>> {
        let refresh = async move {
            // The key is the original transaction id.
            let request = AppleVerifyRequest {
                purchase: PurchaseRef::TransactionId(key.to_owned()),
                environment: None,
                expected_app_user_id: None,
                for_app_user_id: None,
                refresh: true,
            };
            let found = self.verify_purchase(tenant, &request).await?;
            Ok(RefreshedSubject {
                subject: found.subject,
                state: found.state,
                state_error: found.state_error,
            })
        };
        refresh.boxed()
    }
}
