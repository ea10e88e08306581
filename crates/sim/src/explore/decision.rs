//! Decisions: everything that is left open in an execution, as one stream of numbers.
//!
//! An execution is a function of its scenario and of this stream. Decisions with one alternative are not made, so the stream holds what
//! really was a choice, in the order in which it was made.

use std::fmt;

/// Who can make a step.
///
/// | numbers | who |
/// | --- | --- |
/// | 0 to 15 | host actors, threads of vCPUs among them |
/// | 16 to 31 | store buffers of host actors: the oldest store reaches memory |
/// | 32 to 47 | vCPUs in guest mode: the next access |
/// | 48 to 62 | what was asked of a vCPU arrives there: an interrupt, a broadcast invalidation |
/// | 63 | RCU: a grace period ends, callbacks run |
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Agent(pub u8);

impl Agent {
    /// Grace periods.
    pub const RCU: Agent = Agent(63);
    const BUFFERS: u8 = 16;
    const GUESTS: u8 = 32;
    const ARRIVALS: u8 = 48;
    /// Most host actors of a scenario.
    pub const MOST_ACTORS: usize = 16;
    /// Most vCPUs of a scenario.
    pub const MOST_VCPUS: usize = 15;

    /// An actor by number.
    pub const fn actor(number: usize) -> Agent {
        Agent(number as u8)
    }
    /// The store buffer of an actor.
    pub const fn buffer(actor: usize) -> Agent {
        Agent(Self::BUFFERS + actor as u8)
    }
    /// The guest on a vCPU.
    pub const fn guest(vcpu: usize) -> Agent {
        Agent(Self::GUESTS + vcpu as u8)
    }
    /// What arrives at a vCPU.
    pub const fn arrival(vcpu: usize) -> Agent {
        Agent(Self::ARRIVALS + vcpu as u8)
    }
    /// What it is.
    pub const fn who(self) -> Who {
        match self.0 {
            0..16 => Who::Actor(self.0 as usize),
            16..32 => Who::Buffer((self.0 - Self::BUFFERS) as usize),
            32..48 => Who::Guest((self.0 - Self::GUESTS) as usize),
            48..63 => Who::Arrival((self.0 - Self::ARRIVALS) as usize),
            _ => Who::Rcu,
        }
    }
    /// Its bit in a set of agents.
    pub const fn bit(self) -> u64 {
        1 << (self.0 & 63)
    }
}

/// What an [`Agent`] is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    /// A host actor.
    Actor(usize),
    /// Its store buffer.
    Buffer(usize),
    /// The guest on a vCPU.
    Guest(usize),
    /// An interrupt or a broadcast invalidation at a vCPU.
    Arrival(usize),
    /// RCU.
    Rcu,
}

/// What was decided.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// Who makes the next step; the choice is an agent's number.
    Run,
    /// Which version of a table word a walk uses: 0 is what memory holds now, others are what a translation cache may hold.
    Version,
    /// Whether an actor is told to give way.
    Resched,
    /// Whether an allocation fails.
    Alloc,
    /// Which value a load returns under weak memory.
    Load,
    /// Whether the store of an exclusive pair fails although nobody has written the word.
    Exclusive,
}

impl Kind {
    const ALL: [(Kind, char); 6] = [
        (Kind::Run, 'r'),
        (Kind::Version, 'v'),
        (Kind::Resched, 'y'),
        (Kind::Alloc, 'a'),
        (Kind::Load, 'l'),
        (Kind::Exclusive, 'x'),
    ];

    /// One letter for files.
    pub fn letter(self) -> char {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or('?', |&(_, letter)| letter)
    }
    /// The kind of a letter.
    pub fn of_letter(letter: char) -> Option<Kind> {
        Self::ALL.iter().find(|&&(_, known)| known == letter).map(|&(kind, _)| kind)
    }
}

/// One decision.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Decision {
    /// What about.
    pub kind: Kind,
    /// How many alternatives there were, two at least.
    pub of: u16,
    /// Which one was taken: an agent's number, or counted from 0.
    pub chosen: u16,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}/{}", self.kind.letter(), self.chosen, self.of)
    }
}

/// What a step touches, as sets of resources folded into 64 bits: two steps commute if neither writes what the other touches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Footprint {
    /// Read.
    pub reads: u64,
    /// Written.
    pub writes: u64,
}

impl Footprint {
    /// A step that nobody else can tell.
    pub const NONE: Footprint = Footprint { reads: 0, writes: 0 };
    /// A step that must not be exchanged with any other.
    pub const ALL: Footprint = Footprint { reads: u64::MAX, writes: u64::MAX };

    /// Whether the order of two steps can matter.
    pub const fn conflicts(self, other: Footprint) -> bool {
        self.writes & (other.reads | other.writes) != 0 || other.writes & self.reads != 0
    }
}

/// What is known when somebody has to be chosen to make a step.
#[derive(Clone, Copy, Debug)]
pub struct Point<'a> {
    /// Who can.
    pub enabled: u64,
    /// Who made the last one, if that can go on.
    pub current: Option<Agent>,
    /// What each one's next step touches, by agent.
    pub footprints: &'a [Footprint; 64],
    /// A digest of the state that everything is in, if the chooser wants it: equal ones have equal futures.
    pub state: Option<u64>,
    /// How many steps there were before.
    pub step: u64,
}

/// Makes decisions. `None` ends the execution: it need not be looked at any further.
pub trait Chooser {
    /// Who makes the next step, of several.
    fn run(&mut self, point: Point<'_>) -> Option<Agent>;
    /// One of `of` alternatives, two at least.
    fn pick(&mut self, kind: Kind, of: usize) -> Option<usize>;
    /// Somebody can make a step alone: nothing to decide, but worth knowing.
    fn only(&mut self, _point: Point<'_>) -> Option<()> {
        Some(())
    }
    /// How many steps the execution that begins has in common with the one before, which had the same chooser, if this repeats parts of them. Nobody
    /// is asked who makes these; what is [picked](Self::pick) meanwhile is asked for.
    fn repeats(&self) -> Option<u64> {
        None
    }
    /// Whether [`Point::footprints`] are wanted when somebody makes a step behind so many; what they are otherwise means nothing.
    fn wants_footprints(&self, _step: u64) -> bool {
        false
    }
    /// Whether [`Point::state`] is wanted when somebody is chosen next. It costs more than a step.
    fn wants_state(&self) -> bool {
        false
    }
}

/// A set of host actors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Actors(u16);

impl Actors {
    /// Nobody.
    pub const NOBODY: Actors = Actors(0);

    /// With one more; numbers that no actor can have are ignored.
    #[must_use]
    pub const fn with(self, actor: usize) -> Actors {
        if actor < Agent::MOST_ACTORS { Actors(self.0 | 1 << actor) } else { self }
    }
    /// Whether an actor is in it.
    pub const fn contains(self, actor: usize) -> bool {
        actor < Agent::MOST_ACTORS && self.0 >> actor & 1 != 0
    }
    /// The actors, in order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..Agent::MOST_ACTORS).filter(move |&actor| self.contains(actor))
    }
}

/// The agents of a set, in order.
pub fn agents(set: u64) -> impl Iterator<Item = Agent> {
    let mut left = set;
    std::iter::from_fn(move || {
        let lowest = (left != 0).then(|| left.trailing_zeros() as u8)?;
        left &= left - 1;
        Some(Agent(lowest))
    })
}

/// The `n`th agent of a set.
pub fn nth(set: u64, n: usize) -> Option<Agent> {
    agents(set).nth(n)
}
