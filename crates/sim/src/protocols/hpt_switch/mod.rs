//! POWER: a guest changes between a radix tree and a hashed page table while agers run.
//!
//! Models `kvmhv_configure_mmu`, `kvmppc_switch_mmu_to_hpt` and `kvmppc_switch_mmu_to_radix` of Linux 6.6, `kvm_age_radix` and the R-bit
//! aging of hashed entries (`kvm_age_rmapp`), and what the seed thread wanted to change so that radix trees can be aged without the lock ("KVM:
//! PPC: Book3S HV: make Radix page tables RCU safe" of `20230526234435.662652-1-yuzhao@google.com`, never merged). Only formats that have a
//! hashed table ([`HashedPages`]) can call this: for others it does not compile.
//!
//! | policy | before | after |
//! | --- | --- | --- |
//! | [`Switch::grace`] | tables are freed as soon as `radix` is 0 (P08) | after `synchronize_rcu()` |
//! | [`Switch::publish`] | `radix = 1` by a plain store after the tree's address (P09) | `smp_wmb()` between them; readers have `smp_rmb()` |
//! | [`Switch::tables`] | a table replaced by a leaf is freed at once (P10) | its slab is `SLAB_TYPESAFE_BY_RCU`: it may come back as a table, of the same level, at once |
//!
//! Locking: `mmu_setup_lock` around a switch; `mmu_lock`, a spin lock here, around the change of `radix` and all changes of either table. An ager is in
//! an RCU section, or under `mmu_lock`. Flush: clearing R in a hashed entry is followed by a `tlbie` of the page; a radix leaf's is not; a
//! tree that goes away, and a table that is replaced, are flushed before they are freed. Frees: see above; the hashed table at the
//! end of the switch away from it.
//!
//! P09 needs processors that reorder stores: the timed engine runs stores in order and cannot show it, an explorer with weak memory can.
//! Guests run on radix trees only; accesses through the hashed table are made by [`touch_hashed`]. While it is in use the VM has no root ([`NO_TABLES`]): protocols
//! that go through the VM's roots under `mmu_lock` find none, as the kernel's handlers find `kvm_is_radix()` false.
//!
//! ```
//! fn switches<F: mmu_core::HashedPages>() {}
//! switches::<arch_ppc_radix::Radix>();
//! ```
//! ```compile_fail
//! fn switches<F: mmu_core::HashedPages>() {}
//! switches::<arch_x86_ept::Ept>();
//! ```

mod hashed;

pub use hashed::{Touch, map_hashed, touch_hashed};

use mmu_core::{EncodeError, Format, Gpa, GpaRange, HashedPages, Hpa, Leaf, Level, Perms, WalkCaches};

use hashed::age_hashed;

use super::aging::{self, Aged, AgingPath, AgingPolicy};
use super::iter::pass_over;
use super::vm::NO_TABLES;
use super::young::Clear;
use crate::engine::{
    Apply, Atomicity, Bed, Fence, Frames, Host, LockId, LockKind, LockMode, ReschedCheck, RunOp, Var, Work,
};

/// Whether a switch waits for lockless walkers before it frees the tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Grace {
    /// P08: it does not.
    None,
    /// `synchronize_rcu()` after `radix` became 0.
    Synchronize,
}

/// What orders a tree's address before the flag that says it is in use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Publish {
    /// P09: nothing, on either side.
    Plain,
    /// `smp_wmb()` in the switch, `smp_rmb()` in the reader.
    Ordered,
}

/// What becomes of a table when a leaf takes its place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum TableMemory {
    /// P10: it is freed at once, for whatever use.
    AnyUse,
    /// `SLAB_TYPESAFE_BY_RCU`: it may be a table of the same level again at once, and anything else after a grace period.
    SameKind,
    /// It is freed after a grace period (x86 and Arm).
    AfterGrace,
}

/// What becomes of the small leaves when a large one takes their place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SmallLeaves {
    /// Each is unmapped: what it knows of its page is handed over.
    Unmapped,
    /// They are freed with their table (P12): that their pages are dirty is forgotten.
    FreedWithTable,
}

/// How a guest changes its tables.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Switch {
    /// Before a tree is freed.
    pub grace: Grace,
    /// When a tree is put in use.
    pub publish: Publish,
    /// When a table is replaced by a leaf.
    pub tables: TableMemory,
    /// What happens to the leaves in it.
    pub leaves: SmallLeaves,
}

