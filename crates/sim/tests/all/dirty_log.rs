//! Dirty logging on three architectures: no written page is ever lost, whoever races; what buggy variants lose is seen.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use crate::common::{arm64, power, x86};
use arch_arm64_s2::{HardwareUpdates, Stage2Config};
use mmu_core::{AccessKind, ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Level, PageSize};
use mmu_sim::arch::{Arch, Arch2};
use mmu_sim::checker::Violation;
use mmu_sim::engine::{GuestPaging, Sim, Stopped, VcpuId, Watch};
use mmu_sim::experiment::{Platform, Populate, VmSpec, build_without_threads};
use mmu_sim::protocols::dirty_log::ring::{Collector, DirtyRing, RingOrder, reset_dirty_rings};
use mmu_sim::protocols::dirty_log::vcpu::{LoggedSlot, run};
use mmu_sim::protocols::dirty_log::{
    DirtyLog, DirtyPages, DirtyPolicy, HarvestFlush, Initially, LogKind, LostRace, Manual, SplitWhen, Tracking,
    clear_dirty_log, disable, enable, get_dirty_log,
};
use mmu_sim::protocols::fault::{FaultPolicy, Faults};
use mmu_sim::rng::Seed;
use mmu_sim::selftests::phases::Phases;
use mmu_sim::workload::{GuestAccess, GuestWork, Mix, PatternSpec, Workload};

/// arm64 whose walks set the access flag and the dirty state.
fn arm64_dbm() -> Platform<Arch2<arch_arm64_s2::Stage1, arch_arm64_s2::Stage2>> {
    let mut platform = arm64();
    platform.arch.two =
        Stage2Config { updates: HardwareUpdates::AccessedAndDirty, ..Stage2Config::default() }.build().unwrap();
    platform
}

/// A guest whose addresses are guest-physical, so that lists of accesses say which pages they touch.
fn vm<A: Arch>(platform: &Platform<A>, memory: u64, vcpus: usize, page: PageSize) -> VmSpec {
    let smallest = platform.arch.two().geometry().page_size(Level::LAST);
    VmSpec {
        memory: Bytes(memory),
        vcpus,
        page: page.max(smallest),
        guest: GuestPaging::Flat,
        populate: Populate::Mapped,
        workload: Workload::Idle,
        seed: Seed(7),
    }
}

/// A VM with a log over all of its memory, vCPU threads that do `work(vcpu, phase)` in each phase, and whatever the driver does.
struct Bench<A: Arch> {
    sim: Sim<A>,
    log: DirtyLog,
    phases: Phases,
    rings: Vec<DirtyRing>,
}

impl<A: Arch> Bench<A> {
    fn new(platform: &Platform<A>, spec: &VmSpec, ring: Option<(u64, Tracking)>, work: Vec<Vec<GuestWork>>) -> Self {
        let mut sim = build_without_threads(platform, spec).unwrap();
        sim.set_watch(Watch::Writes);
        let page = platform.arch.two().geometry().page_size(Level::LAST);
        let kind = if ring.is_some() { LogKind::Rings } else { LogKind::Bitmap };
        let log = DirtyLog::new(GpaRange::new(Gpa::new(0), spec.memory), sim.new_var(0), page, kind);
        let full = sim.new_wait_queue();
        let rings = ring.map_or_else(Vec::new, |(size, tracking)| {
            DirtyRing::create(&mut sim, size, tracking, RingOrder::ReleaseAcquire, full).unwrap()
        });
        let phases = Phases::new(&mut sim);
        let policy = FaultPolicy::linux_6_6(platform.arch.two(), spec.page);
        for (index, work) in work.into_iter().enumerate() {
            let (vcpu, ring) = (VcpuId(index), rings.get(index).copied());
            sim.spawn_vcpu(vcpu, |host| {
                Box::pin(async move {
                    let slot = LoggedSlot { ring, ..LoggedSlot::new(log) };
                    let mut faults = Faults::with_hooks(vcpu, policy, slot);
                    for (phase, work) in (1..).zip(work) {
                        phases.wait_for(&host, phase).await;
                        host.assign(vcpu, work);
                        let _ = run(&host, vcpu, &slot, &mut faults).await;
                        phases.done(&host).await;
                    }
                    faults.release(&host).await;
                })
            });
        }
        Self { sim, log, phases, rings }
    }

