//! Results on a shared file system: they appear whole, and show damage.
//!
//! ```text
//! results/ID.json                    the result of a point: one line
//! results/ID.ATTEMPT.json            another attempt's, with other bytes: kept as evidence
//! results/segment.ATTEMPT.jsonl      results of short points, one a line, appended
//! results/.ID.ATTEMPT                being written; what a killed shard leaves
//! results/ID.failed                  why a point has no result, in words
//! ```
//!
//! A line is `{"check":"16 digits","result":{...}}`, the check being XXH3-64 of what `result` holds. An `ATTEMPT` is
//! `NODE-PID-NANOSECONDS`, so that no two processes write one file. `ID.json` appears by a link that fails when there is one already
//! (by rename where there are no links), so a second result never replaces a first.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value as Json;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::datum::{Datum, Record, record_from_json, record_json};
use crate::error::SweepError;
use crate::point::{PointId, record_line};

/// Where one result is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Where its line begins.
    pub offset: u64,
    /// Bytes of the line.
    pub len: u64,
    /// Hash of the result.
    pub hash: u128,
}

/// What a directory of results holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Valid results of each point, in the order of their files' names.
    pub results: BTreeMap<PointId, Vec<Place>>,
    /// Damage: files, and lines of segments.
    pub corrupt: Vec<String>,
    /// Why points have no result, as an attempt wrote it.
    pub failed: BTreeMap<PointId, String>,
    /// Files that killed attempts have left.
    pub orphans: usize,
}

/// One attempt's access to the results of a plan.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    attempt: String,
    segment: Option<File>,
}

/// The text of one result.
pub fn result_json(id: PointId, model: u32, rows: &[Record]) -> String {
    let rows: Vec<String> = rows.iter().map(record_json).collect();
    record_line(&[
        ("id", Datum::from(id.to_string()).json()),
        ("model", Datum::from(u64::from(model)).json()),
        ("rows", format!("[{}]", rows.join(","))),
    ])
}

const CHECK: &str = "{\"check\":\"";
const RESULT: &str = "\",\"result\":";

/// The line of one result.
fn line(result: &str) -> String {
    format!("{CHECK}{:016x}{RESULT}{result}}}\n", xxh3_64(result.as_bytes()))
}

/// The result in a line without its end, if it is valid.
fn result_in(line: &str) -> Option<&str> {
    let (check, rest) = line.strip_prefix(CHECK)?.split_at_checked(16)?;
    let result = rest.strip_prefix(RESULT)?.strip_suffix('}')?;
    (u64::from_str_radix(check, 16).ok()? == xxh3_64(result.as_bytes())).then_some(result)
}

/// The point that a valid result is of.
fn id_in(result: &str) -> Option<PointId> {
    result.strip_prefix("{\"id\":\"")?.get(..32)?.parse().ok()
}

/// Reads the rows of a valid result.
///
/// # Errors
/// What is no list of rows.
pub fn rows(result: &str) -> Result<Vec<Record>, String> {
    let json: Json = serde_json::from_str(result).map_err(|error| error.to_string())?;
    let rows = json.get("rows").and_then(Json::as_array).ok_or("no rows")?;
    rows.iter().map(record_from_json).collect()
}

impl Store {
    /// The results of a plan, for one attempt.
    pub fn new(plan: &Path) -> Self {
        let node = fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::env::var("HOSTNAME"));
        let node: String = node.unwrap_or_default().chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let attempt = format!("{node}-{}-{now}", std::process::id());
        Self { directory: plan.join("results"), attempt, segment: None }
    }

    /// The valid result of a point in its own file.
    pub fn has(&self, id: PointId) -> bool {
        let text = fs::read_to_string(self.file(id)).unwrap_or_default();
        text.strip_suffix('\n').and_then(result_in).and_then(id_in) == Some(id)
    }

    fn file(&self, id: PointId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }

    /// Commits the result of a point to a file of its own. It is on the disk when this returns.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn commit(&self, id: PointId, result: &str) -> Result<(), SweepError> {
        let partial = self.directory.join(format!(".{id}.{}", self.attempt));
        let text = line(result);
        let written = File::create(&partial).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        written.map_err(SweepError::io(&partial))?;
        self.place(id, &partial, &text)?;
        self.clear(id);
        // The name is on the disk as well. Not every file system lets directories be opened.
        if let Ok(directory) = File::open(&self.directory) {
            let _ = directory.sync_all();
        }
        Ok(())
    }

    fn place(&self, id: PointId, partial: &Path, text: &str) -> Result<(), SweepError> {
        let path = self.file(id);
        match fs::hard_link(partial, &path) {
            Ok(()) => {}
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists && self.has(id) => {
                let there = fs::read_to_string(&path).map_err(SweepError::io(&path))?;
                if there != text {
                    let other = self.directory.join(format!("{id}.{}.json", self.attempt));
                    return fs::rename(partial, &other).map_err(SweepError::io(&other));
                }
            }
            // What is there is damaged, or there are no links here.
            Err(_) => return fs::rename(partial, &path).map_err(SweepError::io(&path)),
        }
        fs::remove_file(partial).map_err(SweepError::io(partial))
    }

    /// Appends the result of a short point to this attempt's segment. It survives the process at once, the machine after
    /// [`sync`](Self::sync).
    ///
    /// # Errors
    /// The file system refuses.
    pub fn append(&mut self, id: PointId, result: &str) -> Result<(), SweepError> {
        let path = self.directory.join(format!("segment.{}.jsonl", self.attempt));
        let segment = match &mut self.segment {
            Some(segment) => segment,
            none => {
                let file =
                    OpenOptions::new().append(true).create_new(true).open(&path).map_err(SweepError::io(&path))?;
                none.insert(file)
            }
        };
        // One call, so that a killed process leaves a line or none, or at worst a torn one at the end.
        segment.write_all(line(result).as_bytes()).map_err(SweepError::io(&path))?;
        self.clear(id);
        Ok(())
    }

    /// Puts appended results on the disk.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn sync(&mut self) -> Result<(), SweepError> {
        let Some(segment) = &self.segment else { return Ok(()) };
        segment.sync_all().map_err(SweepError::io(&self.directory))
    }

    /// Notes why a point has no result.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn fail(&self, id: PointId, why: &str) -> Result<(), SweepError> {
        crate::plan::replace(&self.directory.join(format!("{id}.failed")), why.as_bytes())
    }

    fn clear(&self, id: PointId) {
        // There is none in general.
        let _ = fs::remove_file(self.directory.join(format!("{id}.failed")));
    }

    /// Which of these points have a valid result.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn done(&self, wanted: &BTreeSet<PointId>) -> Result<BTreeSet<PointId>, SweepError> {
        let mut done: BTreeSet<PointId> = wanted.iter().copied().filter(|&id| self.has(id)).collect();
        for name in names(&self.directory)? {
            if name.starts_with("segment.") {
                let mut found = Found::default();
                scan_segment(&self.directory.join(name), &mut found)?;
                done.extend(found.results.into_keys().filter(|id| wanted.contains(id)));
            }
        }
        Ok(done)
    }
}

