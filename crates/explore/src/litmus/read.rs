//! The reader of litmus files: JSON, plain or xz, to tests.
//!
//! Nothing in a file is trusted. Whatever it says that this reader does not know is an error that names file, test and field.

use std::fmt;
use std::io::Read;

use serde_json::{Map, Value as Json};

use super::names::Names;
use super::test::{Condition, Research, Test, Use};
use super::words::Words;
use crate::explorer::Bounds;

/// What a file may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of a file, after decompression.
    pub bytes: u64,
    /// Memory of the decompressor, in KiB.
    pub xz_memory_kib: u32,
    /// Tests of a file.
    pub tests: usize,
    /// Threads of a test; 8 at most.
    pub threads: usize,
    /// Operations of a thread; 64 at most.
    pub ops: usize,
    /// Pages, virtual pages and table pointers of a test, of each kind; 64 at most.
    pub pages: usize,
    /// Nodes of a condition.
    pub condition: usize,
    /// Bytes of a name.
    pub name: usize,
    /// States and decisions of one exploration.
    pub bounds: Bounds,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            xz_memory_kib: 96 << 10,
            tests: 10_000,
            threads: 8,
            ops: 64,
            pages: 64,
            condition: 1000,
            name: 200,
            bounds: Bounds { states: 500_000, transitions: 50_000_000, depth: 10_000 },
        }
    }
}

/// Why a file or a test cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LitmusError {
    file: String,
    test: Option<String>,
    field: Option<String>,
    what: String,
}

impl fmt::Display for LitmusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some(test) = &self.test {
            write!(f, ", test {test}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ", field {field}")?;
        }
        write!(f, ": {}", self.what)
    }
}
impl std::error::Error for LitmusError {}

/// What is wrong with a field, without file and test, which are added above.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) field: String,
    pub(crate) what: String,
}

impl Wrong {
    pub(crate) fn new(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self { field: field.into(), what: what.into() }
    }
    /// The same inside another field.
    pub(crate) fn inside(mut self, outer: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => outer.to_owned(),
            field if field.starts_with('[') => format!("{outer}{field}"),
            field => format!("{outer}.{field}"),
        };
        self
    }
}

/// The tests of a stream called `name`; the first that cannot be used is the error.
///
/// # Errors
/// With file, test, field and remedy.
pub fn read(name: &str, reader: impl Read, limits: &Limits) -> Result<Vec<Test>, LitmusError> {
    read_each(name, reader, limits)?.into_iter().collect()
}

/// The tests of a stream called `name`, each by itself: one that cannot be used does not spoil the others.
///
/// # Errors
/// When the stream as a whole is not a litmus file.
pub fn read_each(
    name: &str,
    reader: impl Read,
    limits: &Limits,
) -> Result<Vec<Result<Test, LitmusError>>, LitmusError> {
    let whole = |field: Option<&str>, what: String| LitmusError {
        file: name.to_owned(),
        test: None,
        field: field.map(str::to_owned),
        what,
    };
    let bytes = decompressed(reader, limits.bytes, limits.xz_memory_kib).map_err(|what| whole(None, what))?;
    let mut document: Json = serde_json::from_slice(&bytes)
        .map_err(|error| whole(None, format!("not JSON: {error}; fetch the file again")))?;
    let Some(Json::Array(tests)) = document.get_mut("tests").map(Json::take) else {
        return Err(whole(Some("tests"), "missing, or no list; a litmus file is {\"tests\": [..]}".to_owned()));
    };
    if tests.len() > limits.tests {
        return Err(whole(Some("tests"), format!("{} tests, limit {}; split the file", tests.len(), limits.tests)));
    }
    let words = Words::new().map_err(|what| whole(None, what))?;
    Ok(tests
        .iter()
        .enumerate()
        .map(|(number, test)| {
            one(test, &words, limits).map_err(|Wrong { field, what }| {
                let id = test.get("id").and_then(Json::as_str).filter(|id| id.len() <= limits.name);
                let test = id.map_or_else(|| format!("number {}", number + 1), str::to_owned);
                LitmusError { file: name.to_owned(), test: Some(test), field: Some(field), what }
            })
        })
        .collect())
}

