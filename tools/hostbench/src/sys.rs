//! Everything unsafe: mappings, the timer, chases through memory, jumps through code, system calls.
//!
//! Safety rests on three things. A [`Map`] owns its pages until it is dropped, and every access through it is checked against its size and
//! its protection. A [`Ring`] holds addresses of its own map only, which it writes itself and nobody else can. Code is made of
//! jumps within its own map and one return.
// Offsets are multiples of eight wherever a word is made of a place, which the checks before each say.
#![allow(unsafe_code, clippy::cast_ptr_alignment)]

use std::arch::asm;
use std::io;
use std::ops::Range;

/// A small page.
pub(crate) const PAGE: u64 = 4096;
/// A huge page.
pub(crate) const HUGE: u64 = 2 << 20;

/// What a mapping is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Use {
    /// Small pages, read and written.
    Small,
    /// Huge pages where the system has them, read and written.
    Huge,
    /// Read only, so that every page is the system's page of zeroes; nothing is reserved for it.
    Zeroes,
}

/// Anonymous memory. The caller's pages are the system's small pages whatever their size: sizes and places are multiples of [`HUGE`] inside.
#[derive(Debug)]
pub(crate) struct Map {
    base: *mut u8,
    bytes: u64,
    whole: (*mut u8, usize),
    writable: bool,
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Map {
    /// So many bytes, aligned as a huge page is.
    pub(crate) fn new(bytes: u64, purpose: Use) -> io::Result<Self> {
        let length = bytes.div_ceil(HUGE) * HUGE + HUGE;
        let protection = if purpose == Use::Zeroes { libc::PROT_READ } else { libc::PROT_READ | libc::PROT_WRITE };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping, wherever the system wants it.
        let whole = unsafe { libc::mmap(std::ptr::null_mut(), length as usize, protection, flags, -1, 0) };
        if whole == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let whole = whole.cast::<u8>();
        let base = whole.wrapping_add(whole.align_offset(HUGE as usize));
        let map = Self { base, bytes, whole: (whole, length as usize), writable: purpose != Use::Zeroes };
        let advice = if purpose == Use::Huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: the range is the mapping's own. Kernels without huge pages refuse, which changes nothing.
        let _ = unsafe { libc::madvise(whole.cast(), length as usize, advice) };
        Ok(map)
    }

    fn at(&self, offset: u64, bytes: u64) -> *mut u8 {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes), "{offset} of {}", self.bytes);
        self.base.wrapping_add(offset as usize)
    }

    /// Writes a word.
    pub(crate) fn write(&mut self, offset: u64, word: u64) {
        assert!(self.writable && offset.is_multiple_of(8), "a word of a mapping that can be written");
        let at = self.at(offset, 8).cast::<u64>();
        // SAFETY: inside the mapping, aligned, writable, and nobody else has it: `self` is exclusive.
        unsafe { at.write_volatile(word) }
    }

    /// Reads a word.
    pub(crate) fn read(&self, offset: u64) -> u64 {
        assert!(offset.is_multiple_of(8), "a word");
        let at = self.at(offset, 8).cast::<u64>();
        // SAFETY: inside the mapping, aligned; every mapping can be read, and all bytes are words.
        unsafe { at.read_volatile() }
    }

    /// Gives pages back; they read as zeroes from then on.
    pub(crate) fn forget(&mut self, range: Range<u64>) -> io::Result<()> {
        let at = self.at(range.start, range.end - range.start);
        // SAFETY: the mapping's own range, and `self` is exclusive.
        check(unsafe { libc::madvise(at.cast(), (range.end - range.start) as usize, libc::MADV_DONTNEED) })
    }

    /// Tells the system that pages are not used, so that it clears their accessed flags, or that they may be freed, so that it clears both flags.
    pub(crate) fn disuse(&mut self, range: Range<u64>, how: Disuse) -> io::Result<()> {
        let at = self.at(range.start, range.end - range.start);
        // asm-generic/mman-common.h
        let advice = match how {
            Disuse::Cold => 20,
            Disuse::Free => 8,
        };
        // SAFETY: the mapping's own range, and `self` is exclusive; pages that are freed read as zeroes, which are words as well.
        check(unsafe { libc::madvise(at.cast(), (range.end - range.start) as usize, advice) })
    }

    /// Writes a line of a cache back, or flushes it; completion is up to [`full_barrier`].
    pub(crate) fn upkeep(&self, offset: u64, what: Upkeep) {
        let line = self.at(offset, LINE);
        // SAFETY: maintenance by address changes no memory, and the line is mapped; `upkeep_known` is asked first.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            match what {
                Upkeep::Flush => asm!("clflush [{0}]", in(reg) line, options(nostack, preserves_flags)),
                Upkeep::FlushLoosely => asm!("clflushopt [{0}]", in(reg) line, options(nostack, preserves_flags)),
                Upkeep::WriteBack => asm!("clwb [{0}]", in(reg) line, options(nostack, preserves_flags)),
            }
        }
        // SAFETY: as above; Linux lets user space do both.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            match what {
                Upkeep::Flush => asm!("dc civac, {0}", "dsb ish", in(reg) line, options(nostack, preserves_flags)),
                Upkeep::FlushLoosely => asm!("dc civac, {0}", in(reg) line, options(nostack, preserves_flags)),
                Upkeep::WriteBack => asm!("dc cvac, {0}", in(reg) line, options(nostack, preserves_flags)),
            }
        }
    }

    /// Lets pages be read only, or written again.
    pub(crate) fn protect(&mut self, range: Range<u64>, access: Access) -> io::Result<()> {
        let at = self.at(range.start, range.end - range.start);
        let protection = if access == Access::Read { libc::PROT_READ } else { libc::PROT_READ | libc::PROT_WRITE };
        // A write to what is protected ends the program by a signal; it does not break memory safety.
        // SAFETY: the mapping's own range, and `self` is exclusive.
        check(unsafe { libc::mprotect(at.cast(), (range.end - range.start) as usize, protection) })
    }

    /// Fills bytes with zeroes as the system's page clearing does.
    pub(crate) fn clear(&mut self, offset: u64, bytes: u64) {
        assert!(self.writable, "a mapping that can be written");
        let at = self.at(offset, bytes);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the bytes are the mapping's own; the direction flag is clear by the calling convention.
        unsafe {
            asm!("rep stosb", inout("rcx") bytes => _, inout("rdi") at => _, in("al") 0_u8, options(nostack, preserves_flags));
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            std::ptr::write_bytes(at, 0, bytes as usize);
        }
    }
}

