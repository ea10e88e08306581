//! Read-copy-update: what is retired is freed once every reader of that moment has left its section.

use std::collections::VecDeque;

use mmu_core::{Cycles, Hpa, Level};

use super::lock::ActorId;
use super::op::Frames;

/// What RCU went through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct RcuStats {
    /// Read sections entered.
    pub sections: u64,
    /// The longest read section.
    pub longest_section: Cycles,
    /// Frames retired.
    pub retired: u64,
    /// Grace periods waited for by somebody (`synchronize_rcu`).
    pub synchronized: u64,
}

#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
struct Batch {
    /// Readers that were inside when the batch was made and have not left yet.
    waiting: Vec<ActorId>,
    /// The grace period's least length ends here.
    ripe: Cycles,
    /// Changes of the set of readers before the batch was closed.
    epoch: u64,
    frames: Vec<Frames>,
    subtrees: Vec<Subtree>,
    wake: Vec<ActorId>,
}

/// A detached table with everything below it, which a callback walks and frees.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Subtree {
    pub(crate) table: Hpa,
    pub(crate) level: Level,
}

/// What a finished grace period sets free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) frames: Vec<Frames>,
    pub(crate) subtrees: Vec<Subtree>,
    pub(crate) wake: Vec<ActorId>,
}

#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Rcu {
    readers: Vec<(ActorId, Cycles)>,
    batches: VecDeque<Batch>,
    epoch: u64,
    pub(crate) stats: RcuStats,
}

impl Rcu {
    pub(crate) fn lock(&mut self, actor: ActorId, now: Cycles) {
        self.readers.push((actor, now));
        self.epoch += 1;
        self.stats.sections += 1;
    }

    /// Leaves a section; false when the actor was in none.
    pub(crate) fn unlock(&mut self, actor: ActorId, now: Cycles) -> bool {
        let Some(i) = self.readers.iter().position(|&(reader, _)| reader == actor) else { return false };
        let (_, since) = self.readers.remove(i);
        self.epoch += 1;
        self.stats.longest_section = self.stats.longest_section.max(now.since(since));
        for batch in &mut self.batches {
            if let Some(i) = batch.waiting.iter().position(|&reader| reader == actor) {
                batch.waiting.swap_remove(i);
                // The grace period cannot end before the reader that it waited for left.
                batch.ripe = batch.ripe.max(now);
            }
        }
        true
    }

    /// Whether this actor is the only reader, and what is retired is tables by themselves: grace periods that end concern nobody.
    pub(crate) fn is_only(&self, actor: ActorId) -> bool {
        let frames_only =
            |batch: &Batch| batch.wake.is_empty() && batch.subtrees.is_empty() && batch.waiting.is_empty();
        self.readers.len() == 1 && self.readers[0].0 == actor && self.batches.iter().all(frames_only)
    }

    /// The only reader has left its section and entered another, `n` times, the last time at `now`; the longest section is given. Nothing is
    /// left of what was retired meanwhile.
    pub(crate) fn pass_sections(&mut self, now: Cycles, n: u64, longest: Cycles) {
        for (_, since) in &mut self.readers {
            *since = now;
        }
        self.epoch += 2 * n;
        self.stats.sections += n;
        self.stats.longest_section = self.stats.longest_section.max(longest);
    }

    /// Frames were retired, and are free by now.
    pub(crate) fn pass_frames(&mut self, n: u64) {
        self.stats.retired += n;
    }

    /// Retires frames at `now`; tells when their grace period can end at the earliest.
    pub(crate) fn retire(&mut self, frames: Frames, now: Cycles, grace: Cycles) -> Cycles {
        self.stats.retired += frames.count;
        let batch = self.batch(now, grace);
        // Tables of several levels come in turns; those of one level follow each other all the same.
        let recent = batch.frames.iter_mut().rev().take(Level::MAX_LEVELS);
        match recent.into_iter().find(|last| last.level == frames.level) {
            Some(last) if adjoins(last, &frames) => last.count += frames.count,
            _ => batch.frames.push(frames),
        }
        batch.ripe
    }

    /// Retires a detached subtree at `now`: the walk through it is the callback's.
    pub(crate) fn retire_subtree(&mut self, subtree: Subtree, now: Cycles, grace: Cycles) {
        self.batch(now, grace).subtrees.push(subtree);
    }

