//! A litmus test as the model runs it: names resolved to numbers, entries to words.

use std::fmt;

use mmu_core::access::Privilege;
use serde::Serialize;

use super::words::{Managed, StageNumber, Words};

/// What a simulator must do with a test.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Use {
    /// The outcome is forbidden.
    MustNotObserve,
    /// The condition holds at the end of every execution.
    MustAlwaysHold,
    /// The outcome is reached.
    MustBeAbleToObserve,
    /// The outcome is reached with store buffers and not without.
    ObservableOnlyWithStoreBuffer,
    /// Allowed by effects this model does not have: loads out of order, early translation.
    NeedsWeakerOrdering,
    /// The sources contradict each other.
    Disputed,
    /// No source says anything.
    NoReferenceVerdict,
    /// Not to be judged by.
    Informational,
}

impl Use {
    /// All, in the order of reports.
    pub const ALL: [Use; 8] = [
        Use::MustNotObserve,
        Use::MustAlwaysHold,
        Use::MustBeAbleToObserve,
        Use::ObservableOnlyWithStoreBuffer,
        Use::NeedsWeakerOrdering,
        Use::Disputed,
        Use::NoReferenceVerdict,
        Use::Informational,
    ];

    /// As the files spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Use::MustNotObserve => "must_not_observe",
            Use::MustAlwaysHold => "must_always_hold",
            Use::MustBeAbleToObserve => "must_be_able_to_observe",
            Use::ObservableOnlyWithStoreBuffer => "observable_only_with_store_buffer",
            Use::NeedsWeakerOrdering => "needs_weaker_ordering",
            Use::Disputed => "disputed",
            Use::NoReferenceVerdict => "no_reference_verdict",
            Use::Informational => "informational",
        }
    }

    /// Whether a simulator is judged by such tests.
    pub const fn gates(self) -> bool {
        matches!(
            self,
            Use::MustNotObserve | Use::MustAlwaysHold | Use::MustBeAbleToObserve | Use::ObservableOnlyWithStoreBuffer
        )
    }
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A test that was read.
#[derive(Clone, Debug)]
pub struct Test {
    pub(crate) id: String,
    pub(crate) usage: Use,
    pub(crate) research: Research,
    pub(crate) layout: Layout,
    pub(crate) threads: Vec<Thread>,
    /// The condition at the end of an execution that is looked for: that of `exists`, or the opposite of that of `forall`.
    pub(crate) wanted: Condition,
    pub(crate) words: Words,
}

impl Test {
    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }
    /// What a simulator must do with it.
    pub const fn usage(&self) -> Use {
        self.usage
    }
}

/// What another exhaustive model found, as far as the file says: whether the outcome was reached (of `forall`: whether it failed).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Research {
    pub(crate) sequential: Option<bool>,
    pub(crate) store_buffer: Option<bool>,
}

/// Number of a memory word of a test.
pub(crate) type Loc = u16;

/// Where the words of a test stand: leaf entries (of virtual page `n` at `n`), table pointers, entries of stage 2, data pages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    /// How many words belong to tables; data pages follow.
    pub(crate) entries: Loc,
    pub(crate) pages: Vec<String>,
    pub(crate) virtuals: Vec<Virtual>,
    pub(crate) tables: Vec<Pointer>,
    /// The entry of each page at stage 2; `None` when the test has no stage 2.
    pub(crate) second: Option<Vec<Option<Loc>>>,
    pub(crate) initial: Vec<u64>,
}

/// A virtual page.
#[derive(Clone, Debug)]
pub(crate) struct Virtual {
    pub(crate) name: String,
    pub(crate) leaf: Loc,
    /// The table pointer above its entry, if the test has one.
    pub(crate) table: Option<u8>,
}

/// An entry one level up.
#[derive(Clone, Debug)]
pub(crate) struct Pointer {
    pub(crate) name: String,
    pub(crate) loc: Loc,
}

impl Layout {
    /// Whether a word belongs to a table.
    pub(crate) fn is_entry(&self, loc: Loc) -> bool {
        loc < self.entries
    }
    /// The word of a data page, if there is such a page.
    pub(crate) fn page_word(&self, page: u32) -> Option<Loc> {
        ((page as usize) < self.pages.len()).then_some(self.entries + page as Loc)
    }
    /// The entry at stage 2 of a page.
    pub(crate) fn second_entry(&self, page: u32) -> Option<Loc> {
        self.second.as_ref().and_then(|entries| entries.get(page as usize).copied().flatten())
    }
}

/// What one processor does.
#[derive(Clone, Debug)]
pub(crate) struct Thread {
    pub(crate) privilege: Privilege,
    pub(crate) asid: u16,
    pub(crate) vmid: u16,
    pub(crate) managed: Managed,
    pub(crate) reg_names: Vec<String>,
    pub(crate) regs: Vec<Option<u64>>,
    pub(crate) on_fault: OnFault,
    pub(crate) ops: Vec<Op>,
    /// The virtual pages that are accessed from each operation on, one bit each.
    pub(crate) needs: Vec<u64>,
}

