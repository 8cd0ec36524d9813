//! The virtual switch.
fn main() {}
