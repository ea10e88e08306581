//! The protocol lint.
