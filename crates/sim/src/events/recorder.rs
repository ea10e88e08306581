//! What the engine fills, and where it ends up.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use mmu_core::Cycles;

use super::{Ended, Event, Extent, Trace, Track};

/// Where simulations put their recordings when they end. Clones are handles to the same place.
///
/// Recordings come in the order in which their simulations end: give simulations that run at the same time collectors of
/// their own.
#[derive(Clone, Debug)]
pub struct Collector {
    recordings: Arc<Mutex<Vec<Recording>>>,
    limit: usize,
}

impl Collector {
    /// Events that a recording keeps unless told otherwise: about 100 MB.
    pub const LIMIT: usize = 1_000_000;

    /// An empty one.
    pub fn new() -> Self {
        Self { recordings: Arc::default(), limit: Self::LIMIT }
    }

    /// One whose recordings keep at most so many events each.
    pub fn with_limit(limit: usize) -> Self {
        Self { limit, ..Self::new() }
    }

    /// Takes out what has been recorded so far.
    pub fn take(&self) -> Vec<Recording> {
        std::mem::take(&mut *self.recordings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, recording: Recording) {
        self.recordings.lock().unwrap_or_else(PoisonError::into_inner).push(recording);
    }
}

impl Default for Collector {
    fn default() -> Self {
        Self::new()
    }
}

/// The same place.
impl PartialEq for Collector {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.recordings, &other.recordings)
    }
}

/// One simulation's events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recording {
    /// What ran.
    pub name: String,
    /// Architecture.
    pub arch: &'static str,
    /// Machine.
    pub machine: String,
    /// Clock in hertz.
    pub clock_hz: u64,
    /// Every track with its name, in order.
    pub tracks: Vec<(Track, String)>,
    /// The events by time; at the same time by track, then in order of recording.
    pub events: Vec<Event>,
    /// Events that were not kept.
    pub lost: u64,
    /// When the first of these happened.
    pub lost_since: Option<Cycles>,
    /// The last moment of any event, kept or not.
    pub end: Cycles,
}

/// What can be open on a track; one of each kind, and one per lock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Open {
    Guest,
    InHost,
    LockWait(u32),
    LockHeld(u32),
    Rcu,
    Synchronize,
    Remote,
    Waits,
}

/// The recorder of one simulation. It hands in what it has when it is dropped.
#[derive(Debug)]
pub(crate) struct Recorder {
    recording: Recording,
    limit: usize,
    tracks: BTreeMap<Track, String>,
    /// Track of each actor by number.
    actors: Vec<Track>,
    open: BTreeMap<(Track, Open), Event>,
    arrows: u64,
    collector: Collector,
}

impl Recorder {
    pub(crate) fn new(collector: &Collector, arch: &'static str, machine: &str, clock_hz: u64) -> Self {
        let recording = Recording {
            name: arch.to_owned(),
            arch,
            machine: machine.to_owned(),
            clock_hz,
            tracks: Vec::new(),
            events: Vec::new(),
            lost: 0,
            lost_since: None,
            end: Cycles::ZERO,
        };
        Self {
            recording,
            limit: collector.limit,
            tracks: BTreeMap::new(),
            actors: Vec::new(),
            open: BTreeMap::new(),
            arrows: 0,
            collector: collector.clone(),
        }
    }

