//! The dirty ring: each vCPU pushes the pages it dirties into a ring that user space reads while the vCPU runs.
//!
//! Models `virt/kvm/dirty_ring.c` of Linux 6.6 (fb04a1eddb1a; release and acquire for weakly ordered machines since 17601bfed909). An entry goes round:
//!
//! ```text
//!   invalid (0) --push, by the vCPU--> dirty (1) --collect, by user space--> to be reset (2) --reset, by an ioctl--> invalid
//! ```
//!
//! Locking: none for pushing (a ring has one writer) and collecting (one reader); `slots_lock` for resetting, and `mmu_lock` for write around each word of
//! pages that becomes clean. Flush: of the whole VM, once per reset, before user space copies a page. Frees nothing. A vCPU whose ring is soft-full leaves
//! for its monitor and does not enter the guest until it was reset: what a fault or a full processor log may still push has room above the limit.

use mmu_core::{Format, Hpa};
use serde::{Deserialize, Serialize};

use super::protect::Walk;
use super::{DirtyLog, DirtyPolicy, range};
use crate::engine::{Bed, Fence, Host, LockId, LockMode, MODIFICATION_LOG_ENTRIES, Var, VcpuId, WaitQueue, Wake};
use crate::events::Trace;
use crate::protocols::iter::{FlushDebt, Yield};
use crate::protocols::zap::ZapLock;

/// How an entry's state is published and looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RingOrder {
    /// `smp_store_release` and `smp_load_acquire`.
    ReleaseAcquire,
    /// Plain stores and loads (G12): on a weakly ordered machine user space can see the state before the page.
    Relaxed,
}

/// `KVM_DIRTY_GFN_F_DIRTY` and `KVM_DIRTY_GFN_F_RESET`.
const DIRTY: u64 = 1;
const RESET: u64 = 2;
const FLAGS: u64 = 0xffff_ffff;
/// Words of an entry (`struct kvm_dirty_gfn`): its state in the low half and its memslot in the high half of one, its page in the memslot.
const ENTRY_WORDS: u64 = 2;
/// `KVM_DIRTY_RING_RSVD_ENTRIES`: room for what is pushed between two looks at the limit.
const RESERVED: u64 = 64;

/// A page that was dirtied, as user space is told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct DirtyGfn {
    /// The memslot, counted from the first logged one.
    pub slot: u32,
    /// The page in it.
    pub offset: u64,
}

/// A vCPU's ring: a handle that the vCPU's thread and the collector have copies of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirtyRing {
    /// Whose.
    pub vcpu: VcpuId,
    /// Entries, a power of two.
    pub size: u64,
    /// Pushes above which the vCPU leaves for its monitor.
    pub soft_limit: u64,
    /// How states are published.
    pub order: RingOrder,
    first: Hpa,
    /// Entries pushed; written by the vCPU's thread only.
    dirty_index: Var,
    /// Entries reset; written under `slots_lock`.
    reset_index: Var,
    /// Where the vCPU waits while the ring is full.
    resumed: WaitQueue,
    /// Where the collector waits for a vCPU whose ring is full.
    full: WaitQueue,
}

impl DirtyRing {
    /// A ring of `size` entries for each vCPU (`KVM_CAP_DIRTY_LOG_RING`), before the run. `full` is where the collector sleeps. `None` when the size is no power
    /// of two above what has to be reserved, or no memory is left.
    pub fn create(
        sim: &mut impl Bed,
        size: u64,
        log: super::Tracking,
        order: RingOrder,
        full: WaitQueue,
    ) -> Option<Vec<Self>> {
        let logged = if log == super::Tracking::ModificationLog { MODIFICATION_LOG_ENTRIES } else { 0 };
        let soft_limit = size.checked_sub(RESERVED + logged).filter(|&limit| limit > 0 && size.is_power_of_two())?;
        let vcpus = sim.vcpus();
        let ring = |index| {
            let first = sim.alloc_words(size * ENTRY_WORDS)?.first;
            let (dirty_index, reset_index, resumed) = (sim.new_var(0), sim.new_var(0), sim.new_wait_queue());
            let vcpu = VcpuId(index);
            Some(Self { vcpu, size, soft_limit, order, first, dirty_index, reset_index, resumed, full })
        };
        (0..vcpus).map(ring).collect()
    }

