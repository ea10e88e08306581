//! Each invariant fires on the smallest thing that breaks it, and nothing else does there; an invariant that is declared and never looked at
//! is told.

use arch_x86_ept::{Ept, EptConfig, LongMode, LongModeConfig};
use mmu_core::{Bytes, Format, Gpa, GpaRange, Hpa};
use mmu_sim::arch::Arch2;
use mmu_sim::engine::{ActorFuture, Announced, Bed, ExitReason, Host, LockId, LockMode, Tagged, Var, VcpuId};
use mmu_sim::explore::{
    Budget, Hardware, Invariant, Leaks, Limits, Scenario, SmallVm, Statistics, Strategy, Verdict, Wait, read, write,
};

type X86 = Arch2<LongMode, Ept>;

fn scenario(limits: Limits) -> Scenario<X86> {
    let one = LongModeConfig::new().max_phys_addr(46).build().unwrap();
    let two = EptConfig::new().max_phys_addr(46).build().unwrap();
    let limits = Limits { leaks: Leaks::Ignored, ..limits };
    Scenario::new("smallest", Arch2 { name: "x86", one, two }, SmallVm::mapped(2)).pages([0]).limits(limits)
}

/// All that exhaustive search finds is this.
fn fires(scenario: &Scenario<X86>, invariant: Invariant) {
    let report = scenario.explore(&Strategy::Exhaustive, Budget::schedules(20_000));
    let found = report.failure.map(|failure| (failure.broken.invariant, failure.table()));
    assert_eq!(
        found.as_ref().map(|found| found.0),
        Some(invariant),
        "{}",
        found.unwrap_or((invariant, String::new())).1
    );
}

fn holds(scenario: &Scenario<X86>, invariant: Invariant) {
    let report = scenario.explore(&Strategy::Exhaustive, Budget::schedules(20_000));
    assert_ne!(report.verdict, Verdict::Broken, "{}", report.failure.unwrap().table());
    assert!(report.stats.evaluations.of(invariant) > 0, "{invariant} was never evaluated");
}

/// A vCPU that runs until its work is done or it faults.
fn until_a_fault(host: Host<Ept>, id: VcpuId) -> ActorFuture {
    Box::pin(async move { while host.vcpu_run(id).await.reason == ExitReason::Kicked {} })
}

async fn leaf(host: &Host<Ept>) -> Hpa {
    let (format, mut at) = (*host.format(), host.root().await);
    let mut level = format.geometry().root();
    while let Some(down) = level.down() {
        at = format.next_table(level, host.read(at).await);
        level = down;
    }
    at
}

fn first_page() -> GpaRange {
    GpaRange::new(Gpa::new(0), Bytes(4096))
}

#[test]
fn t2_a_promise_without_a_flush() {
    let protect = |flushes: bool| {
        scenario(Limits::DEFAULT).vcpu([write(0), write(0)], until_a_fault).actor("protect", move |host| {
            Box::pin(async move {
                let at = leaf(&host).await;
                let old = host.read(at).await;
                host.fetch_and(at, old & !(old ^ host.format().write_protect(old))).await;
                if flushes {
                    host.flush_vm().await;
                }
                host.announce(Announced::WriteProtected(first_page())).await;
            })
        })
    };
    fires(&protect(false), Invariant::T2);
    holds(&protect(true), Invariant::T2);
}

#[test]
fn t3_a_processor_that_keeps_what_was_invalidated() {
    let zap = |hardware| {
        scenario(Limits { hardware, ..Limits::DEFAULT }).vcpu([read(0), read(0)], until_a_fault).actor("zap", |host| {
            Box::pin(async move {
                let at = leaf(&host).await;
                host.xchg(at, 0).await;
                host.flush_vm().await;
            })
        })
    };
    fires(&zap(Hardware::KeepsInvalidated), Invariant::T3);
    holds(&zap(Hardware::Correct), Invariant::T3);
}

