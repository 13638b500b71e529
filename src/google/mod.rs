//! Google Play: is this purchase real, and what is it now.
