//! Apple: is this transaction real, and what is it now.
