//! Which host pages have been cleaned to the point of coherency since they were last dirtied.
//!
//! A host that zeroes a page, or whose user space writes one, leaves the bytes in its data caches. A guest that runs with its own caches off (every
//! Arm guest before it turns its MMU on) reads memory around them: without `FEAT_S2FWB` it sees what memory held before,
//! unless the hypervisor cleaned the page first. What such a guest itself wrote through caches is its own to clean, so guest
//! stores do not count here. The set is held as stretches: a guest that was cleaned in whole is one.

use mmu_core::Hpa;

use super::stretches::Stretches;

/// Whether an access of a guest goes through the data caches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum GuestCaches {
    /// It does.
    #[default]
    On,
    /// It goes around them: it sees only what was cleaned to the point of coherency.
    Off,
}

/// The clean host pages of one VM. Everything is uncleaned at first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleanliness {
    cleaned: Stretches,
}

impl Cleanliness {
    /// `bytes` bytes from `host` on were cleaned to the point of coherency.
    pub fn clean(&mut self, host: Hpa, bytes: u64) {
        self.cleaned.insert(host.raw(), bytes);
    }
    /// The host wrote `bytes` bytes from `host` on through its caches.
    pub fn dirty(&mut self, host: Hpa, bytes: u64) {
        self.cleaned.remove(host.raw(), bytes);
    }
    /// Whether memory holds what was last written at `host`.
    pub fn is_clean(&self, host: Hpa) -> bool {
        self.cleaned.contains(host.raw())
    }
    /// Bytes that are clean.
    pub fn cleaned_bytes(&self) -> u64 {
        self.cleaned.total()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_a_page_of_a_clean_block_leaves_the_others_clean() {
        let mut pages = Cleanliness::default();
        assert!(!pages.is_clean(Hpa::new(0x20_0000)));
        pages.clean(Hpa::new(0x20_0000), 0x20_0000);
        pages.dirty(Hpa::new(0x20_3000), 0x1000);
        assert!(pages.is_clean(Hpa::new(0x20_2fff)));
        assert!(!pages.is_clean(Hpa::new(0x20_3000)));
        assert!(pages.is_clean(Hpa::new(0x20_4000)));
        assert_eq!(pages.cleaned_bytes(), 0x1f_f000);
    }
}
