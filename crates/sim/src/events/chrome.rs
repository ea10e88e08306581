//! Recordings in the Trace Event Format, which Perfetto (<https://ui.perfetto.dev>) and `chrome://tracing` open.
//!
//! Every recording is two or three processes of the file: its vCPUs, its host actors, and the grace periods. Each vCPU and actor is a
//! thread. Slices of one thread must nest in this format, which locks taken and given back in turn do not: what does not
//! fit goes to a further lane of the same thread's name. Timestamps are microseconds of simulated time by the machine's clock, with
//! picoseconds behind the point; they are rounded down alike at both ends of a slice, so that nesting survives.

use mmu_core::Cycles;

use super::json::{fields, put, string};
use super::{Ended, Event, Extent, Recording, Track};

/// A file in the making.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    runs: usize,
    begun: bool,
}

impl Timeline {
    /// A file of no recordings yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a recording to `text`, after whatever was written before.
    pub fn write(&mut self, text: &mut String, recording: &Recording) {
        let base = 3 * self.runs as u64;
        self.runs += 1;
        for (process, kind) in [(1, "vCPUs"), (2, "host actors"), (3, "RCU")] {
            let used = recording.tracks.iter().any(|&(track, _)| place(track) == process);
            if used {
                let name = format!("{}: {kind}{}", recording.name, lost(recording));
                self.name(text, "process_name", base + process, 0, &name);
            }
        }
        // Threads are numbered in order through each process, because viewers sort them by number.
        let mut threads = [0; 4];
        for (track, name) in &recording.tracks {
            let process = place(*track);
            threads[process as usize] = self.track(text, (base, threads[process as usize]), recording, *track, name);
        }
    }

    /// Ends the file.
    pub fn finish(&mut self, text: &mut String) {
        self.finish_with(text, None);
    }

    /// Ends the file with facts about the whole of it, names and values, under `otherData`.
    pub fn finish_with<'a>(&mut self, text: &mut String, facts: impl IntoIterator<Item = (&'a str, &'a str)>) {
        self.open(text);
        text.push_str("\n],\"displayTimeUnit\":\"ns\"");
        let mut separator = ",\"otherData\":{";
        for (name, value) in facts {
            text.push_str(separator);
            string(text, name);
            text.push(':');
            string(text, value);
            separator = ",";
        }
        text.push_str(if separator == "," { "}}\n" } else { "}\n" });
    }

    fn open(&mut self, text: &mut String) {
        if !std::mem::replace(&mut self.begun, true) {
            text.push_str("{\"traceEvents\":[");
        }
    }

    fn next(&mut self, text: &mut String) {
        let first = !self.begun;
        self.open(text);
        text.push_str(if first { "\n" } else { ",\n" });
    }

    /// A metadata event that names a process or thread.
    fn name(&mut self, text: &mut String, what: &str, pid: u64, tid: u64, name: &str) {
        self.next(text);
        put(text, format_args!("{{\"ph\":\"M\",\"name\":\"{what}\",\"pid\":{pid},\"tid\":{tid},\"args\":{{\"name\":"));
        string(text, name);
        text.push_str("}}");
    }

    /// A track's threads, numbered behind `last`; replies the number of the last one.
    fn track(
        &mut self,
        text: &mut String,
        (base, last): (u64, u64),
        recording: &Recording,
        track: Track,
        name: &str,
    ) -> u64 {
        let pid = base + place(track);
        let lanes = lanes(recording.events.iter().filter(|event| event.track == track));
        for (lane, events) in lanes.iter().enumerate() {
            let tid = last + 1 + lane as u64;
            let name = if lane == 0 { name.to_owned() } else { format!("{name}, overlapping {lane}") };
            self.name(text, "thread_name", pid, tid, &name);
            for event in events {
                self.next(text);
                write_event(text, event, recording.clock_hz, pid, tid, base);
            }
        }
        last + lanes.len() as u64
    }
}

/// Process of a track.
fn place(track: Track) -> u64 {
    match track {
        Track::Vcpu(_) => 1,
        Track::Actor(_) => 2,
        Track::Rcu => 3,
    }
}

/// What the process's name says of a recording that is not whole.
fn lost(recording: &Recording) -> String {
    match recording.lost_since {
        Some(at) => format!(" ({} events from cycle {at} on were not kept)", recording.lost),
        None => String::new(),
    }
}

