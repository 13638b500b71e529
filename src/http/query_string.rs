//! Reads the query of a URL, and reports everything that is wrong with it at once. Unknown parameters are ignored, as unknown
//! fields of a body are.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use url::form_urlencoded;

use super::problem::{Issue, Problem};

/// The parameters of a query, and what was found wrong with them.
#[derive(Debug)]
pub(crate) struct QueryParameters {
    values: BTreeMap<String, String>,
    issues: Vec<Issue>,
}

impl QueryParameters {
    /// `query` is the text behind the question mark. A parameter without a value is the same as none.
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let (mut values, mut issues) = (BTreeMap::new(), Vec::new());
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if value.is_empty() {
                continue;
            }
            if values
                .insert(name.clone().into_owned(), value.into_owned())
                .is_some()
            {
                issues.push(Issue::new(name, "is given twice"));
            }
        }
        // No name that was sent is repeated, except one that is known.
        Self { values, issues }
    }

    /// A text of so many characters.
    pub(crate) fn optional_string(
        &mut self,
        name: &str,
        length: RangeInclusive<usize>,
    ) -> Option<String> {
        let text = self.values.get(name)?;
        if length.contains(&text.chars().count()) {
            return Some(text.clone());
        }
        let (least, most) = (length.start(), length.end());
        let message = format!("must have {least} to {most} characters");
        self.issues.push(Issue::new(name, message));
        None
    }

    /// A whole number in `range`.
    pub(crate) fn optional_number(
        &mut self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Option<u64> {
        let number = self.values.get(name)?.parse().ok();
        let number = number.filter(|number| range.contains(number));
        if number.is_none() {
            let (least, most) = (range.start(), range.end());
            let message = format!("must be a whole number from {least} to {most}");
            self.issues.push(Issue::new(name, message));
        }
        number
    }

    /// `true` or `false`.
    pub(crate) fn optional_boolean(&mut self, name: &str) -> Option<bool> {
        let value = self.values.get(name)?.parse().ok();
        if value.is_none() {
            self.issues.push(Issue::new(name, "must be true or false"));
        }
        value
    }

    /// A value that has a text form.
    pub(crate) fn optional_parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Option<T> {
        match self.values.get(name)?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.issues.push(Issue::new(name, error.to_string()));
                None
            }
        }
    }

    /// An error if anything was wrong.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        if self.issues.is_empty() {
            return Ok(());
        }
        Err(Problem::invalid_request(&self.issues))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_and_all_issues_are_reported() {
        let mut query =
            QueryParameters::parse(Some("subject=a%2Fb+c&limit=5&wait=&refresh=true&other=1"));
        assert_eq!(
            query.optional_string("subject", 1..=9).as_deref(),
            Some("a/b c")
        );
        assert_eq!(query.optional_number("limit", 1..=100), Some(5));
        assert_eq!(query.optional_number("wait", 0..=30), None);
        assert_eq!(query.optional_boolean("refresh"), Some(true));
        assert!(query.finish().is_ok());

        let mut query =
            QueryParameters::parse(Some("limit=0&wait=1.5&refresh=1&subject=abc&limit=2"));
        assert_eq!(query.optional_number("limit", 3..=100), None);
        assert_eq!(query.optional_number("wait", 0..=30), None);
        assert_eq!(query.optional_boolean("refresh"), None);
        assert_eq!(query.optional_string("subject", 1..=2), None);
        let problem = query.finish().expect_err("it is refused");
        let issues = problem.details["issues"].as_array().expect("a list");
        let paths: Vec<_> = issues.iter().map(|issue| issue["path"].as_str()).collect();
        let expected = ["limit", "limit", "wait", "refresh", "subject"];
        assert_eq!(paths, expected.map(Some));
    }
}
