//! The tree that `attesto doctor` prints: checks in groups. The status of a group is that of its worst check.

use std::fmt::Write as _;

use serde::Serialize;

/// The number of names that a message lists. The others are only counted.
pub(super) const MAX_NAMED: i64 = 5;

/// Ordered from the least to the most serious.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CheckStatus {
    /// It could not be checked.
    Skipped,
    Ok,
    /// It works now, and should be corrected.
    Warn,
    /// It does not work, or will stop working soon.
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

/// The result of one check, or of a group of checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// The name, such as `keys.canary`. It never changes between releases.
    pub(crate) name: &'static str,
    /// For a group, the status of its worst check.
    pub(crate) status: CheckStatus,
    /// What was found, in a sentence.
    pub(crate) message: String,
    /// What to do about it. Set for every warning and every failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advice: Option<String>,
    /// The checks of a group.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) checks: Vec<CheckResult>,
}

impl CheckResult {
    pub(super) fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self::new_leaf(name, CheckStatus::Ok, message.into(), None)
    }

    pub(super) fn warn(
        name: &'static str,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new_leaf(name, CheckStatus::Warn, message.into(), Some(advice.into()))
    }

    pub(super) fn fail(
        name: &'static str,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::new_leaf(name, CheckStatus::Fail, message.into(), Some(advice.into()))
    }

    pub(super) fn skipped(name: &'static str, reason: impl Into<String>) -> Self {
        Self::new_leaf(name, CheckStatus::Skipped, reason.into(), None)
    }

    pub(super) fn group(name: &'static str, title: impl Into<String>, checks: Vec<Self>) -> Self {
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

    /// Formats the tree as text: a line for each check, the checks of a group indented below it, and advice below its
    /// check.
    pub(crate) fn to_text(&self) -> String {
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

/// Formats `3 callbacks` or `1 callback`.
pub(super) fn pluralize_count(count: i64, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

/// Formats `a, b and 3 more`. `count` includes items whose names are not in `names`.
pub(super) fn format_names(names: &[String], count: i64) -> String {
    let shown = names.join(", ");
    let more = count - i64::try_from(names.len()).unwrap_or(0);
    if more > 0 {
        format!("{shown} and {more} more")
    } else {
        shown
    }
}

/// The result of a check whose query failed.
pub(super) fn query_failed(name: &'static str, error: &crate::db::Error) -> CheckResult {
    CheckResult::fail(
        name,
        format!("{name}: {}", crate::db::describe_error(error)),
        "Does the role of DATABASE_URL have the privileges on Attesto's tables? The database's log says what it refused.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_as_bad_as_its_worst_check_and_skipped_is_not_bad() {
        let tree = CheckResult::group(
            "doctor",
            "Attesto",
            vec![
                CheckResult::group(
                    "a",
                    "A",
                    vec![
                        CheckResult::ok("a.1", "healthy"),
                        CheckResult::warn("a.2", "unusual", "do this"),
                    ],
                ),
                CheckResult::skipped("b", "no database"),
            ],
        );
        assert_eq!(tree.status, CheckStatus::Warn);
        assert_eq!(
            tree.to_text(),
            "warn  Attesto\n  warn  A\n    ok    healthy\n    warn  unusual\n          → do this\n  skip  no database"
        );
        assert_eq!(
            CheckResult::group("x", "X", vec![]).status,
            CheckStatus::Skipped
        );
    }

    #[test]
    fn names_are_listed_and_the_others_are_counted() {
        let names = ["a".to_owned(), "b".to_owned()];
        assert_eq!(format_names(&names, 2), "a, b");
        assert_eq!(format_names(&names, 7), "a, b and 5 more");
        assert_eq!(pluralize_count(1, "key", "keys"), "1 key");
        assert_eq!(pluralize_count(2, "key", "keys"), "2 keys");
    }
}
