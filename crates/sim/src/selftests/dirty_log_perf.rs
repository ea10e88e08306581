//! `dirty_log_perf_test`: what dirty logging costs vCPUs that write all of their memory, and whoever reads the log.

use mmu_core::{ByteUnits, Bytes, Cycles, Format, Gpa, GpaRange, Gva, Level, PageSize};
use serde::{Deserialize, Serialize};

use super::dirty_bed::{Bed, Reader, Repeats, Thread, Timed, check_rings, vm};
use super::{SelftestError, SelftestReport, finish, guest_address, option_error, supported_page};
use crate::arch::Arch;
use crate::engine::{GuestPaging, Host, LockMode, VcpuId};
use crate::experiment::{Platform, VmSpec};
use crate::protocols::collapse::CollapsePolicy;
use crate::protocols::dirty_log::ring::{DirtyRing, RingOrder};
use crate::protocols::dirty_log::{
    DirtyLog, DirtyPages, DirtyPolicy, Initially, LogKind, Manual, SplitWhen, Tracking, clear_dirty_log_in, disable_in,
    enable_in, get_dirty_log_in,
};
use crate::protocols::fault::FaultPolicy;
use crate::protocols::nested::Shadow;
use crate::protocols::roots::VmRoots;
use crate::protocols::split::LazySplit;
use crate::rng::Seed;
use crate::workload::{GuestWork, Mix, PatternSpec};

/// In which order a vCPU goes over its pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// One after the other.
    #[default]
    Sequential,
    /// At random (`-a`).
    Random,
}

/// Whose memory a vCPU writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Regions {
    /// Its own.
    #[default]
    Partitioned,
    /// The same as all others (`-o`).
    Overlapping,
}

/// What vCPUs do while logging is disabled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Disabling {
    /// Nothing.
    #[default]
    Idle,
    /// They write on, pass after pass, until it is done (`-e`).
    Running,
}

/// When vCPUs write.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// Once over their pages in each iteration, which begins when all have done so.
    #[default]
    Iterations,
    /// Over and over, from the first iteration to the end of the last (`-j`, proposed).
    Independent,
}

/// Who writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Guest {
    /// The guest itself.
    #[default]
    Direct,
    /// A guest of the guest, on tables that shadow those of both (`-n`, x86).
    Nested,
}

/// Options of the test.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `-v`: vCPUs.
    pub vcpus: usize,
    /// `-b`: bytes of each vCPU.
    pub bytes_per_vcpu: Bytes,
    /// `-i`: iterations of writing and reading the log.
    pub iterations: u64,
    /// `-s`: size of the pages that back the memory; `None` is the smallest that the second stage has.
    pub page: Option<PageSize>,
    /// `-w`: pages among a hundred that are written in an iteration; the others are read.
    pub write_percent: u32,
    /// `-a`: order.
    pub order: Order,
    /// `-o`: whose memory is written.
    pub regions: Regions,
    /// `-e`: what vCPUs do while logging is disabled.
    pub disabling: Disabling,
    /// Ours: how often a vCPU goes over its pages before it leaves the guest, while it writes on as logging is disabled. With less memory than a test was
    /// published with, so many passes take as long as one did.
    pub passes: u64,
    /// `-r`: seed of what is random.
    pub seed: u64,
    /// `-g` is [`Manual::Off`]: pages become clean when the log is read, and logging begins with a walk. Else the log begins with all pages and is cleared by
    /// a call of its own.
    pub manual: Manual,
    /// `-k` (proposed): how much is cleared by one call; `None` for all at once.
    pub clear_chunk: Option<Bytes>,
    /// `-l` (proposed): milliseconds between two calls that clear.
    pub clear_wait: u64,
    /// `-j` (proposed): when vCPUs write.
    pub pace: Pace,
    /// `-n`: who writes.
    pub guest: Guest,
    /// `-p`: where the memory lies, as a guest-physical offset.
    pub offset: Bytes,
    /// `-x`: memslots of equal size that hold the memory.
    pub slots: u64,
    /// Ours: entries of a ring for each vCPU, read while they write, instead of a bitmap that is read afterwards.
    pub ring: Option<u64>,
    /// How writes are noticed; `None` is what Linux 6.6 does on the architecture.
    pub tracking: Option<Tracking>,
    /// When large pages are split; `None` is what Linux 6.6 does on the architecture.
    pub split: Option<SplitWhen>,
    /// How a fault splits a large page; `None` is what Linux 6.6 does on the architecture.
    pub lazily: Option<LazySplit>,
    /// How faults hold `mmu_lock`; `None` is what Linux 6.6 does on the architecture.
    pub lock: Option<LockMode>,
    /// What becomes of small pages when logging ends; `None` is what Linux 6.6 does on the architecture.
    pub collapse: Option<CollapsePolicy>,
    /// Distance between the pages that an iteration writes; `None` writes all of them.
    pub stride: Option<Bytes>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vcpus: 1,
            bytes_per_vcpu: Bytes(1.GiB()),
            iterations: 2,
            page: None,
            write_percent: 100,
            order: Order::Sequential,
            regions: Regions::Partitioned,
            disabling: Disabling::Idle,
            passes: 1,
            seed: 1,
            manual: Manual::On,
            clear_chunk: None,
            clear_wait: 0,
            pace: Pace::Iterations,
            guest: Guest::Direct,
            offset: Bytes(0),
            slots: 1,
            ring: None,
            tracking: None,
            split: None,
            lazily: None,
            lock: None,
            collapse: None,
            stride: None,
        }
    }
}

