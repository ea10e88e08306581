//! From a parsed file to a machine: every rule is checked, and every broken one reported.

use std::ops::Range;

use toml::Spanned;

use super::cost;
use super::raw::{
    RawArray, RawCacheLevel, RawCaches, RawFetch, RawFetchLevel, RawMachine, RawPscLevel, RawTags, RawTlb,
};
use super::{Arch, Clock, FetchLevel, FetchSpec, InvalidateSpec, Machine, MachineError, SocketSpec, Stages, WalkSpec};
use crate::addr::{Cycles, Level, PageSize, Share};
use crate::assoc::{Index, Replacement, Shape};
use crate::tlb::{
    ArraySpec, CacheLevelSpec, CacheSpec, CachesSpec, LargerPages, Port, PscLevelSpec, PscSpec, TagRules, TlbSpec,
};

/// Collects errors.
#[derive(Debug, Default)]
pub(super) struct Checks {
    errors: Vec<MachineError>,
}

impl Checks {
    pub(super) fn fail(&mut self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        self.errors.push(MachineError { span, message: message.into(), help: help.into() });
    }

    /// Reports a value outside its range and returns it all the same.
    fn within<T: PartialOrd + Copy + std::fmt::Display>(
        &mut self,
        what: &str,
        value: &Spanned<T>,
        low: T,
        high: T,
    ) -> T {
        let got = *value.get_ref();
        // Written so that a NaN fails.
        if !(got >= low && got <= high) {
            self.fail(value.span(), format!("{what} is {got}"), format!("give a value from {low} to {high}"));
        }
        got
    }
}

pub(super) fn machine(raw: &RawMachine) -> Result<Machine, Vec<MachineError>> {
    let mut checks = Checks::default();
    let arch = arch(&raw.arch, &mut checks);
    let clock = Clock::from_ghz(checks.within("clock_ghz", &raw.clock_ghz, 0.1, 20.0));
    if raw.name.get_ref().trim().is_empty() {
        checks.fail(raw.name.span(), "the machine has no name", "name it like its file");
    }
    let rules = tags(&raw.tags, &mut checks);
    let stages = stages(raw, &mut checks);
    let caches = caches(&raw.cache, clock, &mut checks);
    let tlb = tlb(&raw.tlb, rules, stages, &mut checks);
    let top = raw.stages.first_levels.get_ref().max(raw.stages.second_levels.get_ref());
    let psc = PscSpec {
        levels: psc_levels(&raw.psc.levels, *top, &mut checks),
        guest_physical: raw.psc.guest_physical.as_ref().map(|levels| psc_levels(levels, *top, &mut checks)),
        rules,
    };
    let nested = raw.tlb.nested.as_ref().and_then(|array| self::array(array, &mut checks));
    let walk = WalkSpec {
        walkers: checks.within("walkers", &raw.walk.walkers, 1, 64),
        in_flight: checks.within("in_flight", &raw.walk.in_flight, 1, 256),
        fixed: Cycles(raw.walk.fixed_cycles),
        per_reference: Cycles(raw.walk.reference_cycles),
    };
    let invalidate = InvalidateSpec {
        broadcast: raw.invalidate.broadcast,
        range: raw.invalidate.range,
        full_above_pages: raw.invalidate.full_above_pages,
        full_above_pages_local: raw.invalidate.full_above_pages_local,
        contention_slope: checks.within("contention_slope", &raw.invalidate.contention_slope, 0.0, 100.0),
    };
    let fetch = raw.fetch.as_ref().map(|fetch| fetch_levels(fetch, &mut checks));
    let sockets = raw.sockets.as_ref().map(|sockets| SocketSpec {
        number: checks.within("sockets.number", &sockets.number, 1, 64),
        cores: checks.within("sockets.cores", &sockets.cores, 1, 4096),
        line_transfer: clock.cycles(checks.within(
            "sockets.line_transfer_ns",
            &sockets.line_transfer_ns,
            1.0,
            10_000.0,
        )),
        shared_core_speed: sockets
            .shared_core_speed
            .as_ref()
            .map(|speed| Share::of_one(checks.within("sockets.shared_core_speed", speed, 0.1, 1.0))),
    });
    let software_ns = raw.software_ns.iter();
    let software_ns = software_ns
        .map(|(name, ns)| (name.clone(), checks.within(&format!("software_ns.{name}"), ns, 0.0, 1e12)))
        .collect();
    let costs = cost::read(&raw.cost, arch.unwrap_or(Arch::X86_64), clock, &mut checks);
    match arch {
        Some(arch) if checks.errors.is_empty() => Ok(Machine {
            name: raw.name.get_ref().clone(),
            arch,
            core: raw.core.clone(),
            clock,
            stages,
            caches,
            translation: CachesSpec { tlb, psc, nested },
            walk,
            invalidate,
            costs,
            fetch,
            sockets,
            software_ns,
        }),
        _ => {
            checks.errors.sort_by_key(|error| error.span.start);
            Err(checks.errors)
        }
    }
}

