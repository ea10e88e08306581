//! Figures of a sheet that measurements say directly: the core's clock, latencies at plateaus, the first-level TLB's reach at its knee,
//! costs that are one event's duration.
//!
//! The sheet's text is edited, not rewritten: what is not touched keeps its place and its source, what is set says where it is from.
//! [`calibrate`] fits nothing by trial: figures that take a search (organisation of the second-level TLB, paging-structure caches, costs of
//! references of a walk, latency of memory) are left, and named. [`searched`] sets those that a [fit](crate::fit) has found.

use mmu_core::machine::Machine;

use crate::fit::Fit;
use crate::score::Measured;

/// A figure that was set or confirmed.
#[derive(Clone, PartialEq, Debug)]
pub struct Figure {
    /// Its place in the sheet: section and key, or section, name and key.
    pub place: String,
    /// What the base sheet has.
    pub was: String,
    /// What the measurements say.
    pub now: String,
    /// The points that say so.
    pub from: String,
}

/// A figure that was left as it was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Left {
    /// Its place in the sheet.
    pub place: String,
    /// Why.
    pub why: String,
}

/// A sheet after calibration.
#[derive(Clone, PartialEq, Debug)]
pub struct Calibration {
    /// The text of the new sheet.
    pub text: String,
    /// Figures that measurements say.
    pub set: Vec<Figure>,
    /// Figures that they do not say, or not alone.
    pub left: Vec<Left>,
}

/// Durations of single events: section, key, event, share of its duration.
const DURATIONS: [(&str, &str, &str, f64); 19] = [
    ("cost", "guest_fault_ns", "anon4k_first_write", 1.0),
    ("cost", "atomic_local_ns", "xadd_local", 1.0),
    ("cost", "line_transfer_ns", "handoff_store_oneway", 1.0),
    ("cost", "lock_handoff_ns", "handoff_store_oneway", 1.0),
    ("cost", "rcu_grace_period_ns", "global_rcu_gp_1t", 1.0),
    ("cost", "page_clear_4k_ns", "repstosb_4k_cold", 1.0),
    // A round trip is an exit and an entry; which half is which cannot be seen from inside.
    ("cost", "vm_exit_ns", "cpuid_loop", 0.5),
    ("cost", "vm_entry_ns", "cpuid_loop", 0.5),
    ("software_ns", "syscall", "syscall_getppid", 1.0),
    ("software_ns", "pause", "pause", 1.0),
    ("software_ns", "fence", "mfence", 1.0),
    ("software_ns", "zero_read_fault", "zeropage_first_read", 1.0),
    ("software_ns", "fault_2m", "thp_first_write_per_2m", 1.0),
    ("software_ns", "membarrier", "private_expedited_1t", 1.0),
    ("software_ns", "wake_other", "pipe_wake_other_cpu_oneway", 1.0),
    ("software_ns", "switch", "pipe_switch_same_cpu_oneway", 1.0),
    ("software_ns", "yield", "sched_yield_alone", 1.0),
    ("software_ns", "clear_4k_l1", "repstosb_4k_L1hot", 1.0),
    ("software_ns", "clear_2m", "repstosb_2m", 1.0),
];

/// A round trip through a hypervisor takes longer than this; CPUID on bare metal does not.
const ROUND_TRIP_NS: f64 = 200.0;

/// Figures that no plateau says alone.
const NOT_TOLD: [(&str, &str); 5] = [
    ("tlb.l2", "one knee does not tell entries from organisation and inclusion; compare with `predict --against`"),
    ("psc", "regions beyond each cache differ by a reference or two; compare with `predict --against`"),
    ("walk", "cycles of references of a walk take a search over curves"),
    ("cache.memory", "chases that reach memory walk as well"),
    ("cost", "costs inside a hypervisor cannot be seen from its guest, nor without one"),
];