/// A track's events in lanes whose slices nest; instants are in the first. Slices that begin at the same moment go outermost first.
fn lanes<'a>(events: impl Iterator<Item = &'a Event>) -> Vec<Vec<&'a Event>> {
    let mut events: Vec<&Event> = events.collect();
    events.sort_by_key(|event| (event.at, std::cmp::Reverse(event.end())));
    let mut lanes: Vec<Vec<&Event>> = vec![Vec::new()];
    let mut open: Vec<Vec<Cycles>> = vec![Vec::new()];
    for event in events {
        if !matches!(event.extent, Extent::Slice { .. }) {
            lanes[0].push(event);
            continue;
        }
        let lane = (0..open.len()).find(|&lane| {
            while open[lane].last().is_some_and(|&end| end <= event.at) {
                open[lane].pop();
            }
            open[lane].last().is_none_or(|&end| event.end() <= end)
        });
        let lane = lane.unwrap_or_else(|| {
            lanes.push(Vec::new());
            open.push(Vec::new());
            lanes.len() - 1
        });
        open[lane].push(event.end());
        lanes[lane].push(event);
    }
    lanes
}

/// Microseconds of a moment with six decimals: picoseconds.
fn microseconds(at: Cycles, clock_hz: u64) -> String {
    let picoseconds = u128::from(at.0) * 1_000_000_000_000 / u128::from(clock_hz.max(1));
    format!("{}.{:06}", picoseconds / 1_000_000, picoseconds % 1_000_000)
}

/// How long a slice is, both ends rounded alike.
fn duration(event: &Event, clock_hz: u64) -> String {
    let at = |moment: Cycles| u128::from(moment.0) * 1_000_000_000_000 / u128::from(clock_hz.max(1));
    let picoseconds = at(event.end()) - at(event.at);
    format!("{}.{:06}", picoseconds / 1_000_000, picoseconds % 1_000_000)
}

fn write_event(text: &mut String, event: &Event, clock_hz: u64, pid: u64, tid: u64, base: u64) {
    let (phase, category) = match event.extent {
        Extent::Slice { .. } => ("X", "slice"),
        Extent::Point => ("i", "event"),
        Extent::Departs(_) => ("s", "arrow"),
        Extent::Arrives(_) => ("f", "arrow"),
    };
    let ts = microseconds(event.at, clock_hz);
    put(text, format_args!("{{\"ph\":\"{phase}\",\"cat\":\"{category}\",\"pid\":{pid},\"tid\":{tid},\"ts\":{ts}"));
    match event.extent {
        Extent::Slice { ended, .. } => {
            put(text, format_args!(",\"dur\":{}", duration(event, clock_hz)));
            if ended == Ended::WithTheRun {
                text.push_str(",\"cname\":\"terrible\"");
            }
        }
        Extent::Point => text.push_str(",\"s\":\"t\""),
        // Both ends of an arrow go by one name; numbers are unique in the file.
        Extent::Departs(arrow) => {
            put(text, format_args!(",\"id\":\"{base}.{arrow}\",\"name\":\"interrupt\",\"args\":"));
        }
        Extent::Arrives(arrow) => {
            put(text, format_args!(",\"id\":\"{base}.{arrow}\",\"bp\":\"e\",\"name\":\"interrupt\",\"args\":"));
        }
    }
    if matches!(event.extent, Extent::Slice { .. } | Extent::Point) {
        put(text, format_args!(",\"name\":\"{}\",\"args\":", event.what.name()));
    }
    fields(text, event);
    text.push('}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Trace;

    fn slice(at: u64, took: u64) -> Event {
        let extent = Extent::Slice { took: Cycles(took), ended: Ended::Properly };
        Event { at: Cycles(at), track: Track::Actor(0), extent, what: Trace::RcuRead {} }
    }

    #[test]
    fn slices_that_overlap_go_to_lanes_of_their_own() {
        let events = [slice(0, 10), slice(2, 3), slice(4, 8), slice(12, 1), slice(5, 5)];
        let lanes = lanes(events.iter());
        let starts: Vec<Vec<u64>> = lanes.iter().map(|lane| lane.iter().map(|event| event.at.0).collect()).collect();
        assert_eq!(starts, [vec![0, 2, 5, 12], vec![4]]);
    }

    #[test]
    fn both_ends_of_a_slice_are_rounded_down_alike() {
        // 3 GHz: a cycle is 333.3 picoseconds.
        let hz = 3_000_000_000;
        assert_eq!(microseconds(Cycles(1), hz), "0.000333");
        assert_eq!(duration(&slice(1, 1), hz), "0.000333");
        assert_eq!(duration(&slice(2, 1), hz), "0.000334");
        assert_eq!(microseconds(Cycles(6_000_000_000), hz), "2000000.000000");
    }
}