/// What pages allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// Loads.
    Read,
    /// Loads and stores.
    Write,
}

/// What the system is told about pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Disuse {
    /// `MADV_COLD`: they will not be used soon.
    Cold,
    /// `MADV_FREE`: what they hold is not needed.
    Free,
}

/// Upkeep of a cache line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Upkeep {
    /// Clean and invalidate, in order with others.
    Flush,
    /// Clean and invalidate, in any order.
    FlushLoosely,
    /// Clean.
    WriteBack,
}

/// Bytes of a cache line, as far as these measurements go.
pub(crate) const LINE: u64 = 64;

/// Whether the processor has an instruction for it (SDM vol. 2, CPUID leaf 7: EBX bits 23 and 24).
#[cfg(target_arch = "x86_64")]
pub(crate) fn upkeep_known(what: Upkeep) -> bool {
    let bits: u32;
    // SAFETY: leaf 7 is asked for only where leaf 0 says that it exists; the register that the compiler keeps for itself is put back.
    unsafe {
        let most: u32;
        asm!("mov {0}, rbx", "cpuid", "mov rbx, {0}", out(reg) _, inout("eax") 0_u32 => most, inout("ecx") 0_u32 => _, out("edx") _, options(nostack));
        if most < 7 {
            return what == Upkeep::Flush;
        }
        asm!("mov {0:r}, rbx", "cpuid", "xchg {0:r}, rbx", out(reg) bits, inout("eax") 7_u32 => _, inout("ecx") 0_u32 => _, out("edx") _, options(nostack));
    }
    match what {
        Upkeep::Flush => true,
        Upkeep::FlushLoosely => bits >> 23 & 1 == 1,
        Upkeep::WriteBack => bits >> 24 & 1 == 1,
    }
}

/// Whether the processor has an instruction for it: every one does.
#[cfg(target_arch = "aarch64")]
pub(crate) fn upkeep_known(_what: Upkeep) -> bool {
    true
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and nothing refers to it any more.
        let _ = unsafe { libc::munmap(self.whole.0.cast(), self.whole.1) };
    }
}

/// Most chases at once.
pub(crate) const MOST_CHAINS: usize = 16;

/// Rings of pointers in a mapping: each word holds the address of the next.
#[derive(Debug)]
pub(crate) struct Ring {
    /// Keeps the pages.
    _map: Map,
    at: Vec<*const u64>,
}