impl Switch {
    /// As the seed found it; right as long as all aging is under `mmu_lock`.
    pub const BEFORE: Switch = Switch {
        grace: Grace::None,
        publish: Publish::Plain,
        tables: TableMemory::AnyUse,
        leaves: SmallLeaves::Unmapped,
    };
    /// As the seed wanted it.
    pub const AFTER: Switch = Switch {
        grace: Grace::Synchronize,
        publish: Publish::Ordered,
        tables: TableMemory::SameKind,
        leaves: SmallLeaves::Unmapped,
    };
}

/// Which tables a guest has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mode {
    /// A radix tree.
    Radix,
    /// A hashed table.
    Hashed,
}

/// Why a guest keeps the tables that it has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SwitchError {
    /// vCPUs run (`-EBUSY`): stop them first.
    Busy {
        /// How many.
        running: u64,
    },
    /// No memory for the new tables.
    NoMemory,
    /// Both groups of a page are full.
    Full {
        /// The page.
        gpa: Gpa,
    },
    /// The other kind of table is in use: switch first.
    Mode {
        /// What is in use.
        is: Mode,
    },
    /// An address that the tables do not reach.
    Encode(EncodeError),
}

impl std::fmt::Display for SwitchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SwitchError::Busy { running } => write!(f, "{running} vCPUs run: stop them before changing the tables"),
            SwitchError::NoMemory => f.write_str("no memory for the new tables: free some of the table pool first"),
            SwitchError::Full { gpa } => write!(f, "both groups of {gpa} are full: make the hashed table larger"),
            SwitchError::Mode { is } => write!(f, "the guest has {is:?} tables: switch first"),
            SwitchError::Encode(error) => error.fmt(f),
        }
    }
}
impl std::error::Error for SwitchError {}

impl From<EncodeError> for SwitchError {
    fn from(error: EncodeError) -> Self {
        SwitchError::Encode(error)
    }
}

/// Tables that a cache can hold back for reuse.
const CACHED: u32 = 64;

/// `kvm->arch` as far as the tables go. All of it is shared variables: agers read them without a lock.
#[derive(Clone, Copy, Debug)]
pub struct PowerVm {
    /// `radix`
    radix: Var,
    /// `pgtable`: the tree's root; its first use is taken from the VM.
    pgtable: Var,
    /// `mmu_ready`
    ready: Var,
    /// `vcpus_running`
    running: Var,
    /// `mmu_setup_lock`
    setup: LockId,
    /// Addresses of the hashed table's pieces; 0: there is none.
    pieces: Var,
    count: u32,
    /// How many recycled tables there are, and which: a stack.
    cached: Var,
    /// Tables that came back as tables.
    recycled: Var,
}

impl PowerVm {
    /// A guest that has the VM's radix tree; a hashed table will have `pieces` tables of the root's size.
    pub fn new<B: Bed>(sim: &mut B, pieces: u32) -> Self
    where
        B::Format: HashedPages,
    {
        let count = pieces.max(1).next_power_of_two();
        let root = sim.root().raw();
        let many = |sim: &mut B, count: u32| {
            let first = sim.new_var(0);
            for _ in 1..count {
                sim.new_var(0);
            }
            first
        };
        Self {
            radix: sim.new_var(1),
            pgtable: sim.new_var(root),
            ready: sim.new_var(1),
            running: sim.new_var(0),
            setup: sim.new_lock(LockKind::Spin),
            pieces: many(sim, count),
            count,
            cached: many(sim, 1 + CACHED),
            recycled: sim.new_var(0),
        }
    }

    /// How often a table came back as a table.
    pub fn recycled(&self) -> Var {
        self.recycled
    }

    /// A vCPU is about to enter the guest: true when it may. Pairs with the test in [`configure`].
    pub async fn vcpu_enters<F: Format>(&self, host: &Host<F>) -> bool {
        host.add(self.running, 1).await;
        host.fence(Fence::Full).await;
        // Who finds the tables ready finds which they are, too.
        let ready = host.load_acquire(self.ready).await != 0;
        if !ready {
            host.add(self.running, -1).await;
        }
        ready
    }
    /// A vCPU has left the guest.
    pub async fn vcpu_left<F: Format>(&self, host: &Host<F>) {
        host.add(self.running, -1).await;
    }

    /// Which tables are in use.
    pub async fn mode<F: Format>(&self, host: &Host<F>) -> Mode {
        if host.load(self.radix).await != 0 { Mode::Radix } else { Mode::Hashed }
    }

