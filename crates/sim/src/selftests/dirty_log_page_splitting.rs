//! `dirty_log_page_splitting_test` (x86): eager splitting leaves no large page while writes are logged, and they come back afterwards.

use std::cell::RefCell;
use std::rc::Rc;

use mmu_core::{ByteUnits, Bytes, Cycles, Format, Gpa, Level, PageSize};
use serde::{Deserialize, Serialize};

use super::dirty_bed::{Bed, Thread, Timed, count_leaves, vm};
use super::{SelftestError, SelftestReport, finish, guest_address, option_error, supported_page};
use crate::arch::Arch;
use crate::engine::{Host, VcpuId};
use crate::experiment::Platform;
use crate::protocols::dirty_log::{
    DirtyLog, DirtyPolicy, Initially, LogKind, Manual, SplitWhen, clear_dirty_log, disable, enable, get_dirty_log,
};
use crate::protocols::fault::FaultPolicy;
use crate::protocols::split::SplitPolicy;
use crate::rng::Seed;
use crate::workload::{GuestWork, Mix, PatternSpec};

/// Options of the test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `-b`: bytes of each of the two vCPUs.
    pub bytes_per_vcpu: Bytes,
    /// `-s`: size of the pages that back the memory; the kernel's default is 2 MiB huge pages.
    pub page: PageSize,
    /// Whether pages are cleared by a call of its own: the test runs once with and once without.
    pub manual: Manual,
}

impl Default for Options {
    fn default() -> Self {
        Self { bytes_per_vcpu: Bytes(1.GiB()), page: PageSize::SIZE_2M, manual: Manual::On }
    }
}

const VCPUS: usize = 2;
const ITERATIONS: u64 = 2;

type Leaves = [u64; Level::MAX_LEVELS];

/// Runs the test.
///
/// # Errors
/// An architecture without eager splits by default, a VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    let format = platform.arch.two();
    if !A::Two::LOGS_MODIFICATIONS {
        let what = "KVM splits eagerly by default on x86 only; see dirty_log_perf_test --split eager".into();
        return Err(SelftestError::Architecture { arch: platform.arch.name(), what });
    }
    let page = supported_page(platform, Some(options.page))?;
    let small = format.geometry().page_size(Level::LAST);
    if page <= small || options.bytes_per_vcpu.0 == 0 || !options.bytes_per_vcpu.0.is_multiple_of(page.bytes()) {
        return Err(option_error(
            "-b, -s",
            format!("back the memory by pages larger than {small}, a multiple of them"),
        ));
    }
    let initially = if options.manual == Manual::On { Initially::AllSet } else { Initially::Clean };
    let split = SplitWhen::Eagerly(SplitPolicy::X86_5_18);
    let policy = DirtyPolicy { manual: options.manual, initially, split, ..DirtyPolicy::linux_6_6(format) };
    let bytes = options.bytes_per_vcpu.0;
    let mut bed = Bed::new(platform, &vm(platform, Bytes(bytes * VCPUS as u64), VCPUS, page), LogKind::Bitmap)?;
    for index in 0..VCPUS {
        // Populate, the iterations, and populate again.
        let work = move |phase| {
            let spec = PatternSpec {
                bytes,
                mix: Mix::Strided { stride: small.bytes() },
                writes_percent: 100,
                accesses: bytes / small.bytes(),
            };
            let base = guest_address(Gpa::new(bytes * index as u64));
            (phase <= ITERATIONS + 2).then_some(GuestWork::Pattern { spec, base, seed: Seed(0) })
        };
        bed.vcpu(Thread::new(VcpuId(index), FaultPolicy::linux_6_6(format, page)), work);
    }
    let timed = Timed::default();
    let counts = Rc::new(RefCell::new(Vec::new()));
    let (log, phases, main, out) = (bed.log, bed.phases, timed.clone(), Rc::clone(&counts));
    bed.sim.spawn("main", Cycles::ZERO, move |host| {
        Box::pin(async move {
            let count = async |what: &'static str| {
                let leaves = leaves(&host, &log).await;
                out.borrow_mut().push((what, leaves));
            };
            main.phase(&host, "populate memory".into(), phases.run(&host)).await;
            count("populated").await;
            let _ = main.phase(&host, "enable dirty logging".into(), enable(&host, &log, &policy)).await;
            count("enabled").await;
            for n in 1..=ITERATIONS {
                main.phase(&host, format!("iteration {n} dirty memory"), phases.run(&host)).await;
                let dirty = get_dirty_log(&host, &log, &policy).await.unwrap_or_default();
                if policy.manual == Manual::On {
                    let clear = clear_dirty_log(&host, &log, &policy, (0, log.pages()), &dirty);
                    let _ = main.phase(&host, format!("iteration {n} clear log"), clear).await;
                }
                count(if n == 1 { "first pass" } else { "later pass" }).await;
            }
            host.dirty_log_settled().await;
            let _ = main.phase(&host, "disable dirty logging".into(), disable(&host, &log, &policy, page)).await;
            main.phase(&host, "repopulate memory".into(), phases.run(&host)).await;
            count("repopulated").await;
        })
    });
    finish(&mut bed.sim)?;
    let mut report = SelftestReport::new("dirty_log_page_splitting_test", platform);
    timed.report(&mut report, &[]);
    let total = bytes * VCPUS as u64 / small.bytes();
    check(&mut report, &counts.borrow(), options.manual, total);
    Ok(report)
}

async fn leaves<F: Format>(host: &Host<F>, log: &DirtyLog) -> Leaves {
    let root = host.root().await;
    count_leaves(host, root, log.slot).await
}

/// What the kernel's test asserts.
fn check(report: &mut SelftestReport, counts: &[(&'static str, Leaves)], manual: Manual, total: u64) {
    let of = |what: &str| counts.iter().find(|(name, _)| *name == what).map_or([0; Level::MAX_LEVELS], |found| found.1);
    let split = of(if manual == Manual::On { "first pass" } else { "enabled" });
    let large: u64 = split[1..].iter().sum();
    report.check(large == 0, format!("no large page is left when pages are clean: {large}"));
    report.check(split[0] == total, format!("all of memory is mapped small: {} of {total}", split[0]));
    let (before, after) = (of("populated"), of("repopulated"));
    report.check(before == after, format!("pages by size are as before: {before:?} and {after:?}"));
    report.check(before[1..].iter().sum::<u64>() > 0, format!("memory was populated by large pages: {before:?}"));
}
