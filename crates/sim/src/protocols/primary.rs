//! The primary MMU at work: what the host's memory management does to a process that owns a guest.
//!
//! Models, around the notifier calls of Linux 6.6: `zap_page_range_single` (`MADV_DONTNEED`), `change_protection` (`mprotect`),
//! `migrate_pages` with `try_to_migrate`, `collapse_huge_page` (khugepaged), `shrink_folio_list` with `try_to_unmap` (reclaim),
//! `wp_page_copy` (copy on write), the OOM reaper; and from KVM's side `hva_to_pfn`.
//!
//! Locking: none of KVM's; the primary MMU's own locks are not modelled, so callers keep changes of one range apart. Flush: owed by the
//! notifier's start, before the pages change. Frees: host pages, between start and end, as soon as nobody holds a reference.

use mmu_core::{Bytes, Cycles, Format, Hva, HvaRange};

use super::notifier::{ChangePte, Notifier, change_pte, range_end, split_and_start};
use crate::engine::{
    Backed, Blockable, Faulted, Host, HostAccess, HvaError, Migration, Moved, Protection, Reference, Rescan, Resolved,
    Unmapping, Var, WaitQueue, Work,
};

/// Finds the host page of an address, waiting for whatever must be waited for: a move to end, swap, a handler in user space. May
/// sleep; no lock is held.
///
/// # Errors
/// When nothing is mapped there, or the mapping forbids the access.
pub async fn hva_to_pfn<F: Format>(
    host: &Host<F>,
    at: Hva,
    access: HostAccess,
    reference: Reference,
) -> Result<Resolved, HvaError> {
    loop {
        match host.try_fault(at, access, reference).await {
            Faulted::Page(page) => {
                if page.backed == Backed::Now {
                    first_touch(host).await;
                }
                return Ok(page);
            }
            Faulted::Error(error) => return Err(error),
            Faulted::Swapped(latency) | Faulted::User(latency) => {
                host.sleep(latency).await;
                host.bring_page(at).await;
            }
            Faulted::Moving => {
                host.prepare_to_wait(WaitQueue::MIGRATION).await;
                // The move may have ended before the queue was entered: whatever it is now, the loop sees it.
                match host.try_fault(at, access, Reference::None).await {
                    Faulted::Moving => host.schedule(WaitQueue::MIGRATION).await,
                    _ => host.finish_wait(WaitQueue::MIGRATION).await,
                }
            }
        }
    }
}

/// What a page that had to be brought costs beyond bringing it: `get_user_pages_fast` has not found it, `hva_to_pfn_slow` takes the process's `mmap_lock` for
/// read. Its line moves for the count and for the owner when it is taken (`rwsem_read_trylock`, `rwsem_set_reader_owned`), and for the count when it is given
/// back: of all that threads of one process share on this way, it is written most often.
async fn first_touch<F: Format>(host: &Host<F>) {
    for _ in 0..MMAP_LOCK_WRITES {
        host.spend(Work::MmapLock).await;
    }
}

/// Writes to the line of `mmap_lock` by a reader that comes and goes.
const MMAP_LOCK_WRITES: usize = 3;

/// `MADV_DONTNEED`: the pages of a range are freed, what was in them is gone. Bytes freed.
pub async fn madvise_dontneed<F: Format>(host: &Host<F>, notifier: &Notifier<F>, range: HvaRange) -> Bytes {
    discard(host, notifier, range, Blockable::Yes).await
}

/// The OOM reaper: the same, and it must not block.
pub async fn oom_reap<F: Format>(host: &Host<F>, notifier: &Notifier<F>, range: HvaRange) -> Bytes {
    discard(host, notifier, range, Blockable::No).await
}

async fn discard<F: Format>(host: &Host<F>, notifier: &Notifier<F>, range: HvaRange, blockable: Blockable) -> Bytes {
    let invalidation = split_and_start(host, notifier, range, blockable).await;
    let freed = host.unmap_pages(range, Unmapping::Discard).await;
    range_end(host, notifier, invalidation).await;
    freed
}

/// `mprotect`
pub async fn mprotect<F: Format>(host: &Host<F>, notifier: &Notifier<F>, range: HvaRange, protection: Protection) {
    let invalidation = split_and_start(host, notifier, range, Blockable::Yes).await;
    host.protect_pages(range, protection).await;
    range_end(host, notifier, invalidation).await;
}

