//! Hashed page tables.
