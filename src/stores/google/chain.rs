//! Which purchase was the first of a subscription. Pure.
//!
//! Every change of plan makes a new purchase token that names the one it replaces. The first token of the chain stands for
//! the whole subscription.

use super::payload::{ExternalAccountIdentifiers, SubscriptionPurchase};

/// The most purchases that one chain is followed through.
const MAX_CHAIN_LENGTH: usize = 1000;

/// Which purchase another one replaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PurchaseLink {
    pub(super) token: String,
    /// The replaced purchase. `None`: `token` is the first, as far as Google still knows.
    pub(super) replaces: Option<String>,
    /// Whether `token` was ever paid for. `None`: not known.
    pub(super) is_paid: Option<bool>,
    /// The app's user of `token`, or of the purchase that it follows: Google forgets the latter.
    pub(super) app_user_id: Option<String>,
}

impl PurchaseLink {
    /// What Google's record of the purchase `token` says.
    pub(super) fn from_purchase(token: &str, purchase: &SubscriptionPurchase) -> Self {
        Self {
            token: token.to_owned(),
            replaces: earlier_token(purchase).map(str::to_owned),
            is_paid: Some(is_paid(purchase)),
            app_user_id: own_user(purchase)
                .or_else(|| earlier_user(purchase))
                .map(str::to_owned),
        }
    }

    /// The purchase `token` is the first that Google still knows.
    fn first(token: &str) -> Self {
        Self {
            token: token.to_owned(),
            ..Self::default()
        }
    }
}

/// The purchase that this one replaces, or follows after it had lapsed.
pub(super) fn earlier_token(purchase: &SubscriptionPurchase) -> Option<&str> {
    let lapsed = || {
        let context = purchase.out_of_app_purchase_context.as_ref()?;
        context.expired_purchase_token.as_deref()
    };
    purchase.linked_purchase_token.as_deref().or_else(lapsed)
}

/// The app's user as this purchase names them.
pub(super) fn own_user(purchase: &SubscriptionPurchase) -> Option<&str> {
    user_of(purchase.external_account_identifiers.as_ref())
}

/// The app's user of the lapsed purchase that this one follows. Google tells until this one is acknowledged.
fn earlier_user(purchase: &SubscriptionPurchase) -> Option<&str> {
    let context = purchase.out_of_app_purchase_context.as_ref()?;
    user_of(context.expired_external_account_identifiers.as_ref())
}

fn user_of(identifiers: Option<&ExternalAccountIdentifiers>) -> Option<&str> {
    identifiers?.obfuscated_external_account_id.as_deref()
}

/// Whether a purchase was ever paid for. One that is pending, or was declined while it was pending, replaces nothing.
pub(super) fn is_paid(purchase: &SubscriptionPurchase) -> bool {
    !matches!(
        purchase.subscription_state.as_deref(),
        Some("SUBSCRIPTION_STATE_PENDING" | "SUBSCRIPTION_STATE_PENDING_PURCHASE_CANCELED")
    )
}

/// A chain of purchases, followed from the newest to the first.
#[derive(Clone, Debug)]
pub(super) struct PurchaseChain {
    /// Without repetition; the last is the oldest that was reached.
    tokens: Vec<String>,
    is_complete: bool,
    /// The position in `tokens` where a cycle begins, if the chain leads into one.
    cycle_start: Option<usize>,
    /// The links that Google named and the database does not have yet.
    new_links: Vec<PurchaseLink>,
    /// The app's user as the newest purchase names them that names one.
    app_user_id: Option<String>,
}

impl PurchaseChain {
    pub(super) fn starting_at(token: &str) -> Self {
        Self {
            tokens: vec![token.to_owned()],
            is_complete: false,
            cycle_start: None,
            new_links: Vec::new(),
            app_user_id: None,
        }
    }

    /// The purchase whose link is needed next. `None` when the chain is complete.
    pub(super) fn next_token(&self) -> Option<&str> {
        let last = self.tokens.last().filter(|_| !self.is_complete)?;
        Some(last)
    }

    /// Follows the link of the purchase that [`next_token`](Self::next_token) named; a link of another one is ignored.
    pub(super) fn follow_link(&mut self, link: &PurchaseLink) {
        if self.next_token() != Some(link.token.as_str()) {
            return;
        }
        if self.app_user_id.is_none() {
            self.app_user_id.clone_from(&link.app_user_id);
        }
        let Some(earlier) = &link.replaces else {
            self.is_complete = true;
            return;
        };
        self.cycle_start = self.tokens.iter().position(|token| token == earlier);
        if self.cycle_start.is_none() {
            self.tokens.push(earlier.clone());
        }
        self.is_complete = self.cycle_start.is_some() || self.tokens.len() >= MAX_CHAIN_LENGTH;
    }

