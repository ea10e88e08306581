//! A thread of a test as a host actor with a vCPU.

use std::cell::RefCell;
use std::rc::Rc;

use arch_arm64_s2::Stage2;
use mmu_core::access::AccessKind;
use mmu_core::tlb::{Asid, AsidScope, Globals, Invalidate, TableCaches, Vmid};
use mmu_core::{Cycles, Gpa, Gva, Level, Reach};
use mmu_sim::engine::{Cmpxchg, Content, Data, Fence, Host, Probe, Probed, VcpuId, Work};
use mmu_sim::rng::Rng;

use super::super::defect::Defect;
use super::super::judge::Ending;
use super::super::state::Final;
use super::super::test::{
    Change, Loc, OnFault, OpKind, Place, Scope, Selector, Stages, Test, Thread, TlbiBy, TlbiOp, Value,
};
use super::super::words::{Meaning, StageNumber};
use super::bed::{Bed, Places, page_address};

/// Threads begin within so many cycles after everybody is ready: some accesses long.
const SPREAD: u64 = 6000;
/// Pauses between operations are below two to this power; short ones are as likely as long ones.
const LONGEST_PAUSE: u64 = 13;
/// Cycles in which everybody gets ready.
const WARM_UP: Cycles = Cycles(400_000);

/// What threads share besides memory, and what is left of them.
#[derive(Debug)]
pub(super) struct Shared {
    threads: Vec<Left>,
    /// Stores of threads to each table word, for exclusive pairs.
    stores: Vec<u64>,
    /// When the last one ended.
    pub(super) last: Cycles,
}

/// What a thread leaves.
#[derive(Clone, Debug)]
struct Left {
    regs: Vec<Option<u64>>,
    faults: u64,
}

impl Shared {
    pub(super) fn new(test: &Test) -> Self {
        let threads = test.threads.iter().map(|thread| Left { regs: thread.regs.clone(), faults: 0 });
        let stores = vec![0; usize::from(test.layout.entries)];
        Self { threads: threads.collect(), stores, last: Cycles::ZERO }
    }

    pub(super) fn ending(&self, words: Vec<u64>) -> Ending {
        let threads = self.threads.iter().map(|left| (left.regs.clone(), left.faults)).collect();
        Ending { words, threads }
    }
}

/// What an exclusive load has marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mark {
    place: Place,
    /// As it was loaded.
    word: u64,
    stores: u64,
}

/// One thread at work.
struct Runner {
    host: Host<Stage2>,
    number: usize,
    vcpu: VcpuId,
    thread: Thread,
    places: Rc<Places>,
    shared: Rc<RefCell<Shared>>,
    rng: Rng,
    defect: Option<Defect>,
    asid: u16,
    vmid: u16,
    mark: Option<Mark>,
    /// When all invalidations that it has sent are done.
    complete: Cycles,
}

/// Why an operation has not been done.
struct Fault {
    level: Level,
}

/// Starts a thread.
pub(super) fn spawn(
    bed: &mut Bed,
    test: &Test,
    number: usize,
    vcpu: usize,
    rng: Rng,
    defect: Option<Defect>,
    shared: &Rc<RefCell<Shared>>,
) {
    let thread = test.threads[number].clone();
    let (places, shared, vcpu, start) = (bed.places.clone(), shared.clone(), VcpuId(vcpu), bed.start + WARM_UP);
    let warm = warm_pages(test, &thread);
    bed.sim.spawn_vcpu(vcpu, move |host| {
        let (asid, vmid) = (thread.asid, thread.vmid);
        let complete = Cycles::ZERO;
        let runner =
            Runner { host, number, vcpu, thread, places, shared, rng, defect, asid, vmid, mark: None, complete };
        Box::pin(runner.run(warm, start))
    });
}

