//! Which purchase was the first of a subscription. Pure.
//!
//! Every change of plan makes a new purchase token that names the one it replaces. The first of them names them all.

/// The most purchases one subscription is followed back through.
const MAX_CHAIN_LENGTH: usize = 1000;

/// What one purchase says of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PurchaseLink {
    /// A purchase.
    pub token: String,
    /// The one it replaces. `None`: it is the first, as far as anybody can still tell.
    pub replaces: Option<String>,
}

/// A way back through purchases, from the newest.
#[derive(Clone, Debug)]
pub struct PurchaseChain {
    /// Without repetition; the last is the oldest that was reached.
    tokens: Vec<String>,
    is_complete: bool,
    /// Where a circle begins, if the way leads into one.
    cycle_start: Option<usize>,
}

impl PurchaseChain {
    /// Begins at a purchase.
    pub fn starting_at(token: &str) -> Self {
        Self {
            tokens: vec![token.to_owned()],
            is_complete: false,
            cycle_start: None,
        }
    }

    /// The purchase whose link is wanted next. `None` when the way ends.
    pub fn next_token(&self) -> Option<&str> {
        let last = self.tokens.last().filter(|_| !self.is_complete)?;
        Some(last)
    }

    /// Goes on by the link of the purchase that [`wanted`](Self::wanted) named; a link of another is passed over.
    pub fn follow_link(&mut self, link: &PurchaseLink) {
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

    /// The first purchase that was reached. In a circle, where none is the first, all of its members agree on one.
    pub fn first_token(&self) -> &str {
        let end = match self.cycle_start {
            Some(begin) => self.tokens[begin..].iter().min(),
            None => self.tokens.last(),
        };
        end.expect("it began somewhere")
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
    fn the_first_purchase_is_the_root() {
        let known = links(&[
            ("d", Some("c")),
            ("c", Some("b")),
            ("b", Some("a")),
            ("a", None),
        ]);
        for token in ["a", "b", "c", "d"] {
            assert_eq!(find_first_token(token, &known), "a");
        }
        assert_eq!(find_first_token("x", &known), "x", "nothing is known of it");
        assert_eq!(
            find_first_token("x", &links(&[("x", Some("y"))])),
            "y",
            "as far as known"
        );
    }

    #[test]
    fn in_a_circle_all_agree() {
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
    fn a_link_of_another_purchase_is_passed_over() {
        let mut chain = PurchaseChain::starting_at("a");
        let other = PurchaseLink {
            token: "b".to_owned(),
            replaces: Some("c".to_owned()),
        };
        chain.follow_link(&other);
        assert_eq!((chain.next_token(), chain.first_token()), (Some("a"), "a"));
    }

    #[test]
    fn a_way_without_end_is_left() {
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
        fn every_way_ends_and_its_members_agree(pairs in prop::collection::hash_map(0_u8..20, prop::option::of(0_u8..20), 0..20), start in 0_u8..20) {
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
