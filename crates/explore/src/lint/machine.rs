//! The lint's state: tables, roots, entries, locks.

use std::collections::BTreeMap;
use std::fmt;

use arch_arm64_s2::{ConfigError, Stage1, Stage1Config, Stage2, Stage2Config};
use mmu_core::Level;
use mmu_core::format::{BreakRule, Entry, Format};
use serde::Serialize;

use super::entry::{BarrierReach, Owed, Regime, TlbiKind};

const PAGE_SHIFT: u32 = 12;
const INDEX_BITS: u32 = 9;
const LEVELS: u8 = 4;

/// An entry: the frame number of its table, and its place in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct EntryAt {
    /// Frame of the table, a 4K page number.
    pub table: u64,
    /// Index, 0 to 511.
    pub index: u16,
}

/// What a thread does, as far as the sequence cares.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A page becomes an empty table.
    NewTable {
        /// Its frame.
        table: u64,
    },
    /// A root is guarded by a lock.
    RootLock {
        /// The root's frame.
        root: u64,
        /// The lock.
        lock: u64,
    },
    /// A table belongs to the tree of a root, or to nobody.
    Owner {
        /// The table's frame.
        table: u64,
        /// The root's frame.
        root: Option<u64>,
    },
    /// A table, or a root with everything below it, is given back.
    Release {
        /// Its frame.
        table: u64,
    },
    /// The thread switches to a root.
    Activate {
        /// The regime.
        regime: Regime,
        /// The root's frame.
        root: u64,
        /// ASID or VMID.
        id: u64,
    },
    /// A lock is taken.
    Lock {
        /// Which.
        lock: u64,
    },
    /// A lock is given up.
    Unlock {
        /// Which.
        lock: u64,
    },
    /// An entry is written.
    Write {
        /// Where.
        at: EntryAt,
        /// The new word.
        word: u64,
    },
    /// A DSB.
    Barrier {
        /// What it waits for.
        reach: BarrierReach,
    },
    /// A TLBI.
    Invalidate {
        /// What it invalidates.
        kind: TlbiKind,
    },
    /// Something that the sequence does not need.
    Other,
}

/// A rule of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// EL2's own stage 1 has no ASID but 0.
    ReservedAsidNonzero,
    /// Two live roots of a regime have one ASID or VMID.
    DuplicateAddressSpaceId,
    /// A live root is activated with another ASID or VMID than before.
    RootHasOtherId,
    /// An entry of a live tree is written, and the tree has no lock.
    NoLockAssociated,
    /// An entry of a live tree is written without its lock.
    UnlockedPteWrite,
    /// A live entry gets another meaning without having been invalid in between.
    ValidToValidWithoutBreak,
    /// An entry becomes valid while its invalidation is owed.
    MakeBeforeClean,
    /// A table is released that cached pointers may reach, or that is linked.
    ReleaseUncleanTable,
    /// A table is linked into a tree while it belongs to another.
    PageUsedInTwoTables,
}