impl Ring {
    /// Links the offsets in their order, cut into as many rings as there are chains.
    pub(crate) fn new(mut map: Map, offsets: &[u64], chains: usize) -> Self {
        let chains = chains.clamp(1, MOST_CHAINS).min(offsets.len());
        let each = offsets.len() / chains;
        let mut at = Vec::with_capacity(chains);
        for ring in offsets.chunks_exact(each).take(chains) {
            for (index, offset) in ring.iter().enumerate() {
                let next = map.at(ring[(index + 1) % ring.len()], 8);
                map.write(*offset, next as u64);
            }
            at.push(map.at(ring[0], 8).cast_const().cast());
        }
        Self { _map: map, at }
    }

    /// Makes so many steps in each ring; a step waits for the one before it in its ring, and for nothing else.
    pub(crate) fn go(&mut self, steps: u64) {
        match self.at.as_mut_slice() {
            [] => {}
            [one] => *one = follow([*one], steps)[0],
            [a, b] => [*a, *b] = follow([*a, *b], steps),
            [a, b, c] => [*a, *b, *c] = follow([*a, *b, *c], steps),
            [a, b, c, d] => [*a, *b, *c, *d] = follow([*a, *b, *c, *d], steps),
            more => chunked(more, steps),
        }
    }
}

/// Six, eight, twelve and sixteen chains.
fn chunked(all: &mut [*const u64], steps: u64) {
    macro_rules! widths {
        ($($width:literal)*) => {
            match all.len() {
                $($width => {
                    if let Ok(now) = <[*const u64; $width]>::try_from(&*all) {
                        all.copy_from_slice(&follow(now, steps));
                    }
                })*
                _ => all.iter_mut().for_each(|one| *one = follow([*one], steps)[0]),
            }
        };
    }
    widths!(6 8 12 16);
}

/// Follows pointers of rings. Only [`Ring`] calls it, with places of its own map that hold addresses of such places.
fn follow<const K: usize>(mut at: [*const u64; K], steps: u64) -> [*const u64; K] {
    for _ in 0..steps {
        for place in &mut at {
            // SAFETY: a ring's word holds the address of another word of the ring, and the map outlives the ring.
            *place = unsafe { place.read_volatile() } as *const u64;
        }
    }
    at
}

/// Chases through pages of zeroes: a list says which is next, the zero that was read is added, so that each load waits for the last.
#[derive(Debug)]
pub(crate) struct ZeroChase {
    map: Map,
    order: Vec<u64>,
    next: usize,
    chains: usize,
}

impl ZeroChase {
    /// Over these offsets in their order; the mapping holds zeroes only.
    pub(crate) fn new(map: Map, order: Vec<u64>, chains: usize) -> Self {
        assert!(!map.writable && !order.is_empty(), "zeroes, and at least one");
        for offset in &order {
            map.read(*offset);
        }
        Self { map, order, next: 0, chains: chains.clamp(1, MOST_CHAINS) }
    }

    /// Makes so many loads in each chain.
    pub(crate) fn go(&mut self, steps: u64) {
        match self.chains {
            1 => self.follow::<1>(steps),
            2 => self.follow::<2>(steps),
            3..=4 => self.follow::<4>(steps),
            5..=8 => self.follow::<8>(steps),
            _ => self.follow::<16>(steps),
        }
    }

    fn follow<const K: usize>(&mut self, steps: u64) {
        let mut last = [0_u64; K];
        let base = self.map.base;
        for _ in 0..steps {
            for last in &mut last {
                let place = base.wrapping_add(self.order[self.next] as usize).wrapping_add(*last as usize);
                // SAFETY: every offset was read through the map's own check when the chase was made, and pages that cannot be
                // written hold zeroes: what was read last moves nothing.
                *last = unsafe { place.cast::<u64>().read_volatile() };
                self.next = if self.next + 1 == self.order.len() { 0 } else { self.next + 1 };
            }
        }
    }
}

/// A ring of jumps through pages of code.
#[derive(Debug)]
pub(crate) struct Code {
    map: Map,
    entry: u64,
}

