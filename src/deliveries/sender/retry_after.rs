//! The header `Retry-After`: seconds or a date (RFC 9110).

use std::time::Duration;

use hyper::http::HeaderValue;
use time::PrimitiveDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::base::clock::Timestamp;

/// The only form that programs write today: `Sun, 06 Nov 1994 08:49:37 GMT`.
const HTTP_DATE: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

/// How long the receiver asks us to wait from `now`, not capped. `None` when the value cannot be parsed or is in the past.
pub(super) fn parse_retry_after(value: &HeaderValue, now: Timestamp) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that is too large means "very long".
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let moment = PrimitiveDateTime::parse(text, HTTP_DATE).ok()?;
    let moment = Timestamp::from(moment.assume_utc());
    (moment > now).then(|| moment.duration_since(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_delays_and_future_dates_count() {
        let now = Timestamp::parse("2026-04-10T14:22:10Z").unwrap();
        for (text, expected) in [
            ("5", Some(5)),
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("Fri, 10 Apr 2026 14:23:10 GMT", Some(60)),
            ("Fri, 10 Apr 2026 14:22:10 GMT", None),
            ("Fri, 10 Apr 2026 14:21:10 GMT", None),
            ("-1", None),
            ("+5", None),
            ("1.5", None),
            ("1e99", None),
            ("soon", None),
            ("", None),
        ] {
            let value = HeaderValue::from_static(text);
            let expected = expected.map(Duration::from_secs);
            assert_eq!(parse_retry_after(&value, now), expected, "{text}");
        }
    }
}
