//! NX huge pages: no huge page is executable, and what was split for execution is recovered later.
//!
//! Models KVM's mitigation of the iTLB multihit erratum on x86 (b8e8c8303ff2 and after, in the TDP MMU's form): a huge leaf is mapped
//! without execute permission; a fetch from it replaces it by a table whose page is marked `nx_huge_page_disallowed` and put on the
//! list of possible huge pages; a kernel thread (1aa9b9572b10) takes one `ratio`th of them back each period.
//!
//! Faults are handled by [`fault`](super::fault), as all others: [`NxMemory`] makes its handler map huge pages without X and split them for a fetch.
//!
//! * **Marking**: the mark is set before the table is visible (61f94478547b; X30 is after), the list entry is made after it is linked, under
//!   `tdp_mmu_pages_lock`. The list and the map from table to mark are plain data under that lock; the mark is a variable.
//! * **Recovery**, up to 6.17 under the write lock; 6.18 (a57750909580) under the read lock: the pages lock around taking a page off the list, its
//!   parent entry checked to point to this very table, and replaced by compare-and-swap. A page of a memslot that is dirty-logged is
//!   taken off the list and stays split.
//! * **Flush**: one for all pages of a batch, before the RCU section ends: at a yield, and at the end. X06 forgets what the zap owes, X08 keeps
//!   the last page's debt only.
//! * **Frees** the tables by RCU.
//!
//! KVM keeps in a page's descriptor where its parent entry is, and takes a page off the list when its table goes in any other way. Here the
//! entry is found by a walk, and a page whose table went otherwise leaves the list when recovery comes to it.
//!
//! Other architectures have no such mitigation; the protocol runs on any format that can take execute permission from a leaf.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use mmu_core::{Cycles, Format, Gpa, GpaRange, Hpa, Level};
use serde::{Deserialize, Serialize};

use super::coalesce::Changed;
use super::fault::FaultHooks;
use super::iter::{FlushDebt, Yield};
use super::roots::{UnmapRoots, VmRoots};
use super::split::{Children, Linked, SplitPolicy, link_children};
use super::zap::{LinkedTable, TableFlush, TableZap, ZapLock, ZapPolicy, is_table, zap_sp};
use crate::engine::{Bed, Cmpxchg, Host, LockId, LockKind, LockMode, Var};

/// Whether huge pages may be executable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mitigation {
    /// They may not (`nx_huge_pages=on`).
    On,
    /// They may.
    #[default]
    Off,
}

/// When a table's mark is set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MarkTime {
    /// Before anybody can find the table.
    BeforeLink,
    /// After it is linked (X30): another processor sees it unmarked and puts a huge page back.
    AfterLink,
}

/// What recovery does with the flush that a zap owes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NxDebt {
    /// Keeps it until it has flushed.
    Merged,
    /// Forgets it (X06).
    Forgotten,
    /// Keeps only that of the last zap (X08).
    LastOnly,
}

/// Whether the zap of one page may yield by itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NxYield {
    /// Only between pages, where the debt is paid first.
    BetweenPages,
    /// Before the entry of a page is cleared too, without paying for the pages before it (X07).
    InsideZap,
}

/// How the mitigation works.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NxPolicy {
    /// Whether it is on.
    pub mitigation: Mitigation,
    /// `nx_huge_pages_recovery_ratio`: one page in so many is recovered each period; 0 recovers none.
    pub ratio: u32,
    /// Time between two recoveries (`nx_huge_pages_recovery_period_ms`).
    pub period: Cycles,
    /// How recovery holds `mmu_lock`.
    pub lock: ZapLock,
    /// What it does with debts.
    pub debt: NxDebt,
    /// When it yields.
    pub yielding: NxYield,
    /// When pages are marked.
    pub mark: MarkTime,
}

