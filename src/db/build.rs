//! A new file in `migrations/` changes the binary although no line of Rust changed.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
