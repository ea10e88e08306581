//! The primary MMU's and the memslots' operations, as actors ask for them, and what each costs.
//!
//! A change happens at the actor's moment, its cost follows. Costs: a page-table entry that goes away costs its release, a copied page
//! twice the clearing of one (it is read and written), a look-up one visit. What only the checker needs costs nothing.

use mmu_core::{Bytes, Cycles, Gpa, GpaRange, Hpa, HpaRange, Hva, HvaRange, PageSize};

use super::{
    Backed, Fault, Flag, HostAccess, HvaError, Known, Marked, Memslot, OffLimits, PageState, Protection, SlotChange,
    SlotFlags, SlotId, SlotsVersion, Unmapped,
};
use crate::arch::Arch;
use crate::checker::Violation;
use crate::engine::actor::ActorState;
use crate::engine::host::Host;
use crate::engine::op::{Op, Reply, Var, WaitQueue, Wake};
use crate::engine::vcpu::Vcpu;
use crate::engine::world::World;

/// What becomes of pages whose entries are taken away.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unmapping {
    /// Their contents are dropped (`MADV_DONTNEED`, `munmap`).
    Discard,
    /// Their contents go to swap.
    Swap,
}

/// How pages that were on their way arrive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Migration {
    /// Each as a page of its size (`migrate_pages`).
    Each,
    /// All together as one huge page of the range's size; what was not mapped is zero (khugepaged).
    Collapse,
}

/// What became of pages that were on their way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moved {
    /// Arrived.
    pub moved: Bytes,
    /// Stayed, because somebody held a reference.
    pub failed: Bytes,
}

/// One step of a reclaim scan.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rescan {
    /// Pages not used since the last scan.
    Old(HvaRange),
    /// Pages that were used: the flag is taken away, they stay.
    Used(HvaRange),
    /// Nothing more.
    Done,
}

/// Whether finding a page takes a reference to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Reference {
    /// `get_page`: the caller puts it back.
    Take,
    /// None: only the notifier protects the caller.
    None,
}

/// A host page, found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resolved {
    /// The host address of the very byte asked for.
    pub host: Hpa,
    /// The largest leaf that may map it: host and process addresses run alike that far.
    pub size: PageSize,
    /// What the process's own entry allows.
    pub protection: Protection,
    /// Whether it had been there.
    pub backed: Backed,
}

/// What a fault of the process comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Faulted {
    /// A page.
    Page(Resolved),
    /// A migration entry: wait for the move to end, ask again.
    Moving,
    /// In swap: reading it takes so long, then `bring` it, ask again.
    Swapped(Cycles),
    /// A handler in user space takes so long, then it `bring`s it; ask again.
    User(Cycles),
    /// `-EFAULT`
    Error(HvaError),
}

/// Operations on the primary MMU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrimaryOp {
    /// A fault of the process.
    Fault(Hva, HostAccess, Reference),
    /// The page of an address arrives from swap or from user space.
    Bring(Hva),
    /// A range, with the rest of the huge pages that it covers in part.
    Whole(HvaRange),
    /// Puts a reference back.
    Put(HpaRange),
    /// Takes entries away.
    Unmap(HvaRange, Unmapping),
    /// Changes what a range allows.
    Protect(HvaRange, Protection),
    /// Migration entries in place of pages.
    MoveBegin(HvaRange),
    /// Pages on their way arrive.
    MoveFinish(HvaRange, Migration),
    /// Another page in place of one.
    Replace(Hva, Protection),
    /// A step of a reclaim scan.
    Rescan(HvaRange),
    /// An entry tells what it knew of a page.
    Mark(HpaRange, PageState),
    /// The checker is told: an invalidation's start has returned.
    WindowBegin(HvaRange),
    /// The checker is told: its end begins.
    WindowEnd(u64),
    /// The checker is told: this mapping outside the second stage is valid for this page, which should be the one at this host address;
    /// or for none.
    Cached(u64, Option<(HpaRange, Hva)>),
    /// Reads or writes memory through a mapping of the kernel; `None`: there is no page behind it.
    Dereference(Option<Hpa>),
}