    /// Runs to the end; what was violated.
    fn finish(&mut self) -> Vec<Violation> {
        assert_eq!(self.sim.run(), Stopped::Finished);
        assert_eq!(self.sim.failure(), None);
        assert_eq!(self.sim.destroy(), Stopped::Finished);
        self.sim.world().violations().to_vec()
    }
}

/// Stores to the first bytes of these pages.
fn stores(page: PageSize, pages: &[u64]) -> GuestWork {
    let store = |&index: &u64| GuestAccess { gva: Gva::new(index << page.shift()), kind: AccessKind::Write };
    GuestWork::List(pages.iter().map(store).collect())
}

fn loads(page: PageSize, pages: &[u64]) -> GuestWork {
    let load = |&index: &u64| GuestAccess { gva: Gva::new(index << page.shift()), kind: AccessKind::Read };
    GuestWork::List(pages.iter().map(load).collect())
}

fn pages_of(dirty: &DirtyPages) -> BTreeSet<u64> {
    dirty.runs().iter().flat_map(|&(first, count)| first..first + count).collect()
}

/// Logs two phases of known stores and returns what each harvest said, and the violations.
fn two_phases<A: Arch>(
    platform: &Platform<A>,
    policy: DirtyPolicy,
    first: &[u64],
    second: &[u64],
) -> (Vec<BTreeSet<u64>>, Vec<Violation>) {
    let spec = vm(platform, 32.MiB(), 1, PageSize::SIZE_4K);
    let page = platform.arch.two().geometry().page_size(Level::LAST);
    // Before logging begins everything is read and some of it written.
    let before = stores(page, &[0, 1, 5, 77]);
    let work = vec![vec![before, stores(page, first), loads(page, first), stores(page, second)]];
    let mut bench = Bench::new(platform, &spec, None, work);
    let (log, phases) = (bench.log, bench.phases);
    let got = Rc::new(RefCell::new(Vec::new()));
    let out = Rc::clone(&got);
    bench.sim.spawn("driver", Cycles(0), move |host| {
        Box::pin(async move {
            phases.run(&host).await;
            enable(&host, &log, &policy).await.unwrap();
            for _ in 0..3 {
                phases.run(&host).await;
                let mut dirty = get_dirty_log(&host, &log, &policy).await.unwrap();
                if policy.manual == Manual::On {
                    let cleared = clear_dirty_log(&host, &log, &policy, (0, log.pages()), &dirty).await.unwrap();
                    assert_eq!(cleared, dirty);
                    dirty = cleared;
                }
                out.borrow_mut().push(pages_of(&dirty));
            }
            host.dirty_log_settled().await;
            disable(&host, &log, &policy, page).await.unwrap();
        })
    });
    let violations = bench.finish();
    (got.take(), violations)
}

fn exact<A: Arch>(platform: &Platform<A>, policy: DirtyPolicy, what: &str) {
    let first: Vec<u64> = [0, 3, 4, 5, 63, 64, 65, 130, 131, 300].into();
    let second: Vec<u64> = [3, 64, 127, 128, 400, 511].into();
    let (got, violations) = two_phases(platform, policy, &first, &second);
    assert_eq!(violations, [], "{what}");
    let sets = [first.into_iter().collect(), BTreeSet::new(), second.into_iter().collect()];
    assert_eq!(got, sets, "{what}: stores are dirty, loads are not");
}

fn all_trackings<A: Arch>(platform: &Platform<A>, base: DirtyPolicy, trackings: &[Tracking]) {
    for &tracking in trackings {
        for manual in [Manual::Off, Manual::On] {
            for flush in [HarvestFlush::Slot, HarvestFlush::EachEntry] {
                let policy = DirtyPolicy { tracking, manual, flush, ..base };
                exact(platform, policy, &format!("{tracking:?} {manual:?} {flush:?} on {}", platform.arch.name()));
            }
        }
    }
}

