//! The same work by other crates.
//!
//! Their tables are live memory. Here physical addresses are the host's virtual ones, so that a table's address is where
//! its words are; nothing loads the tables into a processor.

/// `x86_64`: rust-osdev's mapper over long-mode tables.
#[allow(unsafe_code)] // its constructor and `map_to` are unsafe; see the two arguments below
pub mod x86 {
    use x86_64::structures::paging::{
        FrameAllocator, Mapper, OffsetPageTable, Page, PageTable, PageTableFlags, PhysFrame, Size4KiB, Translate,
    };
    use x86_64::{PhysAddr, VirtAddr};

    /// Tables that own their frames.
    pub struct Tables {
        mapper: OffsetPageTable<'static>,
        frames: Frames,
    }

    /// Frames come from the allocator one by one and are not given back before the process ends: the mapper keeps a
    /// reference for as long as it likes.
    struct Frames(super::Pool);

    // SAFETY: every frame is a fresh, page-aligned page of its own.
    unsafe impl FrameAllocator<Size4KiB> for Frames {
        fn allocate_frame(&mut self) -> Option<PhysFrame> {
            PhysFrame::from_start_address(PhysAddr::new(self.0.take() as u64)).ok()
        }
    }

    impl Tables {
        /// Only a root.
        pub fn new() -> Self {
            let root = Box::leak(Box::new(PageTable::new()));
            // SAFETY: with offset 0 every physical address stored in these tables is where the table lies in this process,
            // and all of them come from `Frames`.
            let mapper = unsafe { OffsetPageTable::new(root, VirtAddr::zero()) };
            Self { mapper, frames: Frames(super::Pool::default()) }
        }

        /// Maps one page.
        #[inline(always)]
        pub fn map(&mut self, gpa: u64, host: u64) {
            let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE | PageTableFlags::ACCESSED;
            let page = Page::<Size4KiB>::containing_address(VirtAddr::new(gpa));
            let frame = PhysFrame::containing_address(PhysAddr::new(host));
            // SAFETY: no processor uses these tables, so no memory becomes reachable by them.
            let mapped = unsafe { self.mapper.map_to(page, frame, flags, &mut self.frames) };
            mapped.expect("not mapped before").ignore();
        }

        /// Takes the permission to write from one page.
        #[inline(always)]
        pub fn protect(&mut self, gpa: u64) {
            let page = Page::<Size4KiB>::containing_address(VirtAddr::new(gpa));
            // SAFETY: no processor uses these tables.
            let changed = unsafe { self.mapper.update_flags(page, PageTableFlags::PRESENT | PageTableFlags::ACCESSED) };
            changed.expect("mapped").ignore();
        }

        /// Unmaps one page.
        #[inline(always)]
        pub fn unmap(&mut self, gpa: u64) {
            let page = Page::<Size4KiB>::containing_address(VirtAddr::new(gpa));
            self.mapper.unmap(page).expect("mapped").1.ignore();
        }

        /// Where an address goes.
        pub fn walk(&self, gpa: u64) -> u64 {
            self.mapper.translate_addr(VirtAddr::new(gpa)).map_or(0, PhysAddr::as_u64)
        }
    }
}

/// `page_table_multiarch`: generic over the architecture, with a cursor.
pub mod multiarch {
    use std::cell::RefCell;

    use memory_addr::{PhysAddr, VirtAddr};
    use page_table_multiarch::{GenericPTE, MappingFlags, PageSize, PageTable64, PagingHandler, PagingMetaData};

    thread_local! {
        static POOL: RefCell<super::Pool> = RefCell::default();
    }

    /// Four levels that nobody flushes.
    pub struct FourLevels;
    impl PagingMetaData for FourLevels {
        const LEVELS: usize = 4;
        const PA_MAX_BITS: usize = 52;
        const VA_MAX_BITS: usize = 48;
        type VirtAddr = VirtAddr;
        fn flush_tlb(_: Option<VirtAddr>) {}
    }