    async fn expect<F: Format>(&self, host: &Host<F>, mode: Mode) -> Result<(), SwitchError> {
        match self.mode(host).await {
            is if is == mode => Ok(()),
            is => Err(SwitchError::Mode { is }),
        }
    }
}

// ---- switching ----

/// `kvmhv_configure_mmu`: gives the guest tables of the other kind, empty ones. Nothing happens when it has that kind.
///
/// # Errors
/// [`SwitchError::Busy`], [`SwitchError::NoMemory`]; the guest keeps its tables.
pub async fn configure<F: HashedPages>(
    host: &Host<F>,
    vm: &PowerVm,
    mode: Mode,
    policy: &Switch,
) -> Result<(), SwitchError> {
    host.lock(vm.setup, LockMode::Write).await;
    let done = configure_locked(host, vm, mode, policy).await;
    host.unlock(vm.setup).await;
    done
}

async fn configure_locked<F: HashedPages>(
    host: &Host<F>,
    vm: &PowerVm,
    mode: Mode,
    policy: &Switch,
) -> Result<(), SwitchError> {
    if vm.mode(host).await == mode {
        return Ok(());
    }
    host.store(vm.ready, 0).await;
    // Orders mmu_ready against vcpus_running: a vCPU that we do not see sees us.
    host.fence(Fence::Full).await;
    let running = host.load(vm.running).await;
    let done = match (running, mode) {
        (0, Mode::Hashed) => switch_to_hashed(host, vm, policy).await,
        (0, Mode::Radix) => switch_to_radix(host, vm, policy).await,
        _ => Err(SwitchError::Busy { running }),
    };
    // In the kernel the next vCPU says so, under mmu_setup_lock (kvmhv_setup_mmu), which orders what the switch has stored before it.
    host.store_release(vm.ready, 1).await;
    done
}

/// `kvmppc_switch_mmu_to_hpt`
async fn switch_to_hashed<F: HashedPages>(host: &Host<F>, vm: &PowerVm, policy: &Switch) -> Result<(), SwitchError> {
    let level = host.format().geometry().root();
    for piece in 0..vm.count {
        let Some(table) = host.alloc_table(level).await else {
            free_hashed(host, vm).await;
            return Err(SwitchError::NoMemory);
        };
        host.store(Var(vm.pieces.0 + piece), table.raw()).await;
    }
    host.lock(LockId::MMU, LockMode::Write).await;
    host.store(vm.radix, 0).await;
    // Handlers test kvm_is_radix() under the lock: whoever goes through the VM's roots finds none from here on.
    host.set_root(NO_TABLES).await;
    host.unlock(LockId::MMU).await;
    if policy.grace == Grace::Synchronize {
        // Who still saw radix = 1 is in the tree until then.
        host.synchronize_rcu().await;
    }
    free_radix(host, vm).await;
    Ok(())
}

/// `kvmppc_switch_mmu_to_radix`
async fn switch_to_radix<F: HashedPages>(host: &Host<F>, vm: &PowerVm, policy: &Switch) -> Result<(), SwitchError> {
    let level = host.format().geometry().root();
    let root = host.alloc_table(level).await.ok_or(SwitchError::NoMemory)?;
    host.set_root(root).await;
    host.store(vm.pgtable, root.raw()).await;
    host.lock(LockId::MMU, LockMode::Write).await;
    if policy.publish == Publish::Ordered {
        host.fence(Fence::Write).await;
    }
    host.store(vm.radix, 1).await;
    host.unlock(LockId::MMU).await;
    free_hashed(host, vm).await;
    Ok(())
}

/// `kvmppc_free_hpt`: its walkers were under `mmu_lock`, so none is left.
async fn free_hashed<F: Format>(host: &Host<F>, vm: &PowerVm) {
    let level = host.format().geometry().root();
    for piece in 0..vm.count {
        let table = host.xchg_var(Var(vm.pieces.0 + piece), 0).await;
        if table != 0 {
            free_now(host, Hpa::new(table), level).await;
        }
    }
}

/// `kvmppc_free_radix`: every table, at once. No vCPU has run since the last flush of the whole guest, which comes first.
async fn free_radix<F: Format>(host: &Host<F>, vm: &PowerVm) {
    let root = Hpa::new(host.xchg_var(vm.pgtable, 0).await);
    host.flush_vm().await;
    free_tree(host, root, host.format().geometry().root()).await;
    // What was held back for reuse as well.
    while let Some((table, level)) = take_cached(host, vm, None).await {
        free_now(host, table, level).await;
    }
}

