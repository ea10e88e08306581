//! `--events` and `--timeline`: what happened in a run, beside its results.

use std::path::PathBuf;

use clap::Args;
use mmusim::Platform;
use mmusim::sim::arch::Arch;
use mmusim::sim::events::chrome::Timeline;
use mmusim::sim::events::{Collector, Recording, json};

use crate::CliError;
use crate::invocation::Invocation;
use crate::output::Output;

/// What to record.
#[derive(Args, Debug)]
pub struct Record {
    /// Write every event as a line of JSON: the kernel's tracepoints and the simulator's own
    #[arg(long, value_name = "FILE.jsonl")]
    pub events: Option<PathBuf>,
    /// Write a timeline of vCPUs and host actors for Perfetto (ui.perfetto.dev) or chrome://tracing
    #[arg(long, value_name = "FILE.json")]
    pub timeline: Option<PathBuf>,
    /// Events that are kept of one run; further ones are counted, and their number is written
    #[arg(long, value_name = "N", default_value_t = Collector::LIMIT)]
    pub events_limit: usize,
}

/// The files being written.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    collector: Option<Collector>,
    events: Option<Output>,
    timeline: Option<(Output, Timeline)>,
    runs: usize,
    lost: u64,
}

impl Recorder {
    /// Creates the files that are asked for.
    ///
    /// # Errors
    /// A file that cannot be created.
    pub(crate) fn open(record: &Record) -> Result<Self, CliError> {
        let events = record.events.as_deref().map(|path| Output::named("--events", path)).transpose()?;
        let timeline = record.timeline.as_deref().map(|path| Output::named("--timeline", path)).transpose()?;
        let wanted = events.is_some() || timeline.is_some();
        let collector = wanted.then(|| Collector::with_limit(record.events_limit));
        Ok(Self { collector, events, timeline: timeline.map(|file| (file, Timeline::new())), runs: 0, lost: 0 })
    }

    /// The platform with recording as it is asked for.
    pub(crate) fn on<A: Arch>(&self, platform: Platform<A>) -> Platform<A> {
        match &self.collector {
            Some(collector) => platform.recording(collector),
            None => platform,
        }
    }

    /// Writes what has been recorded since; `title` names recordings that have no name of their own, and precedes others.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(crate) fn drain(&mut self, title: &str) -> Result<(), CliError> {
        let recordings = self.collector.as_ref().map(Collector::take).unwrap_or_default();
        for mut recording in recordings {
            recording.name = if recording.name == recording.arch {
                title.to_owned()
            } else {
                format!("{title}: {}", recording.name)
            };
            self.write(&recording)?;
        }
        Ok(())
    }

    fn write(&mut self, recording: &Recording) -> Result<(), CliError> {
        self.lost += recording.lost;
        let mut text = String::new();
        if let Some(events) = &mut self.events {
            json::write(&mut text, self.runs, recording);
            events.write(&text)?;
        }
        if let Some((file, timeline)) = &mut self.timeline {
            text.clear();
            timeline.write(&mut text, recording);
            file.write(&text)?;
        }
        self.runs += 1;
        Ok(())
    }

    /// Puts the files in their places; a timeline keeps the command line, where there is one.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub(crate) fn finish(self, invocation: Option<&Invocation>) -> Result<(), CliError> {
        if let Some(events) = self.events {
            events.finish()?;
        }
        if let Some((mut file, mut timeline)) = self.timeline {
            let mut text = String::new();
            let command = invocation.map(Invocation::to_string);
            timeline.finish_with(&mut text, command.as_ref().map(|command| ("command", command.as_str())));
            file.write(&text)?;
            file.finish()?;
        }
        if self.lost > 0 {
            eprintln!("note: {} events were not kept; raise --events-limit to keep them", self.lost);
        }
        Ok(())
    }
}
