//! Building a virtual machine: populated tables, vCPUs with their workload, the machine's caches and costs.

use std::fmt;

use mmu_core::image::RamRange;
use mmu_core::memory::{Progression, Reuse, TableMemory};
use mmu_core::tlb::{LatencyCache, Tag, TranslationCaches, Vmid};
use mmu_core::{
    ByteUnits, Bytes, EncodeError, Format, Geometry, Gpa, GpaRange, Gva, Hpa, HpaRange, Hva, HvaRange, Leaf, Level,
    PageSize, Perms,
};

use super::platform::Platform;
use crate::arch::Arch;
use crate::engine::world::table_words;
use crate::engine::{
    BackingKind, GuestError, GuestPaging, GuestShare, GuestTables, LockMode, Memslot, Premapped, PrimaryMmu,
    Protection, Sim, SlotFlags, SlotId, TEST_MEMORY, Userfault, Vcpu, VcpuId, Vma, World,
};
use crate::events::Recorder;
use crate::protocols::fault::FaultPolicy;
use crate::protocols::vcpu as protocol;
use crate::rng::Seed;
use crate::workload::{GuestStream, Pattern, Replay, ReplayError, Workload};

/// Whether the second stage is mapped when the run starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Populate {
    /// All of guest memory, by templates: a terabyte takes microseconds.
    Mapped,
    /// As [`Populate::Mapped`], but the process has so much memory only: memslots of this size follow each other in the guest and all stand for it, as in
    /// KVM's `max_guest_memory_test`. A guest that has every address which the host has cannot have a page of its own behind each: tables need
    /// addresses too. The size divides the guest's memory, and makes at most 32,764 slots (`KVM_USER_MEM_SLOTS`).
    Shared(Bytes),
    /// Nothing: every page is a fault. The process has its memory already.
    ByFaults,
    /// Nothing, and the process has not touched its memory either: a page is allocated and cleared when it is first faulted on.
    Untouched,
}

/// Where guest memory begins in the process that owns the guest; memslot 0 points there.
pub const GUEST_MEMORY: Hva = Hva::new(0x7f00_0000_0000);

/// The slot of a guest's tables that are there from the start; memslot 0 is guest memory.
const GUEST_TABLES: SlotId = SlotId(u16::MAX);

/// Memslots that user space may make: `KVM_USER_MEM_SLOTS` of Linux 6.6 on x86.
const MOST_SLOTS: u64 = 32_764;

/// A virtual machine.
#[derive(Clone, PartialEq, Debug)]
pub struct VmSpec {
    /// Guest memory.
    pub memory: Bytes,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Size of second-stage leaves.
    pub page: PageSize,
    /// The guest's own paging.
    pub guest: GuestPaging,
    /// What is mapped at the start.
    pub populate: Populate,
    /// What the vCPUs do.
    pub workload: Workload,
    /// Seed of everything random.
    pub seed: Seed,
}

impl VmSpec {
    /// Memory that the process has for the guest; as much belongs to each memslot.
    fn backing(&self) -> Bytes {
        match self.populate {
            Populate::Shared(memory) => memory,
            Populate::Mapped | Populate::ByFaults | Populate::Untouched => self.memory,
        }
    }

    /// Whether the second stage is there from the start.
    fn is_mapped(&self) -> bool {
        matches!(self.populate, Populate::Mapped | Populate::Shared(_))
    }
}

