//! Traces of protocol steps with expected verdicts.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use serde::Serialize;
use serde_json::Value as Json;

use super::entry::{BarrierReach, Regime, TlbiKind};
use super::machine::{EntryAt, Event, Lint, Rule, Violation};
use crate::litmus::read::{decompressed, kind};

/// What a file may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of a file, after decompression.
    pub bytes: u64,
    /// Memory of the decompressor, in KiB.
    pub xz_memory_kib: u32,
    /// Traces of a file.
    pub traces: usize,
    /// Steps of a trace.
    pub steps: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 64 << 20, xz_memory_kib: 96 << 10, traces: 10_000, steps: 100_000 }
    }
}

/// Why a file cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LintError {
    file: String,
    place: String,
    what: String,
}

impl fmt::Display for LintError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, place, what } = self;
        write!(f, "{file}{place}: {what}")
    }
}
impl std::error::Error for LintError {}

/// A trace's verdict.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Judged {
    /// The trace.
    pub id: String,
    /// What the file expects: `ok`, or the name of a [`Rule`].
    pub expected: String,
    /// The step at which the file expects it, from 0.
    pub expected_step: Option<u64>,
    /// The first violation.
    pub found: Option<Violation>,
    /// Whether that is what is expected, no later than expected.
    pub agrees: bool,
}

/// Replays every trace of a stream called `name`, plain or xz.
///
/// # Errors
/// With file, trace, step and remedy when the stream is not of the format.
pub fn judge_file(name: &str, reader: impl Read, limits: &Limits) -> Result<Vec<Judged>, LintError> {
    let error = |place: String, what: String| LintError { file: name.to_owned(), place, what };
    let bytes = decompressed(reader, limits.bytes, limits.xz_memory_kib).map_err(|what| error(String::new(), what))?;
    let document: Json = serde_json::from_slice(&bytes)
        .map_err(|why| error(String::new(), format!("not JSON: {why}; fetch the file again")))?;
    let Some(traces) = document.get("tests").and_then(Json::as_array) else {
        let what = "no list `tests`; a trace file is {\"tests\": [{\"id\", \"expected\", \"ops\"}, ..]}".to_owned();
        return Err(error(String::new(), what));
    };
    if traces.len() > limits.traces {
        let what = format!("{} traces, limit {}; split the file", traces.len(), limits.traces);
        return Err(error(String::new(), what));
    }
    (1..)
        .zip(traces)
        .map(|(number, trace): (usize, _)| {
            let id = trace.get("id").and_then(Json::as_str).filter(|id| id.len() < 200);
            let id = id.map_or_else(|| format!("number {number}"), str::to_owned);
            judge(&id, trace, limits).map_err(|(step, what)| {
                let step = step.map_or_else(String::new, |step| format!(", step {step}"));
                error(format!(", trace {id}{step}"), what)
            })
        })
        .collect()
}

type Failure = (Option<usize>, String);

fn judge(id: &str, trace: &Json, limits: &Limits) -> Result<Judged, Failure> {
    let whole = |what: String| (None, what);
    let expected = trace.get("expected").and_then(Json::as_str).unwrap_or_default();
    if expected != "ok" && Rule::ALL.iter().all(|(name, _)| *name != expected) {
        let known: Vec<_> = Rule::ALL.iter().map(|(name, _)| *name).collect();
        let given = trace.get("expected").map_or_else(|| "nothing".to_owned(), kind);
        return Err(whole(format!("expected: {given}; known: ok, {}", known.join(", "))));
    }
    let Some(ops) = trace.get("ops").and_then(Json::as_array) else {
        return Err(whole("ops: missing, or no list".to_owned()));
    };
    if ops.len() > limits.steps {
        return Err(whole(format!("{} steps, limit {}; split the trace", ops.len(), limits.steps)));
    }
    let mut lint = Lint::new().map_err(|error| whole(error.to_string()))?;
    let mut names = Names::default();
    let mut found = None;
    for (step, op) in ops.iter().enumerate() {
        let (thread, event) = names.step(op).map_err(|what| (Some(step), what))?;
        let violation = lint.event(thread, event);
        found = found.or(violation);
    }
    let expected_step = trace.get("violation_at_step").and_then(Json::as_u64);
    let agrees = match found {
        None => expected == "ok",
        Some(violation) => {
            violation.rule.name() == expected && expected_step.is_none_or(|expected| violation.step <= expected)
        }
    };
    Ok(Judged { id: id.to_owned(), expected: expected.to_owned(), expected_step, found, agrees })
}

