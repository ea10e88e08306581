//! Memory as it is first touched, looked at and flushed: families `adbits`, `cmo`, `fresh`.

use crate::clock::timed;
use crate::events::{map, nothing, system, touch};
use crate::row::Row;
use crate::sys::{self, Disuse, LINE, Map, PAGE, Upkeep, Use, full_barrier, ticks};
use crate::{BenchError, Host};

/// Pages whose flags are looked at: within the first-level TLB, within the second, beyond.
const FLAGGED: [u64; 3] = [32, 512, 8192];

fn write_all(map: &mut Map, pages: u64) {
    (0..pages).for_each(|page| map.write(page * PAGE, 1));
}

fn read_all(map: &Map, pages: u64) {
    (0..pages).for_each(|page| touch(map.read(page * PAGE)));
}

/// Family `adbits`: the first load or store after the system has cleared a page's flags, and the same with the flags set.
pub(crate) fn adbits(host: &mut Host<'_>) -> Result<(), BenchError> {
    for pages in FLAGGED.into_iter().filter(|pages| pages * PAGE <= host.options.memory) {
        let bytes = pages * PAGE;
        let written = |_| {
            let mut map = map(bytes, Use::Small)?;
            write_all(&mut map, pages);
            Ok(map)
        };
        let clear = |map: &mut Map, how| system("clearing pages' flags", map.disuse(0..bytes, how));
        let point = |variant| ("adbits", variant, pages, "per_page");
        host.measure(point("store_dirty_pte"), written, |map| Ok(timed(pages, || write_all(map, pages))))?;
        host.measure(point("load_warm"), written, |map| Ok(timed(pages, || read_all(map, pages))))?;
        host.measure(point("load_after_cold_A0"), written, |map| {
            clear(map, Disuse::Cold)?;
            Ok(timed(pages, || read_all(map, pages)))
        })?;
        host.measure(point("load_A1"), written, |map| {
            clear(map, Disuse::Cold)?;
            read_all(map, pages);
            Ok(timed(pages, || read_all(map, pages)))
        })?;
        host.measure(point("store_after_free_AD0"), written, |map| {
            clear(map, Disuse::Free)?;
            Ok(timed(pages, || write_all(map, pages)))
        })?;
        host.measure(point("store_AD1"), written, |map| {
            clear(map, Disuse::Free)?;
            write_all(map, pages);
            Ok(timed(pages, || write_all(map, pages)))
        })?;
    }
    Ok(())
}

/// Lines that are flushed one after the other.
const LINES: u64 = 256;

/// What a line holds before its upkeep.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Dirty,
    Clean,
    Absent,
}

/// Family `cmo`: cache maintenance by line.
pub(crate) fn cmo(host: &mut Host<'_>) -> Result<(), BenchError> {
    for (variant, lines, what, before) in [
        ("clflush_dirty_per_line", LINES, Upkeep::Flush, Before::Dirty),
        ("clflush_absent_per_line", LINES, Upkeep::Flush, Before::Absent),
        ("clflushopt_dirty_per_line", LINES, Upkeep::FlushLoosely, Before::Dirty),
        ("clflushopt_clean_per_line", LINES, Upkeep::FlushLoosely, Before::Clean),
        ("clwb_dirty_per_line", LINES, Upkeep::WriteBack, Before::Dirty),
        ("clflushopt_one_dirty_fenced", 1, Upkeep::FlushLoosely, Before::Dirty),
    ] {
        if !sys::upkeep_known(what) {
            (host.say)(&format!("cmo {variant}: left out, the processor has no such instruction"));
            continue;
        }
        let all = |map: &Map, what| (0..lines).for_each(|line| map.upkeep(line * LINE, what));
        host.measure(
            ("cmo", variant, lines, "per_line"),
            |_| map(LINES * LINE, Use::Small),
            |map| {
                (0..lines).for_each(|line| map.write(line * LINE, 1));
                if before != Before::Dirty {
                    all(map, Upkeep::Flush);
                }
                if before == Before::Clean {
                    (0..lines).for_each(|line| touch(map.read(line * LINE)));
                }
                full_barrier();
                Ok(timed(lines, || {
                    all(map, what);
                    full_barrier();
                }))
            },
        )?;
    }
    Ok(())
}

/// Pages that are touched for the first time, at most.
const FRESH: u64 = 1 << 18;
/// What takes longer was not the page's doing.
const DISTURBED_NS: f64 = 30_000.0;

/// Family `fresh`: each page's first touch by itself. In the first pass a hypervisor may have to find memory as well; in the second the
/// system gives pages that it has just got back.
pub(crate) fn fresh(host: &mut Host<'_>) -> Result<(), BenchError> {
    let pages = (host.options.memory / PAGE).min(FRESH);
    for pass in 0..2 {
        (host.say)(&format!("fresh pass{pass} {pages}"));
        let mut map = map(pages * PAGE, Use::Small)?;
        let mut took = Vec::with_capacity(pages as usize);
        for page in 0..pages {
            let from = ticks();
            map.write(page * PAGE, 1);
            took.push(ticks().wrapping_sub(from) as f64);
        }
        drop(map);
        took.sort_by(f64::total_cmp);
        let short = took.iter().filter(|&&ticks| ticks < DISTURBED_NS * host.clock.per_ns);
        let (sum, count) = short.fold((0.0, 0_u64), |(sum, count), ticks| (sum + ticks, count + 1));
        let mut rows = vec![(format!("pass{pass}_mean_below_30us"), count, sum / count.max(1) as f64)];
        for percent in [5, 25, 50, 75, 95, 99] {
            let place = (took.len() * percent / 100).min(took.len() - 1);
            rows.push((format!("pass{pass}_p{percent:02}"), pages, took[place]));
        }
        let row = |(variant, n, ticks)| Row { bench: "fresh", variant, n, unit: "per_page", runs: vec![vec![ticks]] };
        host.rows.extend(rows.into_iter().map(row));
    }
    nothing(0)
}