impl Options {
    /// Guest memory that the test needs, that below its offset included.
    pub fn memory(&self) -> Bytes {
        Bytes(self.offset.0.saturating_add(self.tested().0))
    }

    /// Memory that vCPUs write.
    fn tested(&self) -> Bytes {
        match self.regions {
            Regions::Partitioned => Bytes(self.bytes_per_vcpu.0.saturating_mul(self.vcpus as u64)),
            Regions::Overlapping => self.bytes_per_vcpu,
        }
    }

    /// How logging is done on a format.
    fn policy<F: Format>(&self, format: &F) -> Result<DirtyPolicy, SelftestError> {
        let kernel = DirtyPolicy::linux_6_6(format);
        // Rings begin empty, and what they hold is clean when they are reset.
        let manual = if self.ring.is_some() { Manual::Off } else { self.manual };
        let initially = if manual == Manual::On { Initially::AllSet } else { Initially::Clean };
        let usual = match self.guest {
            Guest::Direct => kernel.tracking,
            // The processor logs nothing while it runs a nested guest.
            Guest::Nested => Tracking::WriteProtect,
        };
        let policy = DirtyPolicy {
            tracking: self.tracking.unwrap_or(usual),
            split: self.split.unwrap_or(kernel.split),
            manual,
            initially,
            collapse: self.collapse.or(kernel.collapse),
            ..kernel
        };
        policy.check(format).map_err(|error| option_error("--tracking", error.to_string()))?;
        Ok(policy)
    }

    /// How many phases a vCPU goes through.
    fn phases(&self) -> u64 {
        match self.pace {
            Pace::Iterations => 1 + self.iterations + u64::from(self.disabling == Disabling::Running),
            Pace::Independent => 2,
        }
    }

    /// Whether the last of them is done over and over until the main thread says that it is enough.
    fn repeats(&self) -> bool {
        self.pace == Pace::Independent || self.disabling == Disabling::Running
    }

    /// What a vCPU does in a phase: populates, then one phase per iteration, then perhaps one while logging is disabled.
    fn work(&self, vcpu: usize, phase: u64, page: PageSize) -> Option<GuestWork> {
        if phase > self.phases() {
            return None;
        }
        let bytes = self.bytes_per_vcpu.0;
        let first = self.offset.0 + if self.regions == Regions::Partitioned { bytes * vcpu as u64 } else { 0 };
        let base = match self.guest {
            Guest::Direct => guest_address(Gpa::new(first)),
            Guest::Nested => Gva::new(first),
        };
        let stride = match self.stride {
            Some(stride) if phase > 1 => stride.0.max(page.bytes()),
            _ => page.bytes(),
        };
        let mix = match self.order {
            Order::Random if phase > 1 => Mix::Uniform,
            Order::Random | Order::Sequential => Mix::Strided { stride },
        };
        let writes_percent = if phase == 1 { 100 } else { self.write_percent };
        let disabling = self.disabling == Disabling::Running && phase == self.phases();
        let passes = if disabling { self.passes.max(1) } else { 1 };
        let spec = PatternSpec { bytes, mix, writes_percent, accesses: passes * (bytes / stride) };
        Some(GuestWork::Pattern { spec, base, seed: Seed(self.seed.wrapping_add(phase)) })
    }
}