/// The virtual pages that a thread uses and that a load could have been made through when the test begins, leaving every entry as it is.
fn warm_pages(test: &Test, thread: &Thread) -> Vec<u8> {
    let used = thread.needs.first().copied().unwrap_or(0);
    let layout = &test.layout;
    let word = |loc: Loc| layout.initial[usize::from(loc)];
    let settled =
        |stage, word| match test.words.meaning(stage, word, AccessKind::Read, thread.privilege, thread.managed) {
            Meaning::Page(page) => Some(page),
            _ => None,
        };
    let is_warm = |va: u8| {
        let page = &layout.virtuals[usize::from(va)];
        let linked = page.table.is_none_or(|table| test.words.present(word(layout.tables[usize::from(table)].loc)));
        let middle = settled(StageNumber::One, word(page.leaf)).filter(|_| linked);
        middle.is_some_and(|middle| match &layout.second {
            None => true,
            Some(_) => layout.second_entry(middle).is_some_and(|loc| settled(StageNumber::Two, word(loc)).is_some()),
        })
    };
    (0..64).filter(|&va| used >> va & 1 != 0 && is_warm(va)).collect()
}

impl Runner {
    async fn run(mut self, warm: Vec<u8>, start: Cycles) {
        for va in warm {
            match self.rng.below(4) {
                0 | 1 => self.prefetch(self.places.gva(va)).await,
                // Nothing is mapped there, but the tables above are cached.
                2 => self.prefetch(self.places.beside(va)).await,
                _ => {}
            }
        }
        let begin = start + Cycles(self.rng.below(SPREAD));
        self.host.sleep_until(begin).await;
        let ops = std::mem::take(&mut self.thread.ops);
        for (index, op) in ops.iter().enumerate() {
            self.pause().await;
            self.fetch_ahead(index).await;
            if let Err(fault) = self.op(&op.kind).await {
                self.shared.borrow_mut().threads[self.number].faults |= 1 << index;
                if !self.goes_on(&fault) {
                    break;
                }
            }
        }
        let now = self.host.now().await;
        let mut shared = self.shared.borrow_mut();
        shared.last = shared.last.max(now);
    }

    /// Time that passes between operations: half of the time none.
    async fn pause(&mut self) {
        if self.rng.chance(1, 2) {
            let longest = 1 << self.rng.below(LONGEST_PAUSE + 1);
            let cycles = Cycles(self.rng.below(longest));
            self.host.spend(Work::Exactly(cycles)).await;
        }
    }

    /// Hardware translates a page that the thread is going to use. Not where it would mark entries: a mark that no access accounts for
    /// is allowed, but tests do not reckon with it.
    async fn fetch_ahead(&mut self, index: usize) {
        let needed = self.thread.needs[index];
        if needed == 0 || self.thread.managed.accessed || !self.rng.chance(1, 4) {
            return;
        }
        let pages: Vec<u8> = (0..64).filter(|va| needed >> va & 1 != 0).collect();
        let va = pages[self.rng.below(pages.len() as u64) as usize];
        self.prefetch(self.places.gva(va)).await;
    }

    async fn prefetch(&mut self, gva: Gva) {
        self.host.probe(self.vcpu, self.probe(gva, Data::Nothing)).await;
    }

    /// What `on_fault` says; false where the thread stops.
    fn goes_on(&mut self, fault: &Fault) -> bool {
        let assignments = match &self.thread.on_fault {
            OnFault::Stop => return false,
            OnFault::Set(assignments) => assignments.clone(),
            OnFault::ByLevel { level2, .. } if fault.level > Level::LAST => level2.clone(),
            OnFault::ByLevel { level3, .. } => level3.clone(),
        };
        for (reg, word) in assignments {
            self.set(Some(reg), word);
        }
        true
    }

    // ---- registers ----

    fn set(&self, reg: Option<u8>, word: u64) {
        if let Some(reg) = reg {
            self.shared.borrow_mut().threads[self.number].regs[usize::from(reg)] = Some(word);
        }
    }

    /// A register that was never set counts as 0.
    fn value(&self, value: Value) -> u64 {
        match value {
            Value::Word(word) => word,
            Value::Reg(reg) => self.shared.borrow().threads[self.number].regs[usize::from(reg)].unwrap_or(0),
        }
    }

    // ---- operations ----