fn names(directory: &Path) -> Result<Vec<String>, SweepError> {
    let listed = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let listed = listed.map_err(SweepError::io(directory))?;
    let mut names: Vec<String> = listed.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    Ok(names)
}

/// Everything that the results of a plan hold.
///
/// # Errors
/// The directory or a file cannot be read.
pub fn scan(plan: &Path) -> Result<Found, SweepError> {
    let directory = plan.join("results");
    let mut found = Found::default();
    for name in names(&directory)? {
        let path = directory.join(&name);
        if name.starts_with('.') || name.contains(".partial-") {
            found.orphans += 1;
        } else if name.starts_with("segment.") {
            scan_segment(&path, &mut found)?;
        } else if let Some((id, rest)) = name.split_once('.')
            && let Ok(id) = id.parse::<PointId>()
        {
            if rest == "failed" {
                found.failed.insert(id, fs::read_to_string(&path).map_err(SweepError::io(&path))?);
            } else {
                scan_file(&path, id, &mut found)?;
            }
        } else {
            found.corrupt.push(format!("{}: a file of no point; remove it", path.display()));
        }
    }
    found.failed.retain(|id, _| !found.results.contains_key(id));
    Ok(found)
}

fn scan_file(path: &Path, id: PointId, found: &mut Found) -> Result<(), SweepError> {
    let text = fs::read(path).map_err(SweepError::io(path))?;
    let result = std::str::from_utf8(&text).ok().and_then(|text| text.strip_suffix('\n')).and_then(result_in);
    match result.filter(|result| id_in(result) == Some(id)) {
        Some(result) => {
            let (path, hash) = (path.to_owned(), xxh3_128(result.as_bytes()));
            let place = Place { path, offset: 0, len: text.len() as u64 - 1, hash };
            found.results.entry(id).or_default().push(place);
        }
        None => found.corrupt.push(format!("{}: damaged; its point will be run again", path.display())),
    }
    Ok(())
}

fn scan_segment(path: &Path, found: &mut Found) -> Result<(), SweepError> {
    let bytes = fs::read(path).map_err(SweepError::io(path))?;
    let (mut offset, mut number) = (0, 0);
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        number += 1;
        let text = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        let result = text.and_then(result_in);
        match result.and_then(|result| Some((id_in(result)?, result))) {
            Some((id, result)) => {
                let hash = xxh3_128(result.as_bytes());
                let place = Place { path: path.to_owned(), offset, len: line.len() as u64 - 1, hash };
                found.results.entry(id).or_default().push(place);
            }
            // A killed process leaves a torn line, at the end only.
            None if offset + line.len() as u64 == bytes.len() as u64 && !line.ends_with(b"\n") => {}
            None => {
                found.corrupt.push(format!("{}:{number}: damaged; its point will be run again", path.display()));
            }
        }
        offset += line.len() as u64;
    }
    Ok(())
}

/// Reads a result that was found.
///
/// # Errors
/// The file cannot be read any more, or has changed.
pub fn read(place: &Place) -> Result<String, SweepError> {
    let mut text = vec![0; place.len as usize];
    let read = File::open(&place.path).and_then(|mut file| {
        file.seek(SeekFrom::Start(place.offset))?;
        file.read_exact(&mut text)
    });
    read.map_err(SweepError::io(&place.path))?;
    let text = String::from_utf8_lossy(&text);
    match result_in(&text).filter(|result| xxh3_128(result.as_bytes()) == place.hash) {
        Some(result) => Ok(result.to_owned()),
        None => Err(SweepError::plan(&place.path, "changed while it was read; run this again")),
    }
}
