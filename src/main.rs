//! The `attesto` binary.

fn main() {}