/// Frames and locks by the names of a trace.
#[derive(Default)]
struct Names {
    frames: BTreeMap<String, u64>,
    locks: BTreeMap<String, u64>,
}

/// Frames of named pages begin here: 0 is what a zero word points to.
const FIRST_FRAME: u64 = 0x100;

impl Names {
    fn frame(&mut self, name: &str) -> u64 {
        let next = FIRST_FRAME + self.frames.len() as u64;
        *self.frames.entry(name.to_owned()).or_insert(next)
    }

    fn lock(&mut self, value: Option<&Json>) -> Result<u64, String> {
        let name = text(value, "a lock")?;
        let next = self.locks.len() as u64;
        Ok(*self.locks.entry(name.to_owned()).or_insert(next))
    }

    /// `["page", index]`, or the name of a place that the trace does not follow.
    fn place(&mut self, value: Option<&Json>) -> Result<Option<EntryAt>, String> {
        match value {
            Some(Json::String(_)) => Ok(None),
            Some(Json::Array(parts)) => match parts.as_slice() {
                [Json::String(page), index] => {
                    let index = index.as_u64().filter(|index| *index < 512);
                    let index = index.ok_or_else(|| "an index from 0 to 511 is expected".to_owned())?;
                    Ok(Some(EntryAt { table: self.frame(page), index: index as u16 }))
                }
                _ => Err("a place is [page, index]".to_owned()),
            },
            other => {
                Err(format!("{} where [page, index] is expected", other.map_or_else(|| "nothing".to_owned(), kind)))
            }
        }
    }

    fn table(&mut self, value: Option<&Json>) -> Result<Option<u64>, String> {
        Ok(self.place(value)?.map(|at| at.table))
    }

    /// A step, with the thread that takes it.
    fn step(&mut self, step: &Json) -> Result<(u32, Event), String> {
        match step {
            Json::Object(map) => {
                let thread = map.get("tid").and_then(Json::as_u64).and_then(|thread| u32::try_from(thread).ok());
                let thread = thread.ok_or("tid: the number of a thread is expected")?;
                let op = map.get("op").and_then(Json::as_array).ok_or("op: a list is expected")?;
                Ok((thread, self.event(op)?))
            }
            Json::Array(op) => Ok((0, self.event(op)?)),
            other => Err(format!("{} where a list is expected", kind(other))),
        }
    }

    fn event(&mut self, op: &[Json]) -> Result<Event, String> {
        let (name, first) = (text(op.first(), "an operation")?, op.get(1));
        let untracked = Event::Other;
        Ok(match name {
            "init_page" => Event::NewTable { table: self.frame(text(first, "a page")?) },
            "root_has_lock" => match self.table(first)? {
                Some(root) => Event::RootLock { root, lock: self.lock(op.get(2))? },
                None => untracked,
            },
            "page_belongs_to_root" => match self.table(first)? {
                Some(table) => Event::Owner { table, root: self.table(op.get(2))? },
                None => untracked,
            },
            "load_root" => {
                let regime = match text(first, "a regime")? {
                    "stage2" => Regime::Stage2,
                    "hyp_stage1" => Regime::HypStage1,
                    other => return Err(format!("`{other}`: unknown regime; known: stage2, hyp_stage1")),
                };
                let id =
                    op.get(3).and_then(|id| id.get("id")).and_then(Json::as_u64).ok_or("{\"id\": n} is expected")?;
                match self.table(op.get(2))? {
                    Some(root) => Event::Activate { regime, root, id },
                    None => untracked,
                }
            }
            "release_table" => self.table(first)?.map_or(untracked, |table| Event::Release { table }),
            "lock" => Event::Lock { lock: self.lock(first)? },
            "unlock" => Event::Unlock { lock: self.lock(first)? },
            "write" => match self.place(first)? {
                Some(at) => Event::Write { at, word: self.word(op.get(2))? },
                None => untracked,
            },
            "dsb" => Event::Barrier { reach: reach(text(first, "a kind of DSB")?)? },
            "tlbi" => Event::Invalidate { kind: tlbi(text(first, "a TLBI")?, op.get(2))? },
            "isb" | "sysreg" | "read" => untracked,
            other => {
                let known = "init_page, root_has_lock, page_belongs_to_root, load_root, release_table, lock, unlock, write, read, dsb, \
                             tlbi, isb, sysreg";
                return Err(format!("`{other}`: unknown; known: {known}"));
            }
        })
    }

