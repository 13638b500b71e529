//! What is sealed, bound to what; and the cache of what was opened.