/// Migration of a range's pages: migration entries go in between start and end; the copies are made afterwards, while faults
/// wait. Pages that somebody holds stay.
pub async fn migrate<F: Format>(host: &Host<F>, notifier: &Notifier<F>, range: HvaRange) -> Moved {
    take_for_move(host, notifier, range).await;
    host.finish_move(range, Migration::Each).await
}

/// khugepaged: the pages of a range become one huge page of the range's size.
pub async fn collapse<F: Format>(host: &Host<F>, notifier: &Notifier<F>, range: HvaRange) -> Moved {
    take_for_move(host, notifier, range).await;
    host.finish_move(range, Migration::Collapse).await
}

async fn take_for_move<F: Format>(host: &Host<F>, notifier: &Notifier<F>, range: HvaRange) {
    let invalidation = split_and_start(host, notifier, range, Blockable::Yes).await;
    host.begin_move(range).await;
    range_end(host, notifier, invalidation).await;
}

/// Copy on write of one page: the copy takes its place. `change` says what KVM's `change_pte` does between start and end.
pub async fn copy_on_write<F: Format>(host: &Host<F>, notifier: &Notifier<F>, at: Hva, change: ChangePte) {
    let page = HvaRange::new(at, Bytes(1));
    let invalidation = split_and_start(host, notifier, page, Blockable::Yes).await;
    if let Some(new) = host.replace_page(at, Protection::ReadWrite).await {
        change_pte(host, at, new, change).await;
    }
    range_end(host, notifier, invalidation).await;
}

/// What a reclaim scan did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Reclaimed {
    /// Freed.
    pub freed: Bytes,
    /// Used since the last scan, and therefore kept.
    pub kept: Bytes,
    /// Invalidations made.
    pub invalidations: u64,
}

/// One reclaim scan of a range, `batch` at a time (the kernel takes 32 pages, `SWAP_CLUSTER_MAX`): pages that were used lose the flag
/// and stay, the others go to swap. What is known of use is what zapped entries have handed over, so a page that only a live
/// second-stage entry knows to be used looks old unless somebody asks with `clear_young` first.
pub async fn reclaim<F: Format>(host: &Host<F>, notifier: &Notifier<F>, range: HvaRange, batch: Bytes) -> Reclaimed {
    let mut done = Reclaimed::default();
    let mut at = range.start;
    while at < range.end() {
        let old = match host.rescan(HvaRange::between(at, range.end())).await {
            Rescan::Done => break,
            Rescan::Used(used) => {
                done.kept.0 += used.bytes.0;
                at = used.end();
                continue;
            }
            Rescan::Old(old) => HvaRange::new(old.start, old.bytes.min(batch)),
        };
        let invalidation = split_and_start(host, notifier, old, Blockable::Yes).await;
        done.freed.0 += host.unmap_pages(old, Unmapping::Swap).await.0;
        range_end(host, notifier, invalidation).await;
        done.invalidations += 1;
        at = old.end();
        host.reschedule().await;
    }
    done
}

/// A thread that drops a range again and again: the storm of seed thread 1 (August 2024).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Storm {
    /// What it drops.
    pub range: HvaRange,
    /// How often at most.
    pub times: u64,
    /// Ends early when this is not zero.
    pub stop: Option<Var>,
    /// How long each invalidation lasts beyond its own work, between start and end: a large range, or an invalidator that is
    /// preempted.
    pub hold: Cycles,
    /// What it does in between.
    pub pause: Cycles,
}

/// Runs a storm, without touching the range in between. How often it was dropped.
pub async fn madvise_storm<F: Format>(host: &Host<F>, notifier: &Notifier<F>, storm: Storm) -> u64 {
    for done in 0..storm.times {
        if let Some(stop) = storm.stop
            && host.load(stop).await != 0
        {
            return done;
        }
        let invalidation = split_and_start(host, notifier, storm.range, Blockable::Yes).await;
        host.unmap_pages(storm.range, Unmapping::Discard).await;
        host.spend(Work::Exactly(storm.hold)).await;
        range_end(host, notifier, invalidation).await;
        host.spend(Work::Exactly(storm.pause)).await;
    }
    storm.times
}