    /// The same for a link that Google named just now.
    pub(super) fn follow_new_link(&mut self, link: PurchaseLink) {
        self.follow_link(&link);
        self.new_links.push(link);
    }

    /// The same for a purchase of which Google no longer tells what it replaced.
    pub(super) fn end_at(&mut self, token: &str) {
        self.follow_new_link(PurchaseLink::first(token));
    }

    /// The purchases that were reached, the newest first.
    pub(super) fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// The links that [`follow_new_link`](Self::follow_new_link) was given.
    pub(super) fn new_links(&self) -> &[PurchaseLink] {
        &self.new_links
    }

    /// The app's user as the newest purchase of the chain names them that names one.
    pub(super) fn app_user_id(&self) -> Option<&str> {
        self.app_user_id.as_deref()
    }

    /// The first purchase that was reached. In a cycle, where none is the first, the same one for all its members.
    pub(super) fn first_token(&self) -> &str {
        let first = match self.cycle_start {
            Some(start) => self.tokens[start..].iter().min(),
            None => self.tokens.last(),
        };
        first.expect("a chain has at least the token it started at")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn find_first_token(token: &str, links: &HashMap<String, Option<String>>) -> String {
        let mut chain = PurchaseChain::starting_at(token);
        let mut steps = 0;
        while let Some(next) = chain.next_token()
            && let Some(replaces) = links.get(next)
        {
            let link = PurchaseLink {
                token: next.to_owned(),
                replaces: replaces.clone(),
                ..PurchaseLink::default()
            };
            chain.follow_link(&link);
            steps += 1;
            assert!(steps <= MAX_CHAIN_LENGTH, "it ends");
        }
        chain.first_token().to_owned()
    }

    fn links(pairs: &[(&str, Option<&str>)]) -> HashMap<String, Option<String>> {
        let owned = |(token, replaces): &(&str, Option<&str>)| {
            ((*token).to_owned(), replaces.map(str::to_owned))
        };
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn a_chain_leads_to_the_first_purchase() {
        let known = links(&[
            ("d", Some("c")),
            ("c", Some("b")),
            ("b", Some("a")),
            ("a", None),
        ]);
        for token in ["a", "b", "c", "d"] {
            assert_eq!(find_first_token(token, &known), "a");
        }
        assert_eq!(find_first_token("x", &known), "x", "without links");
        assert_eq!(
            find_first_token("x", &links(&[("x", Some("y"))])),
            "y",
            "as far as known"
        );
    }

    #[test]
    fn all_members_of_a_cycle_have_the_same_first_purchase() {
        let known = links(&[
            ("tail", Some("c")),
            ("c", Some("a")),
            ("a", Some("b")),
            ("b", Some("c")),
            ("self", Some("self")),
        ]);
        for token in ["a", "b", "c", "tail"] {
            assert_eq!(find_first_token(token, &known), "a");
        }
        assert_eq!(find_first_token("self", &known), "self");
    }

    #[test]
    fn a_link_of_another_purchase_is_ignored() {
        let mut chain = PurchaseChain::starting_at("a");
        let other = PurchaseLink {
            token: "b".to_owned(),
            replaces: Some("c".to_owned()),
            ..PurchaseLink::default()
        };
        chain.follow_link(&other);
        assert_eq!((chain.next_token(), chain.first_token()), (Some("a"), "a"));
    }

    #[test]
    fn an_endless_chain_is_cut() {
        let endless: HashMap<String, Option<String>> = (0..MAX_CHAIN_LENGTH * 2)
            .map(|number| (number.to_string(), Some((number + 1).to_string())))
            .collect();
        assert_eq!(
            find_first_token("0", &endless),
            (MAX_CHAIN_LENGTH - 1).to_string()
        );
    }

    proptest! {
        #[test]
        fn every_chain_ends_and_its_members_agree(pairs in prop::collection::hash_map(0_u8..20, prop::option::of(0_u8..20), 0..20), start in 0_u8..20) {
            let known: HashMap<String, Option<String>> = pairs
                .into_iter()
                .map(|(token, replaces)| (token.to_string(), replaces.map(|one| one.to_string())))
                .collect();
            let end = find_first_token(&start.to_string(), &known);
            prop_assert_eq!(find_first_token(&end, &known), end.clone());
            if let Some(Some(earlier)) = known.get(&start.to_string()) {
                prop_assert_eq!(find_first_token(earlier, &known), end);
            }
        }
    }
}