fn arch(raw: &Spanned<String>, checks: &mut Checks) -> Option<Arch> {
    let arch = Arch::ALL.into_iter().find(|arch| arch.to_string() == *raw.get_ref());
    if arch.is_none() {
        let known = Arch::ALL.map(|arch| format!("\"{arch}\"")).join(", ");
        checks.fail(raw.span(), format!("unknown architecture `{}`", raw.get_ref()), format!("write one of {known}"));
    }
    arch
}

fn tags(raw: &RawTags, checks: &mut Checks) -> TagRules {
    let asid = checks.within("asid_bits", &raw.asid_bits, 0, 31);
    let vmid = checks.within("vmid_bits", &raw.vmid_bits, 0, 16);
    TagRules::new(asid, vmid, raw.second_stage).with_combined_by_gpa(raw.combined_by_gpa)
}

fn stages(raw: &RawMachine, checks: &mut Checks) -> Stages {
    let raw = &raw.stages;
    let most = Level::MAX_LEVELS as u8;
    let granule = *raw.granule.get_ref();
    if granule < PageSize::SIZE_4K || granule > PageSize::SIZE_64K {
        checks.fail(raw.granule.span(), format!("granule {granule}"), "write 4K, 16K or 64K");
    }
    let host_page = *raw.host_page.get_ref();
    if host_page < granule {
        let message = format!("host pages of {host_page} are smaller than the granule {granule}");
        checks.fail(raw.host_page.span(), message, "give the granule or a larger page");
    }
    Stages {
        granule,
        first_levels: checks.within("first_levels", &raw.first_levels, 1, most),
        second_levels: checks.within("second_levels", &raw.second_levels, 1, most),
        host_page,
    }
}

fn caches(raw: &RawCaches, clock: Clock, checks: &mut Checks) -> CacheSpec {
    let line_bytes = checks.within("line_bytes", &raw.line_bytes, 16, 4096);
    if !line_bytes.is_power_of_two() {
        checks.fail(raw.line_bytes.span(), format!("lines of {line_bytes} bytes"), "give a power of two, such as 64");
    }
    // An odd line must not make every shape odd as well.
    let line_bytes = line_bytes.max(16).next_power_of_two();
    let mut levels = Vec::new();
    let mut nearer = Cycles::ZERO;
    for level in &raw.levels {
        let made = cache_level(level.get_ref(), level.span(), line_bytes, clock, checks);
        slower(nearer, made.1, level.span(), checks);
        nearer = made.1;
        levels.extend(made.0);
    }
    let memory = raw.memory.get_ref();
    let span = raw.memory.span();
    let latency = latency(memory.latency_cycles.as_ref(), memory.latency_ns.as_ref(), &span, clock, checks);
    slower(nearer, latency, span, checks);
    let fill_buffers = checks.within("fill_buffers", &raw.fill_buffers, 1, 1024);
    CacheSpec { line_bytes, levels, memory: latency, fill_buffers }
}

/// A level further away that answers sooner would never be asked second.
fn slower(nearer: Cycles, latency: Cycles, span: Range<usize>, checks: &mut Checks) {
    if latency <= nearer && latency > Cycles::ZERO {
        let message = format!("a latency of {latency} cycles is no longer than the {nearer} of the level before");
        checks.fail(span, message, "list levels nearest first, and give load-to-use latencies");
    }
}

fn cache_level(
    raw: &RawCacheLevel,
    span: Range<usize>,
    line_bytes: u64,
    clock: Clock,
    checks: &mut Checks,
) -> (Option<CacheLevelSpec>, Cycles) {
    let latency = latency(raw.latency_cycles.as_ref(), raw.latency_ns.as_ref(), &span, clock, checks);
    let lines = u64::from(*raw.kib.get_ref()) * 1024 / line_bytes;
    let lines = Spanned::new(raw.kib.span(), u32::try_from(lines).unwrap_or(u32::MAX));
    let shape = shape(&lines, &raw.ways, raw.index, raw.replacement, checks);
    (shape.map(|shape| CacheLevelSpec { name: raw.name.clone(), shape, latency, fill: raw.fill }), latency)
}

