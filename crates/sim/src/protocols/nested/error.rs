//! Why a nested guest's page cannot be mapped.

use mmu_core::Gpa;

/// Why a shadow mapping could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShadowError {
    /// No table: the pool is exhausted; release the shadow tables or give the VM more memory.
    NoTable,
    /// More chain entries than `Shadow::new` was asked for; release the shadow tables.
    NoChainEntry,
    /// The L1 page lies beyond the L1 memory that chains were made for.
    NoChain {
        /// The L1 address.
        l1: Gpa,
    },
    /// The address cannot be mapped in this format.
    Address {
        /// The L2 address.
        l2: Gpa,
    },
}

impl std::fmt::Display for ShadowError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ShadowError::NoTable => f.write_str("no memory for a shadow table: release the shadow tables first"),
            ShadowError::NoChainEntry => f.write_str("no chain entry left: release the shadow tables, or make more"),
            ShadowError::NoChain { l1 } => write!(f, "L1 address {l1} has no chain: it lies beyond L1's memory"),
            ShadowError::Address { l2 } => {
                write!(f, "L2 address {l2} cannot be mapped by this format: use a lower one")
            }
        }
    }
}
impl std::error::Error for ShadowError {}