    /// Frames of this process.
    pub struct Frames;
    impl PagingHandler for Frames {
        fn alloc_frames(_: usize, _: usize) -> Option<PhysAddr> {
            Some(PhysAddr::from(POOL.with_borrow_mut(super::Pool::take)))
        }
        fn dealloc_frames(at: PhysAddr, _: usize) {
            POOL.with_borrow_mut(|pool| pool.give(at.into()));
        }
        fn phys_to_virt(at: PhysAddr) -> VirtAddr {
            VirtAddr::from(usize::from(at))
        }
    }

    /// An EPT entry as that crate sees one.
    #[derive(Clone, Copy, Debug)]
    #[repr(transparent)]
    pub struct Entry(u64);

    const ADDRESS: u64 = 0xf_ffff_ffff_f000;

    impl GenericPTE for Entry {
        fn new_page(at: PhysAddr, flags: MappingFlags, is_huge: bool) -> Self {
            Self(usize::from(at) as u64 & ADDRESS | u64::from(is_huge) << 7 | flags.bits() as u64 & 7)
        }
        fn new_table(at: PhysAddr) -> Self {
            Self(usize::from(at) as u64 & ADDRESS | 7)
        }
        fn paddr(&self) -> PhysAddr {
            PhysAddr::from((self.0 & ADDRESS) as usize)
        }
        fn flags(&self) -> MappingFlags {
            MappingFlags::from_bits_truncate(self.0 as usize & 7)
        }
        fn set_paddr(&mut self, at: PhysAddr) {
            self.0 = self.0 & !ADDRESS | usize::from(at) as u64 & ADDRESS;
        }
        fn set_flags(&mut self, flags: MappingFlags, is_huge: bool) {
            *self = Self::new_page(self.paddr(), flags, is_huge);
        }
        fn bits(self) -> usize {
            self.0 as usize
        }
        fn is_unused(&self) -> bool {
            self.0 == 0
        }
        fn is_present(&self) -> bool {
            self.0 & 7 != 0
        }
        fn is_huge(&self) -> bool {
            self.0 & 0x80 != 0
        }
        fn clear(&mut self) {
            self.0 = 0;
        }
    }

    /// One tree.
    pub struct Tables(PageTable64<FourLevels, Entry, Frames>);

    impl Tables {
        /// Only a root.
        pub fn new() -> Self {
            Self(PageTable64::try_new().expect("memory"))
        }

        /// Maps one page.
        #[inline(always)]
        pub fn map(&mut self, gpa: u64, host: u64) {
            let (gpa, host) = (VirtAddr::from(gpa as usize), PhysAddr::from(host as usize));
            let flags = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::EXECUTE;
            self.0.cursor().map(gpa, host, PageSize::Size4K, flags).expect("not mapped before");
        }

        /// Takes the permission to write from one page.
        #[inline(always)]
        pub fn protect(&mut self, gpa: u64) {
            let flags = MappingFlags::READ | MappingFlags::EXECUTE;
            self.0.cursor().protect(VirtAddr::from(gpa as usize), flags).expect("mapped");
        }

        /// Unmaps one page.
        #[inline(always)]
        pub fn unmap(&mut self, gpa: u64) {
            self.0.cursor().unmap(VirtAddr::from(gpa as usize)).expect("mapped");
        }

        /// Where an address goes.
        pub fn walk(&self, gpa: u64) -> u64 {
            let found = self.0.query(VirtAddr::from(gpa as usize));
            found.map_or(0, |(host, _, _)| usize::from(host) as u64)
        }

        /// Adds up all present leaves.
        pub fn sum(&self) -> u64 {
            let sum = std::cell::Cell::new(0);
            let add = |level: usize, _: usize, _: VirtAddr, entry: &Entry| {
                if level == 3 && entry.is_present() {
                    sum.set(sum.get() ^ entry.0);
                }
            };
            self.0.walk(512, Some(&add), None);
            sum.get()
        }
    }
}