fn latency(
    cycles: Option<&Spanned<f64>>,
    ns: Option<&Spanned<f64>>,
    span: &Range<usize>,
    clock: Clock,
    checks: &mut Checks,
) -> Cycles {
    let (value, factor) = match (cycles, ns) {
        (Some(value), None) => (value, 1.0),
        (None, Some(value)) => (value, clock.ghz()),
        (None, None) => {
            checks.fail(span.clone(), "no latency", "add latency_cycles or latency_ns");
            return Cycles::ZERO;
        }
        (Some(_), Some(ns)) => {
            checks.fail(ns.span(), "two latencies", "keep one of latency_cycles and latency_ns");
            return Cycles::ZERO;
        }
    };
    let latency = value.get_ref() * factor;
    if !(0.5..=1e9).contains(&latency) {
        checks.fail(value.span(), format!("a latency of {}", value.get_ref()), "a reference takes at least a cycle");
    }
    Cycles(latency.round() as u64)
}

fn shape(
    entries: &Spanned<u32>,
    ways: &Spanned<u32>,
    index: Index,
    replacement: Replacement,
    checks: &mut Checks,
) -> Option<Shape> {
    let made = Shape::new(*entries.get_ref(), *ways.get_ref())
        .and_then(|shape| shape.replaced_by(replacement))
        .and_then(|shape| shape.indexed_by(index));
    made.map_err(|error| checks.fail(ways.span(), error.to_string(), error.help())).ok()
}

fn array(raw: &Spanned<RawArray>, checks: &mut Checks) -> Option<ArraySpec> {
    let array = raw.get_ref();
    let shape = shape(&array.entries, &array.ways, array.index, array.replacement, checks)?;
    let spec = ArraySpec {
        name: array.name.clone(),
        shape,
        ports: array.ports.clone(),
        sizes: array.sizes.clone(),
        coalesce: array.coalesce,
        larger: array.larger,
    };
    match spec.check() {
        Ok(()) => Some(spec),
        Err(error) => {
            checks.fail(raw.span(), format!("TLB array `{}`: {error}", array.name), error.help());
            None
        }
    }
}

fn tlb(raw: &RawTlb, rules: TagRules, stages: Stages, checks: &mut Checks) -> TlbSpec {
    let before = checks.errors.len();
    let l1: Vec<ArraySpec> = raw.l1.get_ref().iter().filter_map(|array| self::array(array, checks)).collect();
    let l2 = raw.l2.iter().filter_map(|array| self::array(array, checks)).collect();
    let fits = |spec: &ArraySpec, size: PageSize| {
        size == stages.granule || size < stages.granule && spec.larger == LargerPages::Fragment
    };
    let holds = |spec: &ArraySpec| spec.sizes.iter().any(|&size| fits(spec, size));
    for port in Port::ALL {
        let served = l1.iter().filter(|spec| spec.ports.contains(&port)).any(holds);
        if !served && checks.errors.len() == before {
            let message = format!("no first-level TLB serves {port:?} with pages of {}", stages.granule);
            let help = format!("add the port to an array of tlb.l1 whose sizes have \"{}\"", stages.granule);
            checks.fail(raw.l1.span(), message, help);
        }
    }
    TlbSpec {
        l1,
        l2,
        inclusion: raw.inclusion,
        rules,
        l2_hit_extra: Cycles(raw.l2_hit_extra_cycles),
        l2_hit_extra_fetch: Cycles(raw.l2_hit_extra_fetch_cycles),
    }
}

fn fetch_levels(raw: &RawFetch, checks: &mut Checks) -> FetchSpec {
    let level = |raw: &Spanned<RawFetchLevel>| {
        let raw = raw.get_ref();
        let cycles = checks.within("cycles", &raw.cycles, 0.0, 10_000.0);
        let shape = shape(&raw.entries, &raw.ways, raw.index, raw.replacement, checks)?;
        Some(FetchLevel { name: raw.name.clone(), shape, cycles })
    };
    FetchSpec { levels: raw.levels.iter().filter_map(level).collect(), beyond: raw.beyond_cycles }
}

fn psc_levels(raw: &[Spanned<RawPscLevel>], levels: u8, checks: &mut Checks) -> Vec<PscLevelSpec> {
    let mut made: Vec<PscLevelSpec> = Vec::new();
    for level in raw {
        let span = level.span();
        let level = level.get_ref();
        let tables = *level.tables.get_ref();
        if tables.saturating_add(1) >= levels {
            let message = format!("tables of level {tables} are the root's or above it in trees of {levels} levels");
            checks.fail(level.tables.span(), message, "level 0 is the last; a root needs no cache");
        } else if made.iter().any(|other| other.tables == Level::new(tables)) {
            checks.fail(span, format!("tables of level {tables} have two caches"), "keep one");
        } else if let Some(shape) = shape(&level.entries, &level.ways, level.index, level.replacement, checks) {
            made.push(PscLevelSpec { tables: Level::new(tables), shape });
        }
    }
    made
}