    async fn op(&mut self, op: &OpKind) -> Result<(), Fault> {
        match *op {
            OpKind::Read { from, reg, .. } => {
                let found = self.load(from).await?;
                self.set(Some(reg), found.word);
            }
            OpKind::Ldx { from, reg, .. } => {
                let Content { word, stores } = self.load(from).await?;
                self.mark = Some(Mark { place: from, word, stores });
                self.set(Some(reg), word);
            }
            OpKind::Write { to, value, .. } => {
                let word = self.value(value);
                match to {
                    Place::Virtual(va) => drop(self.access(va, Data::Store(word)).await?),
                    Place::Word(loc) => self.store(loc, word).await,
                }
            }
            OpKind::Stx { to, value, status, .. } => {
                let word = self.value(value);
                let stored = self.store_exclusive(to, word).await?;
                self.set(status, u64::from(!stored));
            }
            OpKind::Cas { at, expect, value, reg, .. } => {
                let (expect, word) = (self.value(expect), self.value(value));
                let found = match at {
                    Place::Virtual(va) => self.access(va, Data::Cmpxchg { old: expect, new: word }).await?.word,
                    Place::Word(loc) => self.compare_exchange(loc, expect, word).await,
                };
                self.set(reg, found);
            }
            OpKind::Rmw { at, change, reg, .. } => {
                let found = match at {
                    Place::Virtual(va) => self.access(va, self.data(change)).await?.word,
                    Place::Word(loc) => self.modify(loc, change).await,
                };
                self.set(reg, found);
            }
            OpKind::Dsb(_) => self.barrier().await,
            OpKind::Dmb(_) => self.host.fence(Fence::Full).await,
            OpKind::Nothing => self.host.spend(Work::Exactly(Cycles(1))).await,
            OpKind::Tlbi(tlbi) => self.invalidate(&tlbi).await,
            OpKind::SetContext { asid, vmid } => {
                self.asid = asid.unwrap_or(self.asid);
                self.vmid = vmid.unwrap_or(self.vmid);
            }
            OpKind::Mov { reg, value } => self.set(Some(reg), self.value(value)),
        }
        Ok(())
    }

    async fn load(&mut self, from: Place) -> Result<Content, Fault> {
        match from {
            Place::Virtual(va) => self.access(va, Data::Load).await,
            Place::Word(loc) => {
                let stores = self.shared.borrow().stores[usize::from(loc)];
                let word = self.host.read(self.places.entry(loc)).await;
                Ok(Content { word: self.places.to_test(word), stores })
            }
        }
    }

    // ---- through translation ----

    fn probe(&self, gva: Gva, data: Data) -> Probe {
        let ignores = |defect| self.defect == Some(defect);
        let asid = if ignores(Defect::TlbIgnoresAsid) { 0 } else { self.asid };
        let vmid = if ignores(Defect::TlbIgnoresVmid) { 0 } else { self.vmid };
        Probe { gva, privilege: self.thread.privilege, asid: Asid(u32::from(asid)), vmid: Vmid(vmid), data }
    }

    async fn access(&mut self, va: u8, data: Data) -> Result<Content, Fault> {
        match self.host.probe(self.vcpu, self.probe(self.places.gva(va), data)).await {
            Probed::Done(found) => Ok(found),
            Probed::GuestFault(level) => Err(Fault { level: level.unwrap_or(Level::LAST) }),
            // All tables of the second stage are there, and a fault is one of its last level.
            Probed::Fault(_) => Err(Fault { level: Level::LAST }),
        }
    }

    fn data(&self, change: Change) -> Data {
        match change {
            Change::Swap(value) => Data::Mask { and: 0, or: self.value(value) },
            Change::Add(value) => Data::Add(self.value(value)),
            Change::SetBits(value) => Data::Mask { and: u64::MAX, or: self.value(value) },
            Change::ClearBits(value) => Data::Mask { and: !self.value(value), or: 0 },
            Change::Exactly { clear, set } => Data::Mask { and: !clear, or: set },
        }
    }

    // ---- entries ----

    /// Counts a store that is about to be made: nobody else comes in between.
    fn count(&self, loc: Loc) {
        self.shared.borrow_mut().stores[usize::from(loc)] += 1;
    }

    async fn store(&mut self, loc: Loc, word: u64) {
        self.count(loc);
        self.host.write(self.places.entry(loc), self.places.to_engine(word)).await;
    }

    /// Replies the word as it was.
    async fn compare_exchange(&mut self, loc: Loc, expect: u64, word: u64) -> u64 {
        let (at, old) = (self.places.entry(loc), self.places.to_engine(expect));
        self.count(loc);
        match self.host.cmpxchg(at, old, self.places.to_engine(word)).await {
            Cmpxchg::Done => expect,
            Cmpxchg::Failed(found) => self.places.to_test(found),
        }
    }