/// Operations on memslots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotsOp {
    /// The slot of a guest address.
    At(SlotsVersion, Gpa),
    /// The next slot that overlaps host addresses.
    Overlapping(SlotsVersion, HvaRange, Option<SlotId>),
    /// Makes the next version; nobody sees it yet.
    Derive(SlotsVersion, SlotChange),
    /// A slot other than this one that shares guest addresses with a range.
    OverlappingGpa(SlotsVersion, GpaRange, Option<SlotId>),
    /// Frees a version.
    Free(SlotsVersion),
    /// The generation of a version.
    Generation(SlotsVersion),
}

/// A memslot as far as one look-up needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotPiece {
    /// The slot.
    pub id: SlotId,
    /// Its flags.
    pub flags: SlotFlags,
    /// Guest addresses: from the one asked for to the slot's end, or those that stand for the host addresses asked for.
    pub gpa: GpaRange,
    /// The host address of the first of them.
    pub hva: Hva,
}

const NONE: u64 = u64::MAX;

fn protection(code: u64) -> Protection {
    match code {
        0 => Protection::None,
        1 => Protection::Read,
        _ => Protection::ReadWrite,
    }
}

// ---- what the world does ----

impl<A: Arch> World<A> {
    /// Performs an operation on the primary MMU.
    pub(crate) fn perform_primary(&mut self, op: PrimaryOp, actor: &mut ActorState, vcpus: &[Vcpu<A>]) -> Reply {
        match op {
            PrimaryOp::Fault(at, access, reference) => {
                let fault = self.primary.fault(at, access);
                return self.faulted(at, fault, reference, actor);
            }
            PrimaryOp::Bring(at) => {
                if let Some(size) = self.primary.bring(at) {
                    actor.now += self.costs.clear_4k.times(size.bytes() >> 12);
                }
            }
            PrimaryOp::Whole(range) => {
                let whole = self.primary.whole_mappings(range);
                return Reply { a: whole.start.raw(), b: whole.bytes.0, c: 0 };
            }
            PrimaryOp::Put(range) => match self.primary.pages.put(range) {
                Some(freed) => self.freed(&freed, actor.now, vcpus),
                None => self.checker.report(Violation::PagePut { actor: actor.id, at: range.start, moment: actor.now }),
            },
            PrimaryOp::Unmap(range, how) => {
                let Unmapped { freed, entries, dirty } = self.primary.unmap(range, how);
                self.freed(&freed, actor.now, vcpus);
                actor.now += self.costs.page_release.times(entries);
                return Reply { a: freed.iter().map(|range| range.bytes.0).sum(), b: entries, c: dirty };
            }
            PrimaryOp::Protect(range, protection) => {
                let entries = self.primary.protect(range, protection);
                actor.now += self.costs.store.times(entries);
            }
            PrimaryOp::MoveBegin(range) => {
                let bytes = self.primary.move_begin(range);
                actor.now += self.costs.store.times(bytes >> self.primary.base.shift());
                return Reply::one(bytes);
            }
            PrimaryOp::MoveFinish(range, how) => {
                let (moved, freed) = self.primary.move_finish(range, how);
                self.freed(&freed, actor.now, vcpus);
                actor.now += self.costs.clear_4k.times(2 * (moved.moved.0 >> 12));
                self.wake_all(WaitQueue::MIGRATION, actor);
                return Reply { a: moved.moved.0, b: moved.failed.0, c: 0 };
            }
            PrimaryOp::Replace(at, protection) => {
                let Some((new, freed)) = self.primary.replace(at, protection) else { return Reply::one(NONE) };
                self.freed(&freed, actor.now, vcpus);
                actor.now += self.costs.clear_4k.times(2 * (self.primary.base.bytes() >> 12));
                return Reply::one(new.raw());
            }
            PrimaryOp::Rescan(range) => {
                actor.now += self.costs.visit;
                return match self.primary.rescan(range) {
                    Rescan::Done => Reply::one(0),
                    Rescan::Old(range) => Reply { a: 1, b: range.start.raw(), c: range.bytes.0 },
                    Rescan::Used(range) => Reply { a: 2, b: range.start.raw(), c: range.bytes.0 },
                };
            }
            PrimaryOp::Mark(range, state) => self.mark_pages(range, state, actor),
            PrimaryOp::WindowBegin(range) => {
                let pages = self.primary.host_pages(range);
                for &page in &pages {
                    self.checker.pages_freed(page.start, page.bytes.0, actor.now, vcpus);
                    self.check_cached(page, OffLimits::Invalidating, actor.now);
                }
                return Reply::one(self.primary.limits.begin(pages));
            }
            PrimaryOp::WindowEnd(window) => self.primary.limits.end(window),
            PrimaryOp::Cached(id, page) => {
                self.primary.limits.cache(id, page.map(|(page, _)| page));
                if let Some((page, hva)) = page
                    && let Some(why) =
                        self.primary.off_limits(page.start).or_else(|| self.primary.misplaced(hva, page.start))
                {
                    let moment = actor.now;
                    self.checker.report(Violation::CachedPage { cache: id, at: page.start, why, moment });
                }
            }
            PrimaryOp::Dereference(at) => {
                actor.now += self.costs.visit;
                let why = at.map_or(Some(OffLimits::Empty), |at| self.primary.off_limits(at));
                if let Some(why) = why {
                    let (at, moment) = (at.unwrap_or_default(), actor.now);
                    self.checker.report(Violation::HostUse { actor: actor.id, at, why, moment });
                }
            }
        }
        Reply::default()
    }