impl NxPolicy {
    /// Linux 6.1 to 6.17, with the period given; the ratio is the default of 60.
    pub const fn v6_1(period: Cycles) -> NxPolicy {
        NxPolicy {
            mitigation: Mitigation::On,
            ratio: 60,
            period,
            lock: ZapLock::Write,
            debt: NxDebt::Merged,
            yielding: NxYield::BetweenPages,
            mark: MarkTime::BeforeLink,
        }
    }
    /// Linux 6.18: recovery shares the lock.
    pub const fn v6_18(period: Cycles) -> NxPolicy {
        NxPolicy { lock: ZapLock::Read, ..Self::v6_1(period) }
    }
}

/// A table that stands where a huge page could.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct NxPage {
    table: Hpa,
    /// Level of the entry above it.
    level: Level,
    gpa: Gpa,
}

#[derive(Debug)]
struct Shared {
    policy: NxPolicy,
    /// `tdp_mmu_pages_lock`
    pages_lock: LockId,
    /// `possible_nx_huge_pages`, oldest first.
    list: RefCell<VecDeque<NxPage>>,
    /// `nx_huge_page_disallowed` of the tables that have it.
    marks: RefCell<BTreeMap<Hpa, Var>>,
    /// `nx_lpage_splits`
    splits: Var,
    /// Ranges of memslots that are dirty-logged.
    logged: RefCell<Vec<GpaRange>>,
    recovered: Cell<Recovered>,
    /// Tables that a fault found linked and not marked yet.
    unmarked: Cell<u64>,
}

/// What recovery did so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Recovered {
    /// Pages zapped, to be mapped huge again by the next fault.
    pub zapped: u64,
    /// Pages that stay split because their memslot is logged.
    pub kept: u64,
    /// Pages whose table was gone already.
    pub gone: u64,
    /// Flushes.
    pub flushes: u64,
}

/// The possible NX huge pages of a VM. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct NxPages(Rc<Shared>);

impl NxPages {
    /// Of a new VM.
    pub fn new(sim: &mut impl Bed, policy: NxPolicy) -> Self {
        Self(Rc::new(Shared {
            policy,
            pages_lock: sim.new_lock(LockKind::Spin),
            list: RefCell::default(),
            marks: RefCell::default(),
            splits: sim.new_var(0),
            logged: RefCell::default(),
            recovered: Cell::default(),
            unmarked: Cell::new(0),
        }))
    }

    /// `nx_lpage_splits`: pages on the list.
    pub async fn splits<F: Format>(&self, host: &Host<F>) -> u64 {
        host.load(self.0.splits).await
    }

    /// What recovery did so far.
    pub fn recovered(&self) -> Recovered {
        self.0.recovered.get()
    }

    /// Dirty logging of a memslot is enabled: recovery leaves its pages alone. For whoever holds `slots_lock`.
    pub fn start_logging(&self, slot: GpaRange) {
        self.0.logged.borrow_mut().push(slot);
    }

    /// Dirty logging of a memslot has ended.
    pub fn stop_logging(&self, slot: GpaRange) {
        self.0.logged.borrow_mut().retain(|logged| *logged != slot);
    }

    /// How often a fault has found a table linked before it was marked (X30).
    pub fn found_unmarked(&self) -> u64 {
        self.0.unmarked.get()
    }

    // ---- faults ----

    /// Whether huge pages may be executable.
    pub fn mitigation(&self) -> Mitigation {
        self.0.policy.mitigation
    }

    /// Puts a table below an entry that holds nothing, or a huge leaf in the way of a fetch; marks the table, and lists it if a huge page could stand
    /// there (`track_possible_nx_huge_page`). For the fault handler, inside its RCU section.
    pub(super) async fn link<F: Format>(
        &self,
        host: &Host<F>,
        link: LinkedTable,
        word: u64,
        tracked: Tracked,
    ) -> Changed {
        let mark = host.new_var(0).await;
        self.0.marks.borrow_mut().insert(link.table, mark);
        if self.0.policy.mark == MarkTime::BeforeLink {
            host.store(mark, 1).await;
        }
        if !self.put_in_place(host, link, word).await {
            self.0.marks.borrow_mut().remove(&link.table);
            return Changed::Raced;
        }
        if self.0.policy.mark == MarkTime::AfterLink {
            host.store(mark, 1).await;
        }
        if tracked == Tracked::Yes {
            self.track(host, link).await;
        }
        Changed::Done
    }

