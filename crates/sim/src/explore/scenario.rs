//! Scenarios: a small VM, a few vCPUs, a few host actors.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::OnceLock;

use mmu_core::machine::Machine;
use mmu_core::{
    AccessKind, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Hpa, HpaRange, HvaRange, Leaf, Level, PageSize, Perms,
};

use super::invariant::Invariant;
use super::lab::{Hand, Lab};
use super::limits::Limits;
use super::words::Words;
use crate::arch::Arch;
use crate::engine::world::{World, table_words};
use crate::engine::{
    ActorFuture, BackingKind, Bed, Costs, Frames, Host, LockId, LockKind, Memslot, PrimaryMmu, Protection, SlotFlags,
    SlotId, SlotsVersion, Userfault, Var, VcpuId, Vma, WaitQueue,
};
use crate::experiment::Populate;
use crate::experiment::vm::GUEST_MEMORY;
use crate::workload::GuestAccess;

/// The VM of a scenario.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SmallVm {
    /// Guest memory, backed by consecutive host pages.
    pub memory: Bytes,
    /// Size of the second-stage leaves that are there at the start, and of the host's.
    pub page: PageSize,
    /// What is mapped at the start.
    pub populate: Populate,
}

impl SmallVm {
    /// So many pages of the smallest size, all mapped.
    pub const fn mapped(pages: u64) -> SmallVm {
        SmallVm { memory: Bytes(pages << 12), page: PageSize::SIZE_4K, populate: Populate::Mapped }
    }
    /// So many pages of the smallest size, none mapped.
    pub const fn unmapped(pages: u64) -> SmallVm {
        SmallVm { populate: Populate::ByFaults, ..Self::mapped(pages) }
    }
    /// Memory of leaves of 2 MiB.
    pub const fn huge(leaves: u64) -> SmallVm {
        SmallVm { memory: Bytes(leaves << 21), page: PageSize::SIZE_2M, populate: Populate::Mapped }
    }
}

type Part<A> = Box<dyn Fn(&mut Build<'_, A>) + Send + Sync>;
type Prepare<A> = Box<dyn Fn(&mut World<A>) + Send + Sync>;

/// A scenario: what is there and who does what. It is built anew for every execution.
///
/// See `examples/explore.rs` for a whole program.
pub struct Scenario<A: Arch> {
    pub(crate) name: String,
    pub(crate) arch: A,
    pub(crate) vm: SmallVm,
    pub(crate) limits: Limits,
    pub(crate) parts: Vec<Part<A>>,
    prepare: Vec<Prepare<A>>,
    only: Option<Vec<u64>>,
    leaves: Option<PageSize>,
    state: LeafState,
    slot: Option<Bytes>,
    pub(crate) declared: Vec<Invariant>,
    /// Nothing costs anything here, but the world wants a price list: that of any machine.
    costs: OnceLock<Costs>,
}

/// What is known of pages that are mapped at the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LeafState {
    /// Read and written; the leaf allows everything.
    #[default]
    Used,
    /// Never touched: where there are flags they are clear.
    Untouched,
    /// Read and written once, and write-protected since.
    Protected,
}

impl<A: Arch> fmt::Debug for Scenario<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scenario").field("name", &self.name).field("vm", &self.vm).finish_non_exhaustive()
    }
}

/// Who takes part in a scenario.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Cast {
    /// Host actors, threads of vCPUs among them.
    pub actors: usize,
    /// Threads of vCPUs.
    pub threads: usize,
    /// vCPUs.
    pub vcpus: usize,
}

/// An access of a guest program.
pub const fn access(kind: AccessKind, gpa: u64) -> GuestAccess {
    GuestAccess { gva: Gva::new(gpa), kind }
}
/// A load.
pub const fn read(gpa: u64) -> GuestAccess {
    access(AccessKind::Read, gpa)
}
/// A store.
pub const fn write(gpa: u64) -> GuestAccess {
    access(AccessKind::Write, gpa)
}