    fn faulted(
        &mut self,
        at: Hva,
        fault: Result<Fault, HvaError>,
        reference: Reference,
        actor: &mut ActorState,
    ) -> Reply {
        actor.now += self.costs.visit;
        match fault {
            Ok(Fault::Page { host, size, protection, backed }) => {
                match backed {
                    Backed::Now => {
                        let start = actor.now;
                        actor.now += self.costs.clear_4k.times(size.bytes() >> 12);
                        let page = HpaRange::new(Hpa::new(host).align_down(size), size.into());
                        self.upkeep.clears(page, start, actor.now);
                    }
                    Backed::Before => actor.now = self.upkeep.cleared(Hpa::new(host), actor.now),
                }
                if reference == Reference::Take {
                    let base = self.primary.base;
                    self.primary.pages.get(HpaRange::new(Hpa::new(host).align_down(base), base.into()));
                }
                let b = u64::from(size.shift()) << 8 | (protection as u64) << 16 | (backed as u64) << 24;
                Reply { a: host, b, c: 0 }
            }
            Ok(Fault::Moving) => Reply { a: at.raw(), b: 1, c: 0 },
            Ok(Fault::Swapped(delay)) => Reply { a: at.raw(), b: 2, c: delay.0 },
            Ok(Fault::User(delay)) => Reply { a: at.raw(), b: 3, c: delay.0 },
            Err(HvaError::NoVma(_)) => Reply { a: at.raw(), b: 4, c: 0 },
            Err(HvaError::Protection(_)) => Reply { a: at.raw(), b: 5, c: 0 },
        }
    }

    /// The pages of entries that went away take over what those knew.
    pub(crate) fn mark_pages(&mut self, range: HpaRange, state: PageState, actor: &ActorState) {
        if let Some(late) = self.primary.pages.mark(range.start.raw(), range.bytes.0, state) {
            let (at, actor, moment) = (Hpa::new(late), actor.id, actor.now);
            self.checker.report(Violation::ReleaseAfterFree { at, actor, moment });
        }
    }

    /// The pages of many entries that go away take over what those know, unless one of the pages is free already.
    pub(crate) fn mark_known(&mut self, known: &[Known]) -> Marked {
        self.primary.pages.mark_all(known)
    }