/// Runs the test.
///
/// # Errors
/// Options that do not fit together, a VM that cannot be built, or a run that goes wrong.
pub fn run<A: Arch>(platform: &Platform<A>, options: &Options) -> Result<SelftestReport, SelftestError> {
    let format = platform.arch.two();
    let policy = options.policy(format)?;
    let page = supported_page(platform, options.page)?;
    let small = format.geometry().page_size(Level::LAST);
    if options.bytes_per_vcpu.0 == 0 || !options.bytes_per_vcpu.0.is_multiple_of(page.bytes()) {
        return Err(option_error("-b", format!("the memory of a vCPU must be a multiple of the backing page, {page}")));
    }
    if !options.offset.0.is_multiple_of(page.bytes()) {
        return Err(option_error("-p", format!("give a multiple of the backing page, {page}")));
    }
    if options.slots == 0 || !(options.tested().0 / page.bytes()).is_multiple_of(options.slots) {
        return Err(option_error("-x", format!("the backing pages of {page} must divide into as many equal memslots")));
    }
    fits_the_guest(platform, options, &policy)?;
    if options.ring.is_some() {
        check_rings(&policy, "give --tracking write-protect")?;
    }
    let spec = vm(platform, options.memory(), options.vcpus, page);
    // The tables that shadow a nested guest's are those of its memory, which has no tables of its own here.
    let spec = if options.guest == Guest::Nested { VmSpec { guest: GuestPaging::Flat, ..spec } } else { spec };
    let tested = GpaRange::new(Gpa::new(options.offset.0), options.tested());
    let kind = if options.ring.is_some() { LogKind::Rings } else { LogKind::Bitmap };
    let mut bed = Bed::in_slots(platform, &spec, kind, tested, options.slots)?;
    let rings = rings(&mut bed, options, &policy)?;
    let kernel = FaultPolicy::linux_6_6(format, page);
    let faults = FaultPolicy {
        lock: options.lock.unwrap_or(kernel.lock),
        split: options.lazily.unwrap_or(kernel.split),
        ..kernel
    };
    let shadow = (options.guest == Guest::Nested).then(|| {
        let pages = options.memory().0 / small.bytes();
        Shadow::new(&mut bed.sim, format, options.memory(), pages, same_address)
    });
    let stop = bed.sim.new_var(0);
    for index in 0..options.vcpus {
        let options = options.clone();
        let repeats = options.repeats().then_some(Repeats { phase: options.phases(), until: stop });
        let ring = rings.get(index).copied();
        let thread = Thread { ring, shadow, repeats, ..Thread::new(VcpuId(index), faults) };
        bed.vcpu(thread, move |phase| options.work(index, phase, small));
    }
    let pause = Cycles(options.clear_wait.saturating_mul(platform.clock_hz / 1000));
    let timed = Timed::default();
    let (log, phases, main, options_of) = (bed.log, bed.phases, timed.clone(), options.clone());
    bed.sim.spawn("main", Cycles::ZERO, move |host| {
        Box::pin(async move {
            let roots = shadow.map_or(VmRoots::Current, VmRoots::Nested);
            let independent = options_of.pace == Pace::Independent;
            main.phase(&host, "populate memory".into(), phases.run(&host)).await;
            // The policy has been checked and the pool is large enough: what fails nevertheless shows as a page that is lost.
            let logs: Vec<DirtyLog> = (0..options_of.slots).map(|n| log.nth(n)).collect();
            let on = async {
                for log in &logs {
                    let _ = enable_in(&host, &roots, log, &policy).await;
                }
            };
            main.phase(&host, "enable dirty logging".into(), on).await;
            let mut reader = Reader::new(log, policy, &rings);
            if independent {
                phases.start(&host).await;
            }
            for n in 1..=options_of.iterations {
                if !rings.is_empty() {
                    phases.start(&host).await;
                    let read = reader.until_stopped(&host, phases.pending());
                    main.phase(&host, format!("iteration {n} dirty memory"), read).await;
                    main.phase(&host, format!("iteration {n} get log"), reader.read(&host)).await;
                    continue;
                }
                if !independent {
                    main.phase(&host, format!("iteration {n} dirty memory"), phases.run(&host)).await;
                }
                let mut dirty = Vec::new();
                let get = async {
                    for log in &logs {
                        dirty.push(get_dirty_log_in(&host, &roots, log, &policy).await.unwrap_or_default());
                    }
                };
                main.phase(&host, format!("iteration {n} get log"), get).await;
                if policy.manual == Manual::On {
                    let chunk =
                        options_of.clear_chunk.map_or(log.pages(), |chunk| (chunk.0 >> log.page.shift()).max(1));
                    let clear = async {
                        for (log, dirty) in logs.iter().zip(&dirty) {
                            for first in (0..log.pages()).step_by(chunk as usize) {
                                let _: Result<DirtyPages, _> =
                                    clear_dirty_log_in(&host, &roots, log, &policy, (first, chunk), dirty).await;
                                if pause > Cycles::ZERO {
                                    host.sleep(pause).await;
                                }
                            }
                        }
                    };
                    main.phase(&host, format!("iteration {n} clear log"), clear).await;
                }
            }
            let running = options_of.disabling == Disabling::Running;
            if independent && !running {
                host.store_release(stop, 1).await;
                phases.finished(&host).await;
                // What was written since the last iteration.
                for log in &logs {
                    read_and_clear(&host, &roots, log, &policy).await;
                }
            }
            if !(independent && running) {
                host.dirty_log_settled().await;
            }
            if running && !independent {
                phases.start(&host).await;
            }
            let off = async {
                for log in &logs {
                    let _ = disable_in(&host, &roots, log, &policy, page).await;
                }
            };
            main.phase(&host, "disable dirty logging".into(), off).await;
            if running {
                host.store_release(stop, 1).await;
                main.phase(&host, "write on after disabling".into(), phases.finished(&host)).await;
            }
            if let Some(shadow) = shadow {
                shadow.release(&host).await;
            }
            for ring in rings {
                ring.release(&host).await;
            }
        })
    });
    finish(&mut bed.sim)?;
    let mut report = SelftestReport::new("dirty_log_perf_test", platform);
    timed.report(&mut report, &[]);
    averages(&mut report, options.iterations);
    checks(&mut report, &bed, options, small);
    super::factors(&mut report, &bed.sim);
    Ok(report)
}