/// Loads two roots, on these processors under these tags.
fn loads(first: (usize, u16), second: (usize, u16)) -> Scenario<X86> {
    scenario(Limits::DEFAULT).setup(move |build| {
        let root = build.root();
        let other = build.alloc_words(512).unwrap().first;
        for _ in 0..2 {
            build.add_vcpu(Vec::new());
        }
        build.spawn("loads", move |host| {
            Box::pin(async move {
                for ((processor, tag), root) in [(first, root), (second, other)] {
                    host.tagged(Tagged::Load(VcpuId(processor), root, tag)).await;
                }
            })
        });
    })
}

#[test]
fn t9_a_tag_comes_back_with_another_root() {
    fires(&loads((0, 1), (0, 1)), Invariant::T9);
    holds(&loads((0, 1), (0, 2)), Invariant::T9);
}

#[test]
fn b6_two_processors_with_one_tag_for_two_roots() {
    fires(&loads((0, 1), (1, 1)), Invariant::B6);
    holds(&loads((0, 1), (1, 2)), Invariant::B6);
}

#[test]
fn b2_an_acknowledgement_before_the_invalidation() {
    let flush = |hardware| {
        let accesses = [read(0), read(0)];
        scenario(Limits { hardware, ..Limits::DEFAULT })
            .vcpu(accesses, until_a_fault)
            .actor("flush", |host| Box::pin(async move { host.flush_vm().await }))
    };
    fires(&flush(Hardware::AcknowledgesEarly), Invariant::B2);
    holds(&flush(Hardware::Correct), Invariant::B2);
}

#[test]
fn p6_a_wait_behind_long_work() {
    let work = |steps: u32| {
        let task = move |host: Host<Ept>| -> ActorFuture {
            Box::pin(async move {
                host.lock(LockId::MMU, LockMode::Write).await;
                for _ in 0..steps {
                    host.load(Var::INVALIDATE_SEQ).await;
                }
                host.unlock(LockId::MMU).await;
            })
        };
        let limits = Limits { wait: Some(Wait::of_all(6)), ..Limits::DEFAULT };
        scenario(limits).actor("one", task).actor("two", task)
    };
    fires(&work(9), Invariant::P6);
    holds(&work(4), Invariant::P6);
}

#[test]
fn r5_an_entry_below_a_root_that_was_given_up() {
    let install = |late: bool| {
        scenario(Limits::DEFAULT).actor("install", move |host| {
            Box::pin(async move {
                let (at, root) = (leaf(&host).await, host.root().await);
                let word = host.read(at).await;
                if late {
                    host.announce(Announced::RootInvalid(root)).await;
                } else {
                    host.announce(Announced::RootInvalid(Hpa::new(0))).await;
                }
                let _ = host.cmpxchg(at + 8, 0, word + 4096).await;
            })
        })
    };
    fires(&install(true), Invariant::R5);
    holds(&install(false), Invariant::R5);
}

#[test]
fn n1_a_leaf_that_goes_unbooked() {
    let zap = |booked: bool| {
        scenario(Limits { statistics: Statistics::Booked, ..Limits::DEFAULT }).actor("zap", move |host| {
            Box::pin(async move {
                let at = leaf(&host).await;
                host.xchg(at, 0).await;
                if booked {
                    host.spend(mmu_sim::engine::Work::ReleaseLeaf).await;
                }
            })
        })
    };
    fires(&zap(false), Invariant::N1);
    holds(&zap(true), Invariant::N1);
}

#[test]
fn what_is_declared_and_never_evaluated_is_told() {
    let work = || scenario(Limits::DEFAULT).actor("nothing", |host| Box::pin(async move { host.flush_vm().await }));
    let explore = |scenario: Scenario<X86>| scenario.explore(&Strategy::Portfolio, Budget::schedules(100));
    let report = explore(work().declares(&[Invariant::O2, Invariant::B3]));
    assert_eq!((report.verdict, report.unevaluated.as_slice()), (Verdict::Proved, &[Invariant::O2][..]));
    assert!(!report.is_sound());
    assert!(explore(work().declares(&[Invariant::B3])).is_sound());
}