    /// Registers a sleeper to be woken by the end of the grace period that starts now.
    pub(crate) fn synchronize(&mut self, actor: ActorId, now: Cycles, grace: Cycles) -> Cycles {
        self.stats.synchronized += 1;
        let batch = self.batch(now, grace);
        batch.wake.push(actor);
        batch.ripe
    }

    /// The batch of this moment: callbacks queued while the set of readers stays the same share one.
    fn batch(&mut self, now: Cycles, grace: Cycles) -> &mut Batch {
        let ripe = now + grace;
        let fresh = self.batches.back().is_none_or(|last| last.epoch != self.epoch);
        if fresh {
            let waiting = self.readers.iter().map(|&(reader, _)| reader).collect();
            let batch =
                Batch { waiting, ripe, epoch: self.epoch, frames: Vec::new(), subtrees: Vec::new(), wake: Vec::new() };
            self.batches.push_back(batch);
        }
        let last = self.batches.len() - 1;
        let batch = &mut self.batches[last];
        batch.ripe = batch.ripe.max(ripe);
        batch
    }

    /// The next moment at which a grace period may end, if nobody is in its way.
    pub(crate) fn next(&self) -> Option<Cycles> {
        self.batches.iter().filter(|batch| batch.waiting.is_empty()).map(|batch| batch.ripe).min()
    }

    /// Takes what is free at `now`, oldest first.
    pub(crate) fn expire(&mut self, now: Cycles) -> Expired {
        let mut expired = Expired::default();
        self.batches.retain_mut(|batch| {
            let done = batch.waiting.is_empty() && batch.ripe <= now;
            if done {
                expired.frames.append(&mut batch.frames);
                expired.subtrees.append(&mut batch.subtrees);
                expired.wake.append(&mut batch.wake);
            }
            !done
        });
        expired
    }

    /// Frames still waiting.
    #[cfg(test)]
    fn pending(&self) -> u64 {
        self.batches.iter().flat_map(|batch| &batch.frames).map(|frames| frames.count).sum()
    }
}

/// Whether `next` starts where `last` ends, judged by `last`'s own frame size.
fn adjoins(last: &Frames, next: &Frames) -> bool {
    let distance = next.first.raw().wrapping_sub(last.first.raw());
    last.bytes.checked_mul(last.count) == Some(distance) && last.bytes == next.bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmu_core::{Hpa, Level};

    const GRACE: Cycles = Cycles(1000);

    fn frame(n: u64) -> Frames {
        Frames { first: Hpa::new(n * 4096), count: 1, level: Level::LAST, bytes: 4096 }
    }

    #[test]
    fn a_reader_holds_back_what_was_retired_while_it_read() {
        let mut rcu = Rcu::default();
        rcu.lock(7, Cycles(0));
        rcu.retire(frame(1), Cycles(10), GRACE);
        assert_eq!(rcu.next(), None, "the reader is still inside");
        assert_eq!(rcu.expire(Cycles(5000)), Expired::default());
        assert!(rcu.unlock(7, Cycles(6000)));
        assert_eq!(rcu.next(), Some(Cycles(6000)));
        assert_eq!(rcu.expire(Cycles(6000)).frames, [frame(1)]);
        assert_eq!(rcu.stats.longest_section, Cycles(6000));
    }

    #[test]
    fn a_later_reader_is_not_waited_for() {
        let mut rcu = Rcu::default();
        rcu.retire(frame(1), Cycles(0), GRACE);
        rcu.lock(3, Cycles(1));
        assert_eq!(rcu.expire(Cycles(1000)).frames, [frame(1)]);
    }

    #[test]
    fn consecutive_frames_are_kept_as_one_stretch() {
        let mut rcu = Rcu::default();
        for n in 0..1000 {
            rcu.retire(frame(n), Cycles(n), GRACE);
        }
        assert_eq!(rcu.pending(), 1000);
        assert_eq!(rcu.expire(Cycles(999)), Expired::default());
        assert_eq!(rcu.expire(Cycles(1999)).frames, [Frames { count: 1000, ..frame(0) }]);
    }
}
