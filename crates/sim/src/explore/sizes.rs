//! T7: who fills an entry does not meet what vCPUs still have cached for its address.

use mmu_core::{Access, Format, Hpa, Level};

use super::invariant::Invariant;
use super::lab::Lab;
use crate::arch::Arch;

impl<A: Arch> Lab<A> {
    /// T7: nobody who runs on the tree that the entry is in has another page, or where that matters another size, for the address; and nobody
    /// still uses what another actor took away from this very entry last, unless it is the same again. `new` is the leaf, if it is one that is put there.
    pub(crate) fn check_others(&mut self, at: Hpa, gpa: u64, level: Level, new: Option<u64>) {
        let format = self.format;
        let size = format.geometry().page_size(level).bytes();
        let sizes_matter = format.overlap() == mmu_core::Overlap::Conflict;
        let taken = self.words.last_write(at).filter(|write| write.agent != self.acting.0).map(|write| write.old);
        let page = new.map(|new| format.output(level, new));
        let tree = self.root_above(at);
        let mut found = None;
        let pages = std::mem::take(&mut self.ghost.pages);
        let inside = pages.iter().copied().filter(|&at| (gpa..gpa + size).contains(&at));
        // Others' translations have other tags: those of a nested guest, of another root.
        for vcpu in self.exposed().filter(|&vcpu| tree.is_none_or(|tree| tree == self.guests[vcpu].root)) {
            for part in inside.clone().chain([gpa]) {
                self.reach(
                    vcpu,
                    part,
                    Access::READ,
                    |_| {},
                    |cached| {
                        let goes = cached.output(part, format.geometry().page_size(cached.level).bytes());
                        let elsewhere = page.is_some_and(|page| goes != page + (part - gpa));
                        let resized = page.is_some() && sizes_matter && cached.level != level;
                        let same = !elsewhere
                            && new.is_some_and(|new| format.is_writable(new) || !format.is_writable(cached.word));
                        let taken = taken.is_some_and(|taken| self.maps_same(level, taken, cached.word));
                        let unflushed = taken && cached.at == at && !cached.current && !same;
                        if elsewhere || resized || unflushed {
                            found = found.or(Some((vcpu, cached)));
                        }
                    },
                );
            }
        }
        self.ghost.pages = pages;
        self.hold(Invariant::T7, found.is_none(), |_| match found {
            Some((vcpu, cached)) => format!(
                "{at} is filled for {gpa:#x} at {level}, while vCPU {vcpu} may still translate {} to {} by {:#x} of {}",
                cached.gpa, cached.page, cached.word, cached.level
            ),
            None => String::new(),
        });
    }

    /// The root of the tree that an entry is in, as far as its tables are linked.
    pub(crate) fn root_above(&self, at: Hpa) -> Option<Hpa> {
        let mut top = at;
        for _ in 0..Level::MAX_LEVELS {
            match self.words.frame(top) {
                Some(frame) if frame.parent.raw() != 0 => top = frame.parent,
                found => return found.map(|frame| frame.first),
            }
        }
        None
    }
}
