//! What Google says of the purchase that a notification or a verify request is about.
//!
//! Guarantees: a lookup never fails and never takes longer than a few seconds; what could not be learned is left out; news about
//! a purchase that another one replaced has the state of that other one, or none.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::api::PurchaseResponse;
use super::api_error::{GoogleNotFound, PurchaseLookupError};
use super::chain::{self, PurchaseChain, PurchaseLink};
use super::payload::{DeveloperNotification, Int64, ProductPurchase, SubscriptionPurchase};
use super::state;
use super::store::{self, GoogleCredentials};
use super::translate::{self, ReplacedPurchase};
use super::verify::GoogleVerifier;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::db;
use crate::events::{AppUserIdSource, PurchaseState, StateError};

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
    /// The notification is about no purchase.
    None,
    Subscription {
        /// `None` when Google could not be asked.
        fetched: Option<Fetched<SubscriptionPurchase>>,
        replaced: ReplacedPurchase,
        standing: Box<SubscriptionStanding>,
    },
    Product {
        purchase_token: String,
        /// `None` when Google could not be asked.
        fetched: Option<Fetched<ProductPurchase>>,
    },
}

/// A record of Google's.
#[derive(Debug)]
pub(super) struct Fetched<T> {
    pub(super) purchase: Arc<T>,
    /// When Google was asked, by the database's clock.
    pub(super) fetched_at: Timestamp,
}

impl<T> Clone for Fetched<T> {
    fn clone(&self) -> Self {
        Self {
            purchase: self.purchase.clone(),
            fetched_at: self.fetched_at,
        }
    }
}

/// Where a purchase stands among those of its subscription, and what the subscription is worth.
#[derive(Clone, Debug)]
pub(super) struct SubscriptionStanding {
    /// The token of the subscription's first purchase.
    pub(super) first_token: String,
    pub(super) role: PurchaseRole,
    /// The state of the newest purchase that was ever paid.
    pub(super) state: Result<PurchaseState, StateError>,
    pub(super) app_user: Option<(String, AppUserIdSource)>,
}

/// What a purchase is among those of its subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PurchaseRole {
    /// The newest that was ever paid.
    Current,
    /// Another one took its place; `by` is the newest of them, as far as it is known.
    Replaced { by: Option<String> },
    /// To replace another one, which goes on until this one is paid.
    Unpaid,
}

impl PurchaseRole {
    pub(super) fn superseded_by(&self) -> Option<String> {
        match self {
            Self::Replaced { by } => by.clone(),
            Self::Current | Self::Unpaid => None,
        }
    }
}

/// `Err` with Google's answer that there is no such purchase, or with nothing when there is no such answer.
type Lookup<T> = Result<Fetched<T>, Option<GoogleNotFound>>;

/// The newest purchase of those that replace another one.
enum NewestPurchase {
    /// No later purchase was paid.
    None,
    Found(String, Fetched<SubscriptionPurchase>),
    /// It is known by its token only.
    NotFetched(String, StateError),
}

impl PurchaseContext {
    pub(super) fn subscription(&self) -> Option<&SubscriptionPurchase> {
        match self {
            Self::Subscription { fetched, .. } => Some(&*fetched.as_ref()?.purchase),
            Self::None | Self::Product { .. } => None,
        }
    }
}

/// The calls to Google about one notification or verify request of `tenant`.
pub(super) struct PurchaseLookup<'a> {
    google: &'a GoogleVerifier,
    tenant: &'a TenantId,
    credentials: &'a GoogleCredentials,
    deadline: Instant,
    lookups_left: usize,
    /// What Google has answered so far, by token.
    subscriptions: HashMap<String, Lookup<SubscriptionPurchase>>,
    /// Why Google gave no answer, the last time that it gave none.
    failure: Option<LookupFailure>,
    /// Google's answer that there is no such purchase as the one that the notification is about.
    not_found: Option<GoogleNotFound>,
    /// Whether a failure is logged here, and not by the caller.
    logs_failures: bool,
}

