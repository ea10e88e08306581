//! Executions of Arm scenarios as traces for checkers of break-before-make, ours and others'.
//!
//! The traces are in the form that [`judge_file`](super::judge_file) reads. What a scenario has and they do not is said in their words:
//!
//! | scenario | trace |
//! | --- | --- |
//! | a start table of several pages, or of a lower level than the highest | pages of their own below a table that nobody else sees |
//! | an atomic change of an entry, or a store under a shared lock | the same under a lock that is taken for it alone |
//! | `kvm_flush_remote_tlbs`: begins | `dsb ishst; tlbi vmalls12e1is` |
//! | ... ends, when every processor has made it | `dsb ish` |
//! | the same for one leaf | `dsb ishst; tlbi ipas2e1is`, then `dsb ish; tlbi vmalle1is; dsb ish` (`__kvm_tlb_flush_vmid_ipa`) |
//! | the same for a range | as for the whole guest: there is no instruction for ranges in these traces, so how far one reaches is not judged by them |
//! | the VM's root | every thread has it loaded |

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mmu_core::{Flush, FlushScope, Hpa, Level, WalkCaches};
use mmu_sim::explore::{Happened, Invariant, Trace};
use serde_json::{Value as Json, json};

/// Entries of a table with 4K pages.
const ENTRIES: u64 = 512;
const PAGE: u64 = 4096;
/// The level of the start table of four.
const TOP: Level = Level::new(3);

/// Why an execution cannot be written as such a trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportError {
    scenario: String,
    what: String,
}

impl fmt::Display for ExportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scenario {}: {}", self.scenario, self.what)
    }
}
impl std::error::Error for ExportError {}

/// A file of traces, one for each execution, as JSON. Executions that broke nothing are expected to be `ok`.
///
/// # Errors
/// When tables are not of 4K pages, or when an execution broke something that such traces cannot say.
pub fn casemate(executions: &[Trace]) -> Result<Json, ExportError> {
    let tests: Result<Vec<Json>, ExportError> =
        (0..).zip(executions).map(|(number, trace)| test(number, trace)).collect();
    Ok(json!({ "title": "executions of mmusim", "tests": tests? }))
}

fn test(number: usize, trace: &Trace) -> Result<Json, ExportError> {
    let error = |what: String| ExportError { scenario: trace.scenario.clone(), what };
    let expected = match &trace.broken {
        None => "ok",
        Some(broken) if broken.invariant == Invariant::B1 => "valid_to_valid_without_break",
        Some(broken) => {
            let what = format!("the execution breaks {}, which traces of table writes do not show", broken.invariant);
            return Err(error(what));
        }
    };
    let mut writer = Writer::of(trace).map_err(error)?;
    writer.set_up(trace);
    for &(thread, what) in trace.events.iter().skip(writer.begun) {
        writer.event(thread, what);
    }
    Ok(json!({ "id": format!("{} {number}", trace.scenario), "expected": expected, "ops": writer.ops }))
}

/// The page that an invalidation names, if it is of one leaf.
fn page_of(flush: Flush) -> Option<u64> {
    let FlushScope::Range { start, bytes, level } = flush.scope else { return None };
    let leaf = level.map_or(PAGE, |level| PAGE << (9 * level.index() as u32));
    (bytes <= leaf && flush.walk_caches == WalkCaches::Keep).then_some(start.raw() / PAGE)
}

/// Writes one trace.
struct Writer {
    ops: Vec<Json>,
    /// Tables by address, with their levels.
    tables: BTreeMap<u64, Level>,
    threads: BTreeSet<u32>,
    /// By start table: those above it, the highest last, and how many pages it has.
    above: BTreeMap<u64, (Vec<String>, u64)>,
    /// Events that tell what there was at the beginning.
    begun: usize,
}

fn name(table: u64) -> String {
    format!("t{:x}", table / PAGE)
}

impl Writer {
    fn of(trace: &Trace) -> Result<Self, String> {
        let threads = trace.events.iter().map(|&(thread, _)| thread).collect();
        let mut tables = BTreeMap::new();
        for (_, what) in &trace.events {
            if let Happened::NewTable { table, level, .. } = *what {
                tables.insert(table.raw(), level);
            }
        }
        let highest = tables.values().copied().max().unwrap_or(Level::LAST);
        for (_, what) in &trace.events {
            if let Happened::NewTable { table, words, level } = *what {
                let pages = words / ENTRIES;
                let start = level == highest && highest < TOP;
                if words % ENTRIES != 0 || (pages != 1 && !start) || level > TOP {
                    return Err(format!(
                        "the table at {table} has {words} entries at {level}; such traces know tables of 4K pages, {ENTRIES} \
                         entries each, and four levels"
                    ));
                }
                tables.extend((1..pages).map(|page| (table.raw() + page * PAGE, level)));
            }
        }
        Ok(Self { ops: Vec::new(), tables, threads, above: BTreeMap::new(), begun: trace.before })
    }

    fn op(&mut self, thread: u32, op: &Json) {
        self.ops.push(json!({ "tid": thread, "op": op }));
    }