/// Calibrates the text of a valid sheet by measured points.
///
/// # Errors
/// The text is no valid sheet; measurements that make it none, with the figure to look at.
pub fn calibrate(sheet: &str, rows: &[Measured]) -> Result<Calibration, String> {
    let errors = |errors: Vec<mmu_core::machine::MachineError>| {
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    Machine::from_toml(sheet).map_err(errors)?;
    let mut work = Work { lines: sheet.lines().map(str::to_owned).collect(), rows, set: Vec::new(), left: Vec::new() };
    work.clock();
    work.caches();
    work.tlb();
    work.durations();
    work.left.extend(NOT_TOLD.map(|(place, why)| Left { place: place.to_owned(), why: why.to_owned() }));
    let text = work.lines.join("\n") + "\n";
    Machine::from_toml(&text).map_err(errors)?;
    Ok(Calibration { text, set: work.set, left: work.left })
}

/// Sets what a search has found and plateaus do not say, in a sheet that [`calibrate`] made.
///
/// # Errors
/// The text is no valid sheet.
pub fn searched(made: Calibration, fit: &Fit) -> Result<Calibration, String> {
    let Calibration { text, set, left } = made;
    let lines = text.lines().map(str::to_owned).collect();
    let left = left.into_iter().filter(|left| !NOT_TOLD.iter().any(|(place, _)| *place == left.place)).collect();
    let mut work = Work { lines, rows: &[], set, left };
    let from = "found by search, all curves";
    for fitted in &fit.constants {
        let known = work.set.iter().any(|figure| figure.place == fitted.place);
        let Some(value) = fitted.value.as_ref().filter(|_| !known) else {
            if fitted.value.is_none() {
                work.leave(&fitted.place, &format!("no row says it: {}", fitted.from));
            }
            continue;
        };
        let place = fitted.place.clone();
        work.put_at(spots(&place), &place, &as_sheets_have_it(&place, value, fit), from);
    }
    work.leave("cost", "costs inside a hypervisor cannot be seen from its guest, nor without one");
    let text = work.lines.join("\n") + "\n";
    Machine::from_toml(&text)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))?;
    Ok(Calibration { text, set: work.set, left: work.left })
}

/// Section, what marks the inline table, and key of a place of a fit.
fn spots(place: &str) -> (&str, Option<String>, &str) {
    match place {
        "cache.memory" => ("cache", Some("memory = {".to_owned()), "latency_ns"),
        "psc.0.entries" => ("psc", Some("tables = 0".to_owned()), "entries"),
        "tlb.0.l2 organisation" => ("tlb", Some("name = \"l2\"".to_owned()), "ways"),
        _ => {
            let (section, rest) = place.split_once('.').unwrap_or(("", place));
            match rest.rsplit_once('.') {
                Some((name, key)) => (section, Some(format!("name = \"{name}\"")), key),
                None => (section, None, rest),
            }
        }
    }
}

/// A value as a sheet writes it: whole where it counts, in quotes where it is a word, memory in nanoseconds.
fn as_sheets_have_it(place: &str, value: &str, fit: &Fit) -> String {
    let number = value.parse::<f64>();
    match (place, number) {
        ("cache.memory", Ok(cycles)) => format!("{:.1}", cycles / fit.setting.machine.clock.ghz()),
        ("tlb.0.l2 organisation", _) => value.split(' ').next().unwrap_or(value).to_owned(),
        (_, Err(_)) => format!("\"{value}\""),
        (_, Ok(number)) if WHOLE.iter().any(|key| place.ends_with(key)) => format!("{number:.0}"),
        (_, Ok(_)) => value.to_owned(),
    }
}

/// Keys whose values are counts or whole cycles.
const WHOLE: [&str; 7] = [
    "latency_cycles",
    "l2_hit_extra_cycles",
    "l2_hit_extra_fetch_cycles",
    "reference_cycles",
    "in_flight",
    "fill_buffers",
    "entries",
];

struct Work<'a> {
    lines: Vec<String>,
    rows: &'a [Measured],
    set: Vec<Figure>,
    left: Vec<Left>,
}

/// Where a figure stands: its line, and the bytes of its value in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    line: usize,
    from: usize,
    to: usize,
}