/// Why Google gave no answer.
#[derive(Clone, Debug)]
pub(super) struct LookupFailure {
    /// For the log: nothing of a purchase.
    pub(super) class: String,
    pub(super) cause: String,
    /// When to ask again, if Google said so.
    pub(super) retry_after: Option<Duration>,
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
            subscriptions: HashMap::new(),
            failure: None,
            not_found: None,
            logs_failures: true,
        }
    }

    /// The same for an event that is stored already: the caller logs failures.
    #[must_use]
    pub(super) fn without_failure_log(self) -> Self {
        Self {
            logs_failures: false,
            ..self
        }
    }

    /// Why Google gave no answer, the last time that it gave none.
    pub(super) fn failure(&self) -> Option<&LookupFailure> {
        self.failure.as_ref()
    }

    /// Google's answer that there is no such purchase as the one that the notification is about.
    pub(super) fn not_found(&self) -> Option<GoogleNotFound> {
        self.not_found
    }

    /// Asks Google about the purchase, and about the other ones of a subscription that are not known yet.
    pub(super) async fn load_context(
        &mut self,
        notification: &DeveloperNotification,
    ) -> PurchaseContext {
        self.refresh_clock_offset().await;
        if let Some(details) = &notification.subscription_notification
            && let Some(token) = &details.purchase_token
        {
            let is_new = details.notification_type == Some(SUBSCRIPTION_PURCHASED);
            return self.load_subscription(token, is_new).await;
        }
        if let Some(details) = &notification.one_time_product_notification
            && let Some(token) = &details.purchase_token
        {
            return self.load_product(token, details.sku.as_deref()).await;
        }
        if let Some(details) = &notification.voided_purchase_notification
            && let Some(token) = &details.purchase_token
        {
            match details.product_type {
                Some(Int64(1)) => return self.load_subscription(token, false).await,
                Some(Int64(2)) => return self.load_product(token, None).await,
                _ => {}
            }
        }
        if let Some(details) = &notification.pending_refund_review_notification
            && let Some(order_id) = &details.order_id
        {
            return self.load_order(order_id).await;
        }
        PurchaseContext::None
    }

    /// The times of what is fetched are by the database's clock. Without an answer the last known difference is used.
    async fn refresh_clock_offset(&self) {
        let database = &self.google.database;
        let refresh = database.refresh_clock_offset(&self.google.clock);
        if let Ok(Err(error)) = timeout_at(self.deadline, refresh).await {
            tracing::warn!(
                tenantId = self.tenant.as_str(),
                cause = crate::db::describe_cause(&error),
                causeClass = crate::db::error_class(&error),
                "database_time_not_read"
            );
        }
    }

    /// What a subscription is now, where the purchase stands in it, and for a new one what it replaced.
    async fn load_subscription(&mut self, token: &str, is_new: bool) -> PurchaseContext {
        let lookup = self.fetch_subscription(token).await;
        self.not_found = lookup.as_ref().err().copied().flatten();
        let (replaced, standing) = self.load_standing(token, &lookup, is_new).await;
        PurchaseContext::Subscription {
            fetched: lookup.ok(),
            replaced,
            standing: Box::new(standing),
        }
    }

    async fn load_product(&mut self, token: &str, sku: Option<&str>) -> PurchaseContext {
        let GoogleCredentials {
            account,
            package_name,
            ..
        } = self.credentials;
        let (play, tenant) = (&self.google.play, self.tenant);
        let fetched = if let Some(sku) = sku {
            let call = play.get_product(tenant, account, package_name, sku, token);
            self.run_lookup(call).await
        } else {
            let call = play.get_product_v2(tenant, account, package_name, token);
            self.run_lookup(call).await
        };
        self.not_found = fetched.as_ref().err().copied().flatten();
        PurchaseContext::Product {
            purchase_token: token.to_owned(),
            fetched: fetched.ok(),
        }
    }

    /// The purchase that an order paid for.
    async fn load_order(&mut self, order_id: &str) -> PurchaseContext {
        let GoogleCredentials {
            account,
            package_name,
            ..
        } = self.credentials;
        let call = self
            .google
            .play
            .get_order(self.tenant, account, package_name, order_id);
        let Ok(order) = self.run_lookup(call).await else {
            return PurchaseContext::None;
        };
        let Some(token) = &order.purchase.purchase_token else {
            return PurchaseContext::None;
        };
        let items = &order.purchase.line_items;
        if items.iter().any(|item| item.subscription_details.is_some()) {
            self.load_subscription(token, false).await
        } else {
            self.load_product(token, None).await
        }
    }

    /// Where a subscription's purchase stands that Google was asked about already, for a verify request. Asks nothing where
    /// the record decides.
    pub(super) async fn load_standing_of(
        &mut self,
        token: &str,
        fetched: Fetched<SubscriptionPurchase>,
    ) -> SubscriptionStanding {
        let purchase = &fetched.purchase;
        let own_user = chain::own_user(purchase);
        let state =
            state::subscription_state(purchase, None, fetched.fetched_at, self.google.clock.now());
        if state.entitled && chain::earlier_token(purchase).is_none() && own_user.is_some() {
            return SubscriptionStanding {
                first_token: token.to_owned(),
                role: PurchaseRole::Current,
                state: Ok(state),
                app_user: own_user.map(|user| (user.to_owned(), AppUserIdSource::Purchase)),
            };
        }
        self.subscriptions
            .insert(token.to_owned(), Ok(fetched.clone()));
        let (_, standing) = self.load_standing(token, &Ok(fetched), false).await;
        standing
    }

    /// Where a purchase stands that Google no longer tells of, for a verify request. `None` where no other is known to have
    /// taken its place.
    pub(super) async fn find_replacement(&mut self, token: &str) -> Option<SubscriptionStanding> {
        let (newest, state, user) = match self.find_newest(token, None, true).await {
            NewestPurchase::None => return None,
            NewestPurchase::NotFetched(newest, error) => (newest, Err(error), None),
            NewestPurchase::Found(newest, fetched) => {
                let user = chain::own_user(&fetched.purchase).map(str::to_owned);
                (newest, self.state_of(&fetched).await, user)
            }
        };
        let mut chain = PurchaseChain::starting_at(token);
        self.follow_chain(&mut chain, Some(token)).await;
        self.store_new_links(&chain).await;
        let user = chain.app_user_id().map(str::to_owned).or(user);
        Some(SubscriptionStanding {
            first_token: chain.first_token().to_owned(),
            role: PurchaseRole::Replaced { by: Some(newest) },
            state,
            app_user: user.map(|user| (user, AppUserIdSource::Purchase)),
        })
    }

    async fn load_standing(
        &mut self,
        token: &str,
        lookup: &Lookup<SubscriptionPurchase>,
        is_new: bool,
    ) -> (ReplacedPurchase, SubscriptionStanding) {
        let mut chain = PurchaseChain::starting_at(token);
        let mut replaced = ReplacedPurchase::Unknown;
        if let Ok(Fetched { purchase, .. }) = lookup {
            let link = PurchaseLink::from_purchase(token, purchase);
            // What Google tells no more is stored.
            if link.replaces.is_some() {
                chain.follow_new_link(link);
            }
            let earlier = purchase.linked_purchase_token.as_deref();
            match earlier.filter(|earlier| *earlier != token) {
                None => replaced = ReplacedPurchase::Nothing,
                Some(earlier) if is_new => {
                    replaced = self
                        .check_replaced_purchase(earlier, purchase, &mut chain)
                        .await;
                }
                Some(_) => {}
            }
        }
        let unanswered = lookup.is_err().then_some(token);
        self.follow_chain(&mut chain, unanswered).await;
        let (role, state) = self.find_current_state(token, lookup).await;
        self.store_new_links(&chain).await;
        let app_user = match lookup {
            Ok(Fetched { purchase, .. }) => match chain::own_user(purchase) {
                Some(user) => Some((user.to_owned(), AppUserIdSource::Purchase)),
                None => chain
                    .app_user_id()
                    .map(|user| (user.to_owned(), AppUserIdSource::EarlierPurchase)),
            },
            Err(_) => None,
        };
        let standing = SubscriptionStanding {
            first_token: chain.first_token().to_owned(),
            role,
            state,
            app_user,
        };
        (replaced, standing)
    }

    /// What the purchase is among those of its subscription, and the state of the current one.
    async fn find_current_state(
        &mut self,
        token: &str,
        lookup: &Lookup<SubscriptionPurchase>,
    ) -> (PurchaseRole, Result<PurchaseState, StateError>) {
        let is_replaced = match lookup {
            Ok(fetched) => translate::is_replaced(&fetched.purchase),
            Err(reason) => *reason == Some(GoogleNotFound::Gone),
        };
        match self.find_newest(token, None, is_replaced).await {
            NewestPurchase::Found(newest, fetched) => {
                let state = self.state_of(&fetched).await;
                return (PurchaseRole::Replaced { by: Some(newest) }, state);
            }
            NewestPurchase::NotFetched(newest, error) => {
                return (PurchaseRole::Replaced { by: Some(newest) }, Err(error));
            }
            NewestPurchase::None => {}
        }
        match lookup {
            Ok(_) if is_replaced => (
                PurchaseRole::Replaced { by: None },
                Err(StateError::ReplacedByUnknown),
            ),
            Ok(fetched) if !chain::is_paid(&fetched.purchase) => {
                self.find_unpaid_state(token, fetched).await
            }
            Ok(fetched) => (PurchaseRole::Current, self.state_of(fetched).await),
            Err(Some(GoogleNotFound::Gone)) => {
                (PurchaseRole::Current, Err(StateError::ReplacedByUnknown))
            }
            Err(_) => (PurchaseRole::Current, Err(StateError::StoreUnavailable)),
        }
    }

    /// The same for a purchase that is not paid, or never was: the one that it was to replace goes on.
    async fn find_unpaid_state(
        &mut self,
        token: &str,
        fetched: &Fetched<SubscriptionPurchase>,
    ) -> (PurchaseRole, Result<PurchaseState, StateError>) {
        let earlier = chain::earlier_token(&fetched.purchase).filter(|earlier| *earlier != token);
        let Some(earlier) = earlier else {
            return (PurchaseRole::Current, self.state_of(fetched).await);
        };
        let current = match self.find_newest(earlier, Some(token), false).await {
            NewestPurchase::Found(_, newest) => self.state_of(&newest).await,
            NewestPurchase::NotFetched(_, error) => Err(error),
            NewestPurchase::None => match self.fetch_subscription(earlier).await {
                Ok(earlier) => self.state_of(&earlier).await,
                Err(None) => Err(StateError::StoreUnavailable),
                // It is over: what is left is the one that is not paid.
                Err(Some(_)) => self.state_of(fetched).await,
            },
        };
        (PurchaseRole::Unpaid, current)
    }

    /// The newest purchase that was ever paid of those that replace `token`, without `except`. `asks_unpaid`: also asks about
    /// those again that were not paid when they were last heard of.
    async fn find_newest(
        &mut self,
        token: &str,
        except: Option<&str>,
        asks_unpaid: bool,
    ) -> NewestPurchase {
        let (database, tenant) = (&self.google.database, self.tenant);
        let later =
            store::list_later_purchase_links(database, tenant, token, MAX_LINKS_PER_QUERY).await;
        let later = match later {
            Ok(later) => later,
            Err(error) => {
                self.log_links_unavailable(&error);
                return NewestPurchase::None;
            }
        };
        // In a cycle none is the newest.
        if later.iter().any(|link| link.token == token) {
            return NewestPurchase::None;
        }
        for link in later {
            if except == Some(&*link.token) || (link.is_paid == Some(false) && !asks_unpaid) {
                continue;
            }
            match self.fetch_subscription(&link.token).await {
                Ok(fetched) if chain::is_paid(&fetched.purchase) => {
                    return NewestPurchase::Found(link.token, fetched);
                }
                Err(None) if link.is_paid != Some(false) => {
                    return NewestPurchase::NotFetched(link.token, StateError::StoreUnavailable);
                }
                Err(Some(_)) if link.is_paid == Some(true) => {
                    return NewestPurchase::NotFetched(link.token, StateError::ReplacedByUnknown);
                }
                Ok(_) | Err(_) => {}
            }
        }
        NewestPurchase::None
    }

    /// The state by the purchase's own record. None if it says that another one took its place.
    async fn state_of(
        &mut self,
        fetched: &Fetched<SubscriptionPurchase>,
    ) -> Result<PurchaseState, StateError> {
        let purchase = &fetched.purchase;
        if translate::is_replaced(purchase) {
            return Err(StateError::ReplacedByUnknown);
        }
        let extended = purchase.linked_purchase_token.as_deref();
        let extends_until = match extended.filter(|_| state::owes_by_length(purchase)) {
            Some(earlier) => {
                let earlier = self.fetch_subscription(earlier).await.ok();
                earlier.and_then(|earlier| {
                    let item = state::current_line_item(&earlier.purchase)?;
                    item.prepaid_plan.and(item.expiry_time)
                })
            }
            None => None,
        };
        let now = self.google.clock.now();
        let state = state::subscription_state(purchase, extends_until, fetched.fetched_at, now);
        Ok(state)
    }

    /// What became of the purchase `earlier` that `purchase` replaced.
    async fn check_replaced_purchase(
        &mut self,
        earlier: &str,
        purchase: &SubscriptionPurchase,
        chain: &mut PurchaseChain,
    ) -> ReplacedPurchase {
        match self.fetch_subscription(earlier).await {
            Ok(found) => {
                let replaced_at = purchase.start_time.unwrap_or(self.google.clock.now());
                chain.follow_new_link(PurchaseLink::from_purchase(earlier, &found.purchase));
                if translate::was_running(&found.purchase, replaced_at) {
                    ReplacedPurchase::Running(translate::replacement_kind(
                        purchase,
                        &found.purchase,
                    ))
                } else {
                    ReplacedPurchase::Ended
                }
            }
            Err(Some(_)) => ReplacedPurchase::Ended,
            Err(None) => ReplacedPurchase::Unknown,
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
                    Ok(fetched) => {
                        let link = PurchaseLink::from_purchase(&next, &fetched.purchase);
                        chain.follow_new_link(link);
                    }
                    // Google will never say what came before it.
                    Err(Some(GoogleNotFound::Gone)) => chain.end_at(&next),
                    Err(_) => return,
                }
            }
            for link in &stored {
                chain.follow_link(link);
            }
        }
    }

    /// Stores what Google named just now, including the other purchases that it was asked about.
    async fn store_new_links(&self, chain: &PurchaseChain) {
        let mut links = chain.new_links().to_vec();
        for (token, lookup) in &self.subscriptions {
            if let Ok(Fetched { purchase, .. }) = lookup
                && links.iter().all(|link| link.token != *token)
            {
                links.push(PurchaseLink::from_purchase(token, purchase));
            }
        }
        if links.is_empty() {
            return;
        }
        let stored = store::insert_purchase_links(
            &self.google.database,
            self.tenant,
            &links,
            chain.tokens(),
        )
        .await;
        if let Err(error) = stored {
            self.log_links_unavailable(&error);
        }
    }

    fn log_links_unavailable(&self, error: &db::Error) {
        tracing::warn!(
            tenantId = self.tenant.as_str(),
            cause = db::describe_cause(error),
            causeClass = db::error_class(error),
            "google_purchase_links_not_used"
        );
    }

    /// Asks once about each token.
    async fn fetch_subscription(&mut self, token: &str) -> Lookup<SubscriptionPurchase> {
        if let Some(known) = self.subscriptions.get(token) {
            return known.clone();
        }
        let GoogleCredentials {
            account,
            package_name,
            ..
        } = self.credentials;
        let play = &self.google.play;
        let call = play.get_subscription(self.tenant, account, package_name, token);
        let lookup = self.run_lookup(call).await;
        self.subscriptions.insert(token.to_owned(), lookup.clone());
        lookup
    }

    async fn run_lookup<T>(
        &mut self,
        call: impl Future<Output = Result<PurchaseResponse<T>, PurchaseLookupError>>,
    ) -> Lookup<T> {
        let Some(left) = self.lookups_left.checked_sub(1) else {
            return Err(None);
        };
        self.lookups_left = left;
        let (cause, class, retry_after) = match timeout_at(self.deadline, call).await {
            Ok(Ok(response)) => {
                return Ok(Fetched {
                    purchase: Arc::new(response.purchase),
                    fetched_at: self.google.database.to_database_time(response.fetched_at),
                });
            }
            Ok(Err(PurchaseLookupError::NotFound(reason))) => return Err(Some(reason)),
            // Of this app or product there is no such purchase.
            Ok(Err(PurchaseLookupError::OtherApp | PurchaseLookupError::OtherProduct)) => {
                return Err(Some(GoogleNotFound::Malformed));
            }
            Ok(Err(PurchaseLookupError::Api(error))) => {
                (error.to_string(), error.class(), error.retry_after())
            }
            Err(_) => (
                format!("no answer within {PURCHASE_LOOKUP_TIMEOUT:?}"),
                "google timeout".to_owned(),
                None,
            ),
        };
        if self.logs_failures {
            tracing::warn!(
                tenantId = self.tenant.as_str(),
                cause,
                causeClass = class,
                hint = "The event is stored without what only Google could tell.",
                "google_purchase_not_read"
            );
        }
        self.failure = Some(LookupFailure {
            class,
            cause,
            retry_after,
        });
        Err(None)
    }
}
