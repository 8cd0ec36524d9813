//! Each discipline against an obviously correct model.
