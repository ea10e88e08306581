//! Translation caches.

mod perms;

pub use perms::Perms;