impl Work<'_> {
    fn clock(&mut self) {
        let mut clocks: Vec<f64> = self
            .rows
            .iter()
            .filter(|row| row.ns_median > 1.0)
            .map(|row| row.core_cycles_median / row.ns_median)
            .collect();
        match median(&mut clocks) {
            Some(ghz) => {
                self.put("", None, "clock_ghz", &format!("{ghz:.2}"), "core cycles to nanoseconds, all points");
            }
            None => self.leave("clock_ghz", "no point takes longer than a nanosecond"),
        }
    }

    /// Latency of each cache from chases that it holds and the one before does not.
    fn caches(&mut self) {
        let names = self.names("cache");
        let mut inner = 0.0;
        for name in names {
            let Some(bytes) = self.number("cache", Some(&name), "kib").map(|kib| kib * 1024.0) else { continue };
            // Lines of scattered frames begin to leave an outer cache long before it is full.
            let share = if inner > 0.0 { 8.0 } else { 2.0 };
            let range = (2.0 * inner / 64.0, bytes / share / 64.0);
            let place = format!("cache.{name}.latency_cycles");
            match self.plateau("packed64_thp", range) {
                Some(cycles) => {
                    let from = format!("packed64_thp, n {:.0} to {:.0}", range.0, range.1);
                    self.put("cache", Some(&name), "latency_cycles", &format!("{:.0}", cycles.max(1.0)), &from);
                }
                None if range.0 > range.1 => self.leave(&place, "too short a plateau between its neighbours"),
                None => self.leave(&place, &format!("no point of packed64_thp from {:.0} to {:.0}", range.0, range.1)),
            }
            inner = bytes;
        }
    }

    /// The first level's reach, and what a hit in the second costs.
    fn tlb(&mut self) {
        let Some(name) = self.names("tlb").into_iter().next() else { return };
        let Some(entries) = self.number("tlb", Some(&name), "entries") else { return };
        let low = self.plateau("zero4k", (1.0, entries / 2.0));
        let high = self.plateau("zero4k", (2.0 * entries, 8.0 * entries));
        let (Some(low), Some(high)) = (low, high) else {
            let why = format!(
                "needs points of zero4k up to {:.0} and from {:.0} to {:.0}",
                entries / 2.0,
                2.0 * entries,
                8.0 * entries
            );
            return self.leave("tlb.l2_hit_extra_cycles", &why);
        };
        if high < low + 1.0 {
            return self.leave("tlb.l2_hit_extra_cycles", "zero4k does not rise behind the first level");
        }
        self.put(
            "tlb",
            None,
            "l2_hit_extra_cycles",
            &format!("{:.0}", high - low),
            "zero4k, its second plateau above its first",
        );
        self.reach(&name, entries, low + 0.25 * (high - low));
    }

    /// The last point below a height is the reach, known to the next point.
    fn reach(&mut self, name: &str, entries: f64, height: f64) {
        let mut curve = self.curve("zero4k");
        curve.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some(end) = curve.iter().position(|(_, cycles)| *cycles > height).filter(|end| *end > 0) else {
            return self.leave(&format!("tlb.{name}.entries"), "zero4k has no knee");
        };
        let (last, next) = (curve[end - 1].0, curve[end].0);
        let place = format!("tlb.{name}.entries");
        if last <= entries && entries < next {
            let from = format!("zero4k rises between {last:.0} and {next:.0} pages");
            self.set.push(Figure { place, was: format!("{entries:.0}"), now: format!("{entries:.0}"), from });
            return;
        }
        let from = format!("zero4k rises between {last:.0} and {next:.0} pages");
        self.put("tlb", Some(name), "entries", &format!("{last:.0}"), &from);
    }

    fn durations(&mut self) {
        for (section, key, event, share) in DURATIONS {
            let place = format!("{section}.{key}");
            let Some(row) = self.rows.iter().find(|row| row.variant == event) else {
                self.leave(&place, &format!("{event} was not measured"));
                continue;
            };
            if event == "cpuid_loop" && row.ns_median < ROUND_TRIP_NS {
                self.leave(&place, "CPUID is too fast to have left a virtual machine");
                continue;
            }
            let ns = share * row.ns_median;
            let text = if ns >= 100.0 { format!("{ns:.1}") } else { format!("{ns:.2}") };
            self.put(section, None, key, &text, event);
        }
    }

    fn leave(&mut self, place: &str, why: &str) {
        self.left.push(Left { place: place.to_owned(), why: why.to_owned() });
    }

    /// Points of a curve.
    fn curve(&self, name: &str) -> Vec<(f64, f64)> {
        self.rows.iter().filter(|row| row.variant == name).map(|row| (row.n as f64, row.core_cycles_median)).collect()
    }

    /// The median of a curve between two points, ends included.
    fn plateau(&self, name: &str, (from, to): (f64, f64)) -> Option<f64> {
        let mut cycles: Vec<f64> =
            self.curve(name).into_iter().filter(|(n, _)| (from..=to).contains(n)).map(|(_, cycles)| cycles).collect();
        median(&mut cycles)
    }

    /// Sets a figure and says so behind it; one that the base does not have, or that does not go with the others, is left.
    fn put(&mut self, section: &str, name: Option<&str>, key: &str, value: &str, from: &str) {
        let place = [section, name.unwrap_or(""), key]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join(".");
        self.put_at((section, name.map(|name| format!("name = \"{name}\"")), key), &place, value, from);
    }

    fn put_at(&mut self, (section, mark, key): (&str, Option<String>, &str), place: &str, value: &str, from: &str) {
        let Some(found) = self.find(section, mark.as_deref(), key) else {
            return self.leave(place, &format!("the base sheet does not have it; the rows say {value} ({from})"));
        };
        let line = &self.lines[found.line];
        let was = line[found.from..found.to].to_owned();
        let now = if was.contains('.') && !value.contains('.') { format!("{value}.0") } else { value.to_owned() };
        let code = code(line);
        let changed = format!("{}{now}{}", &line[..found.from], code[found.to..].trim_end());
        let before = std::mem::replace(&mut self.lines[found.line], format!("{changed}  # M: {from}; was {was}"));
        if let Err(errors) = Machine::from_toml(&self.lines.join("\n")) {
            self.lines[found.line] = before;
            let what = errors.first().map_or_else(String::new, ToString::to_string);
            let remedy = "measure on a quiet host, choose a base of the same core, or set sizes and ways by hand";
            return self.leave(place, &format!("{now} ({from}) makes no valid sheet: {what}; {remedy}"));
        }
        self.set.push(Figure { place: place.to_owned(), was, now, from: from.to_owned() });
    }

    fn number(&self, section: &str, name: Option<&str>, key: &str) -> Option<f64> {
        let place = self.find(section, name.map(|name| format!("name = \"{name}\"")).as_deref(), key)?;
        self.lines[place.line][place.from..place.to].parse().ok()
    }

    /// Names of a section's inline tables, in their order.
    fn names(&self, section: &str) -> Vec<String> {
        let of = |line: usize| {
            let (_, rest) = code(&self.lines[line]).split_once("name = \"")?;
            Some(rest.split('"').next()?.to_owned())
        };
        self.section(section).filter_map(of).collect()
    }

    /// Lines of a section; the part before the first one has no name.
    fn section(&self, section: &str) -> std::ops::Range<usize> {
        let is_head = |line: &String| line.starts_with('[');
        let start = if section.is_empty() {
            Some(0)
        } else {
            self.lines.iter().position(|line| code(line).trim() == format!("[{section}]")).map(|at| at + 1)
        };
        let start = start.unwrap_or(self.lines.len());
        let end = self.lines[start..].iter().position(is_head).map_or(self.lines.len(), |length| start + length);
        start..end
    }

    /// The value of a key: of the section, or of the inline table with that mark.
    fn find(&self, section: &str, mark: Option<&str>, key: &str) -> Option<Place> {
        self.section(section).find_map(|line| {
            let text = code(&self.lines[line]);
            let start = match mark {
                Some(mark) => text.find(mark)?,
                None if text.trim_start().starts_with(key) => text.len() - text.trim_start().len(),
                None => return None,
            };
            let at = start + text[start..].find(&format!("{key} ="))?;
            let from =
                at + key.len() + 2 + (text[at + key.len() + 2..].len() - text[at + key.len() + 2..].trim_start().len());
            let length = text[from..].find([',', '}', ' ', ']']).unwrap_or(text.len() - from);
            Some(Place { line, from, to: from + length })
        })
    }
}