impl<A: Arch> Scenario<A> {
    /// An empty scenario on these formats.
    pub fn new(name: impl Into<String>, arch: A, vm: SmallVm) -> Self {
        Self {
            name: name.into(),
            arch,
            vm,
            limits: Limits::default(),
            parts: Vec::new(),
            prepare: Vec::new(),
            only: None,
            leaves: None,
            state: LeafState::Used,
            slot: None,
            declared: Vec::new(),
            costs: OnceLock::new(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Invariants that the scenario is about: an exploration that never evaluates one of them proves nothing
    /// ([`Report::unevaluated`](super::Report::unevaluated)).
    #[must_use]
    pub fn declares(mut self, invariants: &[Invariant]) -> Self {
        self.declared.extend_from_slice(invariants);
        self
    }
    pub(crate) fn declare(&mut self, invariants: &[Invariant]) {
        self.declared.extend_from_slice(invariants);
    }

    /// What bounds it.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }
    /// The bounds, to be changed.
    pub fn limits_mut(&mut self) -> &mut Limits {
        &mut self.limits
    }

    /// Maps these pages only, and has the checker look at them.
    #[must_use]
    pub fn pages(mut self, pages: impl IntoIterator<Item = u64>) -> Self {
        self.only = Some(pages.into_iter().collect());
        self
    }

    /// Maps by leaves of this size, smaller than the host's pages.
    #[must_use]
    pub fn leaves(mut self, size: PageSize) -> Self {
        self.leaves = Some(size);
        self
    }

    /// How much of memory, from its beginning, is in memslot 0; all of it unless told otherwise.
    #[must_use]
    pub fn slot(mut self, bytes: Bytes) -> Self {
        self.slot = Some(bytes);
        self
    }

    /// What is known of the pages that are mapped.
    #[must_use]
    pub fn state(mut self, state: LeafState) -> Self {
        self.state = state;
        self
    }

    /// Changes the primary MMU or the memslots before anything begins.
    #[must_use]
    pub fn prepare(mut self, prepare: impl Fn(&mut World<A>) + Send + Sync + 'static) -> Self {
        self.prepare.push(Box::new(prepare));
        self
    }

    /// A vCPU whose guest makes these accesses, and whose thread is `thread`.
    #[must_use]
    pub fn vcpu(
        self,
        accesses: impl IntoIterator<Item = GuestAccess>,
        thread: impl Fn(Host<A::Two>, VcpuId) -> ActorFuture + Send + Sync + 'static,
    ) -> Self {
        let accesses: Vec<GuestAccess> = accesses.into_iter().collect();
        self.setup(move |build| {
            let vcpu = build.add_vcpu(accesses.clone());
            build.spawn_thread(vcpu, |host| thread(host, vcpu));
        })
    }

    /// A host actor.
    #[must_use]
    pub fn actor(
        self,
        name: &'static str,
        start: impl Fn(Host<A::Two>) -> ActorFuture + Send + Sync + 'static,
    ) -> Self {
        self.setup(move |build| build.spawn(name, &start))
    }

    /// Anything else: variables, several actors with what they share, what must be true in the end.
    #[must_use]
    pub fn setup(mut self, part: impl Fn(&mut Build<'_, A>) + Send + Sync + 'static) -> Self {
        self.parts.push(Box::new(part));
        self
    }

    /// Who takes part.
    pub fn cast(&self) -> Cast {
        let lab = Rc::new(RefCell::new(self.build()));
        lab.borrow_mut().reset();
        let mut build =
            Build { lab: &lab, futures: Vec::new(), finally: Vec::new(), roots: Vec::new(), late_roots: Vec::new() };
        self.parts.iter().for_each(|part| part(&mut build));
        drop(build);
        let lab = lab.borrow();
        let threads = lab.hands.iter().filter(|hand| hand.vcpu.is_some()).count();
        Cast { actors: lab.hands.len(), threads, vcpus: lab.guests.len() }
    }

    /// Builds the VM.
    pub(crate) fn build(&self) -> Lab<A> {
        let two = *self.arch.two();
        let geometry = *two.geometry();
        let mut primary = PrimaryMmu::new(Hpa::new(1 << 32), geometry.page_size(Level::LAST));
        let memory = HvaRange::new(GUEST_MEMORY, self.vm.memory);
        let backing = if self.vm.page > geometry.page_size(Level::LAST) {
            BackingKind::Thp(self.vm.page)
        } else {
            BackingKind::Small
        };
        primary.map(memory, Vma { protection: Protection::ReadWrite, backing, userfault: Userfault::Off });
        let host = primary.populate(memory, PageSize::SIZE_2M, self.vm.page);
        let mut words = Words::new(Hpa::new(1 << 36), two.present_mask());
        let root = words.alloc(geometry.root(), table_words(&two, geometry.root()));
        set_place(&mut words, root, Hpa::new(0), 0);
        let leaf_size = self.leaves.unwrap_or(self.vm.page);
        let leaf_level = geometry.level_of(leaf_size).unwrap_or(Level::LAST);
        if self.vm.populate == Populate::Mapped {
            let size = leaf_size.bytes() as usize;
            let all = || (0..self.vm.memory.0).step_by(size).collect();
            for at in self.only.clone().unwrap_or_else(all) {
                install(&mut words, &two, root, (at, host + at), leaf_level, self.state);
            }
        }
        let costs = self.costs.get_or_init(|| {
            let machine = Machine::names().find_map(|name| Machine::builtin(name).ok());
            Costs::of(&machine.expect("there are built-in machines"))
        });
        let tables = mmu_core::memory::TableMemory::new(
            mmu_core::image::RamRange { start: Hpa::new(1 << 40), bytes: 1 << 21 },
            two.present_mask(),
        );
        let tables = tables.expect("a pool of 2 MiB at a multiple of 2 MiB is legal");
        let mut world = World::new(self.arch, costs.clone(), tables, primary, root);
        let gpa = GpaRange::new(Gpa::new(0), self.slot.unwrap_or(self.vm.memory));
        let slot = Memslot { id: SlotId(0), gpa, hva: GUEST_MEMORY, flags: SlotFlags::empty() };
        world.slots.put_now(SlotsVersion(0), slot);
        for prepare in &self.prepare {
            prepare(&mut world);
        }
        let mut lab = Lab::new(world, words, root, self.limits);
        lab.ghost.pages = self.watched();
        if self.vm.populate == Populate::Mapped {
            let size = leaf_size.bytes();
            let mapped = self.only.clone().unwrap_or_else(|| vec![0]);
            let much = if self.only.is_some() { size } else { self.vm.memory.0 };
            lab.ghost.clean_at_start = mapped.iter().map(|&at| HpaRange::new(host + at, Bytes(much))).collect();
        }
        lab
    }

    /// Guest addresses that the checker looks at: one of each leaf, a few of large ones.
    fn watched(&self) -> Vec<u64> {
        if let Some(only) = &self.only {
            return only.clone();
        }
        let granule = self.arch.two().geometry().granule().bytes();
        let mut pages: Vec<u64> = (0..self.vm.memory.0.min(8 * granule)).step_by(granule as usize).collect();
        pages.extend((0..self.vm.memory.0).step_by(1 << 21).flat_map(|at| [at, at + granule]));
        pages.retain(|&at| at < self.vm.memory.0);
        pages.sort_unstable();
        pages.dedup();
        pages
    }
}

/// Maps one leaf before anything begins.
fn install<F: Format>(
    words: &mut Words,
    format: &F,
    root: Hpa,
    (gpa, host): (u64, Hpa),
    leaf_level: Level,
    state: LeafState,
) {
    let geometry = *format.geometry();
    let (mut table, mut level) = (root, geometry.root());
    while level > leaf_level {
        let at = table + 8 * geometry.index(level, gpa) as u64;
        let word = words.peek(at);
        let Some(down) = level.down() else { return };
        let next = if format.is_mapped(word) {
            format.next_table(level, word)
        } else {
            let next = words.alloc(down, table_words(format, down));
            if let Ok(word) = format.encode_table(level, next) {
                words.write(at, 1, word, u8::MAX);
            }
            set_place(words, next, at, gpa & !((1 << geometry.shift(level)) - 1));
            next
        };
        (table, level) = (next, down);
    }
    let tracked = format.dirty_mask() != 0 && format.hardware_dirty();
    let (perms, accessed) = match state {
        LeafState::Untouched if tracked => (Perms::RWX, !format.hardware_accessed()),
        LeafState::Untouched => (Perms::RWX.with(Perms::DIRTY), !format.hardware_accessed()),
        LeafState::Used | LeafState::Protected => (Perms::RWX.with(Perms::DIRTY), true),
    };
    let leaf = Leaf { output: host, perms, accessed, attrs: F::Attrs::default() };
    if let Ok(mut word) = format.encode_leaf(level, &leaf) {
        if state == LeafState::Protected {
            word = format.write_protect(word);
        }
        words.write(table + 8 * geometry.index(level, gpa) as u64, 1, word, u8::MAX);
    }
}

fn set_place(words: &mut Words, table: Hpa, parent: Hpa, gpa: u64) {
    if let Some(frame) = words.frame_mut(table) {
        frame.life = super::words::Life::Linked;
        (frame.parent, frame.gpa) = (parent, gpa);
    }
}

pub(crate) type LateRoots = Box<dyn FnOnce() -> Vec<Hpa>>;
pub(crate) type Check = Box<dyn FnOnce(&Ended) -> Result<(), String>>;

/// How an execution that broke nothing ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Faults that were taken again.
    pub retried_faults: u64,
    /// Flushes that left the processor.
    pub remote_flushes: u64,
    /// Leaves zapped.
    pub zapped_leaves: u64,
    /// Flushes of everything that the VM has cached.
    pub vm_flushes: u64,
    /// Tables allocated.
    pub tables_allocated: u64,
    /// Bytes cleaned to the point of coherency, each time counted.
    pub cleaned_bytes: u64,
    /// Atomic updates of leaves that nobody else could have changed.
    pub needless_atomics: u64,
    /// Most steps of one actor between breaking a live entry and making it again.
    pub longest_break: u64,
    /// Times a vCPU's thread took `mmu_lock` while an invalidation was in progress.
    pub locks_in_vain: u64,
}

/// A scenario under construction, for one execution.
pub struct Build<'a, A: Arch> {
    pub(crate) lab: &'a Rc<RefCell<Lab<A>>>,
    pub(crate) futures: Vec<ActorFuture>,
    pub(crate) finally: Vec<(Invariant, Check)>,
    pub(crate) roots: Vec<Hpa>,
    pub(crate) late_roots: Vec<LateRoots>,
}

impl<A: Arch> fmt::Debug for Build<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Build").field("actors", &self.futures.len()).finish_non_exhaustive()
    }
}