    /// Pages are free: nobody may still reach them.
    pub(crate) fn freed(&mut self, pages: &[HpaRange], moment: Cycles, vcpus: &[Vcpu<A>]) {
        for &page in pages {
            self.checker.pages_freed(page.start, page.bytes.0, moment, vcpus);
            self.check_cached(page, OffLimits::Freed, moment);
        }
    }

    fn check_cached(&mut self, pages: HpaRange, why: OffLimits, moment: Cycles) {
        let hit: Vec<(u64, Hpa)> = self.primary.limits.cached_in(pages).collect();
        for (cache, at) in hit {
            self.checker.report(Violation::CachedPage { cache, at, why, moment });
        }
    }

    /// Performs an operation on memslots.
    pub(crate) fn perform_slots(&mut self, op: SlotsOp, actor: &mut ActorState) -> Reply {
        actor.now += self.costs.visit;
        let version = match op {
            SlotsOp::At(version, _)
            | SlotsOp::Overlapping(version, ..)
            | SlotsOp::OverlappingGpa(version, ..)
            | SlotsOp::Derive(version, _)
            | SlotsOp::Free(version)
            | SlotsOp::Generation(version) => version,
        };
        if !self.slots.exists(version) {
            self.checker.report(Violation::SlotsUse { actor: actor.id, version: version.0, moment: actor.now });
            return Reply { a: NONE, b: 0, c: NONE };
        }
        let piece = |slot: Memslot, gpa: GpaRange| Reply {
            a: gpa.start.raw(),
            b: gpa.bytes.0,
            c: u64::from(slot.id.0) | u64::from(slot.flags.bits()) << 16,
        };
        let none = Reply { a: NONE, b: 0, c: NONE };
        match op {
            SlotsOp::At(version, gpa) => self.slots.at(version, gpa).map_or(none, |slot| Reply {
                a: slot.to_hva(gpa).raw(),
                ..piece(slot, GpaRange::between(gpa, slot.gpa.end()))
            }),
            SlotsOp::Overlapping(version, range, after) => {
                let found = self.slots.overlapping(version, range, after);
                found.and_then(|slot| Some(piece(slot, slot.to_gpa(range)?))).unwrap_or(none)
            }
            SlotsOp::OverlappingGpa(version, range, except) => {
                let found = self.slots.overlapping_gpa(version, range, except);
                Reply { c: found.map_or(NONE, |id| u64::from(id.0)), ..none }
            }
            SlotsOp::Derive(version, change) => {
                Reply::one(self.slots.derive(version, change).map_or(NONE, |new| new.0))
            }
            SlotsOp::Free(version) => Reply::one(u64::from(self.slots.free(version))),
            SlotsOp::Generation(version) => Reply::one(self.slots.generation(version).unwrap_or(NONE)),
        }
    }

    /// The largest page up to `most` by which the primary MMU maps a guest address.
    pub(crate) fn host_mapping(&self, gpa: Gpa, most: PageSize) -> PageSize {
        let version = SlotsVersion(self.vars[Var::MEMSLOTS.0 as usize]);
        let hva = self.slots.at(version, gpa).map(|slot| slot.to_hva(gpa));
        let size = hva.and_then(|hva| self.primary.mapping(hva)).map_or(self.primary.base, |(size, _)| size);
        size.min(most)
    }

    /// The host pages behind a guest range.
    pub(crate) fn guest_pages(&self, range: GpaRange) -> Vec<HpaRange> {
        self.guest_hvas(range).into_iter().flat_map(|hvas| self.primary.host_pages(hvas)).collect()
    }

    /// The host addresses of a guest range through the active memslots.
    pub(crate) fn guest_hvas(&self, range: GpaRange) -> Vec<HvaRange> {
        let version = SlotsVersion(self.vars[Var::MEMSLOTS.0 as usize]);
        let (mut at, mut found) = (range.start, Vec::new());
        while at < range.end() {
            let Some(slot) = self.slots.at(version, at) else { break };
            let piece = GpaRange::between(at, slot.gpa.end().min(range.end()));
            found.push(HvaRange::new(slot.to_hva(at), piece.bytes));
            at = piece.end();
        }
        found
    }