    /// The word of an entry.
    fn word(&mut self, value: Option<&Json>) -> Result<u64, String> {
        const ACCESSED: u64 = 1 << 10;
        let map = value.and_then(Json::as_object).ok_or("an entry is expected: invalid, table, block, page or raw")?;
        let attrs = match map.get("attrs") {
            Some(attrs) => number(attrs)?,
            None => ACCESSED,
        };
        for (what, value) in map {
            return Ok(match what.as_str() {
                "invalid" => number(value)? & !1,
                "raw" => number(value)?,
                "table" => self.frame(text(Some(value), "a page")?) << 12 | 3,
                "block" => number(value)? | attrs | 1,
                "page" => number(value)? | attrs | 3,
                "attrs" => continue,
                other => {
                    return Err(format!("`{other}`: unknown entry; known: invalid, table, block, page, raw, attrs"));
                }
            });
        }
        Err("an entry is expected: invalid, table, block, page or raw".to_owned())
    }
}

fn text<'a>(value: Option<&'a Json>, what: &str) -> Result<&'a str, String> {
    let found = value.and_then(Json::as_str);
    found.ok_or_else(|| format!("{} where {what} is expected", value.map_or_else(|| "nothing".to_owned(), kind)))
}

/// A number, or one in hexadecimal as text.
fn number(value: &Json) -> Result<u64, String> {
    let hexadecimal = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let found = value.as_u64().or_else(|| hexadecimal(value.as_str()?));
    found.ok_or_else(|| format!("{} where a number of 64 bits is expected", kind(value)))
}

fn reach(name: &str) -> Result<BarrierReach, String> {
    Ok(match name {
        "ish" | "osh" | "sy" | "full" => BarrierReach::Full,
        "ishst" | "oshst" | "st" => BarrierReach::Stores,
        "ishld" | "oshld" | "ld" | "nsh" | "nshst" | "nshld" => BarrierReach::Less,
        other => return Err(format!("`{other}`: unknown kind of DSB; known: ish, osh, sy, nsh, each with st or ld")),
    })
}

/// A TLBI by its architectural name. Those that other processors do not get, and those of other regimes, count for nothing.
fn tlbi(name: &str, operand: Option<&Json>) -> Result<TlbiKind, String> {
    let (stem, broadcast) = match name.strip_suffix("is").or_else(|| name.strip_suffix("os")) {
        Some(stem) => (stem, true),
        None => (name, false),
    };
    // By address: the page number in the lower bits, hints above.
    let page = |bits: u32| {
        let operand = operand.ok_or_else(|| format!("`{name}` needs an operand: the page number"))?;
        Ok::<u64, String>(number(operand)? & ((1 << bits) - 1))
    };
    let kind = match stem {
        "alle1" => TlbiKind::AllGuests,
        "vmalls12e1" => TlbiKind::BothStages,
        "vmalle1" => TlbiKind::Stage1,
        "ipas2e1" | "ipas2le1" => TlbiKind::Stage2Page { page: page(40)? },
        "alle2" => TlbiKind::AllHyp,
        "vae2" | "vale2" => TlbiKind::HypPage { page: page(44)? },
        _ => TlbiKind::Other,
    };
    Ok(if broadcast { kind } else { TlbiKind::Other })
}
