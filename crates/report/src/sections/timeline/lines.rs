//! `--events FILE`: lines of JSON, times in cycles.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value as Json;

use super::{Recording, Section, Span, Track, fields, nonempty, section, whose};
use crate::read::{Input, Kind, ReportError, lines};
use crate::sections::gigahertz;

/// A line: the head of a recording or one of its events.
#[derive(Deserialize)]
struct Line<'a> {
    run: usize,
    #[serde(borrow)]
    name: Option<Cow<'a, str>>,
    #[serde(borrow)]
    arch: Option<Cow<'a, str>>,
    #[serde(borrow)]
    machine: Option<Cow<'a, str>>,
    clock_hz: Option<u64>,
    #[serde(default)]
    lost: u64,
    #[serde(default)]
    at: u64,
    #[serde(borrow)]
    track: Option<Cow<'a, str>>,
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    took: Option<u64>,
    #[serde(default)]
    unfinished: bool,
    #[serde(default, borrow)]
    fields: BTreeMap<Cow<'a, str>, Json>,
}

/// A recording, its clock, and where its tracks are.
#[derive(Default)]
struct Open<'a> {
    recording: Recording<'a>,
    clock_hz: f64,
    places: BTreeMap<String, usize>,
}

pub(crate) fn from_lines(input: &Input) -> Result<Section, ReportError> {
    let mut runs: BTreeMap<usize, Open<'_>> = BTreeMap::new();
    let mut machines = Vec::new();
    lines(input, Kind::Events, |_, line: Line<'_>| {
        if let (Some(name), Some(machine), Some(clock_hz)) = (&line.name, &line.machine, line.clock_hz) {
            machines.push(machine.to_string());
            runs.insert(line.run, head(&line, name, machine, clock_hz));
            return Ok(());
        }
        let run = runs
            .get_mut(&line.run)
            .ok_or_else(|| format!("an event of run {}, of which no line says what it is", line.run))?;
        run.add(line)
    })?;
    let recordings = nonempty(input, runs.into_values().map(|run| run.recording).collect())?;
    Ok(section("Events", &machines, None, recordings))
}

fn head<'a>(line: &Line<'a>, name: &str, machine: &str, clock_hz: u64) -> Open<'a> {
    let arch = line.arch.as_deref().unwrap_or("");
    let mut known = vec![("machine", format!("{arch} on {machine} at {}", gigahertz(clock_hz)))];
    if line.lost > 0 {
        known.push(("lost", format!("{} events were not kept; --events-limit keeps more", line.lost)));
    }
    let recording = Recording { name: name.to_owned(), known, tracks: Vec::new() };
    Open { recording, clock_hz: clock_hz.max(1) as f64, places: BTreeMap::new() }
}

impl<'a> Open<'a> {
    fn add(&mut self, line: Line<'a>) -> Result<(), String> {
        let (Some(track), Some(name)) = (line.track, line.event) else {
            return Err("neither a recording's head nor an event".to_owned());
        };
        let tracks = &mut self.recording.tracks;
        let place = *self.places.entry(track.to_string()).or_insert_with(|| {
            tracks.push(Track {
                name: track.to_string(),
                whose: whose(&track),
                spans: Vec::new(),
                moments: Vec::new(),
            });
            tracks.len() - 1
        });
        let at = line.at as f64 / self.clock_hz;
        match line.took {
            Some(took) => {
                let (took, fields) = (took as f64 / self.clock_hz, fields(&line.fields));
                tracks[place].spans.push(Span { at, took, name, fields, unfinished: line.unfinished });
            }
            None => tracks[place].moments.push((at, name)),
        }
        Ok(())
    }
}