#[test]
fn harvests_are_exactly_what_was_written_x86() {
    let trackings = [Tracking::WriteProtect, Tracking::ModificationLog, Tracking::Scan];
    all_trackings(&x86(), DirtyPolicy::X86_PML, &trackings);
}

#[test]
fn harvests_are_exactly_what_was_written_arm64() {
    all_trackings(&arm64(), DirtyPolicy::ARM64, &[Tracking::WriteProtect]);
    all_trackings(&arm64_dbm(), DirtyPolicy::ARM64, &[Tracking::WriteProtect, Tracking::Scan]);
}

#[test]
fn harvests_are_exactly_what_was_written_power() {
    all_trackings(&power(), DirtyPolicy::POWER, &[Tracking::WriteProtect, Tracking::Scan]);
}

#[test]
fn only_x86_has_a_log_of_modified_pages() {
    let policy = DirtyPolicy::X86_PML;
    assert_eq!(policy.check(x86().arch.two()), Ok(()));
    assert!(policy.check(arm64().arch.two()).unwrap_err().to_string().contains("arm64-stage2"));
    assert!(policy.check(power().arch.two()).is_err());
}

/// vCPUs that write all over the place while the log is read as fast as it goes.
fn storm<A: Arch>(
    platform: &Platform<A>,
    policy: DirtyPolicy,
    page: PageSize,
    mix: Mix,
    pause: Cycles,
) -> (Vec<Violation>, u64, u64) {
    let spec = vm(platform, 16.MiB(), 3, page);
    let region = PatternSpec { bytes: 16.MiB(), mix, writes_percent: 40, accesses: 6_000 };
    let pattern = |seed| GuestWork::Pattern { spec: region.clone(), base: Gva::new(0), seed: Seed(seed) };
    let mut bench = Bench::new(platform, &spec, None, (0..3).map(|_| vec![pattern(11), pattern(12)]).collect());
    let (log, phases) = (bench.log, bench.phases);
    bench.sim.spawn("driver", Cycles(0), move |host| {
        Box::pin(async move {
            // Logging begins in the middle of the first phase; the second is logged throughout.
            phases.start(&host).await;
            host.sleep(Cycles(20_000)).await;
            enable(&host, &log, &policy).await.unwrap();
            phases.finished(&host).await;
            phases.start(&host).await;
            loop {
                let last = host.load_acquire(phases.pending()).await == 0;
                let dirty = get_dirty_log(&host, &log, &policy).await.unwrap();
                if policy.manual == Manual::On {
                    let mut first = 0;
                    while first < log.pages() {
                        clear_dirty_log(&host, &log, &policy, (first, 1000), &dirty).await.unwrap();
                        first += 1000;
                    }
                }
                if last {
                    break;
                }
                host.sleep(pause).await;
            }
            host.dirty_log_settled().await;
            disable(&host, &log, &policy, page).await.unwrap();
        })
    });
    let violations = bench.finish();
    let written = bench.sim.world().written().clone();
    (violations, written.reported_pages(), written.needless_pages())
}

/// Every way of logging that a kernel has, while guests write.
fn nothing_is_lost<A: Arch>(platform: &Platform<A>, base: DirtyPolicy, trackings: &[Tracking], huge: PageSize) {
    for &tracking in trackings {
        for (manual, initially) in
            [(Manual::Off, Initially::Clean), (Manual::On, Initially::Clean), (Manual::On, Initially::AllSet)]
        {
            for (page, split) in [(PageSize::SIZE_4K, base.split), (huge, base.split), (huge, SplitWhen::Lazily)] {
                let policy = DirtyPolicy { tracking, manual, initially, split, ..base };
                let what = format!("{policy:?} with pages of {page} on {}", platform.arch.name());
                let (violations, reported, _) = storm(platform, policy, page, Mix::Uniform, Cycles(150_000));
                assert_eq!(violations, [], "{what}");
                assert!(reported > 100, "{what}: {reported} pages reported");
            }
        }
    }
}

#[test]
fn no_written_page_is_lost_x86() {
    let trackings = [Tracking::WriteProtect, Tracking::ModificationLog, Tracking::Scan];
    nothing_is_lost(&x86(), DirtyPolicy::X86_PML, &trackings, PageSize::SIZE_2M);
}