/// Why a virtual machine cannot be built.
#[derive(Debug)]
pub enum BuildError {
    /// A machine without vCPUs.
    NoVcpus,
    /// More vCPUs than the simulator numbers.
    TooManyVcpus(usize),
    /// The page size is none of the format's.
    PageSize {
        /// Asked for.
        page: PageSize,
        /// Which stage.
        stage: &'static str,
        /// What there is.
        legal: Vec<PageSize>,
    },
    /// Guest memory that is no multiple of the page size, or empty.
    Memory {
        /// Asked for.
        memory: Bytes,
        /// The page size.
        page: PageSize,
    },
    /// Memory that slots share, of a size that does not cut the guest's into slots.
    Shared {
        /// What they share.
        memory: Bytes,
        /// What there would be of them.
        slots: u64,
    },
    /// More guest memory than the second stage translates.
    InputWidth {
        /// Asked for.
        memory: Bytes,
        /// Input width in bits.
        bits: u32,
    },
    /// The table pool or the backing pages do not fit.
    Tables(String),
    /// An entry cannot be written.
    Encode(EncodeError),
    /// The guest cannot be set up.
    Guest(GuestError),
    /// The trace cannot be replayed.
    Replay(ReplayError),
    /// The caches of the machine cannot be built.
    Machine(String),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BuildError::NoVcpus => f.write_str("a guest needs at least one vCPU"),
            BuildError::TooManyVcpus(n) => write!(f, "{n} vCPUs; at most 4096 are simulated"),
            BuildError::PageSize { page, stage, legal } => {
                let legal: Vec<String> = legal.iter().map(ToString::to_string).collect();
                write!(f, "the {stage} has no pages of {page}; choose one of {}", legal.join(", "))
            }
            BuildError::Memory { memory, page } => {
                write!(f, "guest memory of {memory} is not a positive multiple of the page size {page}")
            }
            BuildError::Shared { memory, slots } => write!(
                f,
                "{memory} shared by {slots} memslots: take a multiple of the page size that divides the guest's memory into 1 to {MOST_SLOTS}"
            ),
            BuildError::InputWidth { memory, bits } => write!(
                f,
                "guest memory of {memory} does not fit the {bits}-bit input of the second stage; use less memory or more levels"
            ),
            BuildError::Tables(why) => f.write_str(why),
            BuildError::Encode(error) => error.fmt(f),
            BuildError::Guest(error) => error.fmt(f),
            BuildError::Replay(error) => error.fmt(f),
            BuildError::Machine(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for BuildError {}

/// Builds the simulation of one VM on one platform. vCPUs start in the guest at cycle 0, their faults are handled under
/// `mmu_lock` held for read; other actors are the caller's to spawn.
///
/// # Errors
/// Anything about the VM that the architecture or the simulator cannot express.
pub fn build<A: Arch>(platform: &Platform<A>, spec: &VmSpec) -> Result<Sim<A>, BuildError> {
    let mut sim = build_without_threads(platform, spec)?;
    let policy = FaultPolicy::new(LockMode::Read, spec.page);
    for vcpu in (0..spec.vcpus).map(VcpuId) {
        sim.spawn_vcpu(vcpu, |host| Box::pin(protocol::thread(host, vcpu, policy)));
    }
    Ok(sim)
}

/// Like [`build`], but the threads of the vCPUs are the caller's to spawn ([`Sim::spawn_vcpu`]).
///
/// # Errors
/// Anything about the VM that the architecture or the simulator cannot express.
pub fn build_without_threads<A: Arch>(platform: &Platform<A>, spec: &VmSpec) -> Result<Sim<A>, BuildError> {
    check(platform, spec)?;
    let two = *platform.arch.two();
    let leaf_level = two.geometry().level_of(spec.page).unwrap_or(Level::LAST);
    let pool = table_pool(spec, two.geometry().output_bits())?;
    let mut tables =
        TableMemory::new(pool, two.present_mask()).map_err(|error| BuildError::Tables(error.to_string()))?;
    // A freed table is never handed out again: who still walks it is caught, not misled.
    tables = tables.with_reuse(Reuse::Quarantine);
    let small = two.geometry().page_size(Level::LAST);
    let mut primary = PrimaryMmu::new(Hpa::new(4.GiB()), small);
    let backing = spec.backing();
    let memory = HvaRange::new(GUEST_MEMORY, backing);
    primary.map(memory, vma_of(spec.page, two.geometry()));
    let host = match spec.populate {
        Populate::Untouched => Hpa::new(0),
        _ => primary.populate(memory, PageSize::SIZE_1G.min(largest(backing.0)), spec.page),
    };
    let guest = premapped(platform, spec)?;
    // User space has written the guest's tables: their pages are there.
    let guest_slot = guest.as_ref().map(Premapped::slot).map(|slot| (slot, GUEST_MEMORY + slot.start.raw()));
    if let Some((slot, hva)) = guest_slot {
        let range = HvaRange::new(hva, slot.bytes);
        primary.map(range, vma_of(small, two.geometry()));
        primary.populate(range, PageSize::SIZE_64K, small);
    }
    let root = if spec.is_mapped() {
        populate(&mut tables, &two, spec.memory.0, leaf_level, HpaRange::new(host, backing))?
    } else {
        alloc(&mut tables, &two, two.geometry().root())?
    };
    let mut world = World::new(platform.arch, platform.costs.clone(), tables, primary, root);
    if spec.is_mapped() {
        // Whoever mapped it has cleaned it.
        world.mark_clean(HpaRange::new(host, backing));
    }
    let mut sim = Sim::new(world);
    for slot in 0..spec.memory.0 / backing.0 {
        let gpa = GpaRange::new(Gpa::new(slot * backing.0), backing);
        sim.add_slot(Memslot { id: SlotId(slot as u16), gpa, hva: GUEST_MEMORY, flags: SlotFlags::empty() });
    }
    if let Some((gpa, hva)) = guest_slot {
        sim.add_slot(Memslot { id: GUEST_TABLES, gpa, hva, flags: SlotFlags::empty() });
    }
    for index in 0..spec.vcpus {
        sim.add_vcpu(vcpu(platform, spec, index, root, guest.as_ref())?);
    }
    if let Some(collector) = &platform.events {
        sim.record(Recorder::new(collector, platform.arch.name(), &platform.machine, platform.clock_hz));
    }
    Ok(sim)
}

/// The tables of a guest that has them from the start.
fn premapped<A: Arch>(platform: &Platform<A>, spec: &VmSpec) -> Result<Option<Premapped<A::One>>, BuildError> {
    let GuestPaging::Premapped(page) = spec.guest else { return Ok(None) };
    let tables = Premapped::new(*platform.arch.one(), spec.memory, page).map_err(BuildError::Guest)?;
    let geometry = platform.arch.two().geometry();
    if tables.slot().end().raw() > geometry.input_bytes() {
        return Err(BuildError::InputWidth { memory: spec.memory, bits: geometry.input_bits() });
    }
    Ok(Some(tables))
}

fn check<A: Arch>(platform: &Platform<A>, spec: &VmSpec) -> Result<(), BuildError> {
    if spec.vcpus == 0 {
        return Err(BuildError::NoVcpus);
    }
    if spec.vcpus > 4096 {
        return Err(BuildError::TooManyVcpus(spec.vcpus));
    }
    let geometry = platform.arch.two().geometry();
    if geometry.level_of(spec.page).is_none() {
        let legal = geometry.page_sizes().collect();
        return Err(BuildError::PageSize { page: spec.page, stage: "second stage", legal });
    }
    if let GuestPaging::FirstTouch(page) | GuestPaging::Premapped(page) = spec.guest
        && platform.arch.one().geometry().level_of(page).is_none()
    {
        let legal = platform.arch.one().geometry().page_sizes().collect();
        return Err(BuildError::PageSize { page, stage: "first stage", legal });
    }
    if spec.memory.0 == 0 || !spec.memory.0.is_multiple_of(spec.page.bytes()) {
        return Err(BuildError::Memory { memory: spec.memory, page: spec.page });
    }
    if spec.memory.0 > geometry.input_bytes() {
        return Err(BuildError::InputWidth { memory: spec.memory, bits: geometry.input_bits() });
    }
    let shared = spec.backing();
    let slots = spec.memory.0.checked_div(shared.0).unwrap_or(0);
    let pages = shared.0.is_multiple_of(spec.page.bytes());
    if !pages || !(1..=MOST_SLOTS).contains(&slots) || slots * shared.0 != spec.memory.0 {
        return Err(BuildError::Shared { memory: shared, slots });
    }
    Ok(())
}

/// The mapping that gives a guest pages of this size: base pages, transparent huge pages of the size above, hugetlbfs beyond.
fn vma_of(page: PageSize, geometry: &Geometry) -> Vma {
    let backing = match geometry.level_of(page) {
        None | Some(Level::LAST) => BackingKind::Small,
        Some(level) if level.down() == Some(Level::LAST) => BackingKind::Thp(page),
        Some(_) => BackingKind::Hugetlb(page),
    };
    Vma { protection: Protection::ReadWrite, backing, userfault: Userfault::Off }
}

/// The largest power of two of bytes that is not above `bytes`, as an alignment.
fn largest(bytes: u64) -> PageSize {
    PageSize::from_shift(bytes.max(4096).ilog2()).unwrap_or(PageSize::SIZE_4K)
}

/// Host-physical addresses for tables, above all backing pages that a run may allocate.
fn table_pool(spec: &VmSpec, output_bits: u32) -> Result<RamRange, BuildError> {
    // Twice the tables of a fully mapped guest, and room for the rest.
    let bytes = (spec.memory.0 / 128).max(1.GiB()).next_power_of_two();
    let base = spec.backing().0.saturating_mul(3).checked_next_multiple_of(bytes.max(1.TiB())).unwrap_or(u64::MAX);
    if output_bits < 64 && base.saturating_add(bytes) > 1 << output_bits {
        return Err(BuildError::Tables(format!(
            "guest memory of {} and its tables do not fit {output_bits}-bit host addresses; use less memory, or memslots that share it (`Populate::Shared`)",
            spec.memory
        )));
    }
    Ok(RamRange { start: Hpa::new(base), bytes })
}

fn alloc<F: Format>(tables: &mut TableMemory, format: &F, level: Level) -> Result<Hpa, BuildError> {
    tables.alloc(level, table_words(format, level)).map_err(|error| BuildError::Tables(error.to_string()))
}

/// Maps `[0, memory)` to consecutive host pages by leaves of `leaf_level`, from the first on again wherever `host` ends; returns the root.
fn populate<F: Format>(
    tables: &mut TableMemory,
    format: &F,
    memory: u64,
    leaf_level: Level,
    host: HpaRange,
) -> Result<Hpa, BuildError> {
    let geometry = *format.geometry();
    let leaves = memory >> geometry.shift(leaf_level);
    let (mut first, mut frames) = level_frames(tables, format, leaf_level, leaves)?;
    fill_leaves(tables, format, leaf_level, first, leaves, host)?;
    let mut level = leaf_level;
    while level < geometry.root() {
        let (child_bytes, children) = (geometry.table_bytes(level), frames);
        let parent = level.up();
        let (next, count) = level_frames(tables, format, parent, children)?;
        let word = format.encode_table(parent, first).map_err(BuildError::Encode)?;
        tables
            .fill_run(next, children, Progression { first: word, step: child_bytes })
            .map_err(|error| BuildError::Tables(error.to_string()))?;
        (first, frames, level) = (next, count, parent);
    }
    Ok(first)
}

/// Enough consecutive tables of `level` for so many entries.
fn level_frames<F: Format>(
    tables: &mut TableMemory,
    format: &F,
    level: Level,
    entries: u64,
) -> Result<(Hpa, u64), BuildError> {
    let frames = entries.div_ceil(format.geometry().entries(level) as u64).max(1);
    let empty = Progression { first: 0, step: 0 };
    let first = tables
        .alloc_run(level, table_words(format, level), frames, empty)
        .map_err(|error| BuildError::Tables(error.to_string()))?;
    Ok((first, frames))
}

fn fill_leaves<F: Format>(
    tables: &mut TableMemory,
    format: &F,
    level: Level,
    table: Hpa,
    leaves: u64,
    host: HpaRange,
) -> Result<(), BuildError> {
    let page = format.geometry().page_size(level).bytes();
    let mut done = 0;
    while done < leaves {
        let at = done * page % host.bytes.0;
        let output = host.start + at;
        let leaf = Leaf { output, perms: Perms::RWX.with(Perms::DIRTY), accessed: true, attrs: F::Attrs::default() };
        let first = format.encode_leaf(level, &leaf).map_err(BuildError::Encode)?;
        let run = format.progression(level, output).min(leaves - done).min((host.bytes.0 - at) / page).max(1);
        tables
            .fill_run(table + 8 * done, run, Progression { first, step: page })
            .map_err(|error| BuildError::Tables(error.to_string()))?;
        done += run;
    }
    Ok(())
}

fn vcpu<A: Arch>(
    platform: &Platform<A>,
    spec: &VmSpec,
    index: usize,
    root: Hpa,
    premapped: Option<&Premapped<A::One>>,
) -> Result<Vcpu<A>, BuildError> {
    let share = GuestShare { index: index as u64, of: spec.vcpus as u64, memory: spec.memory.0 };
    let guest = match spec.guest {
        GuestPaging::Flat => None,
        GuestPaging::FirstTouch(page) => {
            Some(GuestTables::new(*platform.arch.one(), share, page).map_err(BuildError::Guest)?)
        }
        GuestPaging::Premapped(_) => {
            premapped.map(|tables| GuestTables::premapped(*platform.arch.one(), tables.clone()))
        }
    };
    let seed = spec.seed.0.wrapping_add(index as u64);
    let (one, two) = (platform.arch.one().geometry(), platform.arch.two().geometry());
    let caches = TranslationCaches::new(&platform.caches, one, two, seed)
        .map_err(|error| BuildError::Machine(error.to_string()))?;
    let memory = LatencyCache::new(&platform.memory, seed);
    let tag = Tag { vmid: Vmid(1), ..Tag::default() };
    let stream = stream(spec, index)?;
    Ok(Vcpu::new(platform.arch, index, root, tag, caches, memory, stream, guest))
}

/// The vCPU's accesses: in an address space of its own, or in its slice of guest-physical memory when the guest is flat.
fn stream(spec: &VmSpec, index: usize) -> Result<GuestStream, BuildError> {
    Ok(match &spec.workload {
        Workload::Idle => GuestStream::Idle,
        Workload::Pattern(pattern) => {
            let mut pattern = pattern.clone();
            let slice = spec.memory.0 / spec.vcpus as u64;
            let base = match spec.guest {
                GuestPaging::Flat => slice * index as u64,
                GuestPaging::FirstTouch(_) => 0x10_0000_0000,
                GuestPaging::Premapped(_) => TEST_MEMORY.raw() + slice * index as u64,
            };
            if !matches!(spec.guest, GuestPaging::FirstTouch(_)) {
                pattern.bytes = pattern.bytes.min(slice);
            }
            GuestStream::Pattern(Box::new(Pattern::new(&pattern, Gva::new(base), spec.seed, index as u64)))
        }
        Workload::Trace(trace) => GuestStream::Trace(Box::new(Replay::new(trace).map_err(BuildError::Replay)?)),
    })
}
