//! The KVM microVM monitor of Hopyard.
#![warn(missing_docs)]