    /// The tables as they were at the beginning, and their root, loaded by everybody.
    fn set_up(&mut self, trace: &Trace) {
        let mut root = None;
        for &(_, what) in &trace.events[..self.begun] {
            match what {
                Happened::Root { root: first, .. } => root = Some(first),
                Happened::Write { table, index, len, word, step } => self.write_all(0, table, index, (len, word, step)),
                Happened::NewTable { table, words, .. } => self.new_table(0, table, words),
                _ => {}
            }
        }
        if let Some(root) = root {
            self.load(root, 0);
        }
    }

    fn new_table(&mut self, thread: u32, table: Hpa, words: u64) {
        for page in 0..words / ENTRIES {
            self.op(thread, &json!(["init_page", name(table.raw() + page * PAGE)]));
        }
        let level = self.tables.get(&table.raw()).copied().unwrap_or(Level::LAST);
        if words > ENTRIES {
            self.put_below(thread, table, words / ENTRIES, level);
        }
    }

    /// Links the pages of a start table below a table of the highest level.
    fn put_below(&mut self, thread: u32, table: Hpa, pages: u64, level: Level) {
        let mut child: Vec<String> = (0..pages).map(|page| name(table.raw() + page * PAGE)).collect();
        let (mut at, mut all) = (level, Vec::new());
        while at < TOP {
            let above = format!("above {} {}", name(table.raw()), at.index());
            self.op(thread, &json!(["init_page", above]));
            for (index, page) in child.iter().enumerate() {
                self.op(thread, &json!(["write", [above, index], { "table": page }, "plain"]));
            }
            all.push(above.clone());
            child = vec![above];
            at = Level::new(at.index() as u8 + 1);
        }
        self.above.insert(table.raw(), (all, pages));
    }

    /// Everybody has this root loaded.
    fn load(&mut self, root: Hpa, generation: u16) {
        let level = self.tables.get(&root.raw()).copied().unwrap_or(TOP);
        if level < TOP && !self.above.contains_key(&root.raw()) {
            self.put_below(0, root, 1, level);
        }
        let above = self.above.get(&root.raw()).and_then(|(above, _)| above.last().cloned());
        let top = above.unwrap_or_else(|| name(root.raw()));
        self.op(0, &json!(["root_has_lock", [top, 0], "lock"]));
        for thread in self.threads.clone() {
            self.op(thread, &json!(["load_root", "stage2", [top, 0], { "id": u32::from(generation) + 1 }]));
        }
    }

    fn event(&mut self, thread: u32, what: Happened) {
        match what {
            Happened::NewTable { table, words, .. } => self.new_table(thread, table, words),
            Happened::Write { table, index, len, word, step } => {
                self.op(thread, &json!(["lock", "lock"]));
                self.write_all(thread, table, index, (len, word, step));
                self.op(thread, &json!(["unlock", "lock"]));
            }
            Happened::FlushBegins(flush) => self.flush(thread, flush),
            Happened::FlushEnds(flush) => {
                self.op(thread, &json!(["dsb", "ish"]));
                if page_of(flush).is_some() {
                    self.op(thread, &json!(["tlbi", "vmalle1is"]));
                    self.op(thread, &json!(["dsb", "ish"]));
                }
            }
            Happened::Free { table } => self.free(thread, table),
            Happened::Root { root, generation } => self.load(root, generation),
        }
    }

    /// A table goes; a start table with what was put above it.
    fn free(&mut self, thread: u32, table: Hpa) {
        let mut pages = 1;
        if let Some((above, of)) = self.above.remove(&table.raw()) {
            pages = of;
            for name in above.iter().rev() {
                self.op(thread, &json!(["release_table", [name, 0]]));
            }
        }
        for page in 0..pages {
            self.op(thread, &json!(["release_table", [name(table.raw() + page * PAGE), 0]]));
        }
    }

    fn write_all(&mut self, thread: u32, table: Hpa, index: u64, (len, word, step): (u64, u64, u64)) {
        for n in 0..len {
            let (page, index) = ((index + n) / ENTRIES, (index + n) % ENTRIES);
            let table = table.raw() + page * PAGE;
            let word = self.word(table, word.wrapping_add(step.wrapping_mul(n)));
            self.op(thread, &json!(["write", [name(table), index], word, "plain"]));
        }
    }

    /// The word of an entry: invalid, a table that is known, or anything else.
    fn word(&self, table: u64, word: u64) -> Json {
        const OUTPUT: u64 = 0xffff_ffff_f000;
        let level = self.tables.get(&table).copied().unwrap_or(Level::LAST);
        let below = word & OUTPUT;
        if word & 1 == 0 {
            json!({ "invalid": format!("{word:#x}") })
        } else if word & 2 != 0 && level != Level::LAST && self.tables.contains_key(&below) {
            json!({ "table": name(below) })
        } else {
            json!({ "raw": format!("{word:#x}") })
        }
    }

    fn flush(&mut self, thread: u32, flush: Flush) {
        self.op(thread, &json!(["dsb", "ishst"]));
        match page_of(flush) {
            Some(page) => self.op(thread, &json!(["tlbi", "ipas2e1is", page])),
            None => self.op(thread, &json!(["tlbi", "vmalls12e1is"])),
        }
    }
}
