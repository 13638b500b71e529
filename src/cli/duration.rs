//! Parses durations in arguments: `90s`, `30m`, `24h`, `7d`.

use std::time::Duration;

/// Parses a whole number and its unit.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = || "must be a whole number and a unit: 90s, 30m, 24h or 7d".to_owned();
    let unit_at = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        // Zero needs no unit.
        "" if number == "0" => 0,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(expected)
}

/// A parser that refuses more than this many days.
pub(crate) fn parse_up_to(days: u64) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |text| {
        let duration = parse_duration(text)?;
        if duration > Duration::from_hours(24 * days) {
            return Err(format!("must be at most {days}d"));
        }
        Ok(duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_a_unit() {
        for (text, seconds) in [
            ("0", 0),
            ("0s", 0),
            ("90s", 90),
            ("30m", 1800),
            ("24h", 86_400),
            ("7d", 604_800),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "s",
            "24",
            "-1h",
            "1.5h",
            "1 h",
            "1h30m",
            "1w",
            "99999999999999999999s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_duration("999999999999999999d").is_err());
        assert!(parse_up_to(30)("30d").is_ok());
        assert!(parse_up_to(30)("31d").is_err());
    }
}
