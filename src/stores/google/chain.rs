//! Which purchase was the first of a subscription. Pure.
//!
//! Every change of plan makes a new purchase token that names the one it replaces. The first token of the chain stands for
//! the whole subscription.

/// The most purchases that one chain is followed through.
const MAX_CHAIN_LENGTH: usize = 1000;

/// Which purchase another one replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PurchaseLink {
    pub(super) token: String,
    /// The replaced purchase. `None`: `token` is the first, as far as Google still knows.
    pub(super) replaces: Option<String>,
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
}

impl PurchaseChain {
    pub(super) fn starting_at(token: &str) -> Self {
        Self {
            tokens: vec![token.to_owned()],
            is_complete: false,
            cycle_start: None,
            new_links: Vec::new(),
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
    pub(super) fn follow_new_link(&mut self, token: &str, replaces: Option<&str>) {
        let link = PurchaseLink {
            token: token.to_owned(),
            replaces: replaces.map(str::to_owned),
        };
        self.follow_link(&link);
        self.new_links.push(link);
    }

    /// The links that [`follow_new_link`](Self::follow_new_link) was given.
    pub(super) fn new_links(&self) -> &[PurchaseLink] {
        &self.new_links
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
