//! What Google says of the purchase that a notification is about.
//!
//! Promises: a lookup never fails and never takes longer than a few seconds; what could not be learned is left out.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::api::PurchaseResponse;
use super::api_error::{GoogleNotFound, PurchaseLookupError};
use super::chain::PurchaseChain;
use super::payload::{DeveloperNotification, Int64, ProductPurchase, SubscriptionPurchase};
use super::store::{self, GoogleCredentials};
use super::translate::{self, ReplacedPurchase};
use super::verify::GoogleVerifier;
use crate::base::id::TenantId;
use crate::db;

/// For all calls about one notification together. A push must be answered within ten seconds.
const PURCHASE_LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);
/// Calls to Google about one notification. The rest of a longer chain is learned with the next notification.
const MAX_PURCHASE_LOOKUPS: usize = 16;
/// Links of a chain that are read with one query.
const MAX_LINKS_PER_QUERY: i32 = 1000;
/// Google's number for a new purchase.
const SUBSCRIPTION_PURCHASED: Int64 = Int64(4);

/// What is known of the purchase that a notification is about.
pub(super) enum PurchaseContext {
    /// The notification is about no purchase, or Google could not be asked about it.
    Unknown,
    Subscription {
        /// `None` when Google could not be asked.
        purchase: Option<Box<SubscriptionPurchase>>,
        replaced: ReplacedPurchase,
        /// The token of the subscription's first purchase.
        first_token: String,
    },
    Product(Box<ProductPurchase>),
}

impl PurchaseContext {
    pub(super) fn subscription(&self) -> Option<&SubscriptionPurchase> {
        match self {
            Self::Subscription { purchase, .. } => purchase.as_deref(),
            Self::Unknown | Self::Product(_) => None,
        }
    }
}

/// The calls to Google about one notification of `tenant`.
pub(super) struct PurchaseLookup<'a> {
    google: &'a GoogleVerifier,
    tenant: &'a TenantId,
    credentials: &'a GoogleCredentials,
    deadline: Instant,
    lookups_left: usize,
}

impl<'a> PurchaseLookup<'a> {
    pub(super) fn new(
        google: &'a GoogleVerifier,
        tenant: &'a TenantId,
        credentials: &'a GoogleCredentials,
    ) -> Self {
        Self {
            google,
            tenant,
            credentials,
            deadline: Instant::now() + PURCHASE_LOOKUP_TIMEOUT,
            lookups_left: MAX_PURCHASE_LOOKUPS,
        }
    }

    /// Asks Google about the purchase, and about the earlier ones of a subscription that are not known yet.
    pub(super) async fn load_context(
        mut self,
        notification: &DeveloperNotification,
    ) -> PurchaseContext {
        if let Some(token) = subscription_token(notification) {
            let is_new = notification
                .subscription_notification
                .as_ref()
                .is_some_and(|details| details.notification_type == Some(SUBSCRIPTION_PURCHASED));
            return self.load_subscription(token, is_new).await;
        }
        if let Some(details) = &notification.one_time_product_notification
            && let (Some(token), Some(sku)) = (&details.purchase_token, &details.sku)
            && let Some(purchase) = self.fetch_product(sku, token).await
        {
            return PurchaseContext::Product(Box::new(purchase));
        }
        PurchaseContext::Unknown
    }

    /// What a subscription is now, which of its purchases was the first, and for a new one what it replaced.
    async fn load_subscription(&mut self, token: &str, is_new: bool) -> PurchaseContext {
        let mut chain = PurchaseChain::starting_at(token);
        let purchase = self.fetch_subscription(token).await.ok();
        let replaced = match &purchase {
            None => ReplacedPurchase::Unknown,
            Some(purchase) => {
                let earlier = purchase.linked_purchase_token.as_deref();
                chain.follow_new_link(token, earlier);
                match earlier.filter(|earlier| *earlier != token) {
                    None => ReplacedPurchase::Nothing,
                    Some(earlier) if is_new => {
                        self.check_replaced_purchase(earlier, purchase, &mut chain)
                            .await
                    }
                    Some(_) => ReplacedPurchase::Unknown,
                }
            }
        };
        let unanswered = purchase.is_none().then_some(token);
        self.follow_chain(&mut chain, unanswered).await;
        self.store_new_links(&chain).await;
        PurchaseContext::Subscription {
            purchase: purchase.map(Box::new),
            replaced,
            first_token: chain.first_token().to_owned(),
        }
    }