/// The nested guest of the test has its memory where L1 has it (`memstress_setup_ept`).
fn same_address(l2: Gpa) -> Gpa {
    l2
}

/// Whether who writes and how it is noticed fit together.
fn fits_the_guest<A: Arch>(
    platform: &Platform<A>,
    options: &Options,
    policy: &DirtyPolicy,
) -> Result<(), SelftestError> {
    if options.pace == Pace::Independent && options.ring.is_some() {
        return Err(option_error("-j", "vCPUs wait for their rings to be read: leave --ring out".to_owned()));
    }
    if options.guest == Guest::Direct {
        return Ok(());
    }
    if platform.arch.name() != "x86" {
        let what = "nested vCPUs are set up for x86 only (memstress_setup_nested): leave -n out".to_owned();
        return Err(SelftestError::Architecture { arch: platform.arch.name(), what });
    }
    if options.ring.is_some() {
        return Err(option_error("-n", "a nested guest's pages go to the bitmap: leave --ring out".to_owned()));
    }
    if policy.tracking != Tracking::WriteProtect {
        let what = "what a nested guest writes is noticed by write protection: leave --tracking out".to_owned();
        return Err(option_error("-n", what));
    }
    Ok(())
}

/// One more look at the log, when nobody writes any more.
async fn read_and_clear<F: Format>(host: &Host<F>, roots: &VmRoots<F>, log: &DirtyLog, policy: &DirtyPolicy) {
    let dirty = get_dirty_log_in(host, roots, log, policy).await.unwrap_or_default();
    if policy.manual == Manual::On {
        let _: Result<DirtyPages, _> = clear_dirty_log_in(host, roots, log, policy, (0, log.pages()), &dirty).await;
    }
}