impl Code {
    /// One jump at each offset to the next offset in order; at the first, a counter that ends it. Offsets are cache lines.
    pub(crate) fn new(mut map: Map, offsets: &[u64]) -> io::Result<Self> {
        let first =
            *offsets.first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a ring of no jumps"))?;
        for (index, from) in offsets.iter().enumerate() {
            assert!(from.is_multiple_of(64) && from + 64 <= map.bytes, "a line of the map");
            let to = offsets[(index + 1) % offsets.len()];
            for (word, bytes) in jump(*from, to, index == 0).chunks_exact(8).enumerate() {
                let word_at = from + 8 * word as u64;
                map.write(word_at, u64::from_le_bytes(bytes.try_into().unwrap_or([0; 8])));
            }
        }
        let protection = libc::PROT_READ | libc::PROT_EXEC;
        // SAFETY: the mapping's own range; from here on it is not written any more.
        check(unsafe { libc::mprotect(map.base.cast(), map.bytes as usize, protection) })?;
        map.writable = false;
        synchronize(map.base, offsets);
        Ok(Self { map, entry: first })
    }

    /// Goes round so many times.
    pub(crate) fn go(&self, rounds: u64) {
        let entry = self.map.at(self.entry, 64);
        // SAFETY: the code is a ring of jumps within the map whose first place counts down the register and returns at zero; it
        // changes that register and the flags, which a call may change.
        unsafe {
            let code: extern "C" fn(u64) = std::mem::transmute(entry);
            code(rounds.max(1));
        }
    }
}

/// Sixteen bytes of code: a jump, behind a counter at the ring's first place.
#[cfg(target_arch = "x86_64")]
fn jump(from: u64, to: u64, counts: bool) -> [u8; 16] {
    let mut code = [0xcc_u8; 16];
    let relative = |at: u64| ((to as i64 - (from + at + 5) as i64) as i32).to_le_bytes();
    if counts {
        // sub rdi, 1; jb +5 (over the jump); jmp next; ret
        code[..6].copy_from_slice(&[0x48, 0x83, 0xef, 0x01, 0x72, 0x05]);
        code[6] = 0xe9;
        code[7..11].copy_from_slice(&relative(6));
        code[11] = 0xc3;
    } else {
        code[0] = 0xe9;
        code[1..5].copy_from_slice(&relative(0));
    }
    code
}

/// Sixteen bytes of code: a jump, behind a counter at the ring's first place.
#[cfg(target_arch = "aarch64")]
fn jump(from: u64, to: u64, counts: bool) -> [u8; 16] {
    let branch = |at: u64| 0x1400_0000_u32 | (((to as i64 - (from + at) as i64) / 4) as u32 & 0x03ff_ffff);
    let words = if counts {
        // subs x0, x0, #1; b.lo +8 (over the branch); b next; ret
        [0xf100_0400, 0x5400_0043, branch(8), 0xd65f_03c0]
    } else {
        [branch(0), 0, 0, 0]
    };
    let mut code = [0; 16];
    for (bytes, word) in code.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    code
}

/// Makes instruction fetches see what was written: nothing to do on x86.
#[cfg(target_arch = "x86_64")]
fn synchronize(_base: *mut u8, _offsets: &[u64]) {}

/// Makes instruction fetches see what was written (Arm ARM B2.4.4): clean data to the point of unification, invalidate instructions.
#[cfg(target_arch = "aarch64")]
fn synchronize(base: *mut u8, offsets: &[u64]) {
    for offset in offsets {
        let line = base.wrapping_add(*offset as usize);
        // SAFETY: cache maintenance by address changes no memory, and the line is mapped.
        unsafe {
            asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", in(reg) line, options(nostack, preserves_flags));
        }
    }
    // SAFETY: a barrier.
    unsafe {
        asm!("isb", options(nostack, preserves_flags));
    }
}

/// The farthest that a jump goes, in bytes.
pub(crate) const FARTHEST_JUMP: u64 = if cfg!(target_arch = "x86_64") { 1 << 31 } else { 1 << 27 };

/// The timer: the time-stamp counter, behind everything before it.
#[cfg(target_arch = "x86_64")]
pub(crate) fn ticks() -> u64 {
    // SAFETY: reads a counter; the fence orders it behind earlier instructions (SDM vol. 2, RDTSC).
    unsafe {
        std::arch::x86_64::_mm_lfence();
        let ticks = std::arch::x86_64::_rdtsc();
        std::arch::x86_64::_mm_lfence();
        ticks
    }
}

/// The timer: the virtual counter, behind everything before it.
#[cfg(target_arch = "aarch64")]
pub(crate) fn ticks() -> u64 {
    let ticks: u64;
    // SAFETY: reads a counter that user space may read on Linux.
    unsafe {
        asm!("isb", "mrs {}, cntvct_el0", "isb", out(reg) ticks, options(nostack, nomem, preserves_flags));
    }
    ticks
}