/// All bytes of a plain or xz stream, within a limit.
pub(crate) fn decompressed(mut reader: impl Read, limit: u64, xz_memory_kib: u32) -> Result<Vec<u8>, String> {
    const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";
    let cannot = |error: std::io::Error| format!("cannot read: {error}; it may be truncated: fetch it again");
    let mut head = Vec::new();
    (&mut reader).take(XZ_MAGIC.len() as u64).read_to_end(&mut head).map_err(cannot)?;
    let xz = head == XZ_MAGIC;
    let whole = std::io::Cursor::new(head).chain(reader);
    let mut bytes = Vec::new();
    if xz {
        let unpacked = lzma_rust2::XzReader::new_mem_limit(whole, true, xz_memory_kib);
        unpacked.take(limit + 1).read_to_end(&mut bytes).map_err(cannot)?;
    } else {
        whole.take(limit + 1).read_to_end(&mut bytes).map_err(cannot)?;
    }
    if bytes.len() as u64 > limit {
        return Err(format!("longer than {limit} bytes; raise the limit or split the file"));
    }
    Ok(bytes)
}

/// The fields of an object, each of which must be known.
pub(crate) fn fields<'a>(value: &'a Json, known: &[&str]) -> Result<&'a Map<String, Json>, Wrong> {
    let Json::Object(map) = value else {
        return Err(Wrong::new("", format!("{} where an object with {} is expected", kind(value), known.join(", "))));
    };
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(unknown) => {
            let unknown: String = unknown.chars().take(60).collect();
            Err(Wrong::new(unknown, format!("unknown; known here: {}", known.join(", "))))
        }
        None => Ok(map),
    }
}

/// What kind of JSON a value is, for messages.
pub(crate) fn kind(value: &Json) -> String {
    match value {
        Json::Null => "null".to_owned(),
        Json::Bool(value) => value.to_string(),
        Json::Number(number) => number.to_string(),
        Json::String(text) => format!("`{}`", text.chars().take(60).collect::<String>()),
        Json::Array(_) => "a list".to_owned(),
        Json::Object(_) => "an object".to_owned(),
    }
}

/// A text field that must be there.
pub(crate) fn text<'a>(map: &'a Map<String, Json>, key: &str, limits: &Limits) -> Result<&'a str, Wrong> {
    match map.get(key) {
        Some(Json::String(text)) if text.len() <= limits.name => Ok(text),
        Some(Json::String(_)) => Err(Wrong::new(key, format!("longer than {} bytes; shorten it", limits.name))),
        Some(other) => Err(Wrong::new(key, format!("{} where a text is expected", kind(other)))),
        None => Err(Wrong::new(key, "missing; add it")),
    }
}

/// One of several words.
pub(crate) fn choice<T: Copy>(map: &Map<String, Json>, key: &str, known: &[(&str, T)]) -> Result<T, Wrong> {
    let Some(value) = map.get(key) else { return Err(Wrong::new(key, "missing; add it")) };
    let found = value.as_str().and_then(|text| known.iter().find(|(name, _)| *name == text));
    found.map(|&(_, value)| value).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        Wrong::new(key, format!("{}: unknown; known: {}", kind(value), names.join(", ")))
    })
}

fn one(test: &Json, words: &Words, limits: &Limits) -> Result<Test, Wrong> {
    let Json::Object(map) = test else { return Err(Wrong::new("", "a test is an object")) };
    let uses: Vec<_> = Use::ALL.into_iter().map(|usage| (usage.name(), usage)).collect();
    let id = text(map, "id", limits)?.to_owned();
    let usage = choice(map, "use", &uses)?;
    let field = |key: &str| map.get(key).ok_or_else(|| Wrong::new(key, "missing; add it"));
    let mut names = Names::new(words, *limits);
    names.init(field("init")?).map_err(|wrong| wrong.inside("init"))?;
    names.unmapped(field("threads")?).map_err(|wrong| wrong.inside("threads"))?;
    let threads = names.threads(field("threads")?).map_err(|wrong| wrong.inside("threads"))?;
    let wanted = names.final_condition(field("final")?, usage, &threads).map_err(|wrong| wrong.inside("final"))?;
    let layout = names.layout();
    Ok(Test { id, usage, research: research(map.get("research_model")), layout, threads, wanted, words: *words })
}

/// Unknown words of the other model mean that it says nothing.
fn research(model: Option<&Json>) -> Research {
    let said = |key: &str| match model?.get(key)?.as_str()? {
        "reachable" | "fails" | "violated" => Some(true),
        "unreachable" | "holds" => Some(false),
        _ => None,
    };
    Research { sequential: said("sc_tlb"), store_buffer: said("sc_tlb_store_buffer") }
}

impl Condition {
    /// The opposite.
    pub(crate) fn negated(self) -> Self {
        match self {
            Condition::Not(inner) => *inner,
            other => Condition::Not(Box::new(other)),
        }
    }
}