/// The rings that are asked for.
fn rings<A: Arch>(bed: &mut Bed<A>, options: &Options, policy: &DirtyPolicy) -> Result<Vec<DirtyRing>, SelftestError> {
    let Some(size) = options.ring else { return Ok(Vec::new()) };
    let full = bed.sim.new_wait_queue();
    let rings = DirtyRing::create(&mut bed.sim, size, policy.tracking, RingOrder::ReleaseAcquire, full);
    rings.ok_or_else(|| {
        option_error("--ring", "give a power of two above the reserved entries: 64, and 512 more with PML".into())
    })
}

fn averages(report: &mut SelftestReport, iterations: u64) {
    for what in ["dirty memory", "get log", "clear log"] {
        let of = report.phases.iter().filter(|phase| phase.name.starts_with("iteration") && phase.name.ends_with(what));
        let sum: u64 = of.map(|phase| phase.cycles.0).sum();
        if sum > 0 {
            let seconds = report.seconds(Cycles(sum)) / iterations.max(1) as f64;
            report.figures.insert(format!("{what}, average seconds"), seconds);
        }
    }
}

fn checks<A: Arch>(report: &mut SelftestReport, bed: &Bed<A>, options: &Options, page: PageSize) {
    let stats = bed.sim.vcpu_stats();
    let accesses: u64 = stats.iter().map(|vcpu| vcpu.accesses).sum();
    let bytes = options.bytes_per_vcpu.0;
    let stride = options.stride.map_or(page.bytes(), |stride| stride.0.max(page.bytes()));
    let once = options.vcpus as u64 * (bytes / page.bytes());
    match options.pace {
        Pace::Iterations => {
            let pass = bytes / stride;
            let wanted = once + options.vcpus as u64 * options.iterations * pass;
            let after = accesses.saturating_sub(wanted);
            let whole = match options.disabling {
                Disabling::Idle => after == 0,
                Disabling::Running => after >= options.vcpus as u64 * pass && after.is_multiple_of(pass),
            };
            let what = format!("every access of every phase completes: {} of {wanted}", accesses - after);
            report.check(whole && accesses >= wanted, what);
            if options.disabling == Disabling::Running {
                report.figures.insert("passes of all vCPUs from disabling on".into(), (after / pass.max(1)) as f64);
            }
        }
        Pace::Independent => {
            let wanted = once + options.vcpus as u64 * (bytes / stride);
            report
                .check(accesses >= wanted, format!("every vCPU goes over its memory: {accesses} of {wanted} and more"));
            report.figures.insert("accesses while the log was on".into(), accesses.saturating_sub(once) as f64);
        }
    }
    let failed = bed.sim.world().counters().failed_runs;
    report.check(failed == 0, format!("every KVM_RUN succeeds: {failed} failed"));
    let world = bed.sim.world();
    let written = world.written();
    // A page that is lost is a violation, which ends the test as an error before it comes here.
    report.check(written.reported_pages() > 0, format!("the log reports pages: {}", written.reported_pages()));
    report.figures.insert("units of 4K reported".into(), written.reported_pages() as f64);
    report.figures.insert("units of 4K reported and not written".into(), written.needless_pages() as f64);
    report.figures.insert("second-stage faults".into(), stats.iter().map(|vcpu| vcpu.faults).sum::<u64>() as f64);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_kernels() {
        let options = Options::default();
        assert_eq!((options.vcpus, options.iterations, options.write_percent), (1, 2, 100));
        assert_eq!((options.bytes_per_vcpu.0, options.manual), (1.GiB(), Manual::On));
    }
}
