//! `pre_fault_memory_test`: `KVM_PRE_FAULT_MEMORY` on a slot of a block and one page, while somebody deletes and recreates the slot.
//!
//! Each call shrinks the range or fails, never both. `-EINTR` is retried, `-EAGAIN` is allowed only while the slot is gone. A prefault that waits for the
//! slot, whose deleter waits for it, hangs (X34); a signal ends that here, and the check fails.

use std::cell::RefCell;
use std::rc::Rc;

use mmu_core::{Bytes, Cycles, Format, Gpa, GpaRange, Gva, Level, WalkCaches};
use serde::{Deserialize, Serialize};

use super::{Phase, SelftestError, SelftestReport, finish};
use crate::arch::Arch;
use crate::engine::{GuestPaging, Host, LockId, LockMode, Var, VcpuId};
use crate::experiment::{Platform, Populate, VmSpec, build_without_threads};
use crate::protocols::fault::{FaultHooks, FaultPolicy, Faults, SlotState};
use crate::protocols::iter::FlushDebt;
use crate::protocols::prefault::{DeletedSlot, PreFaultError, pre_fault_memory};
use crate::protocols::vcpu::{Ran, run as run_guest};
use crate::protocols::zap::{ZapLock, ZapPolicy, zap_leafs};
use crate::rng::Seed;
use crate::workload::{GuestWork, Mix, PatternSpec, Workload};

/// What the kernel's test has no letters for: the kernel it runs on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// What a prefault does in a slot that is being deleted.
    pub deleted: DeletedSlot,
}

impl Default for Options {
    fn default() -> Self {
        Self { deleted: DeletedSlot::Again }
    }
}

/// When a signal is sent to a prefault that hangs.
const PATIENCE: Cycles = Cycles(200_000_000);
/// When the slot is deleted: in the middle of the first call.
const DELETION: Cycles = Cycles(150_000);
/// How long it is gone.
const GONE: Cycles = Cycles(500_000);

const PRESENT: u64 = 1;
const INVALID: u64 = 2;
const ABSENT: u64 = 0;

/// One slot from 0 to `end`, as its variables say.
#[derive(Clone, Copy, Debug)]
struct Slot {
    end: u64,
    state: Var,
    signal: Var,
}

impl<F: Format> FaultHooks<F> for Slot {
    async fn slot(&self, host: &Host<F>, gpa: Gpa) -> SlotState {
        match host.load_acquire(self.state).await {
            PRESENT if gpa.raw() < self.end => SlotState::Memory,
            INVALID if gpa.raw() < self.end => SlotState::Invalid,
            _ => SlotState::None,
        }
    }
    async fn signal_pending(&self, host: &Host<F>) -> bool {
        host.xchg_var(self.signal, 0).await != 0
    }
}

/// What the calls did.
#[derive(Debug, Default)]
struct Found {
    /// What is left of each range, and the error of the last call if it failed.
    ranges: Vec<(Bytes, Option<PreFaultError>)>,
    again_while_present: u64,
    both_or_neither: u64,
    ran: Option<Ran>,
    cycles: Cycles,
}