impl Rule {
    /// All, with their names.
    pub const ALL: [(&'static str, Rule); 9] = [
        ("reserved_asid_nonzero", Rule::ReservedAsidNonzero),
        ("duplicate_address_space_id", Rule::DuplicateAddressSpaceId),
        ("root_has_other_id", Rule::RootHasOtherId),
        ("no_lock_associated", Rule::NoLockAssociated),
        ("unlocked_pte_write", Rule::UnlockedPteWrite),
        ("valid_to_valid_without_break", Rule::ValidToValidWithoutBreak),
        ("make_before_clean", Rule::MakeBeforeClean),
        ("release_unclean_table", Rule::ReleaseUncleanTable),
        ("page_used_in_two_tables", Rule::PageUsedInTwoTables),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, rule)| *rule == self).map_or("", |(name, _)| name)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A broken rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Violation {
    /// The event that broke it, from 0.
    pub step: u64,
    /// Who did.
    pub thread: u32,
    /// The rule.
    pub rule: Rule,
    /// The entry, where there is one.
    pub entry: Option<EntryAt>,
    /// The table or root, where there is one.
    pub table: Option<u64>,
}

/// A root's properties.
#[derive(Clone, Copy, Debug, Default)]
struct Root {
    lock: Option<u64>,
    /// Regime and ASID or VMID since it was first activated.
    live: Option<(Regime, u64)>,
}

/// Where a table stands in a tree.
#[derive(Clone, Copy, Debug, Default)]
struct Table {
    owner: Option<u64>,
    /// The entry that points to it, or that may still be cached as pointing to it.
    linked: Option<EntryAt>,
}

/// An entry's word, and what is owed for the one before.
#[derive(Clone, Copy, Debug)]
struct State {
    word: u64,
    owed: Owed,
    /// The word that may still be cached, its regime and ASID or VMID, while something is owed.
    cached: u64,
    of: (Regime, u64),
}

/// Where an entry is, seen from its live root.
#[derive(Clone, Copy, Debug)]
struct Live {
    root: Root,
    of: (Regime, u64),
    level: Level,
    /// The first 4K page that the entry translates, and how many.
    first: u64,
    pages: u64,
}

/// The lint: events in, violations out. Tables of 4K granule with four levels.
#[derive(Clone, Debug)]
pub struct Lint {
    one: Stage1,
    two: Stage2,
    steps: u64,
    tables: BTreeMap<u64, Table>,
    roots: BTreeMap<u64, Root>,
    entries: BTreeMap<EntryAt, State>,
    locks: BTreeMap<u64, u32>,
    /// The root that each thread has active in each regime.
    active: BTreeMap<(u32, Regime), u64>,
}

impl Lint {
    /// Nothing is known yet.
    ///
    /// # Errors
    /// When the formats refuse four levels of 4K tables, which they do not.
    pub fn new() -> Result<Self, ConfigError> {
        let features = arch_arm64_s2::Features { pa_bits: 48, ..Default::default() };
        Ok(Self {
            one: Stage1Config { features, ..Default::default() }.build()?,
            two: Stage2Config { ipa_bits: 48, features, ..Default::default() }.build()?,
            steps: 0,
            tables: BTreeMap::new(),
            roots: BTreeMap::new(),
            entries: BTreeMap::new(),
            locks: BTreeMap::new(),
            active: BTreeMap::new(),
        })
    }

    /// The entries for which something is owed.
    pub fn owed(&self) -> impl Iterator<Item = (EntryAt, Owed)> + '_ {
        self.entries.iter().filter(|(_, state)| state.owed != Owed::Nothing).map(|(&at, state)| (at, state.owed))
    }

    /// Takes one event; says which rule it breaks. The event counts as done either way.
    pub fn event(&mut self, thread: u32, event: Event) -> Option<Violation> {
        let step = self.steps;
        self.steps += 1;
        let (rule, entry, table) = match event {
            Event::NewTable { table } => {
                self.forget(table);
                self.tables.insert(table, Table::default());
                return None;
            }
            Event::RootLock { root, lock } => {
                self.roots.entry(root).or_default().lock = Some(lock);
                return None;
            }
            Event::Owner { table, root } => {
                self.tables.entry(table).or_default().owner = root;
                return None;
            }
            Event::Lock { lock } => {
                self.locks.insert(lock, thread);
                return None;
            }
            Event::Unlock { lock } => {
                self.locks.remove(&lock);
                return None;
            }
            Event::Barrier { reach } => {
                self.settle(|owed, _, _| owed.after_barrier(thread, reach));
                return None;
            }
            Event::Invalidate { kind } => {
                self.invalidate(thread, kind);
                return None;
            }
            Event::Other => return None,
            Event::Release { table } => (self.release(table)?, None, Some(table)),
            Event::Activate { regime, root, id } => (self.activate(thread, regime, root, id)?, None, Some(root)),
            Event::Write { at, word } => (self.write(thread, at, word)?, Some(at), None),
        };
        Some(Violation { step, thread, rule, entry, table })
    }

    fn activate(&mut self, thread: u32, regime: Regime, root: u64, id: u64) -> Option<Rule> {
        self.active.insert((thread, regime), root);
        if regime == Regime::HypStage1 && id != 0 {
            return Some(Rule::ReservedAsidNonzero);
        }
        let known = self.roots.get(&root).and_then(|root| root.live);
        if known.is_some_and(|known| known != (regime, id)) {
            return Some(Rule::RootHasOtherId);
        }
        let other = |(other, properties): (&u64, &Root)| *other != root && properties.live == Some((regime, id));
        let duplicate = self.roots.iter().any(other);
        self.roots.entry(root).or_default().live = Some((regime, id));
        duplicate.then_some(Rule::DuplicateAddressSpaceId)
    }

