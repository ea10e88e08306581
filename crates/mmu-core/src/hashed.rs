//! Formats whose partition may have a hashed page table instead of a tree (POWER).

use crate::addr::{Gpa, Hpa};
use crate::format::{EncodeError, Format};

/// Which of its two groups an entry stands in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum HashGroup {
    /// That of the hash.
    Primary,
    /// That of the hash's complement.
    Secondary,
}

/// A format that can change places with a hashed page table: one table for the whole guest, in groups of entries of two words.
///
/// All functions are pure. Guest-physical addresses are looked up as KVM's virtual real mode area maps them: as offsets in one segment
/// of a terabyte. Formats without such tables do not implement this, so that what needs them does not compile for those.
pub trait HashedPages: Format {
    /// Entries in a group.
    const GROUP_ENTRIES: u64;
    /// First word: the entry is valid.
    const HASHED_VALID: u64;
    /// First word: the hypervisor's lock on the entry (`HPTE_V_HVLOCK`).
    const HASHED_LOCK: u64;
    /// Second word: the page was referenced.
    const HASHED_REFERENCED: u64;
    /// Second word: the page was changed.
    const HASHED_CHANGED: u64;

    /// The group of `gpa` among `groups`, a power of two.
    ///
    /// # Errors
    /// An address that the area does not reach.
    fn hashed_group(&self, gpa: Gpa, group: HashGroup, groups: u64) -> Result<u64, EncodeError>;
    /// The two words that map the page of `gpa` to `output`, valid, neither referenced nor changed.
    ///
    /// # Errors
    /// An address that the area does not reach, or an illegal output.
    fn hashed_entry(&self, gpa: Gpa, output: Hpa, group: HashGroup) -> Result<[u64; 2], EncodeError>;
    /// Whether these words are a valid entry for the page of `gpa`; the lock does not matter.
    fn hashed_matches(&self, words: [u64; 2], gpa: Gpa, group: HashGroup) -> bool;
}
