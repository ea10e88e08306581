//! Programs: a few acts of the host beside a guest, each a protocol as Linux does it today, in any mixture.
//!
//! A row of the [museum](crate::museum) shows one defect. Here nothing is wrong by intent: whatever breaks is a finding, in a protocol, in the
//! way that two of them were put together, or in the checker. [`pairs()`] sets every two acts against each other; fuzzers and property tests
//! make any program ([`Program::from_bytes`]) and any schedule ([`Schedule`]).
//!
//! | file | what it holds |
//! | --- | --- |
//! | `act` | what a host actor can do, and how it is done |
//! | `pairs` | every act beside every act |
//! | `bytes` | programs and schedules from bytes |
//! | `name` | programs by name |
//! | `pages` | the pages that all of it is about |
//!
//! ```
//! use mmu_explore::museum::Architecture;
//! use mmu_explore::programs::{Act, Program};
//! use mmu_sim::explore::{Budget, Strategy, Verdict};
//!
//! let program = Program::pair(Act::Discard, Act::Age, Architecture::Arm64);
//! assert_eq!(program.name(), "discard+age");
//! let report = program.scenario().explore(&Strategy::Portfolio, Budget::schedules(200));
//! assert_eq!(report.verdict, Verdict::Passed, "{report:?}");
//! ```

mod act;
mod bytes;
mod name;
mod pages;
mod pairs;

use std::fmt;
use std::rc::Rc;

use mmu_core::{AccessKind, Gpa, GpaRange, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{Bed, LockKind};
use mmu_sim::explore::{Explorable, Limits, MemoryOrder, Scenario, SmallVm, access};
use mmu_sim::protocols::dirty_log::vcpu::{LoggedSlot, run};
use mmu_sim::protocols::dirty_log::{DirtyLog, DirtyPolicy, LogKind};
use mmu_sim::protocols::fault::{FaultPolicy, Faults};
use mmu_sim::protocols::notifier::{Notifier, NotifierPolicy};

pub use act::Act;
pub use bytes::Schedule;
pub use name::NameError;
pub use pages::{PAGES, Page, Pages};
pub use pairs::{Pair, pairs};

use act::Bench;

use crate::museum::{Architecture, formats};

/// By how large pages the host backs the guest's memory, and the second stage maps it at the start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Backing {
    /// By pages of 4 KiB.
    Small,
    /// By one page of 2 MiB.
    Huge,
}

/// One act of a host actor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Step {
    /// What.
    pub act: Act,
    /// On which pages. Acts on a whole memslot have no use for it.
    pub pages: Pages,
}

/// One access of a guest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Touch {
    /// What kind.
    pub kind: AccessKind,
    /// Where.
    pub page: Page,
}

/// What is there and who does what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// The architecture.
    pub arch: Architecture,
    /// The host's pages.
    pub backing: Backing,
    /// In which order the host's loads and stores are seen.
    pub memory: MemoryOrder,
    /// What each vCPU's guest touches.
    pub guests: Vec<Vec<Touch>>,
    /// What each host actor does, one act after the other.
    pub actors: Vec<Vec<Step>>,
}

/// The memory orders that an architecture may have, the weakest last: what is right on it is right under all of them.
pub fn memory_orders(arch: Architecture) -> &'static [MemoryOrder] {
    use MemoryOrder::{Sequential, StoreBuffer, Weak};
    match arch {
        Architecture::X86 => &[Sequential, StoreBuffer],
        Architecture::Arm64 | Architecture::Power => &[Sequential, StoreBuffer, Weak],
    }
}

impl fmt::Display for Program {
    /// A line for each who takes part.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { arch, backing, memory, .. } = self;
        writeln!(f, "{arch}, {backing:?} pages, {}", memory.name())?;
        for (n, touches) in self.guests.iter().enumerate() {
            write!(f, "vcpu {n}:")?;
            for Touch { kind, page } in touches {
                write!(f, " {kind:?} {page}")?;
            }
            writeln!(f)?;
        }
        for (n, steps) in self.actors.iter().enumerate() {
            write!(f, "actor {n}:")?;
            for Step { act, pages } in steps {
                write!(f, " {act} {pages}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Program {
    /// The program as a scenario. Everything of the checker is on; an execution that is cut short by its number of steps breaks nothing.
    pub fn scenario(&self) -> Box<dyn Explorable> {
        match self.arch {
            Architecture::X86 => Box::new(self.on(formats::x86())),
            Architecture::Arm64 => Box::new(self.on(formats::arm())),
            Architecture::Power => Box::new(self.on(formats::power())),
        }
    }

    fn on<A: Arch>(&self, arch: A) -> Scenario<A> {
        let (vm, page) = match self.backing {
            Backing::Small => (SmallVm::mapped(u64::from(PAGES)), PageSize::SIZE_4K),
            Backing::Huge => (SmallVm::huge(1), PageSize::SIZE_2M),
        };
        let (machine, guests, actors) = (self.arch, self.guests.clone(), self.actors.clone());
        let fault = FaultPolicy::linux_6_6(arch.two(), page);
        let dirty = DirtyPolicy::linux_6_6(arch.two());
        let limits = Limits { memory: self.memory, ..Limits::default() };
        Scenario::new(self.name(), arch, vm).limits(limits).setup(move |build| {
            let slot = GpaRange::new(Gpa::new(0), vm.memory);
            let log = DirtyLog::new(slot, build.new_var(0), PageSize::SIZE_4K, LogKind::Bitmap);
            for touches in &guests {
                let accesses = touches.iter().map(|touch| access(touch.kind, touch.page.gpa().raw()));
                let vcpu = build.add_vcpu(accesses.collect());
                build.spawn_thread(vcpu, move |host| {
                    Box::pin(async move {
                        let logged = LoggedSlot::new(log);
                        let mut faults = Faults::with_hooks(vcpu, fault, logged);
                        // A failed run is one that the host could not go on with; what it left is checked all the same.
                        let _ = run(&host, vcpu, &logged, &mut faults).await;
                        faults.release(&host).await;
                    })
                });
            }
            let bench = Rc::new(Bench {
                arch: machine,
                notifier: Notifier::new(NotifierPolicy::V6_8),
                changes: build.new_lock(LockKind::Spin),
                log,
                dirty,
                largest: page,
            });
            for steps in &actors {
                let name = steps.first().map_or("nobody", |step| step.act.name());
                let (steps, bench) = (steps.clone(), bench.clone());
                build.spawn(name, move |host| {
                    Box::pin(async move {
                        for step in steps {
                            bench.perform(&host, step).await;
                        }
                    })
                });
            }
        })
    }
}