    /// The tree position of an entry, if its root is live and reaches it, perhaps by a pointer that may only be cached any more.
    fn live(&self, at: EntryAt) -> Option<Live> {
        // From the entry up: the indices of each level.
        let mut indices = vec![at.index];
        let mut table = at.table;
        while let Some(above) = self.tables.get(&table).and_then(|table| table.linked) {
            indices.push(above.index);
            table = above.table;
            if indices.len() > usize::from(LEVELS) {
                return None;
            }
        }
        let root = *self.roots.get(&table)?;
        let of = root.live?;
        let level = LEVELS.checked_sub(indices.len() as u8)?;
        let shift = INDEX_BITS * u32::from(level);
        let first = indices.iter().rev().fold(0, |page, index| page << INDEX_BITS | u64::from(*index)) << shift;
        Some(Live { root, of, level: Level::new(level), first, pages: 1 << shift })
    }

    fn valid(&self, word: u64) -> bool {
        word & self.two.present_mask() != 0
    }

    /// The table that a word points to.
    fn points_to(&self, regime: Regime, level: Level, word: u64) -> Option<u64> {
        let base = match regime {
            Regime::HypStage1 => match self.one.decode(level, word) {
                Entry::Table(table) => table.base,
                _ => return None,
            },
            Regime::Stage2 => match self.two.decode(level, word) {
                Entry::Table(table) => table.base,
                _ => return None,
            },
        };
        Some(base.raw() >> PAGE_SHIFT)
    }

    /// Whether a TLB may hold a valid word: tables, and leaves with the access flag.
    fn cacheable(&self, live: &Live, word: u64) -> bool {
        let leaf = match live.of.0 {
            Regime::HypStage1 => self.one.is_leaf(live.level, word),
            Regime::Stage2 => self.two.is_leaf(live.level, word),
        };
        self.valid(word) && (!leaf || word & self.two.accessed_mask() != 0)
    }

    fn write(&mut self, thread: u32, at: EntryAt, word: u64) -> Option<Rule> {
        let live = self.live(at);
        let old = self.entries.get(&at).map_or(0, |state| state.word);
        let rule = match live {
            Some(live) => self.judge(thread, at, old, word, &live),
            None => self.linking(at, live.as_ref(), word),
        };
        let before = self.entries.get(&at).map_or(Owed::Nothing, |state| state.owed);
        let of = live.map_or((Regime::Stage2, 0), |live| live.of);
        let state = self.entries.entry(at).or_insert(State { word: 0, owed: Owed::Nothing, cached: 0, of });
        state.word = word;
        let broken = live.is_some_and(|live| !self.valid(word) && self.cacheable(&live, old));
        if broken {
            self.entries.insert(at, State { word, owed: Owed::Barrier { writer: thread }, cached: old, of });
        }
        self.relink(at, live.as_ref(), old, word, broken || before != Owed::Nothing);
        rule
    }

    /// The rules that a store to a live entry must keep.
    fn judge(&self, thread: u32, at: EntryAt, old: u64, word: u64, live: &Live) -> Option<Rule> {
        match live.root.lock {
            None => return Some(Rule::NoLockAssociated),
            Some(lock) if self.locks.get(&lock) != Some(&thread) => return Some(Rule::UnlockedPteWrite),
            Some(_) => {}
        }
        if !self.valid(word) {
            return None;
        }
        if self.valid(old) {
            let rule = match live.of.0 {
                Regime::HypStage1 => self.one.break_rule(live.level, old, word),
                Regime::Stage2 => self.two.break_rule(live.level, old, word),
            };
            if matches!(rule, BreakRule::Needed(_)) {
                return Some(Rule::ValidToValidWithoutBreak);
            }
        } else if self.entries.get(&at).is_some_and(|state| state.owed != Owed::Nothing) {
            return Some(Rule::MakeBeforeClean);
        }
        self.linking(at, Some(live), word)
    }

    /// The root of the tree that a table belongs to: what it was said to belong to, or what reaches it.
    fn owner(&self, table: u64) -> Option<u64> {
        let mut root = table;
        for _ in 0..=LEVELS {
            match self.tables.get(&root).and_then(|table| table.linked) {
                Some(above) => root = above.table,
                None => break,
            }
        }
        if root != table || self.roots.contains_key(&table) { Some(root) } else { self.tables.get(&table)?.owner }
    }

    /// A table that is linked belongs to no other tree, and nothing else points to it.
    fn linking(&self, at: EntryAt, live: Option<&Live>, word: u64) -> Option<Rule> {
        let child = self.child(live, word)?;
        let table = self.tables.get(&child)?;
        let elsewhere = table.linked.is_some_and(|linked| linked != at);
        let other_tree = table.owner.is_some() && table.owner != self.owner(at.table);
        (elsewhere || other_tree).then_some(Rule::PageUsedInTwoTables)
    }