    pub(crate) fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.recording.name);
    }

    /// An actor begins; one that serves a vCPU shares its track.
    pub(crate) fn actor(&mut self, number: usize, name: &str, serves: Option<usize>) {
        let track = match serves {
            Some(vcpu) => Track::Vcpu(vcpu as u32),
            None => Track::Actor(number as u32),
        };
        if self.actors.len() <= number {
            self.actors.resize(number + 1, Track::Rcu);
        }
        self.actors[number] = track;
        let name = match track {
            Track::Vcpu(index) => format!("vcpu {index}"),
            Track::Actor(_) | Track::Rcu => format!("{name} (actor {number})"),
        };
        self.tracks.entry(track).or_insert(name);
    }

    /// Track of an actor.
    pub(crate) fn track(&self, actor: usize) -> Track {
        self.actors.get(actor).copied().unwrap_or(Track::Actor(actor as u32))
    }

    fn keep(&mut self, event: Event) {
        self.recording.end = self.recording.end.max(event.end());
        if self.recording.events.len() < self.limit {
            self.tracks.entry(event.track).or_insert_with(|| event.track.to_string());
            self.recording.events.push(event);
        } else {
            self.recording.lost += 1;
            let since = self.recording.lost_since.map_or(event.at, |since| since.min(event.at));
            self.recording.lost_since = Some(since);
        }
    }

    /// Something happened.
    pub(crate) fn point(&mut self, track: Track, at: Cycles, what: Trace) {
        self.keep(Event { at, track, extent: Extent::Point, what });
    }

    /// Something took from `at` to `end`.
    pub(crate) fn slice(&mut self, track: Track, at: Cycles, end: Cycles, what: Trace) {
        let extent = Extent::Slice { took: end.since(at), ended: Ended::Properly };
        self.keep(Event { at, track, extent, what });
    }

    /// An arrow from one track to another.
    pub(crate) fn arrow(&mut self, from: (Track, Cycles, Trace), to: (Track, Cycles, Trace)) {
        self.arrows += 1;
        let (track, at, what) = from;
        self.keep(Event { at, track, extent: Extent::Departs(self.arrows), what });
        let (track, at, what) = to;
        self.keep(Event { at, track, extent: Extent::Arrives(self.arrows), what });
    }

    /// A slice begins. What was open under the same name ends.
    pub(crate) fn begin(&mut self, track: Track, open: Open, at: Cycles, what: Trace) {
        self.end(track, open, at);
        self.open.insert((track, open), Event { at, track, extent: Extent::Point, what });
    }

    /// The slice ends, if it is open.
    pub(crate) fn end(&mut self, track: Track, open: Open, at: Cycles) {
        if let Some(event) = self.open.remove(&(track, open)) {
            self.slice(track, event.at, at.max(event.at), event.what);
        }
    }

    /// Closes what is open and sorts.
    fn finish(&mut self) -> Recording {
        let open = std::mem::take(&mut self.open);
        // A slice begun after everything else ended would end before it began.
        let end = open.values().map(|event| event.at).fold(self.recording.end, Cycles::max);
        for ((track, _), event) in open {
            let extent = Extent::Slice { took: end.since(event.at), ended: Ended::WithTheRun };
            self.keep(Event { at: event.at, track, extent, what: event.what });
        }
        self.recording.events.sort_by_key(|event| (event.at, event.track));
        self.recording.tracks = std::mem::take(&mut self.tracks).into_iter().collect();
        let empty = Recording {
            name: String::new(),
            machine: String::new(),
            tracks: Vec::new(),
            events: Vec::new(),
            ..self.recording
        };
        std::mem::replace(&mut self.recording, empty)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let recording = self.finish();
        self.collector.put(recording);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorder(collector: &Collector) -> Recorder {
        Recorder::new(collector, "x86", "m", 1_000_000_000)
    }

    #[test]
    fn what_is_open_at_the_end_is_closed_and_said_to_be() {
        let collector = Collector::new();
        let mut recorder = recorder(&collector);
        recorder.begin(Track::Vcpu(0), Open::Rcu, Cycles(5), Trace::RcuRead {});
        recorder.point(Track::Rcu, Cycles(9), Trace::Rescheduled {});
        drop(recorder);
        let recording = collector.take().remove(0);
        let extent = Extent::Slice { took: Cycles(4), ended: Ended::WithTheRun };
        let open = Event { at: Cycles(5), track: Track::Vcpu(0), extent, what: Trace::RcuRead {} };
        assert_eq!(recording.events[0], open);
        assert_eq!((recording.events.len(), recording.end), (2, Cycles(9)));
        assert!(collector.take().is_empty());
    }

    #[test]
    fn what_is_beyond_the_bound_is_counted() {
        let collector = Collector::with_limit(2);
        let mut recorder = recorder(&collector);
        for at in [1, 2, 7, 5] {
            recorder.point(Track::Actor(3), Cycles(at), Trace::Rescheduled {});
        }
        drop(recorder);
        let recording = collector.take().remove(0);
        assert_eq!((recording.events.len(), recording.lost, recording.lost_since), (2, 2, Some(Cycles(5))));
        assert_eq!(recording.end, Cycles(7));
    }
}