    fn wake_all(&mut self, queue: WaitQueue, actor: &ActorState) {
        self.wake_queue(queue, Wake::All, actor.now);
    }
}

// ---- what actors hold ----

impl<F: Copy> Host<F> {
    async fn primary(&self, op: PrimaryOp) -> Reply {
        self.op(Op::Primary(op)).await
    }

    // ---- the primary MMU ----

    /// A fault of the process at `at`, without waiting for anything.
    pub async fn try_fault(&self, at: Hva, access: HostAccess, reference: Reference) -> Faulted {
        let Reply { a, b, c } = self.primary(PrimaryOp::Fault(at, access, reference)).await;
        match b & 0xff {
            0 => Faulted::Page(Resolved {
                host: Hpa::new(a),
                size: PageSize::from_shift((b >> 8 & 0xff) as u32).unwrap_or(PageSize::SIZE_4K),
                protection: protection(b >> 16 & 0xff),
                backed: if b >> 24 == 0 { Backed::Before } else { Backed::Now },
            }),
            1 => Faulted::Moving,
            2 => Faulted::Swapped(Cycles(c)),
            3 => Faulted::User(Cycles(c)),
            4 => Faulted::Error(HvaError::NoVma(at)),
            _ => Faulted::Error(HvaError::Protection(at)),
        }
    }

    /// The page of an address arrives, from swap or from a handler in user space.
    pub async fn bring_page(&self, at: Hva) {
        self.primary(PrimaryOp::Bring(at)).await;
    }

    /// A range, with the rest of the huge pages that it covers in part now. Costs nothing: whoever changes entries has them in hand.
    pub async fn whole_mappings(&self, range: HvaRange) -> HvaRange {
        let Reply { a, b, .. } = self.primary(PrimaryOp::Whole(range)).await;
        HvaRange::new(Hva::new(a), Bytes(b))
    }

    /// `put_page`
    pub async fn put_host_page(&self, range: HpaRange) {
        self.primary(PrimaryOp::Put(range)).await;
    }

    /// Takes the process's entries of a range away, and frees the pages that nobody holds; bytes freed.
    pub async fn unmap_pages(&self, range: HvaRange, how: Unmapping) -> Bytes {
        Bytes(self.primary(PrimaryOp::Unmap(range, how)).await.a)
    }

    /// Changes what a range of the process allows.
    pub async fn protect_pages(&self, range: HvaRange, protection: Protection) {
        self.primary(PrimaryOp::Protect(range, protection)).await;
    }

    /// Puts migration entries in place of the pages of a range; bytes on their way.
    pub async fn begin_move(&self, range: HvaRange) -> Bytes {
        Bytes(self.primary(PrimaryOp::MoveBegin(range)).await.a)
    }

    /// Copies the pages that are on their way and maps the copies.
    pub async fn finish_move(&self, range: HvaRange, how: Migration) -> Moved {
        let Reply { a, b, .. } = self.primary(PrimaryOp::MoveFinish(range, how)).await;
        Moved { moved: Bytes(a), failed: Bytes(b) }
    }

    /// Puts a copy in place of the page of an address; its host address, or `None` when nothing is mapped there.
    pub async fn replace_page(&self, at: Hva, protection: Protection) -> Option<Hpa> {
        let host = self.primary(PrimaryOp::Replace(at, protection)).await.a;
        (host != NONE).then_some(Hpa::new(host))
    }

    /// A step of a reclaim scan.
    pub async fn rescan(&self, range: HvaRange) -> Rescan {
        let Reply { a, b, c } = self.primary(PrimaryOp::Rescan(range)).await;
        let found = HvaRange::new(Hva::new(b), Bytes(c));
        match a {
            0 => Rescan::Done,
            1 => Rescan::Old(found),
            _ => Rescan::Used(found),
        }
    }

