//! Which host pages have been cleaned to the point of coherency since they were last dirtied.
//!
//! A host that zeroes a page, or whose user space writes one, leaves the bytes in its data caches. A guest that runs with its own caches off (every
//! Arm guest before it turns its MMU on) reads memory around them: without `FEAT_S2FWB` it sees what memory held before,
//! unless the hypervisor cleaned the page first. What such a guest itself wrote through caches is its own to clean, so guest
//! stores do not count here. The set is held as stretches: a guest that was cleaned in whole is one.

use mmu_core::{Bytes, Hpa, HpaRange};

use super::stretches::Stretches;

/// Whether an access of a guest goes through the data caches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub enum GuestCaches {
    /// It does.
    #[default]
    On,
    /// It goes around them: it sees only what was cleaned to the point of coherency.
    Off,
}

/// The clean host pages of one VM. Everything is uncleaned at first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Cleanliness {
    cleaned: Stretches,
}

impl Cleanliness {
    /// The range was cleaned to the point of coherency.
    pub fn clean(&mut self, range: HpaRange) {
        self.cleaned.insert(range.start.raw(), range.bytes.0);
    }
    /// The host wrote the range through its caches.
    pub fn dirty(&mut self, range: HpaRange) {
        self.cleaned.remove(range.start.raw(), range.bytes.0);
    }
    /// Whether memory holds what was last written at `host`.
    pub fn is_clean(&self, host: Hpa) -> bool {
        self.cleaned.contains(host.raw())
    }
    /// How much is clean.
    pub fn cleaned_bytes(&self) -> Bytes {
        Bytes(self.cleaned.total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_a_page_of_a_clean_block_leaves_the_others_clean() {
        let mut pages = Cleanliness::default();
        assert!(!pages.is_clean(Hpa::new(0x20_0000)));
        pages.clean(HpaRange::new(Hpa::new(0x20_0000), Bytes(0x20_0000)));
        pages.dirty(HpaRange::new(Hpa::new(0x20_3000), Bytes(0x1000)));
        assert!(pages.is_clean(Hpa::new(0x20_2fff)));
        assert!(!pages.is_clean(Hpa::new(0x20_3000)));
        assert!(pages.is_clean(Hpa::new(0x20_4000)));
        assert_eq!(pages.cleaned_bytes(), Bytes(0x1f_f000));
    }
}
