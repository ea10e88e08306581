//! Programs: a few acts of the host beside a guest, each a protocol as Linux does it today, in any mixture.
//!
//! A row of the [museum](crate::museum) shows one defect. Here nothing is wrong by intent: whatever breaks is a finding, in a protocol, in the
//! way that two of them were put together, or in the checker. [`pairs()`] sets every two acts against each other; fuzzers and property tests
//! make any program ([`Program::from_bytes`]) and any schedule ([`Schedule`]).
//!
//! | file | what it holds |
//! | --- | --- |
//! | `act` | what a host actor can do, and where that means something |
//! | `vm` | the VM of a program, and how each act is done with it |
//! | `thread` | the threads of its vCPUs |
//! | `tables` | radix trees and hashed tables of POWER |
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
mod tables;
mod thread;
mod vm;

use std::fmt;
use std::rc::Rc;

use mmu_core::{AccessKind, PageSize};
use mmu_sim::arch::Arch;
use mmu_sim::engine::{ActorFuture, Bed, Host, VcpuId};
use mmu_sim::experiment::Populate;
use mmu_sim::explore::{Build, Explorable, Leaks, Limits, MemoryOrder, Scenario, SmallVm, access};

pub use act::Act;
pub use bytes::Schedule;
pub use name::NameError;
pub use pages::{PAGES, Page, Pages};
pub use pairs::{Pair, pairs};

use act::Actor;
use pages::PAGE;
use tables::{Both, Tables};
use thread::Thread;
use vm::Vm;

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
    /// What. Where it means nothing ([`Act::architectures`]) it is left out.
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
        let program = self.meaningful();
        match self.arch {
            Architecture::X86 => Box::new(program.on(formats::x86(), None)),
            Architecture::Arm64 => Box::new(program.on(formats::arm(), None)),
            Architecture::Power => Box::new(program.on(formats::power(), Some(Both::new()))),
        }
    }

    /// The same without acts that mean nothing on its architecture.
    fn meaningful(&self) -> Program {
        let means = |step: &Step| step.act.architectures().contains(&self.arch);
        let steps = |steps: &Vec<Step>| steps.iter().copied().filter(means).collect();
        Program { actors: self.actors.iter().map(steps).collect(), ..self.clone() }
    }

    /// Whether one of its actors does this.
    fn has(&self, act: Act) -> bool {
        self.actors.iter().flatten().any(|step| step.act == act)
    }

    fn on<A: Arch>(&self, arch: A, both: Option<Both<A>>) -> Scenario<A> {
        let (vm, largest) = match self.backing {
            Backing::Small => (SmallVm::mapped(u64::from(PAGES)), PageSize::SIZE_4K),
            Backing::Huge => (SmallVm::huge(1), PageSize::SIZE_2M),
        };
        // No huge page is executable that a fault maps; those that are there at the start would be.
        let by_faults = self.has(Act::RecoverNx);
        let vm = if by_faults { SmallVm { populate: Populate::ByFaults, ..vm } } else { vm };
        // Who makes tables huge pages needs a table.
        let has_table = self.backing == Backing::Huge && (self.has(Act::Coalesce) || self.has(Act::Recover));
        let (program, format) = (self.clone(), *arch.two());
        // Of the list of roots on x86 some are left, and they say which.
        let leaks = if self.arch == Architecture::X86 { Leaks::OfTheVm } else { Leaks::Reported };
        let limits = Limits { memory: self.memory, leaks, ..Limits::default() };
        let mut scenario = Scenario::new(self.name(), arch, vm).limits(limits);
        if has_table && !by_faults {
            scenario = scenario.leaves(PageSize::SIZE_4K).pages(HAVE_LEAVES.map(|page| page * PAGE));
        }
        scenario.setup(move |build| {
            let guests: Vec<VcpuId> = program.guests.iter().map(|touches| add_guest(build, touches)).collect();
            let needs_vcpu = |steps: &Vec<Step>| steps.iter().any(|step| step.act.actor() == Actor::Thread);
            let own: Vec<Option<VcpuId>> =
                program.actors.iter().map(|steps| needs_vcpu(steps).then(|| build.add_vcpu(Vec::new()))).collect();
            let both = both.filter(|_| program.has(Act::SwitchTables));
            let tables = both.map(|both| Tables::new(build, both));
            let vm = Rc::new(Vm::new(build, &program, &format, vm.memory, largest, tables));
            for vcpu in guests {
                let mut thread = Thread::new(&vm, vcpu);
                build.spawn_thread(vcpu, move |host| {
                    Box::pin(async move {
                        thread.run(&host).await;
                        thread.release(&host).await;
                    })
                });
            }
            for (steps, vcpu) in program.actors.iter().zip(own) {
                let name = steps.first().map_or("nobody", |step| step.act.name());
                let mut thread = vcpu.map(|vcpu| Thread::new(&vm, vcpu));
                let (steps, vm) = (steps.clone(), vm.clone());
                let task = move |host: Host<A::Two>| -> ActorFuture {
                    Box::pin(async move {
                        for step in steps {
                            vm.perform(&host, step, thread.as_mut()).await;
                        }
                        if let Some(thread) = thread {
                            thread.release(&host).await;
                        }
                    })
                };
                match vcpu {
                    Some(vcpu) => build.spawn_thread(vcpu, task),
                    None => build.spawn(name, task),
                }
            }
        })
    }
}

/// Pages that have small leaves at the start, where there is a table below a huge page of the host. The other one faults.
const HAVE_LEAVES: [u64; 3] = [0, 1, 3];

fn add_guest<A: Arch>(build: &mut Build<'_, A>, touches: &[Touch]) -> VcpuId {
    build.add_vcpu(touches.iter().map(|touch| access(touch.kind, touch.page.gpa().raw())).collect())
}