async fn free_tree<F: Format>(host: &Host<F>, table: Hpa, level: Level) {
    let format = *host.format();
    let entries = if level == Level::LAST { 0 } else { format.geometry().entries(level) as u64 };
    let mut index = 0;
    while index < entries {
        let run = host.read_run(table + 8 * index, entries - index).await;
        match level.down() {
            Some(down) if format.is_mapped(run.first) && !format.is_leaf(level, run.first) => {
                Box::pin(free_tree(host, format.next_table(level, run.first), down)).await;
                index += 1;
            }
            _ => index += pass_over(host, table + 8 * index, run.len).await,
        }
    }
    free_now(host, table, level).await;
}

async fn free_now<F: Format>(host: &Host<F>, table: Hpa, level: Level) {
    host.free_tables(frame(host, table, level)).await;
}

fn frame<F: Format>(host: &Host<F>, table: Hpa, level: Level) -> Frames {
    Frames { first: table, count: 1, level, bytes: host.format().geometry().table_bytes(level) }
}

// ---- tables that come back; mmu_lock held ----

/// Holds an empty table back for reuse; what does not fit goes after a grace period.
async fn put_cached<F: Format>(host: &Host<F>, vm: &PowerVm, table: Hpa, level: Level) {
    let n = host.load(vm.cached).await as u32;
    if n == CACHED {
        return host.call_rcu(frame(host, table, level)).await;
    }
    // The level fits into the bits that a table's alignment leaves free.
    host.store(Var(vm.cached.0 + 1 + n), table.raw() | level.index() as u64).await;
    host.store(vm.cached, u64::from(n) + 1).await;
}

/// The table held back last, if it is of this level (any, when none is named).
async fn take_cached<F: Format>(host: &Host<F>, vm: &PowerVm, level: Option<Level>) -> Option<(Hpa, Level)> {
    let n = host.load(vm.cached).await as u32;
    if n == 0 {
        return None;
    }
    let word = host.load(Var(vm.cached.0 + n)).await;
    let found = Level::new((word & 7) as u8);
    if level.is_some_and(|level| level != found) {
        return None;
    }
    host.store(vm.cached, u64::from(n) - 1).await;
    Some((Hpa::new(word & !7), found))
}

async fn new_table<F: Format>(host: &Host<F>, vm: &PowerVm, level: Level) -> Option<Hpa> {
    match take_cached(host, vm, Some(level)).await {
        Some((table, _)) => {
            host.add(vm.recycled, 1).await;
            Some(table)
        }
        None => host.alloc_table(level).await,
    }
}

// ---- radix leaves ----

/// Maps the page of `level` at `gpa` to `page`, by a young leaf. Takes `mmu_lock`. A table in the way is emptied and replaced
/// (`kvmppc_create_pte`): its entry is cleared, the walk cache flushed, the table given back by policy.
///
/// # Errors
/// No memory, a hashed guest, an address out of reach.
pub async fn map_radix<F: HashedPages>(
    host: &Host<F>,
    vm: &PowerVm,
    gpa: Gpa,
    page: Hpa,
    level: Level,
    policy: &Switch,
) -> Result<(), SwitchError> {
    host.lock(LockId::MMU, LockMode::Write).await;
    let done = map_locked(host, vm, gpa, page, level, policy).await;
    host.unlock(LockId::MMU).await;
    done
}

async fn map_locked<F: HashedPages>(
    host: &Host<F>,
    vm: &PowerVm,
    gpa: Gpa,
    page: Hpa,
    goal: Level,
    policy: &Switch,
) -> Result<(), SwitchError> {
    vm.expect(host, Mode::Radix).await?;
    let format = *host.format();
    let geometry = *format.geometry();
    let attrs = F::Attrs::default();
    let leaf = format
        .encode_leaf(goal, &Leaf { output: page, perms: Perms::RWX.with(Perms::DIRTY), accessed: true, attrs })?;
    let mut table = Hpa::new(host.load(vm.pgtable).await);
    let mut level = geometry.root();
    loop {
        let at = table + 8 * geometry.index(level, gpa.raw()) as u64;
        let word = host.read(at).await;
        let below = format.is_mapped(word) && !format.is_leaf(level, word);
        if level == goal {
            if below {
                replace_table(host, vm, at, word, level, gpa, policy).await;
            }
            host.write_release(at, leaf).await;
            return Ok(());
        }
        let Some(down) = level.down() else { return Ok(()) };
        table = if below {
            format.next_table(level, word)
        } else {
            let child = new_table(host, vm, down).await.ok_or(SwitchError::NoMemory)?;
            let size = geometry.page_size(level);
            if format.is_mapped(word) {
                host.xchg(at, 0).await;
                host.flush_range(GpaRange::new(gpa.align_down(size), size.into()), WalkCaches::Keep).await;
            }
            host.write_release(at, format.encode_table(level, child)?).await;
            child
        };
        level = down;
    }
}