    /// The known table that a word points to. Outside live trees the level is unknown, but tables look alike above the last.
    fn child(&self, live: Option<&Live>, word: u64) -> Option<u64> {
        let (regime, level) = live.map_or((Regime::Stage2, Level::new(1)), |live| (live.of.0, live.level));
        self.points_to(regime, level, word).filter(|child| self.tables.contains_key(child))
    }

    /// Keeps the pointers upward: a table hangs on its entry until that is clean.
    fn relink(&mut self, at: EntryAt, live: Option<&Live>, old: u64, word: u64, owed: bool) {
        let (child, former) = (self.child(live, word), self.child(live, old));
        if let Some(former) = former.filter(|former| Some(*former) != child && !owed)
            && let Some(table) = self.tables.get_mut(&former)
            && table.linked == Some(at)
        {
            table.linked = None;
        }
        if let Some(child) = child
            && let Some(table) = self.tables.get_mut(&child)
        {
            table.linked = Some(at);
        }
    }

    fn release(&mut self, table: u64) -> Option<Rule> {
        let hangs = self.tables.get(&table).and_then(|table| table.linked);
        // A table without a parent is a root: what hangs below it is free with it.
        let is_root = hangs.is_none();
        if is_root {
            self.roots.remove(&table);
            for other in self.tables.values_mut().filter(|other| other.owner == Some(table)) {
                other.owner = None;
            }
        }
        self.forget(table);
        self.tables.remove(&table);
        hangs.map(|_| Rule::ReleaseUncleanTable)
    }

    /// Forgets the entries of a table, and who hangs on them.
    fn forget(&mut self, table: u64) {
        let of = |at: &EntryAt| at.table == table;
        self.entries.retain(|at, _| !of(at));
        for other in self.tables.values_mut().filter(|other| other.linked.as_ref().is_some_and(of)) {
            other.linked = None;
        }
    }

    /// Applies a step of the sequence to every entry that owes something. Tables leave entries that have become clean.
    fn settle(&mut self, after: impl Fn(Owed, &State, EntryAt) -> Owed) {
        let mut cleaned = Vec::new();
        for (&at, state) in self.entries.iter_mut().filter(|(_, state)| state.owed != Owed::Nothing) {
            state.owed = after(state.owed, state, at);
            if state.owed == Owed::Nothing && state.word & 1 == 0 {
                cleaned.push(at);
            }
        }
        for table in self.tables.values_mut() {
            if table.linked.is_some_and(|linked| cleaned.contains(&linked)) {
                table.linked = None;
            }
        }
    }

    fn invalidate(&mut self, thread: u32, kind: TlbiKind) {
        let vmid =
            self.active.get(&(thread, Regime::Stage2)).and_then(|root| self.roots.get(root)?.live).map(|of| of.1);
        let places: BTreeMap<EntryAt, (Live, bool)> = self
            .entries
            .iter()
            .filter(|(_, state)| state.owed != Owed::Nothing)
            .filter_map(|(&at, state)| {
                let live = self.live(at)?;
                Some((at, (live, self.bears_fruit(&live, state.cached))))
            })
            .collect();
        self.settle(|owed, state, at| {
            let (regime, id) = state.of;
            let mine = regime == Regime::Stage2 && Some(id) == vmid;
            // By address only what one address leads to is gone: a leaf, or a table without anything below.
            let covers = |page: u64| {
                places.get(&at).is_some_and(|(live, fruit)| !fruit && page.wrapping_sub(live.first) < live.pages)
            };
            match kind {
                TlbiKind::AllGuests if regime == Regime::Stage2 => owed.after_all(thread),
                TlbiKind::BothStages if mine => owed.after_all(thread),
                TlbiKind::Stage2Page { page } if mine && covers(page) => owed.after_stage2(thread),
                TlbiKind::Stage1 if mine => owed.after_stage1(thread),
                TlbiKind::AllHyp if regime == Regime::HypStage1 => owed.after_all(thread),
                TlbiKind::HypPage { page } if regime == Regime::HypStage1 && covers(page) => owed.after_all(thread),
                _ => owed,
            }
        });
    }

    /// Whether a word points to a table with entries that are valid or not clean.
    fn bears_fruit(&self, live: &Live, word: u64) -> bool {
        let Some(child) = self.child(Some(live), word) else { return false };
        let (first, last) = (EntryAt { table: child, index: 0 }, EntryAt { table: child, index: u16::MAX });
        self.entries.range(first..=last).any(|(_, state)| self.valid(state.word) || state.owed != Owed::Nothing)
    }
}