#[test]
fn no_written_page_is_lost_arm64() {
    nothing_is_lost(&arm64_dbm(), DirtyPolicy::ARM64, &[Tracking::WriteProtect, Tracking::Scan], PageSize::SIZE_2M);
}

#[test]
fn no_written_page_is_lost_power() {
    nothing_is_lost(&power(), DirtyPolicy::POWER, &[Tracking::WriteProtect, Tracking::Scan], PageSize::SIZE_2M);
}

#[test]
fn small_pages_are_reported_for_a_reason() {
    let (_, reported, needless) =
        storm(&x86(), DirtyPolicy::X86_WRITE_PROTECT, PageSize::SIZE_4K, Mix::Uniform, Cycles(150_000));
    // A page is reported needlessly when the harvest comes between the fault and the store that is tried again.
    assert!(needless * 20 < reported, "{needless} of {reported}");
    // A scan that meets a large page has to report all of it.
    let policy = DirtyPolicy { tracking: Tracking::Scan, split: SplitWhen::Lazily, ..DirtyPolicy::X86_PML };
    let (_, reported, needless) = storm(&x86(), policy, PageSize::SIZE_2M, Mix::Uniform, Cycles(20_000));
    assert!(needless * 4 > reported, "{needless} of {reported}");
}

/// Rings that are far too small: vCPUs leave for their monitor again and again.
fn rings<A: Arch>(platform: &Platform<A>, policy: DirtyPolicy) {
    let spec = vm(platform, 16.MiB(), 3, PageSize::SIZE_4K);
    let region = PatternSpec { bytes: 16.MiB(), mix: Mix::Uniform, writes_percent: 60, accesses: 4_000 };
    let work = |_| vec![GuestWork::Pattern { spec: region.clone(), base: Gva::new(0), seed: Seed(3) }];
    let size = if policy.tracking == Tracking::ModificationLog { 1024 } else { 128 };
    let ring = Some((size, policy.tracking));
    let mut bench = Bench::new(platform, &spec, ring, (0..3).map(work).collect());
    let (log, phases, rings) = (bench.log, bench.phases, bench.rings.clone());
    let resets = Rc::new(RefCell::new((0, 0)));
    let out = Rc::clone(&resets);
    bench.sim.spawn("collector", Cycles(0), move |host| {
        Box::pin(async move {
            enable(&host, &log, &policy).await.unwrap();
            phases.start(&host).await;
            let mut collectors: Vec<_> = rings.iter().copied().map(Collector::new).collect();
            loop {
                let last = host.load_acquire(phases.pending()).await == 0;
                let mut collected = 0;
                for collector in &mut collectors {
                    let pages = collector.collect(&host).await;
                    assert!(pages.iter().all(|page| page.slot == 0 && page.offset < log.pages()));
                    collected += pages.len() as u64;
                }
                assert_eq!(reset_dirty_rings(&host, &log, &policy, &rings).await, collected);
                let (times, pages) = *out.borrow();
                *out.borrow_mut() = (times + 1, pages + collected);
                if last {
                    break;
                }
                host.sleep(Cycles(100_000)).await;
            }
            host.dirty_log_settled().await;
            disable(&host, &log, &policy, PageSize::SIZE_4K).await.unwrap();
            for ring in rings {
                ring.release(&host).await;
            }
        })
    });
    let what = format!("{:?} on {}", policy.tracking, platform.arch.name());
    assert_eq!(bench.finish(), [], "{what}");
    let (times, pages) = *resets.borrow();
    assert!(pages > 200 && times > 2, "{what}: {pages} pages in {times} resets");
}

#[test]
fn rings_lose_nothing_even_when_they_are_full_all_the_time() {
    rings(&x86(), DirtyPolicy::X86_WRITE_PROTECT);
    rings(&x86(), DirtyPolicy::X86_PML);
    rings(&arm64(), DirtyPolicy::ARM64);
    rings(&power(), DirtyPolicy { tracking: Tracking::WriteProtect, ..DirtyPolicy::POWER });
}

// ---- what buggy variants lose ----