impl<A: Arch> Build<'_, A> {
    /// A vCPU whose guest makes these accesses. Somebody has to be its thread ([`Bed::spawn_thread`]).
    pub fn add_vcpu(&mut self, accesses: Vec<GuestAccess>) -> VcpuId {
        let mut lab = self.lab.borrow_mut();
        let root = lab.root;
        lab.guests.push(super::guest::Guest::new(root, accesses));
        VcpuId(lab.guests.len() - 1)
    }

    /// Starts a host actor.
    pub fn spawn(&mut self, name: &'static str, start: impl FnOnce(Host<A::Two>) -> ActorFuture) {
        self.add(name, None, start);
    }

    fn add(&mut self, name: &'static str, vcpu: Option<VcpuId>, start: impl FnOnce(Host<A::Two>) -> ActorFuture) {
        let (format, left_out) = {
            let mut lab = self.lab.borrow_mut();
            lab.hands.push(Hand::new(name, vcpu));
            (lab.format, lab.limits.without.contains(lab.hands.len() - 1))
        };
        if left_out {
            return self.futures.push(Box::pin(async {}));
        }
        let stage: Rc<dyn crate::engine::Stage> = self.lab.clone();
        self.futures.push(start(Host::new(stage, format)));
    }

    /// What must be true at the end of an execution that broke nothing else, and the invariant that it belongs to; `Err` says what is not.
    pub fn finally(&mut self, invariant: Invariant, check: impl FnOnce(&Ended) -> Result<(), String> + 'static) {
        self.finally.push((invariant, Box::new(check)));
    }

    /// This table, and what it points to, may be left at the end.
    pub fn keep_root(&mut self, table: Hpa) {
        self.roots.push(table);
    }

    /// These tables, asked for at the end, and what they point to, may be left then.
    pub fn keep_roots(&mut self, tables: impl FnOnce() -> Vec<Hpa> + 'static) {
        self.late_roots.push(Box::new(tables));
    }

    /// Behind these guest addresses are registers of a device that user space has mapped, not memory.
    pub fn add_device(&mut self, range: GpaRange) {
        let mut lab = self.lab.borrow_mut();
        let pages: Vec<HpaRange> = lab.world.guest_pages(range).into_iter().collect();
        lab.ghost.devices.extend(pages);
    }

    /// Presets a shared variable.
    pub fn set_var(&mut self, var: Var, value: u64) {
        let mut lab = self.lab.borrow_mut();
        let at = lab.var(var);
        lab.words.write(at, 1, value, u8::MAX);
    }
}

