//! Sleepable RCU, as the kernel's `srcu_struct`: `kvm->srcu` protects the memslots and everything that must not change under a vCPU.
//!
//! Two pairs of counters: readers count themselves in and out of the pair that the index names. A grace period waits until the other
//! pair is empty, flips the index and waits until the pair left behind is empty, so that a reader which loaded the index just before the
//! flip is waited for. The shared state is variables and a wait queue, so the explorer sees every load, store and barrier.

use super::host::Host;
use super::op::{Fence, LockId, LockMode, Var, WaitQueue, Wake, Work};

/// Which pair of counters a reader counted itself into; give it back to [`Host::srcu_read_unlock`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a section that is never left blocks every grace period"]
pub struct SrcuIndex(u32);

const LOCKS: [Var; 2] = [Var::SRCU_LOCKS_0, Var::SRCU_LOCKS_1];
const UNLOCKS: [Var; 2] = [Var::SRCU_UNLOCKS_0, Var::SRCU_UNLOCKS_1];

impl<F: Copy> Host<F> {
    /// Enters a section of `kvm->srcu`; it may sleep.
    pub async fn srcu_read_lock(&self) -> SrcuIndex {
        let index = self.load(Var::SRCU_INDEX).await as u32 & 1;
        self.add(LOCKS[index as usize], 1).await;
        self.fence(Fence::Full).await;
        SrcuIndex(index)
    }

    /// Leaves it.
    pub async fn srcu_read_unlock(&self, section: SrcuIndex) {
        self.fence(Fence::Full).await;
        self.add(UNLOCKS[section.0 as usize], 1).await;
        if self.load(Var::SRCU_WAITING).await != 0 {
            self.wake_up(WaitQueue::SRCU, Wake::All).await;
        }
    }

    /// Waits until every section that began before now is over (`synchronize_srcu_expedited`). Not from inside one.
    pub async fn synchronize_srcu(&self) {
        self.lock(LockId::SRCU, LockMode::Write).await;
        self.spend(Work::GracePeriod).await;
        self.store(Var::SRCU_WAITING, 1).await;
        self.fence(Fence::Full).await;
        let index = self.load(Var::SRCU_INDEX).await as usize & 1;
        self.wait_for_srcu_readers(index ^ 1).await;
        self.store(Var::SRCU_INDEX, index as u64 ^ 1).await;
        self.fence(Fence::Full).await;
        self.wait_for_srcu_readers(index).await;
        self.store(Var::SRCU_WAITING, 0).await;
        self.unlock(LockId::SRCU).await;
    }

    async fn wait_for_srcu_readers(&self, index: usize) {
        loop {
            self.prepare_to_wait(WaitQueue::SRCU).await;
            // Unlocks first: a reader counted in and out between the two loads must not hide another.
            let unlocks = self.load(UNLOCKS[index]).await;
            self.fence(Fence::Full).await;
            if self.load(LOCKS[index]).await == unlocks {
                break;
            }
            self.schedule(WaitQueue::SRCU).await;
        }
        self.finish_wait(WaitQueue::SRCU).await;
    }
}
