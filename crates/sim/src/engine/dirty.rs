//! What dirty logging needs of the engine: bitmaps in host memory, the processor's log of modified pages, and the checker's own account of
//! what was written.
//!
//! A bitmap lives in the same memory as tables, so that it is as large as it has to be and takes no room while it is uniform, and
//! actors race for its words as they do for entries. The log of modified pages is Intel's (SDM vol. 3, 29.3.6): a walk that sets a dirty
//! flag writes the guest-physical page into a buffer of the processor; when that is full the vCPU exits.

use mmu_core::memory::Progression;
use mmu_core::{Gpa, GpaRange, Hpa, Level};

use super::actor::ActorState;
use super::host::Host;
use super::op::{Frames, Op, Reply, VcpuId, Work};
use super::vcpu::Vcpu;
use super::world::World;
use crate::arch::Arch;
use crate::checker::Violation;

/// An operation of dirty logging.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirtyOp {
    /// Allocates so many words of zeros.
    AllocWords(u64),
    /// Makes all vCPUs log modified pages from their next entry on, into buffers of so many entries; 0 ends it.
    SetLog(u64),
    /// Takes the oldest page out of the log of a vCPU that is in the host.
    PopModified(VcpuId),
    /// A word as it is, without time passing and without counting.
    Peek(Hpa),
    /// Looks at so many entries, which are not modelled one by one.
    Visit(u64),
    /// Logging begins: user space copies everything now, what was written before is no concern of the log.
    Begins,
    /// User space has been told that these pages are dirty, and may copy them from now on.
    Reported(GpaRange),
    /// Nobody writes any more and everything should have been reported.
    Settled,
}

/// Entries of a processor's log of modified pages (Intel SDM vol. 3, 29.3.6).
pub const MODIFICATION_LOG_ENTRIES: u64 = 512;

/// Level of frames that hold no entries: above any root.
const WORDS: Level = Level::new(Level::MAX_LEVELS as u8 - 1);

/// Bytes and words of the frames that words are allocated in.
const FRAME_BYTES: u64 = 4096;
const FRAME_WORDS: u64 = FRAME_BYTES / 8;

/// The frames of words that were allocated together.
pub(crate) fn words_at(first: Hpa, words: u64) -> Frames {
    Frames { first, count: words.div_ceil(FRAME_WORDS).max(1), level: WORDS, bytes: FRAME_BYTES }
}

impl<F: Copy> Host<F> {
    async fn dirty(&self, op: DirtyOp) -> Reply {
        self.op(Op::Dirty(op)).await
    }

    /// Allocates `words` words of zeros (`kvcalloc`), or `None` when the pool is exhausted. They are freed as tables are.
    pub async fn alloc_words(&self, words: u64) -> Option<Frames> {
        let Reply { a, b, .. } = self.dirty(DirtyOp::AllocWords(words)).await;
        (b == 0).then_some(words_at(Hpa::new(a), words))
    }
    /// Makes all vCPUs log modified pages from their next entry on, into buffers of `entries` entries; 0 ends it
    /// (`KVM_REQ_UPDATE_CPU_DIRTY_LOGGING`).
    pub async fn set_modification_log(&self, entries: u64) {
        self.dirty(DirtyOp::SetLog(entries)).await;
    }
    /// Takes the oldest page out of the log of a vCPU; for the vCPU's own thread, in the host.
    pub async fn pop_modified(&self, vcpu: VcpuId) -> Option<Gpa> {
        let Reply { a, b, .. } = self.dirty(DirtyOp::PopModified(vcpu)).await;
        (b != 0).then_some(Gpa::new(a))
    }
    /// A word as it is, without time passing: for choosing between bulk operations, which ask again. Nothing else may depend on it.
    pub async fn peek(&self, at: Hpa) -> u64 {
        self.dirty(DirtyOp::Peek(at)).await.a
    }
    /// Charges looks at `entries` entries on the way to some that a bulk operation does at once.
    pub async fn visit_entries(&self, entries: u64) {
        self.dirty(DirtyOp::Visit(entries)).await;
    }
    /// Tells the checker that logging begins, with a copy of all memory in user space. No time passes.
    pub async fn dirty_log_begins(&self) {
        self.dirty(DirtyOp::Begins).await;
    }
    /// Tells the checker that user space knows of these dirty pages. No time passes.
    pub async fn reported_dirty(&self, range: GpaRange) {
        self.dirty(DirtyOp::Reported(range)).await;
    }
    /// Tells the checker that nobody writes any more: what was written and never reported is lost. No time passes.
    pub async fn dirty_log_settled(&self) {
        self.dirty(DirtyOp::Settled).await;
    }
}

impl<A: Arch> World<A> {
    pub(super) fn dirty(&mut self, op: DirtyOp, actor: &mut ActorState, vcpus: &mut [Vcpu<A>]) -> Reply {
        match op {
            DirtyOp::AllocWords(words) => self.alloc_words(words, actor),
            DirtyOp::SetLog(entries) => {
                actor.now += self.costs.store.times(vcpus.len() as u64);
                for vcpu in vcpus.iter_mut() {
                    vcpu.modified.capacity = entries;
                }
                Reply::default()
            }
            DirtyOp::PopModified(vcpu) => {
                actor.now += self.costs.visit;
                let page = vcpus[vcpu.0].modified.pages.pop_front();
                Reply { a: page.map_or(0, Gpa::raw), b: u64::from(page.is_some()), c: 0 }
            }
            DirtyOp::Peek(at) => Reply::one(self.tables.read(at).unwrap_or(0)),
            DirtyOp::Visit(entries) => {
                self.visit(actor, entries);
                Reply::default()
            }
            DirtyOp::Begins => {
                self.written.begins();
                Reply::default()
            }
            DirtyOp::Reported(range) => {
                self.written.reported(range);
                Reply::default()
            }
            DirtyOp::Settled => {
                for gpa in self.written.lost() {
                    self.checker.report(Violation::DirtyLost { gpa, moment: actor.now });
                }
                Reply::default()
            }
        }
    }

    fn alloc_words(&mut self, words: u64, actor: &mut ActorState) -> Reply {
        let frames = words_at(Hpa::new(0), words).count;
        actor.now += self.cost_of(Work::ZeroPages(frames));
        match self.take_words(words) {
            Some(frames) => Reply::one(frames.first.raw()),
            None => Reply { a: 0, b: 1, c: 0 },
        }
    }

    /// Words of zeros, or `None` when the pool is exhausted.
    pub(super) fn take_words(&mut self, words: u64) -> Option<Frames> {
        let frames = words_at(Hpa::new(0), words).count;
        let first = self.tables.alloc_run(WORDS, FRAME_WORDS as usize, frames, Progression::ZERO).ok()?;
        Some(words_at(first, words))
    }

    /// The checker's account of written pages.
    pub fn written(&self) -> &crate::checker::Written {
        &self.written
    }
}