    /// Where the ring's state and page words of an entry are.
    fn entry(&self, index: u64) -> (Hpa, Hpa) {
        let at = self.first + 8 * ENTRY_WORDS * (index & (self.size - 1));
        (at, at + 8)
    }

    /// `kvm_dirty_ring_push`. For the vCPU's own thread.
    pub(super) async fn push<F: Format>(&self, host: &Host<F>, page: DirtyGfn) {
        let index = host.load(self.dirty_index).await;
        let (state, offset) = self.entry(index);
        host.write(offset, page.offset).await;
        let dirty = DIRTY | u64::from(page.slot) << 32;
        match self.order {
            // The page is there before user space is told so.
            RingOrder::ReleaseAcquire => host.write_release(state, dirty).await,
            RingOrder::Relaxed => host.write(state, dirty).await,
        }
        host.store(self.dirty_index, index + 1).await;
        let reset = host.load(self.reset_index).await;
        host.trace(|| Trace::KvmDirtyRingPush {
            index: self.vcpu.0 as u32,
            dirty_index: index as u32,
            reset_index: reset as u32,
            slot: page.slot,
            offset: page.offset,
        });
    }

    /// `kvm_dirty_ring_soft_full`
    async fn is_soft_full<F: Format>(&self, host: &Host<F>) -> bool {
        host.load(self.dirty_index).await - host.load(self.reset_index).await >= self.soft_limit
    }

    /// `kvm_dirty_ring_check_request`: a vCPU whose ring is soft-full leaves for its monitor, which has the ring emptied. True when it did.
    pub(super) async fn wait_while_full<F: Format>(&self, host: &Host<F>) -> bool {
        if !self.is_soft_full(host).await {
            return false;
        }
        host.trace(|| Trace::KvmDirtyRingExit { vcpu_id: self.vcpu.0 as u32 });
        host.user_exit().await;
        host.wake_up(self.full, Wake::All).await;
        loop {
            host.prepare_to_wait(self.resumed).await;
            if !self.is_soft_full(host).await {
                break host.finish_wait(self.resumed).await;
            }
            host.schedule(self.resumed).await;
        }
        true
    }

    /// Gives the ring's memory back, when nobody uses it any more.
    pub async fn release<F: Format>(self, host: &Host<F>) {
        let frames = crate::engine::words_at(self.first, self.size * ENTRY_WORDS);
        host.free_tables(frames).await;
    }
}

/// User space's side of a ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Collector {
    ring: DirtyRing,
    fetch_index: u64,
}

impl Collector {
    /// The reader of a ring that nobody has read yet.
    pub const fn new(ring: DirtyRing) -> Self {
        Self { ring, fetch_index: 0 }
    }

    /// Reads what is dirty and marks it for the reset (`dirty_ring_collect_one`). Pages in the order they were pushed.
    pub async fn collect<F: Format>(&mut self, host: &Host<F>) -> Vec<DirtyGfn> {
        let mut pages = Vec::new();
        loop {
            let (state, offset) = self.ring.entry(self.fetch_index);
            let word = host.read(state).await;
            if word & FLAGS != DIRTY {
                return pages;
            }
            let slot = (word >> 32) as u32;
            if self.ring.order == RingOrder::ReleaseAcquire {
                // `smp_load_acquire`: the page is read after its state.
                host.fence(Fence::Read).await;
            }
            pages.push(DirtyGfn { slot, offset: host.read(offset).await });
            let to_reset = word & !FLAGS | RESET;
            match self.ring.order {
                RingOrder::ReleaseAcquire => host.write_release(state, to_reset).await,
                RingOrder::Relaxed => host.write(state, to_reset).await,
            }
            self.fetch_index += 1;
        }
    }
}

/// Makes collected pages clean and their entries free (`KVM_RESET_DIRTY_RINGS`); how many. User space may copy them from now on. `log` is the first of
/// the logged memslots.
pub async fn reset_dirty_rings<F: Format>(
    host: &Host<F>,
    log: &DirtyLog,
    policy: &DirtyPolicy,
    rings: &[DirtyRing],
) -> u64 {
    host.lock(LockId::SLOTS, LockMode::Write).await;
    let mut pages = Vec::new();
    let mut debt = FlushDebt::Clean;
    for ring in rings {
        debt = debt.merge(reset(host, log, policy, ring, &mut pages).await);
    }
    if debt == FlushDebt::Owed {
        host.flush_vm().await;
    }
    host.unlock(LockId::SLOTS).await;
    for page in &pages {
        let slot = log.nth(page.slot.into()).slot;
        host.reported_dirty(range(slot.start, log.page, (page.offset, 1))).await;
    }
    for ring in rings {
        host.wake_up(ring.resumed, Wake::All).await;
    }
    pages.len() as u64
}