/// Runs the test.
///
/// # Errors
/// A VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    let page = platform.arch.two().geometry().page_size(Level::LAST);
    let block = mmu_core::PageSize::SIZE_2M.bytes();
    let memory = block + page.bytes();
    let spec = VmSpec {
        memory: Bytes(memory),
        vcpus: 1,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::ByFaults,
        workload: Workload::Idle,
        seed: Seed(0),
    };
    let mut sim = build_without_threads(platform, &spec)?;
    let slot = Slot { end: memory, state: sim.new_var(PRESENT), signal: sim.new_var(0) };
    let policy = FaultPolicy::linux_6_6(platform.arch.two(), page);
    let (found, deleted) = (Rc::new(RefCell::new(Found::default())), options.deleted);
    let into = Rc::clone(&found);
    let pages = memory / page.bytes();
    sim.spawn_vcpu(VcpuId(0), move |host| {
        Box::pin(async move {
            let mut faults = Faults::with_hooks(VcpuId(0), policy, slot);
            let mut result = Found::default();
            for (start, bytes) in [(0, block), (block, 2 * page.bytes()), (memory, page.bytes())] {
                let range = GpaRange::new(Gpa::new(start), Bytes(bytes));
                let left = call(&host, &mut faults, range, deleted, &mut result).await;
                result.ranges.push(left);
            }
            result.cycles = host.now().await;
            let stride = page.bytes();
            let spec = PatternSpec { bytes: memory, mix: Mix::Strided { stride }, writes_percent: 0, accesses: pages };
            host.assign(VcpuId(0), GuestWork::Pattern { spec, base: Gva::new(0), seed: Seed(0) });
            result.ran = Some(run_guest(&host, VcpuId(0), &mut faults).await);
            faults.release(&host).await;
            *into.borrow_mut() = result;
        })
    });
    sim.spawn("delete", DELETION, move |host| Box::pin(async move { delete_and_recreate(&host, slot).await }));
    sim.spawn("signal", PATIENCE, move |host| Box::pin(async move { host.store(slot.signal, 1).await }));
    finish(&mut sim)?;
    let found = found.take();
    let mut report = SelftestReport::new("pre_fault_memory_test", platform);
    let host = *sim.world().counters();
    report.phases.push(Phase { name: "prefault".into(), cycles: found.cycles, host });
    let wanted = [
        (Bytes(0), None),
        (Bytes(page.bytes()), Some(PreFaultError::NoEntry)),
        (Bytes(page.bytes()), Some(PreFaultError::NoEntry)),
    ];
    for ((found, wanted), what) in found.ranges.iter().zip(&wanted).zip(["all", "up to the end", "behind the end"]) {
        report.check(found == wanted, format!("{what}: {} left, {:?}", found.0, found.1));
    }
    report.check(
        found.both_or_neither == 0,
        format!("a call shrinks the range or fails: {} did not", found.both_or_neither),
    );
    report.check(
        found.again_while_present == 0,
        format!("-EAGAIN only while the slot is gone: {} times otherwise", found.again_while_present),
    );
    report.check(
        found.cycles < PATIENCE,
        format!("no prefault has to be interrupted: all is done after {} cycles", found.cycles.0),
    );
    report.check(found.ran == Some(Ran::Done), "the guest reads all of it");
    Ok(report)
}

/// Calls until nothing is left or an error is final.
async fn call<F: Format>(
    host: &Host<F>,
    faults: &mut Faults<Slot>,
    range: GpaRange,
    deleted: DeletedSlot,
    found: &mut Found,
) -> (Bytes, Option<PreFaultError>) {
    let mut left = range;
    loop {
        if left.bytes.0 == 0 {
            return (left.bytes, None);
        }
        let was = left.bytes;
        let done = pre_fault_memory(host, faults, left, deleted).await;
        left = done.remaining;
        found.both_or_neither += u64::from((left.bytes < was) != done.result.is_ok());
        let state = host.load_acquire(faults.hooks().state).await;
        match done.result {
            Ok(()) | Err(PreFaultError::Interrupted) => {}
            // The kernel's test waits until its worker has recreated the slot.
            Err(PreFaultError::Again | PreFaultError::NoEntry) if state != PRESENT => {
                host.sleep(Cycles(GONE.0 / 10)).await;
            }
            Err(PreFaultError::Again) => found.again_while_present += 1,
            Err(error) => return (left.bytes, Some(error)),
        }
    }
}

/// `kvm_delete_memslot`: marked invalid, readers waited for, zapped, gone; after a while it is there again.
async fn delete_and_recreate<F: Format>(host: &Host<F>, slot: Slot) {
    host.lock(LockId::SLOTS, LockMode::Write).await;
    host.store_release(slot.state, INVALID).await;
    host.synchronize_srcu().await;
    host.lock(LockId::MMU, LockMode::Write).await;
    let root = host.root().await;
    let range = GpaRange::new(Gpa::new(0), Bytes(slot.end));
    let policy = ZapPolicy { lock: ZapLock::Write, ..ZapPolicy::V5_18 };
    if zap_leafs(host, root, range, &policy).await == FlushDebt::Owed {
        host.flush_range(range, WalkCaches::Keep).await;
    }
    host.unlock(LockId::MMU).await;
    host.store_release(slot.state, ABSENT).await;
    host.sleep(GONE).await;
    host.store_release(slot.state, PRESENT).await;
    host.unlock(LockId::SLOTS).await;
}