    /// Whether the purchase `earlier` was still running when `purchase` replaced it.
    async fn check_replaced_purchase(
        &mut self,
        earlier: &str,
        purchase: &SubscriptionPurchase,
        chain: &mut PurchaseChain,
    ) -> ReplacedPurchase {
        match self.fetch_subscription(earlier).await {
            Ok(found) => {
                let replaced_at = purchase.start_time.unwrap_or(self.google.clock.now());
                chain.follow_new_link(earlier, found.linked_purchase_token.as_deref());
                if translate::was_running(&found, replaced_at) {
                    ReplacedPurchase::Running
                } else {
                    ReplacedPurchase::Ended
                }
            }
            Err(Some(GoogleNotFound::Gone | GoogleNotFound::Unknown)) => ReplacedPurchase::Ended,
            Err(_) => ReplacedPurchase::Unknown,
        }
    }

    /// Follows a chain to its end: by the stored links, and where those end by asking Google, but not again about the
    /// token `unanswered`.
    async fn follow_chain(&mut self, chain: &mut PurchaseChain, unanswered: Option<&str>) {
        while let Some(next) = chain.next_token().map(str::to_owned) {
            let database = &self.google.database;
            let stored =
                store::list_purchase_links(database, self.tenant, &next, MAX_LINKS_PER_QUERY).await;
            let stored = match stored {
                Ok(stored) => stored,
                Err(error) => return self.log_links_unavailable(&error),
            };
            if stored.is_empty() {
                if unanswered == Some(&*next) {
                    return;
                }
                match self.fetch_subscription(&next).await {
                    Ok(purchase) => {
                        chain.follow_new_link(&next, purchase.linked_purchase_token.as_deref());
                    }
                    // Google will never say what came before it.
                    Err(Some(GoogleNotFound::Gone)) => chain.follow_new_link(&next, None),
                    Err(_) => return,
                }
            }
            for link in &stored {
                chain.follow_link(link);
            }
        }
    }

    async fn store_new_links(&self, chain: &PurchaseChain) {
        if chain.new_links().is_empty() {
            return;
        }
        let database = &self.google.database;
        let stored = store::insert_purchase_links(database, self.tenant, chain.new_links()).await;
        if let Err(error) = stored {
            self.log_links_unavailable(&error);
        }
    }

    fn log_links_unavailable(&self, error: &db::Error) {
        tracing::warn!(
            tenantId = self.tenant.as_str(),
            cause = %error,
            causeClass = "database",
            "google_purchase_links_not_used"
        );
    }

    /// `Err` with Google's answer that there is no such purchase, or with nothing when there is no such answer.
    async fn fetch_subscription(
        &mut self,
        token: &str,
    ) -> Result<SubscriptionPurchase, Option<GoogleNotFound>> {
        let GoogleCredentials {
            account,
            package_name,
            ..
        } = self.credentials;
        let play = &self.google.play;
        let call = play.get_subscription(self.tenant, account, package_name, token);
        self.run_lookup(call).await
    }

    async fn fetch_product(&mut self, sku: &str, token: &str) -> Option<ProductPurchase> {
        let GoogleCredentials {
            account,
            package_name,
            ..
        } = self.credentials;
        let play = &self.google.play;
        let call = play.get_product(self.tenant, account, package_name, sku, token);
        self.run_lookup(call).await.ok()
    }

    async fn run_lookup<T>(
        &mut self,
        call: impl Future<Output = Result<PurchaseResponse<T>, PurchaseLookupError>>,
    ) -> Result<T, Option<GoogleNotFound>> {
        let Some(left) = self.lookups_left.checked_sub(1) else {
            return Err(None);
        };
        self.lookups_left = left;
        let (cause, class) = match timeout_at(self.deadline, call).await {
            Ok(Ok(response)) => return Ok(response.purchase),
            Ok(Err(PurchaseLookupError::NotFound(reason))) => return Err(Some(reason)),
            Ok(Err(PurchaseLookupError::OtherApp | PurchaseLookupError::OtherProduct)) => {
                return Err(None);
            }
            Ok(Err(PurchaseLookupError::Api(error))) => (error.to_string(), error.class()),
            Err(_) => (
                format!("no answer within {PURCHASE_LOOKUP_TIMEOUT:?}"),
                "google timeout".to_owned(),
            ),
        };
        tracing::warn!(
            tenantId = self.tenant.as_str(),
            cause,
            causeClass = class,
            hint = "The event is stored without what only Google could tell.",
            "google_purchase_not_read"
        );
        Err(None)
    }
}

/// The purchase of a subscription that a notification is about.
fn subscription_token(notification: &DeveloperNotification) -> Option<&str> {
    if let Some(details) = &notification.subscription_notification {
        return details.purchase_token.as_deref();
    }
    let details = notification.voided_purchase_notification.as_ref()?;
    let is_subscription = details.product_type == Some(Int64(1));
    details
        .purchase_token
        .as_deref()
        .filter(|_| is_subscription)
}
