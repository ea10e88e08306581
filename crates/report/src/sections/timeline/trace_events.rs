//! `--timeline FILE`: the Trace Event Format, times in microseconds.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value as Json;

use super::{Recording, Section, Span, Track, Whose, fields, nonempty, section};
use crate::read::{Input, Kind, ReportError, document};

#[derive(Deserialize)]
struct Document<'a> {
    #[serde(rename = "traceEvents", borrow)]
    events: Made<'a>,
    #[serde(rename = "otherData", default)]
    other: BTreeMap<String, Json>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    ph: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    pid: u64,
    tid: u64,
    #[serde(default)]
    ts: f64,
    #[serde(default)]
    dur: f64,
    /// `terrible`: it was still open when the run ended.
    #[serde(borrow)]
    cname: Option<Cow<'a, str>>,
    #[serde(default, borrow)]
    args: BTreeMap<Cow<'a, str>, Json>,
}

/// What the names of processes end with; a recording is one process of each.
const PROCESSES: [(&str, Whose); 3] =
    [(": vCPUs", Whose::Vcpu), (": host actors", Whose::Actor), (": RCU", Whose::Rcu)];

/// Microseconds as seconds.
const MICRO: f64 = 1e-6;

pub(crate) fn from_trace_events(input: &Input) -> Result<Section, ReportError> {
    let Document { events: made, other } = document(input, Kind::Timeline)?;
    let recordings = nonempty(input, made.recordings)?;
    let command = other.get("command").and_then(Json::as_str).map(str::to_owned);
    Ok(section("Timeline", &[], command, recordings))
}

/// Recordings, and which process and thread is which.
#[derive(Default)]
struct Made<'a> {
    recordings: Vec<Recording<'a>>,
    processes: BTreeMap<u64, (usize, Whose)>,
    threads: BTreeMap<(u64, u64), usize>,
}

/// Events one by one: a file may hold millions.
impl<'de: 'a, 'a> Deserialize<'de> for Made<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Events;
        impl<'de> Visitor<'de> for Events {
            type Value = Made<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of trace events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<Made<'de>, A::Error> {
                let mut made = Made::default();
                while let Some(event) = events.next_element()? {
                    made.add(event);
                }
                Ok(made)
            }
        }
        deserializer.deserialize_seq(Events)
    }
}

impl<'a> Made<'a> {
    fn add(&mut self, event: Event<'a>) {
        match &*event.ph {
            "M" => self.name(&event),
            "X" | "i" | "I" | "s" => self.happened(event),
            _ => {}
        }
    }

    fn name(&mut self, event: &Event<'_>) {
        let name = event.args.get("name").and_then(Json::as_str).unwrap_or_default();
        match &*event.name {
            "process_name" => self.process(event.pid, name),
            "thread_name" => self.thread(event.pid, event.tid, name),
            _ => {}
        }
    }

    /// Processes of one recording follow each other.
    fn process(&mut self, pid: u64, name: &str) {
        // What was not kept stands behind the kind, in parentheses.
        let (whole, lost) = name
            .split_once(" (")
            .filter(|(front, _)| front.ends_with("vCPUs") || front.ends_with("actors") || front.ends_with("RCU"))
            .map_or((name, None), |(front, rest)| (front, Some(rest)));
        let found = PROCESSES.into_iter().find_map(|(end, whose)| Some((whole.strip_suffix(end)?, whose)));
        let (title, whose) = found.unwrap_or((whole, Whose::Actor));
        let last = self
            .recordings
            .last()
            .is_some_and(|last| last.name == title && self.processes.contains_key(&pid.wrapping_sub(1)));
        if !last {
            let known = lost.map(|lost| ("lost", lost.trim_end_matches(')').to_owned()));
            self.recordings.push(Recording {
                name: title.to_owned(),
                known: known.into_iter().collect(),
                tracks: Vec::new(),
            });
        }
        self.processes.insert(pid, (self.recordings.len() - 1, whose));
    }

    /// Slices that do not nest are in further threads of the same name.
    fn thread(&mut self, pid: u64, tid: u64, name: &str) {
        let Some(&(recording, whose)) = self.processes.get(&pid) else { return };
        let name = name.split_once(", overlapping ").map_or(name, |(name, _)| name);
        let tracks = &mut self.recordings[recording].tracks;
        let place = match tracks.last() {
            Some(last) if last.name == name && last.whose == whose => tracks.len() - 1,
            _ => {
                tracks.push(Track { name: name.to_owned(), whose, spans: Vec::new(), moments: Vec::new() });
                tracks.len() - 1
            }
        };
        self.threads.insert((pid, tid), place);
    }

    /// What is in a thread that nobody named is nobody's.
    fn happened(&mut self, event: Event<'a>) {
        let (Some(&(recording, _)), Some(&place)) =
            (self.processes.get(&event.pid), self.threads.get(&(event.pid, event.tid)))
        else {
            return;
        };
        let track = &mut self.recordings[recording].tracks[place];
        let at = event.ts * MICRO;
        if event.ph == "X" {
            let (fields, unfinished) = (fields(&event.args), event.cname.is_some());
            track.spans.push(Span { at, took: event.dur * MICRO, name: event.name, fields, unfinished });
        } else {
            track.moments.push((at, event.name));
        }
    }
}
