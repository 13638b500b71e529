//! Asks Google about the purchase that events are about.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::error_response::GoogleVerifyError;
use super::request_body::GoogleVerifyRequest;
use super::response_body::VerifiedPurchase;
use super::verify::GoogleVerifier;
use crate::base::id::TenantId;
use crate::http::Problem;
use crate::stores::shared::subject_source::{RefreshedSubject, SubjectSource};

impl GoogleVerifier {
    /// What Google says of the newest purchase of the subscription, or of the product, that events name by `key`.
    pub(super) async fn verify_current(
        &self,
        tenant: &TenantId,
        key: &str,
    ) -> Result<VerifiedPurchase, GoogleVerifyError> {
        let credentials = self.require_credentials(tenant).await?;
        let mut request = GoogleVerifyRequest {
            package_name: credentials.package_name.clone(),
            purchase_token: key.to_owned(),
            kind: None,
            product_id: None,
            expected_app_user_id: None,
            for_app_user_id: None,
        };
        let mut found = self.verify_purchase(tenant, &request).await?;
        // The key is the first token of the subscription. The state of an event is that of the newest.
        if let Some(newest) = found.subject.superseded_by.take() {
            request.purchase_token = newest;
            found = self.verify_purchase(tenant, &request).await?;
        }
        Ok(found)
    }
}

impl SubjectSource for GoogleVerifier {
    fn refresh_subject<'a>(
        &'a self,
        tenant: &'a TenantId,
        key: &'a str,
    ) -> BoxFuture<'a, Result<RefreshedSubject, Problem>> {
        async move {
            let found = self.verify_current(tenant, key).await?;
            Ok(RefreshedSubject {
                subject: found.subject,
                state: found.state,
                state_error: found.state_error,
            })
        }
        .boxed()
    }
}