/// `kvm_dirty_ring_reset`: neighbouring pages are made clean together.
async fn reset<F: Format>(
    host: &Host<F>,
    log: &DirtyLog,
    policy: &DirtyPolicy,
    ring: &DirtyRing,
    pages: &mut Vec<DirtyGfn>,
) -> FlushDebt {
    let mut debt = FlushDebt::Clean;
    let mut word = Word::default();
    let mut index = host.load(ring.reset_index).await;
    loop {
        let (state, offset) = ring.entry(index);
        let entry = host.read(state).await;
        if entry & FLAGS != RESET {
            break;
        }
        if ring.order == RingOrder::ReleaseAcquire {
            host.fence(Fence::Read).await;
        }
        let page = DirtyGfn { slot: (entry >> 32) as u32, offset: host.read(offset).await };
        match ring.order {
            RingOrder::ReleaseAcquire => host.write_release(state, 0).await,
            RingOrder::Relaxed => host.write(state, 0).await,
        }
        index += 1;
        host.store(ring.reset_index, index).await;
        pages.push(page);
        if !word.takes(page) {
            debt = debt.merge(clean(host, log, policy, word).await);
            word = Word::of(page);
        }
    }
    let dirty = host.load(ring.dirty_index).await;
    host.trace(|| Trace::KvmDirtyRingReset {
        index: ring.vcpu.0 as u32,
        dirty_index: dirty as u32,
        reset_index: index as u32,
    });
    debt.merge(clean(host, log, policy, word).await)
}

/// Up to 64 neighbouring pages of a memslot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Word {
    slot: u32,
    first: u64,
    bits: u64,
}

impl Word {
    const fn of(page: DirtyGfn) -> Self {
        Self { slot: page.slot, first: page.offset, bits: 1 }
    }

    /// Adds a page if it is near enough, in front of the others too.
    fn takes(&mut self, DirtyGfn { slot, offset: page }: DirtyGfn) -> bool {
        if self.bits == 0 {
            *self = Self::of(DirtyGfn { slot, offset: page });
            return true;
        }
        if slot != self.slot {
            return false;
        }
        if page >= self.first {
            let delta = page - self.first;
            if delta < 64 {
                self.bits |= 1 << delta;
            }
            return delta < 64;
        }
        let back = self.first - page;
        let fits = back < u64::from(self.bits.leading_zeros());
        if fits {
            *self = Word { slot, first: page, bits: self.bits << back | 1 };
        }
        fits
    }
}

/// `kvm_reset_dirty_gfn`
async fn clean<F: Format>(host: &Host<F>, log: &DirtyLog, policy: &DirtyPolicy, word: Word) -> FlushDebt {
    if word.bits == 0 {
        return FlushDebt::Clean;
    }
    host.lock(LockId::MMU, LockMode::Write).await;
    let root = host.root().await;
    let mut walk = Walk::new(host, policy, ZapLock::Write, Yield::Never);
    let len = u64::from(64 - word.bits.leading_zeros());
    walk.masked(root, range(log.nth(word.slot.into()).slot.start, log.page, (word.first, len)), word.bits).await;
    let debt = walk.debt;
    host.unlock(LockId::MMU).await;
    debt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_pages_of_a_slot_make_one_word() {
        let page = |offset| DirtyGfn { slot: 1, offset };
        let mut word = Word::default();
        assert!([100, 163, 130].into_iter().all(|offset| word.takes(page(offset))));
        assert_eq!(word, Word { slot: 1, first: 100, bits: 1 | 1 << 63 | 1 << 30 });
        assert!(!word.takes(page(164)) && !word.takes(page(99)));
        assert!(!word.takes(DirtyGfn { slot: 0, offset: 101 }), "of another slot");
        let mut word = Word { slot: 1, first: 100, bits: 0b11 };
        assert!(word.takes(page(40)), "60 pages in front of two");
        assert_eq!(word, Word { slot: 1, first: 40, bits: 1 | 0b11 << 60 });
        assert!(!word.takes(page(37)));
    }
}
