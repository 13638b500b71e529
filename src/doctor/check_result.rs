//! Checks inside checks, the worst result on top.

use std::fmt::Write as _;

use serde::Serialize;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// It could not be looked at.
    Skipped,
    /// It is well.
    Ok,
    /// It works, and should not stay as it is.
    Warn,
    /// It does not work, or will not for long.
    Fail,
}

impl CheckStatus {
    fn label(self) -> &'static str {
        match self {
            Self::Skipped => "skip",
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// One thing that was looked at, and what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// What it is called, for ever: `keys.canary`.
    pub name: &'static str,
    /// How it is; of a group the worst of its checks.
    pub status: CheckStatus,
    /// What was found, in a sentence.
    pub message: String,
    /// What to do about it. There for every warning and every failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
    /// What belongs to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<CheckResult>,
}

impl CheckResult {
    /// It is well.
    pub fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self::new_leaf(name, CheckStatus::Ok, message.into(), None)
    }

    /// It works, and should not stay as it is.
    pub fn warn(name: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new_leaf(name, CheckStatus::Warn, message.into(), Some(advice.into()))
    }

    /// It does not work, or will not for long.
    pub fn fail(name: &'static str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new_leaf(name, CheckStatus::Fail, message.into(), Some(advice.into()))
    }

    /// It could not be looked at, because of this.
    pub fn skipped(name: &'static str, because: impl Into<String>) -> Self {
        Self::new_leaf(name, CheckStatus::Skipped, because.into(), None)
    }

    /// Several checks. It is as well as the worst of them.
    pub fn group(name: &'static str, title: impl Into<String>, checks: Vec<Self>) -> Self {
        let worst = checks.iter().map(|check| check.status).max();
        Self {
            name,
            status: worst.unwrap_or(CheckStatus::Skipped),
            message: title.into(),
            advice: None,
            checks,
        }
    }

    fn new_leaf(
        name: &'static str,
        status: CheckStatus,
        message: String,
        advice: Option<String>,
    ) -> Self {
        Self {
            name,
            status,
            message,
            advice,
            checks: Vec::new(),
        }
    }

    /// For people: a line each, what belongs to something under it, advice under what needs it.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write_tree(&mut text, 0);
        text.truncate(text.trim_end().len());
        text
    }

    fn write_tree(&self, text: &mut String, depth: usize) {
        let indent = "  ".repeat(depth);
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "{indent}{:<4}  {}", self.status.label(), self.message);
        if let Some(advice) = &self.advice {
            let _ = writeln!(text, "{indent}      → {advice}");
        }
        for check in &self.checks {
            check.write_tree(text, depth + 1);
        }
    }
}

/// `3 callbacks`, `1 callback`.
pub(super) fn pluralize_count(count: i64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// `a, b and 3 more`.
pub(super) fn format_names(names: &[String], count: i64) -> String {
    let shown = names.join(", ");
    let more = count - i64::try_from(names.len()).unwrap_or(0);
    if more > 0 {
        format!("{shown} and {more} more")
    } else {
        shown
    }
}

/// A question to the database that failed.
pub(super) fn query_failed(name: &'static str, error: &crate::db::Error) -> CheckResult {
    CheckResult::fail(
        name,
        format!(
            "{name}: the database refused: {}",
            crate::db::error_class(error)
        ),
        "Has the role of DATABASE_URL the rights on Attesto's tables? The database's log says what it refused.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_on_top_and_what_was_skipped_is_not_the_worst() {
        let tree = CheckResult::group(
            "doctor",
            "Attesto",
            vec![
                CheckResult::group(
                    "a",
                    "A",
                    vec![
                        CheckResult::ok("a.1", "well"),
                        CheckResult::warn("a.2", "so so", "do this"),
                    ],
                ),
                CheckResult::skipped("b", "no database"),
            ],
        );
        assert_eq!(tree.status, CheckStatus::Warn);
        assert_eq!(
            tree.to_text(),
            "warn  Attesto\n  warn  A\n    ok    well\n    warn  so so\n          → do this\n  skip  no database"
        );
        assert_eq!(
            CheckResult::group("x", "X", vec![]).status,
            CheckStatus::Skipped
        );
    }

    #[test]
    fn a_few_are_named_and_many_are_counted() {
        let names = ["a".to_owned(), "b".to_owned()];
        assert_eq!(format_names(&names, 2), "a, b");
        assert_eq!(format_names(&names, 7), "a, b and 5 more");
        assert_eq!(pluralize_count(1, "key", "keys"), "1 key");
        assert_eq!(pluralize_count(2, "key", "keys"), "2 keys");
    }
}
