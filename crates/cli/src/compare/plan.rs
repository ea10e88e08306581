//! What is to be run: one machine, its formats, one guest, one request.

use std::path::{Path, PathBuf};

use mmusim::sim::arch::Arch;
use mmusim::sim::experiment::build;
use mmusim::{
    BuildError, ByteUnits, Bytes, Cycles, Format, GuestPaging, Machine, Mix, PatternSpec, Platform, Populate,
    ReadOptions, Seed, TraceSpec, VmSpec, Workload, ZapRequest,
};

use crate::CliError;
use crate::args::{CompareZap, GuestPage, WorkloadName};
use crate::platform::{Formats, formats, machines};

/// The trace that is replayed when nothing else is asked for, relative to the current directory.
const SHIPPED_TRACE: &str = "traces/sqlite3.mmut.zst";

/// One comparison.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) machine: Machine,
    pub(crate) formats: Formats,
    pub(crate) vm: VmSpec,
    pub(crate) request: ZapRequest,
}

impl Plan {
    pub(crate) fn arch_name(&self) -> &'static str {
        match &self.formats {
            Formats::X86(arch) => arch.name(),
            Formats::Arm64(arch) => arch.name(),
            Formats::Power(arch) => arch.name(),
        }
    }

    /// Levels of the guest's and of the hypervisor's tables.
    pub(crate) fn levels(&self) -> (usize, usize) {
        fn of<A: Arch>(arch: &A) -> (usize, usize) {
            (arch.one().geometry().levels(), arch.two().geometry().levels())
        }
        match &self.formats {
            Formats::X86(arch) => of(arch),
            Formats::Arm64(arch) => of(arch),
            Formats::Power(arch) => of(arch),
        }
    }
}

/// The plans of a command line, one per architecture.
pub(crate) fn plans(args: &CompareZap) -> Result<Vec<Plan>, CliError> {
    let workload = workload(args)?;
    let machines = machines(args.machine.as_deref(), &args.arch)?;
    machines.into_iter().map(|machine| plan(args, machine, workload.clone())).collect()
}

fn workload(args: &CompareZap) -> Result<Workload, CliError> {
    let trace =
        |path: PathBuf| Workload::Trace(TraceSpec { path, options: ReadOptions::default(), accesses: args.accesses });
    let chosen = match (&args.trace, args.workload) {
        (Some(path), _) => trace(path.clone()),
        (None, Some(WorkloadName::Idle)) => Workload::Idle,
        (None, Some(name)) => Workload::Pattern(pattern(args, name)),
        (None, None) if args.guest_page == Some(GuestPage(GuestPaging::Flat)) => {
            Workload::Pattern(pattern(args, WorkloadName::Zipf))
        }
        (None, None) if Path::new(SHIPPED_TRACE).exists() => trace(PathBuf::from(SHIPPED_TRACE)),
        (None, None) => {
            eprintln!("note: no {SHIPPED_TRACE} here, so vCPUs run the workload zipf; name a trace with --trace FILE");
            Workload::Pattern(pattern(args, WorkloadName::Zipf))
        }
    };
    if matches!(chosen, Workload::Trace(_)) && args.guest_page == Some(GuestPage(GuestPaging::Flat)) {
        let what = "a trace holds virtual addresses; give a page size, or a synthetic --workload";
        return Err(CliError::argument("--guest-page flat", what));
    }
    check_working_set(args, &chosen)?;
    Ok(chosen)
}

fn pattern(args: &CompareZap, name: WorkloadName) -> PatternSpec {
    let mix = match name {
        WorkloadName::Sequential => Mix::Sequential,
        WorkloadName::Strided => Mix::Strided { stride: args.stride.0 },
        WorkloadName::Uniform => Mix::Uniform,
        // Nothing to touch: never asked for.
        WorkloadName::Zipf | WorkloadName::Idle => Mix::Zipf { hundredths: 99 },
        WorkloadName::Chase => Mix::PointerChase,
    };
    PatternSpec { bytes: args.working_set.0, mix, writes_percent: args.writes, accesses: args.accesses }
}