/// A line without its comment; sheets have no `#` in strings.
fn code(line: &str) -> &str {
    line.split('#').next().unwrap_or(line)
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(variant: &str, n: u64, cycles: f64) -> Measured {
        let (bench, unit) = ("chase".to_owned(), "per_load".to_owned());
        Measured { bench, variant: variant.to_owned(), n, unit, ns_median: cycles / 3.1, core_cycles_median: cycles }
    }

    fn base() -> &'static str {
        Machine::sheet("intel-granite-rapids-host").unwrap()
    }

    /// Measurements of a core whose first-level TLB has 48 entries, whose caches take 4 and 14 cycles, at 3.1 GHz.
    fn rows() -> Vec<Measured> {
        let mut rows = vec![row("anon4k_first_write", 4096, 1550.0), row("cpuid_loop", 1, 100.0)];
        for n in [8, 16, 32, 48, 64, 96, 192, 256, 512] {
            rows.push(row("zero4k", n, if n <= 48 { 6.0 } else { 15.0 }));
        }
        for n in [8, 64, 256, 2048, 8192] {
            rows.push(row("packed64_thp", n, if n <= 256 { 4.0 } else { 14.0 }));
        }
        rows
    }

    #[test]
    fn plateaus_and_knees_become_figures_and_the_sheet_stays_valid() {
        let made = calibrate(base(), &rows()).unwrap();
        let machine = Machine::from_toml(&made.text).unwrap();
        assert!((machine.clock.ghz() - 3.1).abs() < 1e-9);
        let now = |place: &str| made.set.iter().find(|figure| figure.place == place).map(|figure| figure.now.as_str());
        assert_eq!(now("cache.l1d.latency_cycles"), Some("4"));
        assert_eq!(now("cache.l2.latency_cycles"), Some("14"));
        assert_eq!(now("tlb.l2_hit_extra_cycles"), Some("9"));
        assert_eq!(now("tlb.l1d-4k.entries"), Some("48"));
        assert_eq!(now("cost.guest_fault_ns"), Some("500.0"));
        assert!(
            made.text.contains("name = \"l1d\", kib = 48, ways = 12, latency_cycles = 4 },  # M: packed64_thp"),
            "{}",
            made.text
        );
    }

    #[test]
    fn what_was_not_measured_is_left_and_named() {
        let made = calibrate(base(), &rows()).unwrap();
        let why = |place: &str| made.left.iter().find(|left| left.place == place).map(|left| left.why.as_str());
        assert!(why("cache.l3.latency_cycles").unwrap().contains("too short a plateau"));
        assert!(why("cost.vm_exit_ns").unwrap().contains("too fast"));
        assert!(why("cost.atomic_local_ns").unwrap().contains("xadd_local was not measured"));
        assert!(why("tlb.l2").is_some() && why("walk").is_some());
        let none = calibrate(base(), &[]).unwrap();
        assert_eq!((none.text.as_str(), none.set.len()), (base(), 0), "nothing measured, nothing changed");
    }

    #[test]
    fn a_reach_that_the_ways_do_not_allow_is_left() {
        let mut rows = rows();
        rows.iter_mut().filter(|row| row.variant == "zero4k" && row.n == 48).for_each(|row| row.n = 47);
        let made = calibrate(base(), &rows).unwrap();
        assert!(
            made.left.iter().any(|left| left.place == "tlb.l1d-4k.entries" && left.why.contains("ways")),
            "{:?}",
            made.left
        );
        assert!(made.text.contains("name = \"l1d-4k\", entries = 96"), "{}", made.text);
    }

    /// The base, with what a search is said to have found.
    fn fitted(constants: &[(&str, Option<&str>)]) -> Fit {
        let fitted = |&(place, value): &(&str, Option<&str>)| crate::fit::Fitted {
            place: place.to_owned(),
            value: value.map(str::to_owned),
            from: "curves",
        };
        Fit::of(Machine::from_toml(base()).unwrap(), constants.iter().map(fitted).collect())
    }

    #[test]
    fn what_a_search_finds_goes_where_the_sheet_has_it() {
        let fit = fitted(&[
            ("cache.memory", Some("390.00")),
            ("cache.l3.replacement", Some("lru")),
            ("cache.l1d.latency_cycles", Some("9.00")),
            ("tlb.0.l2 organisation", Some("16 ways, hashed")),
            ("tlb.inclusion", Some("non-inclusive")),
            ("psc.0.entries", Some("64")),
            ("walk.in_flight", Some("9.00")),
            ("software_ns.unmap_page", Some("12.50")),
            ("fetch.beyond_cycles", None),
            ("surroundings.used", Some("2 GiB")),
        ]);
        let made = searched(calibrate(base(), &rows()).unwrap(), &fit).unwrap();
        let machine = Machine::from_toml(&made.text).unwrap_or_else(|errors| panic!("{errors:?}\n{}", made.text));
        assert!((machine.caches.memory.0 as f64 / machine.clock.ghz() - 100.0).abs() < 1.0, "390 cycles at 3.9 GHz");
        assert_eq!(machine.caches.levels[0].latency.0, 4, "what a plateau says is not searched for");
        assert_eq!(machine.translation.tlb.l2[0].shape.ways(), 16);
        assert_eq!(machine.translation.psc.levels[0].shape.entries(), 64);
        assert_eq!(machine.walk.in_flight, 9);
        assert!((machine.software_ns["unmap_page"] - 12.5).abs() < 1e-9);
        let left = |place: &str| made.left.iter().find(|left| left.place == place).map(|left| left.why.as_str());
        assert!(left("fetch.beyond_cycles").unwrap().contains("no row says it"));
        assert!(left("surroundings.used").unwrap().contains("2 GiB"));
        assert!(left("psc").is_none(), "{:?}", made.left);
    }

    #[test]
    fn a_text_that_is_no_sheet_is_refused() {
        assert!(!calibrate("name = 3", &rows()).unwrap_err().is_empty());
    }
}