    async fn modify(&mut self, loc: Loc, change: Change) -> u64 {
        loop {
            let old = self.places.to_test(self.host.read(self.places.entry(loc)).await);
            let new = match self.data(change) {
                Data::Add(word) => old.wrapping_add(word),
                Data::Mask { and, or } => old & and | or,
                _ => old,
            };
            if self.compare_exchange(loc, old, new).await == old {
                return old;
            }
        }
    }

    /// Whether it has stored. Without a mark it fails, and touches nothing.
    async fn store_exclusive(&mut self, to: Place, word: u64) -> Result<bool, Fault> {
        let Some(mark) = self.mark.take().filter(|mark| mark.place == to) else { return Ok(false) };
        match to {
            Place::Virtual(va) => {
                let found = self.access(va, Data::StoreUnchanged { word, stores: mark.stores }).await?;
                Ok(found.stores == mark.stores)
            }
            Place::Word(loc) => {
                if self.shared.borrow().stores[usize::from(loc)] != mark.stores {
                    return Ok(false);
                }
                Ok(self.compare_exchange(loc, mark.word, word).await == mark.word)
            }
        }
    }

    // ---- invalidations ----

    async fn barrier(&mut self) {
        let waits = self.defect != Some(Defect::DsbDoesNotWaitTlbi);
        let now = self.host.now().await;
        let left = if waits { self.complete.since(now) } else { Cycles::ZERO };
        self.host.spend(Work::Exactly(left.max(Cycles(1)))).await;
    }

    async fn invalidate(&mut self, tlbi: &TlbiOp) {
        let is = |defect| self.defect == Some(defect);
        let (asid, vmid) = (tlbi.asid.unwrap_or(self.asid), tlbi.vmid.unwrap_or(self.vmid));
        let selector = match tlbi.by {
            TlbiBy::Va(va) => Selector::Virtual { va, asid },
            TlbiBy::Ipa(page) => Selector::Intermediate(page),
            TlbiBy::Asid => Selector::Asid(asid),
            TlbiBy::Vmid => Selector::Vmid,
        };
        let asid = if is(Defect::TlbIgnoresAsid) { 0 } else { asid };
        let vmid = if is(Defect::TlbIgnoresVmid) { 0 } else { vmid };
        let stage2 = tlbi.stages != Stages::One;
        if is(Defect::TlbiNoop) || stage2 && is(Defect::TlbiIpaMissesStage2) {
            return;
        }
        let Some(what) = self.reaches(tlbi.stages, selector, Asid(u32::from(asid)), Vmid(vmid)) else { return };
        let tables = if is(Defect::TlbiMissesWalkCache) { TableCaches::Kept } else { TableCaches::Dropped };
        let local = tlbi.scope == Scope::Local || is(Defect::BroadcastIsLocal);
        let reach = if local { Reach::Local } else { Reach::Everyone };
        let done = self.host.invalidate(what, tables, reach).await;
        self.complete = self.complete.max(done);
    }

    /// The instruction; `None` for an address that nobody translates.
    fn reaches(&self, stages: Stages, selector: Selector, asid: Asid, vmid: Vmid) -> Option<Invalidate> {
        Some(match (stages, selector) {
            (_, Selector::Virtual { va, .. }) => {
                Invalidate::Page { vmid, asid: AsidScope::One(asid), va: self.places.gva(va) }
            }
            (_, Selector::Asid(_)) => Invalidate::Asid { vmid, asid, globals: Globals::Kept },
            (_, Selector::Intermediate(page)) => {
                Invalidate::GuestPhysical { vmid, start: Gpa::new(page_address(page?)), bytes: 4096 }
            }
            (Stages::One, Selector::Vmid) => Invalidate::Vmid { vmid, globals: Globals::Dropped },
            (Stages::Two, Selector::Vmid) => Invalidate::GuestPhysical { vmid, start: Gpa::new(0), bytes: u64::MAX },
            (Stages::Both, Selector::Vmid) => Invalidate::VmidBothStages { vmid },
        })
    }
}

impl Final for Ending {
    fn words(&self) -> &[u64] {
        &self.words
    }
    fn thread(&self, number: usize) -> (&[Option<u64>], u64) {
        self.threads.get(number).map_or((&[], 0), |(regs, faults)| (regs, *faults))
    }
}