fn check_working_set(args: &CompareZap, workload: &Workload) -> Result<(), CliError> {
    let (Workload::Pattern(_), set) = (workload, args.working_set) else { return Ok(()) };
    let share = Bytes(args.memory.0 / u64::from(args.vcpus));
    if (4096..=share.0).contains(&set.0) {
        return Ok(());
    }
    let what =
        format!("a vCPU's share of guest memory is {share}; give 4KiB at least and that at most, or more --memory");
    Err(CliError::argument(format!("--working-set {set}"), what))
}

fn plan(args: &CompareZap, machine: Machine, workload: Workload) -> Result<Plan, CliError> {
    let formats = formats(&machine, args.memory)?;
    let page = args.page_size.unwrap_or(machine.stages.host_page);
    let guest = args.guest_page.map_or(GuestPaging::FirstTouch(machine.stages.granule), |page| page.0);
    let vm = VmSpec {
        memory: args.memory,
        vcpus: args.vcpus as usize,
        page,
        guest,
        populate: Populate::Mapped,
        workload,
        seed: Seed(args.seed),
    };
    // A quarter, in whole pages and not nothing.
    let quarter = || (args.memory.0 / 4).min(256.MiB()).next_multiple_of(page.bytes()).max(page.bytes());
    let range = args.range.unwrap_or_else(|| Bytes(quarter()));
    let request = ZapRequest { range, after: Cycles(args.warm_up) };
    let plan = Plan { machine, formats, vm, request };
    match plan.formats {
        Formats::X86(arch) => try_out(arch, &plan)?,
        Formats::Arm64(arch) => try_out(arch, &plan)?,
        Formats::Power(arch) => try_out(arch, &plan)?,
    }
    check_range(&plan)?;
    Ok(plan)
}

/// Builds the guest once, so that every complaint comes before the first result.
fn try_out<A: Arch>(arch: A, plan: &Plan) -> Result<(), CliError> {
    let platform = Platform::new(arch, &plan.machine);
    build(&platform, &plan.vm).map(drop).map_err(|error| refused(plan, &error))
}

fn check_range(plan: &Plan) -> Result<(), CliError> {
    let (range, page) = (plan.request.range, plan.vm.page);
    let argument = format!("--range {range}");
    if range > plan.vm.memory {
        let what = format!("reaches beyond the guest's {}; zap less or give more --memory", plan.vm.memory);
        return Err(CliError::argument(argument, what));
    }
    if range.0 == 0 || !range.0.is_multiple_of(page.bytes()) {
        return Err(CliError::argument(argument, format!("give a positive multiple of the page size {page}")));
    }
    Ok(())
}

/// A guest that cannot be built, as the argument that says so.
pub(crate) fn refused(plan: &Plan, error: &BuildError) -> CliError {
    let vm = &plan.vm;
    let memory = format!("--memory {}", vm.memory);
    let guest_page = || match vm.guest {
        GuestPaging::Flat => "--guest-page flat".to_owned(),
        GuestPaging::FirstTouch(page) | GuestPaging::Premapped(page) => format!("--guest-page {page}"),
    };
    let argument = match error {
        BuildError::NoVcpus | BuildError::TooManyVcpus(_) => format!("--vcpus {}", vm.vcpus),
        BuildError::PageSize { page, .. } if *page == vm.page => format!("--page-size {page}"),
        BuildError::PageSize { .. } => guest_page(),
        BuildError::Memory { .. }
        | BuildError::Shared { .. }
        | BuildError::InputWidth { .. }
        | BuildError::Tables(_) => memory,
        BuildError::Guest(_) => format!("{memory} {}", guest_page()),
        BuildError::Replay(_) => "--trace".to_owned(),
        BuildError::Encode(_) | BuildError::Machine(_) => format!("--machine {}", plan.machine.name),
    };
    CliError::argument(argument, format!("{} on {}: {error}", plan.arch_name(), plan.machine.name))
}
