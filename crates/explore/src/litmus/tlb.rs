//! What the processors' TLBs hold.
//!
//! A real TLB caches what it likes, when it likes: any valid entry or translation, several versions of one address at once, and it
//! may forget any of them. Here every TLB holds *everything* that it could hold, that is, whatever was valid at some moment since the
//! last invalidation that would have removed it, and each access chooses: any cached translation, or a walk. Nothing is
//! lost and nothing is added by that. A real TLB's content is always a subset of this one, and as the walk is always among the
//! choices, so are the subset's choices; conversely each thing in here is something that a TLB could have cached in time. So
//! spurious fills need no decisions of their own, and the number of states does not grow with the moments at which they might happen.
//!
//! What a thread's remaining accesses cannot use is dropped.

use super::defect::Defect;
use super::model::Model;
use super::state::{Cached, Entry, Running, State};
use super::test::{Invalidation, Selector, Stages};
use super::words::StageNumber;

impl Model<'_> {
    /// Whether the look-ups of a thread see an entry.
    pub(crate) fn tagged(&self, running: &Running, cached: &Cached) -> bool {
        let vmid = cached.vmid == running.vmid || self.is(Defect::TlbIgnoresVmid);
        let asid = cached.asid == running.asid
            || matches!(cached.what, Entry::Second { .. })
            || self.is(Defect::TlbIgnoresAsid);
        vmid && asid
    }

    /// Whether hardware may cache a leaf entry.
    fn cacheable(&self, stage: StageNumber, word: u64) -> bool {
        let accessed = self.test.words.is_accessed(word) || self.is(Defect::TlbCachesAf0);
        accessed && self.test.words.page(stage, word).is_some()
    }

    /// Caches everything that processor `t` could cache now, and drops what it cannot use any more.
    pub(crate) fn fill(&self, state: &mut State, t: usize) {
        let State { words, threads, .. } = state;
        let running = &mut threads[t];
        let needed = self.test.threads[t].needs[usize::from(running.pc)];
        if needed == 0 || self.is(Defect::NoTlb) {
            running.tlb.clear();
            return;
        }
        running.tlb.retain(|cached| match cached.what {
            Entry::Leaf { va, .. } | Entry::Combined { va, .. } => needed >> va & 1 != 0,
            Entry::Table(_) | Entry::Second { .. } => true,
        });
        let (asid, vmid) = (running.asid, running.vmid);
        let layout = &self.test.layout;
        if !self.is(Defect::NoWalkCache) {
            for (number, table) in (0..).zip(&layout.tables) {
                if self.test.words.present(words[usize::from(table.loc)]) {
                    running.cache(Cached { asid, vmid, what: Entry::Table(number) });
                }
            }
        }
        for (page, loc) in (0..).zip(layout.second.iter().flatten()) {
            let Some(word) = loc.map(|loc| words[usize::from(loc)]) else { continue };
            if self.cacheable(StageNumber::Two, word) {
                running.cache(Cached { asid: 0, vmid, what: Entry::Second { page, word } });
            }
        }
        for (va, page) in (0..).zip(&layout.virtuals) {
            if needed >> va & 1 == 0 {
                continue;
            }
            let word = words[usize::from(page.leaf)];
            if self.reached(words, running, va) && self.cacheable(StageNumber::One, word) {
                running.cache(Cached { asid, vmid, what: Entry::Leaf { va, word } });
            }
            let first = self.test.words.accessed(layout.initial[usize::from(page.leaf)]);
            if self.is(Defect::StaleWalkSnapshot) && self.cacheable(StageNumber::One, first) {
                running.cache(Cached { asid, vmid, what: Entry::Leaf { va, word: first } });
            }
        }
        if layout.second.is_some() {
            self.combine(running);
        }
    }

    /// Caches both stages together, for everything that is cached of both.
    fn combine(&self, running: &mut Running) {
        let mut combined = Vec::new();
        for cached in running.tlb.iter().filter(|cached| self.tagged(running, cached)) {
            let Entry::Leaf { va, word: one } = cached.what else { continue };
            let Some(middle) = self.test.words.page(StageNumber::One, one) else { continue };
            for other in running.tlb.iter().filter(|other| self.tagged(running, other)) {
                if let Entry::Second { page, word: two } = other.what
                    && page == middle
                {
                    let what = Entry::Combined { va, one, two };
                    combined.push(Cached { asid: running.asid, vmid: running.vmid, what });
                }
            }
        }
        for entry in combined {
            running.cache(entry);
        }
    }

    /// Whether a walk gets to the leaf entry of a virtual page, through the table above it or a cached pointer to it.
    pub(crate) fn reached(&self, words: &[u64], running: &Running, va: u8) -> bool {
        let layout = &self.test.layout;
        let Some(table) = layout.virtuals[usize::from(va)].table else { return true };
        let cached = |cached: &Cached| cached.what == Entry::Table(table) && self.tagged(running, cached);
        self.test.words.present(words[usize::from(layout.tables[usize::from(table)].loc)])
            || running.tlb.iter().any(cached)
    }

    /// Whether an invalidation removes an entry.
    fn removes(&self, what: &Invalidation, cached: &Cached) -> bool {
        if self.is(Defect::TlbiOverInvalidates) {
            return true;
        }
        if self.is(Defect::TlbiNoop) || cached.vmid != what.vmid {
            return false;
        }
        let (one, two) = (what.stages != Stages::Two, what.stages != Stages::One);
        match (cached.what, what.selector) {
            (Entry::Second { page, .. }, Selector::Intermediate(wanted)) => {
                two && wanted == Some(page) && !self.is(Defect::TlbiIpaMissesStage2)
            }
            (Entry::Second { .. }, Selector::Vmid) => two && !self.is(Defect::TlbiIpaMissesStage2),
            (Entry::Table(_), _) if self.is(Defect::TlbiMissesWalkCache) => false,
            (Entry::Table(table), Selector::Virtual { va, asid }) => {
                one && asid == cached.asid && self.test.layout.virtuals[usize::from(va)].table == Some(table)
            }
            (Entry::Leaf { va, .. } | Entry::Combined { va, .. }, Selector::Virtual { va: wanted, asid }) => {
                one && va == wanted && asid == cached.asid
            }
            (Entry::Table(_) | Entry::Leaf { .. } | Entry::Combined { .. }, Selector::Asid(asid)) => {
                one && asid == cached.asid
            }
            (Entry::Table(_) | Entry::Leaf { .. } | Entry::Combined { .. }, Selector::Vmid) => one,
            // By intermediate address nothing goes that holds stage 1.
            (_, Selector::Intermediate(_)) | (Entry::Second { .. }, Selector::Virtual { .. } | Selector::Asid(_)) => {
                false
            }
        }
    }

    /// Performs an invalidation at processor `t`.
    pub(crate) fn invalidate(&self, state: &mut State, t: usize, what: &Invalidation) {
        let before = state.threads[t].tlb.len();
        state.threads[t].tlb.retain(|cached| !self.removes(what, cached));
        if state.threads[t].tlb.len() != before {
            self.fill(state, t);
        }
    }
}