/// `page-table-generic`: generic over metadata, entries and frames, of the same family of kernels.
pub mod generic {
    use std::sync::Mutex;

    use page_table_generic::{FrameAllocator, PageTable, PageTableEntry, PhysAddr, TableMeta, VirtAddr};

    static POOL: Mutex<super::Pool> = Mutex::new(super::Pool { free: Vec::new() });

    /// Frames of this process.
    #[derive(Clone, Copy)]
    pub struct Frames;
    impl FrameAllocator for Frames {
        fn alloc_frame(&self) -> Option<PhysAddr> {
            Some(PhysAddr::from_usize(POOL.lock().ok()?.take()))
        }
        fn dealloc_frame(&self, frame: PhysAddr) {
            if let Ok(mut pool) = POOL.lock() {
                pool.give(frame.as_usize());
            }
        }
        fn phys_to_virt(&self, at: PhysAddr) -> *mut u8 {
            at.as_usize() as *mut u8
        }
    }

    /// Four levels that nobody flushes.
    #[derive(Clone, Copy)]
    pub struct FourLevels;
    impl TableMeta for FourLevels {
        type P = Entry;
        const PAGE_SIZE: usize = 4096;
        const LEVEL_BITS: &[usize] = &[9, 9, 9, 9];
        const MAX_BLOCK_LEVEL: usize = 3;
        fn flush(_: Option<VirtAddr>) {}
    }

    /// An EPT entry as that crate sees one.
    #[derive(Clone, Copy, Debug)]
    #[repr(transparent)]
    pub struct Entry(u64);

    const ADDRESS: u64 = 0xf_ffff_ffff_f000;

    impl PageTableEntry for Entry {
        /// The permission bits.
        type PteConfig = u64;

        fn new_page(at: PhysAddr, bits: u64, is_huge: bool) -> Self {
            Self(at.as_usize() as u64 & ADDRESS | u64::from(is_huge) << 7 | bits)
        }
        fn new_table(at: PhysAddr) -> Self {
            Self(at.as_usize() as u64 & ADDRESS | 7)
        }
        fn paddr(&self, _: bool) -> PhysAddr {
            PhysAddr::from_usize((self.0 & ADDRESS) as usize)
        }
        fn config(&self, _: bool) -> u64 {
            self.0 & 7
        }
        fn present(&self) -> bool {
            self.0 & 7 != 0
        }
        fn huge(&self, is_dir: bool) -> bool {
            is_dir && self.0 & 0x80 != 0
        }
        fn unused(&self) -> bool {
            self.0 == 0
        }
        fn clear(&mut self) {
            self.0 = 0;
        }
    }

    /// One tree.
    pub struct Tables(PageTable<FourLevels, Frames>);

    impl Tables {
        /// Only a root.
        pub fn new() -> Self {
            Self(PageTable::new(Frames).expect("memory"))
        }

        /// Maps one page.
        #[inline(always)]
        pub fn map(&mut self, gpa: u64, host: u64) {
            let (gpa, host) = (VirtAddr::from_usize(gpa as usize), PhysAddr::from_usize(host as usize));
            self.0.map_page(gpa, host, 4096, 7).expect("not mapped before");
        }

        /// Takes the permission to write from one page.
        #[inline(always)]
        pub fn protect(&mut self, gpa: u64) {
            self.0.protect_page(VirtAddr::from_usize(gpa as usize), 5).expect("mapped");
        }

        /// Unmaps one page.
        #[inline(always)]
        pub fn unmap(&mut self, gpa: u64) {
            self.0.unmap_page(VirtAddr::from_usize(gpa as usize)).expect("mapped");
        }

        /// Where an address goes.
        pub fn walk(&self, gpa: u64) -> u64 {
            let found = self.0.translate_phys(VirtAddr::from_usize(gpa as usize));
            found.map_or(0, |host| host.as_usize() as u64)
        }