/// What follows a fault.
#[derive(Clone, Debug)]
pub(crate) enum OnFault {
    Stop,
    Set(Vec<(u8, u64)>),
    ByLevel { level2: Vec<(u8, u64)>, level3: Vec<(u8, u64)> },
}

/// Where an access goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// Through translation: number of the virtual page.
    Virtual(u8),
    /// A table's word, as plain memory.
    Word(Loc),
}

/// What is written or compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Value {
    Word(u64),
    Reg(u8),
}

/// What an atomic operation does to a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    Swap(Value),
    Add(Value),
    SetBits(Value),
    ClearBits(Value),
    /// These become clear, those set.
    Exactly {
        clear: u64,
        set: u64,
    },
}

/// Which accesses a barrier waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BarrierKind {
    Full,
    Stores,
    Loads,
}

/// The ordering that an access itself has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ordered {
    pub(crate) acquire: bool,
    pub(crate) release: bool,
}

/// What an invalidation is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Selector {
    Virtual {
        va: u8,
        asid: u16,
    },
    Asid(u16),
    /// A page of stage 2, or nothing that stage 2 knows.
    Intermediate(Option<u32>),
    Vmid,
}

/// Which stages an invalidation is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Stages {
    One,
    Two,
    Both,
}

/// An invalidation as it is on its way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Invalidation {
    pub(crate) stages: Stages,
    pub(crate) selector: Selector,
    pub(crate) vmid: u16,
}

/// Whom an invalidation reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    Local,
    Broadcast,
}

/// How an invalidation names its address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TlbiOp {
    pub(crate) stages: Stages,
    pub(crate) scope: Scope,
    pub(crate) by: TlbiBy,
    /// The issuer's own when it names none.
    pub(crate) asid: Option<u16>,
    pub(crate) vmid: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TlbiBy {
    Va(u8),
    Ipa(Option<u32>),
    Asid,
    Vmid,
}

/// One operation.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) kind: OpKind,
    pub(crate) label: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OpKind {
    Read {
        from: Place,
        reg: u8,
        ordered: Ordered,
    },
    Write {
        to: Place,
        value: Value,
        ordered: Ordered,
    },
    Cas {
        at: Place,
        expect: Value,
        value: Value,
        reg: Option<u8>,
        ordered: Ordered,
    },
    Rmw {
        at: Place,
        change: Change,
        reg: Option<u8>,
        ordered: Ordered,
    },
    Ldx {
        from: Place,
        reg: u8,
        ordered: Ordered,
    },
    Stx {
        to: Place,
        value: Value,
        status: Option<u8>,
        ordered: Ordered,
    },
    Dsb(BarrierKind),
    Dmb(BarrierKind),
    /// Something that orders what this model never reorders.
    Nothing,
    Tlbi(TlbiOp),
    SetContext {
        asid: Option<u16>,
        vmid: Option<u16>,
    },
    Mov {
        reg: u8,
        value: Value,
    },
}

impl OpKind {
    /// Where it accesses memory.
    pub(crate) const fn place(&self) -> Option<Place> {
        match *self {
            OpKind::Read { from: at, .. }
            | OpKind::Write { to: at, .. }
            | OpKind::Cas { at, .. }
            | OpKind::Rmw { at, .. }
            | OpKind::Ldx { from: at, .. }
            | OpKind::Stx { to: at, .. } => Some(at),
            _ => None,
        }
    }
    /// The ordering it has.
    pub(crate) const fn ordered(&self) -> Ordered {
        match *self {
            OpKind::Read { ordered, .. }
            | OpKind::Write { ordered, .. }
            | OpKind::Cas { ordered, .. }
            | OpKind::Rmw { ordered, .. }
            | OpKind::Ldx { ordered, .. }
            | OpKind::Stx { ordered, .. } => ordered,
            _ => Ordered { acquire: false, release: false },
        }
    }
}

/// What a word of a table is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EntryPattern {
    /// Any invalid entry.
    Invalid,
    /// This word.
    Word(u64),
    /// The entry of either stage, where the test does not say which.
    Either(u64, u64),
}

/// A condition at the end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Condition {
    And(Vec<Condition>),
    Or(Vec<Condition>),
    Not(Box<Condition>),
    /// A register holds a value; one that was never set holds none.
    Reg {
        thread: u8,
        reg: Option<u8>,
        value: u64,
    },
    RegEntry {
        thread: u8,
        reg: Option<u8>,
        entry: EntryPattern,
    },
    Word {
        loc: Loc,
        value: u64,
    },
    Entry {
        loc: Loc,
        entry: EntryPattern,
    },
    /// One of these operations (a bit each) has faulted.
    Fault {
        thread: u8,
        ops: u64,
    },
}

impl EntryPattern {
    pub(crate) fn matches(self, words: &Words, word: u64) -> bool {
        match self {
            EntryPattern::Invalid => !words.present(word),
            EntryPattern::Word(wanted) => word == wanted,
            EntryPattern::Either(one, two) => word == one || word == two,
        }
    }
}

impl StageNumber {
    pub(crate) const fn other_name(self) -> &'static str {
        match self {
            StageNumber::One => "stage 1",
            StageNumber::Two => "stage 2",
        }
    }
}
