//! Rebuilds the crate when a migration changes, because the binary embeds them.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