        /// Adds up all present leaves.
        pub fn sum(&self) -> u64 {
            self.0.walk_valid().filter(|found| found.is_final_mapping).fold(0, |sum, found| sum ^ found.pte.0)
        }
    }
}

/// `aarch64-paging`: Arm tables, walked by a visitor over a range.
pub mod arm {
    use aarch64_paging::Mapping;
    use aarch64_paging::descriptor::{PhysicalAddress, Stage2Attributes};
    use aarch64_paging::idmap::IdTranslation;
    use aarch64_paging::paging::{Constraints, MemoryRegion, Stage2};

    /// One tree from level 0 on.
    pub struct Tables(Mapping<IdTranslation<Stage2Attributes>, Stage2>);

    impl Tables {
        /// Only a root.
        pub fn new() -> Self {
            Self(Mapping::new(IdTranslation::new(), 0, Stage2))
        }

        /// Maps one page.
        #[inline(always)]
        pub fn map(&mut self, ipa: u64, host: u64) {
            let flags = Stage2Attributes::VALID | Stage2Attributes::ACCESS_FLAG | Stage2Attributes::S2AP_ACCESS_RW;
            let range = MemoryRegion::new(ipa as usize, ipa as usize + 4096);
            let mapped = self.0.map_range(&range, PhysicalAddress(host as usize), flags, Constraints::empty());
            mapped.expect("not mapped before");
        }

        /// Takes the permission to write from one page.
        #[inline(always)]
        pub fn protect(&mut self, ipa: u64) {
            self.modify(ipa, Stage2Attributes::empty(), Stage2Attributes::S2AP_ACCESS_WO);
        }

        /// Unmaps one page.
        #[inline(always)]
        pub fn unmap(&mut self, ipa: u64) {
            self.modify(ipa, Stage2Attributes::empty(), Stage2Attributes::VALID);
        }

        fn modify(&mut self, ipa: u64, set: Stage2Attributes, clear: Stage2Attributes) {
            let range = MemoryRegion::new(ipa as usize, ipa as usize + 4096);
            let modified = self.0.modify_range(&range, &|_, entry| {
                if entry.level() == 3 { entry.modify_flags(set, clear) } else { Ok(()) }
            });
            modified.expect("mapped");
        }

        /// Where an address goes.
        pub fn walk(&self, ipa: u64) -> u64 {
            let page = ipa as usize & !0xfff;
            let mut found = 0;
            let walked = self.0.walk_range(&MemoryRegion::new(page, page + 4096), &mut |_, entry, level| {
                if level == 3 && entry.is_valid() {
                    found = entry.output_address().0 as u64 | ipa & 0xfff;
                }
                Ok(())
            });
            walked.map_or(0, |()| found)
        }

        /// Adds up all present leaves of the first `bytes`.
        pub fn sum(&self, bytes: u64) -> u64 {
            let mut sum = 0;
            let walked = self.0.walk_range(&MemoryRegion::new(0, bytes as usize), &mut |_, entry, level| {
                if level == 3 && entry.is_valid() {
                    sum ^= entry.output_address().0 as u64;
                }
                Ok(())
            });
            walked.map_or(0, |()| sum)
        }
    }
}

/// Page-aligned zeroed pages, 2 MiB at a time from the host's allocator, which keeps what it gave.
#[derive(Default)]
struct Pool {
    free: Vec<usize>,
}

/// A page, aligned as one.
#[derive(Clone)]
#[repr(align(4096))]
struct Page(#[allow(dead_code)] [u8; 4096]);

impl Pool {
    fn take(&mut self) -> usize {
        if self.free.is_empty() {
            let pages = vec![Page([0; 4096]); 512].leak();
            self.free.extend(pages.iter().rev().map(|page| std::ptr::from_ref(page) as usize));
        }
        self.free.pop().unwrap_or_default()
    }
    fn give(&mut self, page: usize) {
        self.free.push(page);
    }
}