    async fn put_in_place<F: Format>(&self, host: &Host<F>, link: LinkedTable, old: u64) -> bool {
        let format = *host.format();
        if format.is_mapped(old) {
            let Some(children) = Children::of(&format, link.level, old) else { return false };
            // `make_huge_page_split_spte`: the smallest pages may be executed again.
            let children = if link.level.down() == Some(Level::LAST) { children.executable() } else { children };
            let linked = link_children(host, link, old, children, &SplitPolicy::X86_5_18).await;
            return matches!(linked, Linked::Table(_));
        }
        match format.encode_table(link.level, link.table) {
            Ok(word) => host.cmpxchg(link.sptep, old, word).await == Cmpxchg::Done,
            Err(_) => false,
        }
    }

    /// `disallowed_hugepage_adjust`: whether a page was split for execution, which a fault does not undo.
    pub(super) async fn is_disallowed<F: Format>(&self, host: &Host<F>, table: Hpa) -> bool {
        let mark = self.0.marks.borrow().get(&table).copied();
        match mark {
            Some(mark) => {
                // `sp->nx_huge_page_disallowed`, of the page that the entry points to.
                let marked = host.load_dependent(mark).await != 0;
                // Recovery takes a mark away only together with its place in the map.
                let unmarked = !marked && self.0.marks.borrow().get(&table) == Some(&mark);
                self.0.unmarked.set(self.0.unmarked.get() + u64::from(unmarked));
                marked
            }
            None => false,
        }
    }

    /// `track_possible_nx_huge_page`
    async fn track<F: Format>(&self, host: &Host<F>, link: LinkedTable) {
        host.lock(self.0.pages_lock, LockMode::Write).await;
        self.0.list.borrow_mut().push_back(NxPage { table: link.table, level: link.level, gpa: link.gpa });
        host.add(self.0.splits, 1).await;
        host.unlock(self.0.pages_lock).await;
    }

    // ---- recovery ----

    /// The kernel thread: so many recoveries, a period apart.
    pub async fn recovery_thread<F: Format>(&self, host: &Host<F>, rounds: u64) {
        for _ in 0..rounds {
            host.sleep(self.0.policy.period).await;
            self.recover(host).await;
        }
    }

    /// `kvm_recover_nx_huge_pages`: takes one `ratio`th of the listed pages back. Takes `mmu_lock`. Of a VM with one root.
    pub async fn recover<F: Format>(&self, host: &Host<F>) {
        self.recover_in(host, &VmRoots::Current).await;
    }

    /// [`recover`](Self::recover) in all roots of a VM.
    pub async fn recover_in<F: Format>(&self, host: &Host<F>, roots: &VmRoots<F>) {
        let policy = self.0.policy;
        host.lock(LockId::MMU, policy.lock.mode()).await;
        host.rcu_read_lock().await;
        let splits = host.load(self.0.splits).await;
        let mut left = if policy.ratio == 0 { 0 } else { splits.div_ceil(u64::from(policy.ratio)) };
        let mut debt = FlushDebt::Clean;
        while left > 0 {
            let Some(page) = self.pop(host).await else { break };
            left -= 1;
            let owed = self.recover_one(host, roots, page).await;
            debt = match policy.debt {
                NxDebt::Merged => debt.merge(owed),
                NxDebt::Forgotten => FlushDebt::Clean,
                NxDebt::LastOnly => owed,
            };
            if host.need_resched(LockId::MMU).await {
                self.pay(host, &mut debt).await;
                self.give_way(host).await;
            }
        }
        self.pay(host, &mut debt).await;
        host.rcu_read_unlock().await;
        host.unlock(LockId::MMU).await;
    }

    async fn give_way<F: Format>(&self, host: &Host<F>) {
        host.rcu_read_unlock().await;
        host.unlock(LockId::MMU).await;
        host.reschedule().await;
        host.lock(LockId::MMU, self.0.policy.lock.mode()).await;
        host.rcu_read_lock().await;
    }