impl<A: Arch> Bed for Build<'_, A> {
    type Format = A::Two;

    fn new_var(&mut self, initial: u64) -> Var {
        self.lab.borrow_mut().new_var(initial)
    }
    fn new_lock(&mut self, kind: LockKind) -> LockId {
        let mut lab = self.lab.borrow_mut();
        lab.locks.push(super::waiting::Lock { kind, ..Default::default() });
        LockId(lab.locks.len() as u32 - 1)
    }
    fn new_wait_queue(&mut self) -> WaitQueue {
        self.lab.borrow_mut().queues.create()
    }
    fn alloc_words(&mut self, words: u64) -> Option<Frames> {
        let first = self.lab.borrow_mut().words.alloc(super::words::WORDS, words as usize);
        Some(crate::engine::words_at(first, words))
    }
    fn root(&self) -> Hpa {
        self.lab.borrow().root
    }
    fn vcpus(&self) -> usize {
        self.lab.borrow().guests.len()
    }
    fn spawn_actor(&mut self, name: &'static str, _at: Cycles, start: impl FnOnce(Host<A::Two>) -> ActorFuture) {
        self.add(name, None, start);
    }
    fn spawn_thread(&mut self, vcpu: VcpuId, start: impl FnOnce(Host<A::Two>) -> ActorFuture) {
        self.add("vcpu", Some(vcpu), start);
    }
}
