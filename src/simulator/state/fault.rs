//! Answers that go wrong on request.

use serde::{Deserialize, Serialize};

use super::SimulatorError;

/// Which calls of the simulated stores go wrong, how many, and how.
///
/// Which: all given conditions must hold; the oldest fault that matches is used first. How: the first given of `cut`,
/// `error_code`, `reason`, `status`; a fault with only `delay_ms` gives the correct answer, late.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fault {
    /// Where: one of [`Fault::PLACES`], or the beginning of one (`apple`, `google`).
    #[serde(default)]
    pub at: String,
    /// Only calls about this app: a bundle id or a package name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// Only calls about this transaction id or purchase token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Only calls about a transaction or token that was sold less than so many milliseconds ago, by the simulator's clock:
    /// the real stores do not know a purchase yet that they have just sold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_ms_after_sale: Option<u64>,
    /// How many matching calls are answered correctly first.
    #[serde(default)]
    pub skip: u32,
    /// How many calls go wrong: 1 when left out, all of them when 0.
    #[serde(default = "once")]
    pub times: u32,
    /// The delay before the answer, in milliseconds of real time.
    #[serde(default)]
    pub delay_ms: u64,
    /// Break the connection in the middle of the correct answer.
    #[serde(default)]
    pub cut: bool,
    /// Apple's error code; its first three digits are the HTTP status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<u32>,
    /// Google's reason, such as `permissionDenied`; at `google/token` the OAuth error, such as `invalid_grant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The HTTP status: with `reason`, instead of the usual one; alone, of a gateway's page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The body that goes with `status`, instead of a gateway's page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// `Retry-After` in the store's own form: Apple gives the point in time in milliseconds, Google seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u64>,
    /// `Retry-After` with exactly this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<String>,
}

fn once() -> u32 {
    1
}

impl Fault {
    /// The places of a fault.
    pub const PLACES: [&str; 5] = [
        "apple/production",
        "apple/sandbox",
        "google/play",
        "google/token",
        "google/certs",
    ];

    /// One fault at a place; it needs one of the methods below to do something.
    pub fn at_place(place: &str) -> Self {
        Self {
            at: place.to_owned(),
            times: 1,
            ..Self::default()
        }
    }

    /// The number of calls that go wrong; 0 is all of them.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    /// Answers so many calls correctly first.
    #[must_use]
    pub fn skip_calls(mut self, calls: u32) -> Self {
        self.skip = calls;
        self
    }

    /// Only calls about this transaction id or purchase token.
    #[must_use]
    pub fn for_id(mut self, id: &str) -> Self {
        self.id = Some(id.to_owned());
        self
    }

    /// Only calls about what was sold less than this ago by the simulator's clock, and all of them.
    #[must_use]
    pub fn until_after_sale(mut self, age: std::time::Duration) -> Self {
        self.until_ms_after_sale = Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
        self.times = 0;
        self
    }

    /// Answer with Apple's error of this code.
    #[must_use]
    pub fn error_code(mut self, code: u32) -> Self {
        self.error_code = Some(code);
        self
    }

    /// Answer with Google's error of this reason.
    #[must_use]
    pub fn reason(mut self, reason: &str) -> Self {
        self.reason = Some(reason.to_owned());
        self
    }

    /// Answer with this HTTP status.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// Answer with this body, and 200 unless a status is given.
    #[must_use]
    pub fn body(mut self, body: &str) -> Self {
        self.body = Some(body.to_owned());
        self
    }

    /// Adds `Retry-After` in the store's own form.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// Adds `Retry-After` with exactly this text.
    #[must_use]
    pub fn retry_after_text(mut self, text: &str) -> Self {
        self.retry_after = Some(text.to_owned());
        self
    }

    /// Wait before answering.
    #[must_use]
    pub fn delay(mut self, delay: std::time::Duration) -> Self {
        self.delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Break the connection in the middle of the answer.
    #[must_use]
    pub fn cut(mut self) -> Self {
        self.cut = true;
        self
    }

    /// Refuses a fault that could never match a call, or would do nothing.
    fn validate(&self) -> Result<(), SimulatorError> {
        if !Self::PLACES.iter().any(|place| is_within(place, &self.at)) {
            return Err(SimulatorError::invalid_request(format!(
                "A fault needs a place: \"at\" is \"apple\", \"google\", or one of {}.",
                Self::PLACES.join(", ")
            )));
        }
        let is_apple = self.at.starts_with("apple");
        if is_apple && self.reason.is_some() {
            return Err(SimulatorError::invalid_request(
                "A reason is Google's; Apple's errors have an errorCode, such as 4040010.",
            ));
        }
        if !is_apple && self.error_code.is_some() {
            return Err(SimulatorError::invalid_request(
                "An errorCode is Apple's; Google's errors have a reason, such as permissionDenied.",
            ));
        }
        if let Some(code) = self.error_code
            && !(4_000_000..6_000_000).contains(&code)
        {
            return Err(SimulatorError::invalid_request(
                "Apple's error codes have seven digits and begin with 4 or 5, such as 4040010.",
            ));
        }
        if let Some(status) = self.status
            && !(200..=599).contains(&status)
        {
            return Err(SimulatorError::invalid_request(
                "A status is between 200 and 599.",
            ));
        }
        if let Some(text) = &self.retry_after
            && !text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        {
            return Err(SimulatorError::invalid_request(
                "A Retry-After is made of printable ASCII.",
            ));
        }
        let does_something = self.cut
            || self.delay_ms > 0
            || self.error_code.is_some()
            || self.reason.is_some()
            || self.status.is_some()
            || self.body.is_some();
        if !does_something {
            return Err(SimulatorError::invalid_request(
                "A fault needs something to do: errorCode, reason, status, body, delayMs or cut.",
            ));
        }
        Ok(())
    }

    fn matches_call(&self, call: &StoreCall<'_>) -> bool {
        let same = |wanted: &Option<String>, found: Option<&str>| {
            wanted.is_none() || wanted.as_deref() == found
        };
        let is_fresh = |limit: u64| {
            call.age_of_purchase
                .is_some_and(|age| age.as_millis() < u128::from(limit))
        };
        is_within(call.place, &self.at)
            && same(&self.app, call.app)
            && same(&self.id, call.id)
            && self.until_ms_after_sale.is_none_or(is_fresh)
    }
}

/// A call of a simulated store, as far as a fault looks at it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StoreCall<'a> {
    /// One of [`Fault::PLACES`].
    pub(crate) place: &'a str,
    /// The bundle id or package name.
    pub(crate) app: Option<&'a str>,
    /// The transaction id, purchase token or order id.
    pub(crate) id: Option<&'a str>,
    /// How long ago the purchase was made. `None` for a call about none.
    pub(crate) age_of_purchase: Option<std::time::Duration>,
}