/// `kvmppc_unmap_free_pmd_entry_table`: the table below an entry goes, each of its leaves unmapped (P12).
async fn replace_table<F: HashedPages>(
    host: &Host<F>,
    vm: &PowerVm,
    at: Hpa,
    word: u64,
    level: Level,
    gpa: Gpa,
    policy: &Switch,
) {
    let format = *host.format();
    let Some(down) = level.down() else { return };
    let table = format.next_table(level, word);
    host.xchg(at, 0).await;
    let size = format.geometry().page_size(level);
    host.flush_range(GpaRange::new(gpa.align_down(size), size.into()), WalkCaches::Drop).await;
    let unmaps = policy.leaves == SmallLeaves::Unmapped;
    let entries = if unmaps { format.geometry().entries(down) as u64 } else { 0 };
    let mut index = 0;
    while index < entries {
        let run = host.read_run(table + 8 * index, entries - index).await;
        let at = table + 8 * index;
        if !format.is_mapped(run.first) {
            index += pass_over(host, at, run.len).await;
        } else if format.is_leaf(down, run.first) {
            let (apply, work) = (Apply::Set(0), Some(Work::ReleaseLeaf));
            let check = ReschedCheck::Never;
            index += host.run(RunOp { at, len: run.len, apply, atomicity: Atomicity::Atomic, work, check }).await;
        } else {
            Box::pin(replace_table(host, vm, at, run.first, down, gpa, policy)).await;
            index += 1;
        }
    }
    match policy.tables {
        TableMemory::AnyUse => free_now(host, table, down).await,
        TableMemory::SameKind => put_cached(host, vm, table, down).await,
        TableMemory::AfterGrace => host.call_rcu(frame(host, table, down)).await,
    }
}

// ---- aging ----

/// Ages, or tests, a range in whichever tables the guest has: the seed's `kvm_arch_test_clear_young` for radix trees without the lock, if
/// `policy` says so; everything else under `mmu_lock`.
///
/// # Errors
/// An address that a hashed table does not reach.
pub async fn age<F: HashedPages>(
    host: &Host<F>,
    vm: &PowerVm,
    range: GpaRange,
    clear: Clear,
    policy: &AgingPolicy,
    switch: &Switch,
) -> Result<(AgingPath, Aged), SwitchError> {
    if policy.path(host.format()) == AgingPath::Lockless {
        let section = aging::enter_by(host, AgingPath::Lockless).await;
        let radix = host.load(vm.radix).await != 0;
        let mut aged = Aged::default();
        if radix {
            if switch.publish == Publish::Ordered {
                // Pairs with the barrier before radix = 1.
                host.fence(Fence::Read).await;
            }
            let root = Hpa::new(host.load(vm.pgtable).await);
            aged = aging::walk(host, root, range, clear, None, policy).await;
        }
        aging::leave(host, section, &mut aged).await;
        if radix {
            return Ok((AgingPath::Lockless, aged));
        }
    }
    let section = aging::enter_by(host, AgingPath::Locked).await;
    let mut aged = if vm.mode(host).await == Mode::Radix {
        let root = Hpa::new(host.load(vm.pgtable).await);
        Ok(aging::walk(host, root, range, clear, None, policy).await)
    } else {
        age_hashed(host, vm, range, clear).await
    };
    let mut unused = Aged::default();
    aging::leave(host, section, aged.as_mut().unwrap_or(&mut unused)).await;
    aged.map(|aged| (AgingPath::Locked, aged))
}

/// Frees what is held back for reuse, after the last walker that may still be in it. For the end of a guest.
pub async fn release<F: Format>(host: &Host<F>, vm: &PowerVm) {
    host.synchronize_rcu().await;
    while let Some((table, level)) = take_cached(host, vm, None).await {
        free_now(host, table, level).await;
    }
}
