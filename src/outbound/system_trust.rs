//! The root certificates that this machine trusts.

use std::sync::{Arc, LazyLock};

use rustls::crypto::aws_lc_rs;
use rustls_platform_verifier::Verifier;

/// Accepts server certificates that lead to a root certificate of the operating system, or of the files that `SSL_CERT_FILE`
/// and `SSL_CERT_DIR` name. Fails if there is none.
///
/// They are read once: a hundred and fifty files, whose parsing is most of the time of a start.
pub(crate) fn system_verifier() -> Result<Arc<Verifier>, rustls::Error> {
    static READ: LazyLock<Result<Arc<Verifier>, rustls::Error>> = LazyLock::new(|| {
        let provider = Arc::new(aws_lc_rs::default_provider());
        Ok(Arc::new(Verifier::new(provider)?))
    });
    READ.clone()
}
