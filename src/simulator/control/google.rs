//! Purchases of Play, made and changed.

use std::sync::Arc;

use crate::clock::Timestamp;
use crate::simulator::identity::ServiceAccount;
use crate::simulator::shared::Shared;
use crate::simulator::state::Refused;
use crate::simulator::state::google::{
    Account, Change, NewProduct, NewSubscription, Product, ProductChange, Replacement, Subscription,
};

/// The simulated Play, seen from the side of those who buy and of its own staff.
#[derive(Clone)]
pub struct Play(Arc<Shared>);

impl Play {
    pub(in crate::simulator) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Somebody subscribes.
    pub fn subscribe(&self, new: NewSubscription) -> Result<Subscription, Refused> {
        self.0
            .change(|state, now, random| state.google.subscribe(new, now, random))
    }

    /// Something happens to a subscription.
    pub fn change_subscription(
        &self,
        token: &str,
        change: &Change,
    ) -> Result<Subscription, Refused> {
        self.0
            .change(|state, now, _| state.google.change_subscription(token, change, now))
    }

    /// Somebody changes plans: a new subscription, linked to the old one, which ends now.
    pub fn replace(&self, token: &str, by: Replacement) -> Result<Subscription, Refused> {
        self.0
            .change(|state, now, random| state.google.replace(token, by, now, random))
    }

    /// Somebody buys a one-time product.
    pub fn sell(&self, new: NewProduct) -> Result<Product, Refused> {
        self.0
            .change(|state, now, random| state.google.sell(new, now, random))
    }

    /// Something happens to a one-time product.
    pub fn change_product(&self, token: &str, change: &ProductChange) -> Result<Product, Refused> {
        self.0
            .change(|state, now, _| state.google.change_product(token, change, now))
    }

    /// A subscription, if it is known.
    pub fn subscription(&self, token: &str) -> Option<Subscription> {
        self.0.inside().state.google.subscription(token).cloned()
    }

    /// A one-time product, if it is known.
    pub fn product(&self, token: &str) -> Option<Product> {
        self.0.inside().state.google.product(token).cloned()
    }

    /// Every subscription, oldest first.
    pub fn subscriptions(&self) -> Vec<Subscription> {
        let inside = self.0.inside();
        inside
            .state
            .google
            .subscriptions()
            .into_iter()
            .cloned()
            .collect()
    }

    /// Every one-time product, oldest first.
    pub fn products(&self) -> Vec<Product> {
        let inside = self.0.inside();
        inside
            .state
            .google
            .products()
            .into_iter()
            .cloned()
            .collect()
    }

    /// One more service account. Its private key is not kept here. `name` becomes part of its address.
    pub fn new_service_account(&self, name: &str) -> Result<ServiceAccount, Refused> {
        let is_plain = |letter: u8| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        if name.is_empty()
            || name.len() > 30
            || !name
                .bytes()
                .all(|letter| is_plain(letter) || letter == b'-')
        {
            return Err(Refused::impossible(
                "A service account's name has 1 to 30 of a–z, 0–9 and '-'.",
            ));
        }
        let account = ServiceAccount::new(name);
        let own = self.0.identity.service_account().client_email.clone();
        self.0.change(|state, _, _| {
            let accounts = &mut state.google.accounts;
            if account.client_email == own || accounts.contains_key(&account.client_email) {
                return Err(Refused::impossible(format!(
                    "There is a service account {} already.",
                    account.client_email
                )));
            }
            let kept = Account {
                key: Some((account.public_key.clone(), account.private_key_id.clone())),
                disabled: false,
                denied: false,
            };
            accounts.insert(account.client_email.clone(), kept);
            Ok(())
        })?;
        Ok(account)
    }

    /// Deletes a service account (the token endpoint answers `invalid_grant`), or takes that back.
    pub fn set_account_disabled(&self, email: &str, disabled: bool) -> Result<(), Refused> {
        self.set_account(email, |account| account.disabled = disabled)
    }

    /// Takes away a service account's permission in the Play Console (403 `permissionDenied`), or gives it back.
    pub fn set_account_denied(&self, email: &str, denied: bool) -> Result<(), Refused> {
        self.set_account(email, |account| account.denied = denied)
    }

    fn set_account(&self, email: &str, change: impl FnOnce(&mut Account)) -> Result<(), Refused> {
        let is_own = self.0.identity.service_account().client_email == email;
        self.0.change(|state, _, _| {
            let accounts = &mut state.google.accounts;
            if is_own && !accounts.contains_key(email) {
                let usual = Account {
                    key: None,
                    disabled: false,
                    denied: false,
                };
                accounts.insert(email.to_owned(), usual);
            }
            let account = accounts.get_mut(email).ok_or_else(|| {
                Refused::unknown(format!("There is no service account {email} here."))
            })?;
            change(account);
            Ok(())
        })
    }

    /// Makes every access token given out so far worthless, before its time.
    pub fn expire_access_tokens(&self) {
        let over = Timestamp::from_millis(0);
        for (_, expires) in self.0.inside().tokens.values_mut() {
            *expires = over;
        }
    }
}