fn is_within(place: &str, at: &str) -> bool {
    place
        .strip_prefix(at)
        .is_some_and(|rest| rest.is_empty() || (!at.is_empty() && rest.starts_with('/')))
}

/// The active faults, oldest first.
#[derive(Debug, Default)]
pub(crate) struct ActiveFaults(Vec<Fault>);

impl ActiveFaults {
    pub(crate) fn add(&mut self, fault: Fault) -> Result<(), SimulatorError> {
        fault.validate()?;
        self.0.push(fault);
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn as_slice(&self) -> &[Fault] {
        &self.0
    }

    /// The fault for this call. Counts the call, and removes a fault that is used up.
    pub(crate) fn take_matching(&mut self, call: &StoreCall<'_>) -> Option<Fault> {
        let mut found = None;
        for (index, fault) in self.0.iter_mut().enumerate() {
            if !fault.matches_call(call) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            found = Some(index);
            break;
        }
        let index = found?;
        let fault = self.0[index].clone();
        match fault.times {
            0 => {}
            1 => {
                self.0.remove(index);
            }
            more => self.0[index].times = more - 1,
        }
        Some(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_matches_its_place_and_as_often_as_it_says() {
        let mut faults = ActiveFaults::default();
        let fault = Fault::at_place("apple")
            .error_code(4_040_006)
            .for_id("7")
            .skip_calls(1)
            .times(2);
        faults.add(fault).unwrap();
        let of_another_app = Fault {
            app: Some("other".to_owned()),
            ..Fault::at_place("google/play").status(500)
        };
        faults.add(of_another_app).unwrap();
        faults
            .add(Fault::at_place("google/token").status(503).times(0))
            .unwrap();
        let mut matches = |place, id| {
            let call = StoreCall {
                place,
                app: Some("app"),
                id: Some(id),
                age_of_purchase: None,
            };
            faults.take_matching(&call).is_some()
        };
        assert!(!matches("apple/production", "8"), "another id");
        assert!(
            !matches("apple/production", "7"),
            "the first is answered correctly"
        );
        assert!(matches("apple/production", "7"));
        assert!(matches("apple/sandbox", "7"));
        assert!(!matches("apple/production", "7"), "used up");
        assert!(!matches("google/play", "7"));
        for _ in 0..5 {
            assert!(matches("google/token", "7"));
        }
        assert_eq!(faults.as_slice().len(), 2);
    }

    #[test]
    fn a_fault_of_a_fresh_purchase_ends_with_its_age() {
        let mut faults = ActiveFaults::default();
        let not_found = Fault::at_place("google/play").reason("purchaseTokenNotFound");
        let limit = std::time::Duration::from_millis(300);
        faults.add(not_found.until_after_sale(limit)).unwrap();
        for (age, expected) in [
            (Some(0), true),
            (Some(299), true),
            (Some(300), false),
            (None, false),
        ] {
            let call = StoreCall {
                place: "google/play",
                age_of_purchase: age.map(std::time::Duration::from_millis),
                ..StoreCall::default()
            };
            assert_eq!(faults.take_matching(&call).is_some(), expected, "{age:?}");
        }
    }

    #[test]
    fn a_fault_that_could_do_nothing_is_refused() {
        for fault in [
            Fault::default(),
            Fault::at_place("").status(500),
            Fault::at_place("app").status(500),
            Fault::at_place("apple"),
            Fault::at_place("apple/").status(500),
            Fault::at_place("apple").reason("permissionDenied"),
            Fault::at_place("google/play").error_code(4_040_010),
            Fault::at_place("apple").error_code(404),
            Fault::at_place("apple").status(99),
            Fault::at_place("apple")
                .status(429)
                .retry_after_text("a\nb"),
        ] {
            assert!(
                ActiveFaults::default().add(fault.clone()).is_err(),
                "{fault:?}"
            );
        }
    }
}
