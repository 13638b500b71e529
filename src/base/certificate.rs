//! What several rooms read from X.509 certificates.

use x509_cert::Certificate;
use x509_cert::time::Time;

use super::clock::Timestamp;

/// From when until when the certificate is valid.
pub(crate) fn validity_period(certificate: &Certificate) -> (Timestamp, Timestamp) {
    let validity = certificate.tbs_certificate().validity();
    (
        to_timestamp(validity.not_before),
        to_timestamp(validity.not_after),
    )
}

fn to_timestamp(time: Time) -> Timestamp {
    let millis = time.to_unix_duration().as_millis();
    Timestamp::from_millis(i64::try_from(millis).unwrap_or(i64::MAX))
}
