//! The format of one radix tree.
//!
//! Before you work on this directory read ISA 3.1 Book III 6.7.10 (Radix Tree Translation) and 6.7.11 (PDE and PTE).

mod config;
mod fault;
mod format;
mod hardware;
mod tlbi;
mod word;

pub use config::{BasePage, FetchDenied, Keys, Radix, RadixError, RcUpdate, RootWord, Scope};
pub use fault::{Cause, RadixFault, Why};
pub use tlbi::{Tlbi, TlbiAp, TlbiForm, TlbiRic, TlbiSelect, invalidation_sequence};
pub use word::{Att, PteAttrs};