    /// Hands an entry's accessed and dirty state over to its pages. Zaps done as bulk work with
    /// [`Work::ReleaseLeaf`](crate::engine::Work::ReleaseLeaf) do so by themselves.
    pub async fn mark_pages(&self, range: HpaRange, accessed: Flag, dirty: Flag) {
        self.primary(PrimaryOp::Mark(range, PageState { accessed, dirty })).await;
    }

    // ---- what only the checker needs ----

    /// Tells the checker that an invalidation's start has returned: until [`allow_pages`](Self::allow_pages) nobody may reach
    /// what the range maps now. Costs nothing.
    pub async fn forbid_pages(&self, range: HvaRange) -> u64 {
        self.primary(PrimaryOp::WindowBegin(range)).await.a
    }
    /// Tells the checker that the end of an invalidation begins. Costs nothing.
    pub async fn allow_pages(&self, window: u64) {
        self.primary(PrimaryOp::WindowEnd(window)).await;
    }
    /// Tells the checker that a mapping outside the second stage became valid for a page, and at which host
    /// address that page should be; or that it became invalid. Costs nothing.
    pub async fn announce_mapping(&self, id: u64, page: Option<(HpaRange, Hva)>) {
        self.primary(PrimaryOp::Cached(id, page)).await;
    }
    /// Reads or writes a page through a mapping of the kernel. `None` is a mapping that points nowhere.
    pub async fn dereference(&self, at: Option<Hpa>) {
        self.primary(PrimaryOp::Dereference(at)).await;
    }

    // ---- memslots ----

    async fn memslots(&self, op: SlotsOp) -> Reply {
        self.op(Op::Slots(op)).await
    }

    /// The active memslots (`kvm_memslots`, a dereference of the pointer that SRCU protects).
    pub async fn active_slots(&self) -> SlotsVersion {
        SlotsVersion(self.load_acquire(Var::MEMSLOTS).await)
    }
    /// The slot of a guest address, from that address on (`gfn_to_memslot`).
    pub async fn slot_at(&self, version: SlotsVersion, gpa: Gpa) -> Option<SlotPiece> {
        let Reply { a, b, c } = self.memslots(SlotsOp::At(version, gpa)).await;
        (c != NONE).then(|| SlotPiece {
            id: SlotId(c as u16),
            flags: SlotFlags::from_bits_truncate((c >> 16) as u16),
            gpa: GpaRange::new(gpa, Bytes(b)),
            hva: Hva::new(a),
        })
    }
    /// The next slot, after `after`, that overlaps a range of host addresses; and which guest addresses stand for them
    /// (`kvm_for_each_memslot_in_hva_range`).
    pub async fn slot_overlapping(
        &self,
        version: SlotsVersion,
        range: HvaRange,
        after: Option<SlotId>,
    ) -> Option<(SlotId, GpaRange)> {
        let Reply { a, b, c } = self.memslots(SlotsOp::Overlapping(version, range, after)).await;
        (c != NONE).then(|| (SlotId(c as u16), GpaRange::new(Gpa::new(a), Bytes(b))))
    }
    /// A slot other than `except` that shares guest addresses with a range.
    pub async fn slot_in_the_way(
        &self,
        version: SlotsVersion,
        range: GpaRange,
        except: Option<SlotId>,
    ) -> Option<SlotId> {
        let found = self.memslots(SlotsOp::OverlappingGpa(version, range, except)).await.c;
        (found != NONE).then_some(SlotId(found as u16))
    }
    /// Makes the next version of the memslots; nobody sees it before it is published.
    pub async fn derive_slots(&self, from: SlotsVersion, change: SlotChange) -> SlotsVersion {
        SlotsVersion(self.memslots(SlotsOp::Derive(from, change)).await.a)
    }
    /// Frees a version of the memslots; nobody may be using it.
    pub async fn free_slots(&self, version: SlotsVersion) {
        self.memslots(SlotsOp::Free(version)).await;
    }
    /// The generation of a version.
    pub async fn slots_generation(&self, version: SlotsVersion) -> u64 {
        self.memslots(SlotsOp::Generation(version)).await.a
    }
}
