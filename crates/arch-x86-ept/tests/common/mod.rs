//! A guest with tables of its own on top of an EPT tree, built word by word.
#![allow(dead_code)] // Each test file uses a part.

use arch_x86_ept::{Ept, EptAttrs, LongMode, LongModeAttrs, LongModeFault};
use mmu_core::image::MemoryImage;
use mmu_core::tlb::Perms;
use mmu_core::walk::{NestedCursor, NestedFault, NoCaches, Translation};
use mmu_core::{Access, Format, Gpa, Hpa, Leaf, Level, PageSize};

/// Guest-physical address g lies at host-physical `BACKING + g`.
pub const BACKING: u64 = 1 << 35;
pub const EPT_ROOT: Hpa = Hpa::new(0x10_0000);
pub const CR3: Gpa = Gpa::new(0x20_0000);
/// Where the mapped page of the guest is.
pub const GVA: u64 = 0x7f12_3456_7008;
pub const PAGE: Gpa = Gpa::new(0x1_8000_0000);

pub type Answer = Result<Translation, NestedFault<LongModeFault, <Ept as Format>::Fault>>;

#[derive(Clone)]
pub struct Machine {
    pub guest: LongMode,
    pub ept: Ept,
    pub image: MemoryImage,
    host_page: PageSize,
    next_host_table: u64,
    next_guest_table: u64,
}

impl Machine {
    pub fn new(guest: LongMode, ept: Ept, host_page: PageSize) -> Self {
        Self {
            guest,
            ept,
            image: MemoryImage::everywhere(),
            host_page,
            next_host_table: EPT_ROOT.raw() + 0x1000,
            next_guest_table: CR3.raw() + 0x1000,
        }
    }

    /// One page of `size` at [`GVA`], with every page that the walk needs mapped by the EPT.
    pub fn with_page(mut self, size: PageSize) -> Self {
        let leaf =
            Leaf { output: Hpa::new(PAGE.raw()), perms: Perms::RWX, accessed: false, attrs: LongModeAttrs::default() };
        self.back(PAGE + (GVA & (size.bytes() - 1)));
        self.map_guest(GVA, leaf, size);
        self
    }

    /// Maps the host page that holds `gpa`, readable, writable and executable.
    pub fn back(&mut self, gpa: Gpa) {
        let start = gpa.align_down(self.host_page);
        let target = self.ept.geometry().level_of(self.host_page).expect("a legal size");
        let mut table = EPT_ROOT;
        let mut level = self.ept.geometry().root();
        while level > target {
            let at = table + 8 * self.ept.geometry().index(level, start.raw()) as u64;
            if self.image.get(at) == 0 {
                let word = self.ept.encode_table(level, Hpa::new(self.next_host_table)).unwrap();
                self.image.set(at, word & !self.ept.accessed_mask()).unwrap();
                self.next_host_table += 0x1000;
            }
            table = self.ept.next_table(level, self.image.get(at));
            level = level.down().unwrap();
        }
        let perms = if self.ept.dirty_mask() == 0 { Perms::RWX.with(Perms::DIRTY) } else { Perms::RWX };
        let accessed = self.ept.accessed_mask() == 0;
        let leaf = Leaf { output: Hpa::new(BACKING + start.raw()), perms, accessed, attrs: EptAttrs::default() };
        let at = table + 8 * self.ept.geometry().index(level, start.raw()) as u64;
        self.image.set(at, self.ept.encode_leaf(level, &leaf).unwrap()).unwrap();
    }

    /// Where the first-stage entry for `gva` at `level` is, creating tables down to it.
    pub fn guest_entry(&mut self, gva: u64, level: Level) -> Gpa {
        let mut table = CR3;
        let mut at_level = self.guest.geometry().root();
        loop {
            self.back(table);
            let at = table + 8 * self.guest.geometry().index(at_level, gva) as u64;
            if at_level == level {
                return at;
            }
            let host = Hpa::new(BACKING + at.raw());
            if self.image.get(host) == 0 {
                let next = Hpa::new(self.next_guest_table);
                self.image.set(host, self.guest.encode_table(at_level, next).unwrap()).unwrap();
                self.next_guest_table += 0x1000;
            }
            table = Gpa::new(self.guest.next_table(at_level, self.image.get(host)).raw());
            at_level = at_level.down().unwrap();
        }
    }

    pub fn map_guest(&mut self, gva: u64, leaf: Leaf<LongModeAttrs>, size: PageSize) {
        let level = self.guest.geometry().level_of(size).expect("a legal size");
        let at = self.guest_entry(gva, level);
        let word = self.guest.encode_leaf(level, &leaf).unwrap();
        self.image.set(Hpa::new(BACKING + at.raw()), word).unwrap();
    }

    /// Where the EPT leaf or table entry for `gpa` at `level` is; its tables must exist.
    pub fn ept_entry(&self, gpa: Gpa, level: Level) -> Hpa {
        let mut table = EPT_ROOT;
        let mut at_level = self.ept.geometry().root();
        loop {
            let at = table + 8 * self.ept.geometry().index(at_level, gpa.raw()) as u64;
            if at_level == level {
                return at;
            }
            table = self.ept.next_table(at_level, self.image.get(at));
            at_level = at_level.down().unwrap();
        }
    }

    pub fn cursor(&self, access: Access) -> NestedCursor<LongMode, Ept> {
        NestedCursor::new(self.guest, CR3, self.ept, EPT_ROOT, GVA, access)
    }

    pub fn access(&mut self, access: Access) -> Answer {
        self.cursor(access).run(&mut self.image, &mut NoCaches)
    }
}