/// Cycles of one dependent operation: a 64-bit multiplication takes three on every x86 core of the last fifteen years, an exclusive or one.
pub(crate) const CYCLES_OF_OPERATION: u64 = if cfg!(target_arch = "x86_64") { 3 } else { 1 };

/// Operations each of which waits for the one before; a multiple of eight.
pub(crate) fn dependent_operations(count: u64) {
    let mut value = 3_u64;
    for _ in 0..count / 8 {
        // SAFETY: arithmetic on registers.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            asm!(
                "imul {0}, {0}", "imul {0}, {0}", "imul {0}, {0}", "imul {0}, {0}",
                "imul {0}, {0}", "imul {0}, {0}", "imul {0}, {0}", "imul {0}, {0}",
                inout(reg) value, options(nostack, nomem)
            );
            #[cfg(target_arch = "aarch64")]
            asm!(
                "eor {0}, {0}, {1}", "eor {0}, {0}, {1}", "eor {0}, {0}, {1}", "eor {0}, {0}, {1}",
                "eor {0}, {0}, {1}", "eor {0}, {0}, {1}", "eor {0}, {0}, {1}", "eor {0}, {0}, {1}",
                inout(reg) value, in(reg) 5_u64, options(nostack, nomem, preserves_flags)
            );
        }
    }
    std::hint::black_box(value);
}

/// A barrier of everything: in assembly, because the compiler makes one of several that follow each other.
pub(crate) fn full_barrier() {
    // SAFETY: orders memory accesses, changes nothing.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("mfence", options(nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        asm!("dmb ish", options(nostack, preserves_flags));
    }
}

/// An instruction that leaves a virtual machine, where user space has one.
#[cfg(target_arch = "x86_64")]
pub(crate) const LEAVE_GUEST: Option<fn()> = Some(leave_guest);
/// An instruction that leaves a virtual machine: user space has none that always does.
#[cfg(target_arch = "aarch64")]
pub(crate) const LEAVE_GUEST: Option<fn()> = None;

/// CPUID (SDM vol. 3, 26.1.2).
#[cfg(target_arch = "x86_64")]
fn leave_guest() {
    // SAFETY: leaf 0 exists on every processor; the register that the compiler keeps for itself is put back.
    unsafe {
        asm!("mov {0}, rbx", "cpuid", "mov rbx, {0}", out(reg) _, inout("eax") 0_u32 => _, inout("ecx") 0_u32 => _, out("edx") _, options(nostack));
    }
}

/// CPUs that this process may use.
pub(crate) fn cpus() -> io::Result<Vec<usize>> {
    // SAFETY: a set of CPUs is plain bits, all of which may be zero.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is as large as it says.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) })?;
    // SAFETY: numbers below the set's size.
    Ok((0..8 * size_of::<libc::cpu_set_t>()).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect())
}

/// Keeps this thread on one CPU.
pub(crate) fn pin(cpu: usize) -> io::Result<()> {
    // SAFETY: as in `cpus`; a number that the set does not have is refused by the system.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if cpu >= 8 * size_of::<libc::cpu_set_t>() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no such CPU"));
        }
        libc::CPU_SET(cpu, &mut set);
        check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set))
    }
}

/// A system call that does nothing.
pub(crate) fn null_call() {
    // SAFETY: takes nothing, changes nothing; by number, because libraries may remember the answer.
    let _ = unsafe { libc::syscall(libc::SYS_getppid) };
}

/// Gives the CPU to whoever else is there.
pub(crate) fn yield_cpu() {
    // SAFETY: takes nothing.
    let _ = unsafe { libc::sched_yield() };
}

/// `membarrier(2)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Barrier {
    /// On all CPUs, by waiting for a grace period.
    Global,
    /// Says that the next one will be used.
    RegisterPrivate,
    /// On CPUs that run this process, by interrupts.
    Private,
}

/// Makes the barrier.
pub(crate) fn membarrier(which: Barrier) -> io::Result<()> {
    // linux/membarrier.h
    let command: libc::c_long = match which {
        Barrier::Global => 1,
        Barrier::Private => 1 << 3,
        Barrier::RegisterPrivate => 1 << 4,
    };
    // SAFETY: takes numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, command, 0 as libc::c_long, 0 as libc::c_long) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