    async fn pay<F: Format>(&self, host: &Host<F>, debt: &mut FlushDebt) {
        if *debt == FlushDebt::Owed {
            host.flush_vm().await;
            self.count(|recovered| recovered.flushes += 1);
        }
        *debt = FlushDebt::Clean;
    }

    fn count(&self, change: impl FnOnce(&mut Recovered)) {
        let mut recovered = self.0.recovered.get();
        change(&mut recovered);
        self.0.recovered.set(recovered);
    }

    /// Takes the oldest page off the list; it is not disallowed any more.
    async fn pop<F: Format>(&self, host: &Host<F>) -> Option<NxPage> {
        host.lock(self.0.pages_lock, LockMode::Write).await;
        let page = self.0.list.borrow_mut().pop_front();
        if page.is_some() {
            host.add(self.0.splits, -1).await;
        }
        host.unlock(self.0.pages_lock).await;
        page
    }

    async fn recover_one<F: Format>(&self, host: &Host<F>, roots: &VmRoots<F>, page: NxPage) -> FlushDebt {
        let logged = self.0.logged.borrow().iter().any(|slot| slot.contains(page.gpa));
        let mark = self.0.marks.borrow_mut().remove(&page.table);
        if let Some(mark) = mark {
            host.store(mark, 0).await;
        }
        if logged {
            self.count(|recovered| recovered.kept += 1);
            return FlushDebt::Clean;
        }
        let Some(link) = find(host, roots, page).await else {
            self.count(|recovered| recovered.gone += 1);
            return FlushDebt::Clean;
        };
        if self.0.policy.yielding == NxYield::InsideZap && host.need_resched(LockId::MMU).await {
            // Whatever the pages before this one owe is not paid.
            self.give_way(host).await;
        }
        let zap = ZapPolicy {
            lock: self.0.policy.lock,
            flush: TableFlush::DeferredRcu,
            yielding: Yield::Never,
            ..ZapPolicy::V5_18
        };
        match zap_sp(host, link, &zap).await {
            TableZap::Zapped(owed) => {
                self.count(|recovered| recovered.zapped += 1);
                owed
            }
            TableZap::Gone => {
                self.count(|recovered| recovered.gone += 1);
                FlushDebt::Clean
            }
        }
    }
}

/// Whether a table stands where a huge page could.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tracked {
    /// It does, and is listed for recovery.
    Yes,
    /// It does not.
    No,
}

/// Memory of a VM with NX huge pages: the hooks of its fault handlers.
#[derive(Clone, Debug)]
pub struct NxMemory(pub NxPages);

impl<F: Format> FaultHooks<F> for NxMemory {
    fn nx(&self) -> Option<&NxPages> {
        Some(&self.0)
    }
}

/// The entry that points to a page's table, if one still does. Inside an RCU section, behind which roots are freed.
async fn find<F: Format>(host: &Host<F>, roots: &VmRoots<F>, page: NxPage) -> Option<LinkedTable> {
    let mut next = roots.next(host, None, UnmapRoots::All).await;
    while let Some(root) = next {
        if let Some(link) = find_below(host, root.table, page).await {
            return Some(link);
        }
        next = roots.next(host, next, UnmapRoots::All).await;
    }
    None
}

async fn find_below<F: Format>(host: &Host<F>, root: Hpa, page: NxPage) -> Option<LinkedTable> {
    let format = *host.format();
    let geometry = *format.geometry();
    let (mut table, mut level) = (root, geometry.root());
    loop {
        let sptep = table + 8 * geometry.index(level, page.gpa.raw()) as u64;
        let word = host.read(sptep).await;
        if !is_table(&format, level, word) {
            return None;
        }
        let below = format.next_table(level, word);
        if level == page.level {
            let link = LinkedTable { sptep, level, gpa: page.gpa, table: below };
            return (below == page.table).then_some(link);
        }
        (table, level) = (below, level.down()?);
    }
}