fn lost(violations: &[Violation]) -> usize {
    violations.iter().filter(|violation| matches!(violation, Violation::DirtyLost { .. })).count()
}

/// A19: the flush after a harvest reaches one GiB of the slot, and what lies behind goes on writing through old translations.
#[test]
fn a_flush_that_is_too_short_loses_pages() {
    let page = PageSize::SIZE_4K;
    let pages: Vec<u64> = (0..8).map(|i| (1536.MiB() + (i << 12)) >> 12).collect();
    let run = |flush| {
        let policy = DirtyPolicy { flush, ..DirtyPolicy::ARM64 };
        let platform = arm64();
        let spec = vm(&platform, 2.GiB(), 1, page);
        let work = vec![(0..3).map(|_| stores(page, &pages)).collect()];
        let mut bench = Bench::new(&platform, &spec, None, work);
        let (log, phases) = (bench.log, bench.phases);
        bench.sim.spawn("driver", Cycles(0), move |host| {
            Box::pin(async move {
                enable(&host, &log, &policy).await.unwrap();
                for _ in 0..3 {
                    phases.run(&host).await;
                    get_dirty_log(&host, &log, &policy).await.unwrap();
                }
                host.dirty_log_settled().await;
                disable(&host, &log, &policy, page).await.unwrap();
            })
        });
        lost(&bench.finish())
    };
    assert_eq!(run(HarvestFlush::Slot), 0);
    assert_eq!(run(HarvestFlush::ShortRange), pages.len());
}

/// A28: somebody keeps changing the entry under the shared lock. Who tries again wins in the end; who does not leaves the page writable
/// and unlogged.
#[test]
fn a_race_that_is_given_up_loses_the_page() {
    let page = PageSize::SIZE_4K;
    let run = |race, hot: u64| {
        let platform = x86();
        let policy = DirtyPolicy { race, split: SplitWhen::Lazily, ..DirtyPolicy::X86_WRITE_PROTECT };
        let spec = vm(&platform, 16.MiB(), 1, page);
        let mut bench = Bench::new(&platform, &spec, None, vec![vec![stores(page, &[hot - 1, hot, hot + 1])]]);
        let (log, phases) = (bench.log, bench.phases);
        let done = bench.sim.new_var(0);
        bench.sim.spawn("ager", Cycles(0), move |host| {
            Box::pin(async move {
                let format = *host.format();
                let (mut table, mut level) = (host.root().await, format.geometry().root());
                while level > Level::LAST {
                    let at = table + 8 * format.geometry().index(level, hot << 12) as u64;
                    table = format.next_table(level, host.read(at).await);
                    level = level.down().unwrap();
                }
                let at = table + 8 * format.geometry().index(level, hot << 12) as u64;
                for _ in 0..2000 {
                    if host.load(done).await != 0 {
                        break;
                    }
                    host.fetch_and(at, !format.accessed_mask()).await;
                    host.fetch_or(at, format.accessed_mask()).await;
                }
            })
        });
        let raced = Rc::new(RefCell::new(0));
        let out = Rc::clone(&raced);
        bench.sim.spawn("driver", Cycles(0), move |host| {
            Box::pin(async move {
                *out.borrow_mut() = enable(&host, &log, &policy).await.unwrap().protected.raced;
                host.store(done, 1).await;
                phases.run(&host).await;
                get_dirty_log(&host, &log, &policy).await.unwrap();
                host.dirty_log_settled().await;
                disable(&host, &log, &policy, page).await.unwrap();
            })
        });
        let lost: Vec<u64> = bench
            .finish()
            .iter()
            .filter_map(|violation| match violation {
                Violation::DirtyLost { gpa, .. } => Some(gpa.raw() >> 12),
                _ => None,
            })
            .collect();
        let raced = *raced.borrow();
        (lost, raced)
    };
    // Some page is met just between being read and being replaced.
    let raced = (64..192).find(|&hot| {
        let (lost, raced) = run(LostRace::Retry, hot);
        assert!(lost.is_empty(), "{lost:?}");
        raced > 0
    });
    let hot = raced.expect("a race");
    assert_eq!(run(LostRace::Ignore, hot), (vec![hot], 1));
}
