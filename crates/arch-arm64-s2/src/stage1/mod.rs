//! The EL1&0 first stage: configuration in [`config`](self), descriptors and walk in `format`.

mod config;
mod format;

pub use config::{Stage1, Stage1Config, UpperHalf};
pub use format::S1Attrs;
