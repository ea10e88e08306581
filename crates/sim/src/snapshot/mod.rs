//! Whole simulations in files: saved at the end of a window, and continued as if nothing had happened.
//!
//! A snapshot holds the configuration's text, the state of the host, the VM and every vCPU ([`Sim`]), and what host actors were
//! answered. Actors are futures and cannot be written down; they are made anew by the experiment's own set-up code and
//! brought to where they stood by the same answers in the same order, while nothing is performed (`engine/replies.rs`). So whoever
//! loads a snapshot first sets up a simulation of the same configuration. Table frames that are templates stay templates: a
//! populated terabyte is a few kilobytes.
//!
//! Loading takes time for what actors did, some nanoseconds an answer, and none for what guests did. A run that continues gives
//! the results of one that was never interrupted, bit for bit.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `envelope` | what stands in front of the payload, and its checks |
//! | `codec` | the only place that names the crate for the payload's bytes |
//! | `layout.txt` | the payload in words; its hash is in the envelope |
//!
//! [`ZapRun`](crate::experiment::ZapRun) is an experiment that can be saved.

mod codec;
mod envelope;
#[cfg(test)]
mod schema;

use std::fmt;

use mmu_core::Cycles;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::arch::Arch;
use crate::engine::{Misfit, Sim, Source};
use crate::workload::ReplayError;
use codec::{Reader, Writer};
use envelope::Envelope;

use crate::engine::Sink;

/// The payload in words. Whoever changes what a simulation holds changes this text.
const LAYOUT: &str = include_str!("layout.txt");

fn layout_fingerprint() -> u64 {
    xxh3_64(LAYOUT.as_bytes())
}

/// A simulation in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    info: Info,
    /// The state, behind configuration and time.
    state: Vec<u8>,
}

/// What a snapshot says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// The configuration's text, as it was given to [`Snapshot::save`].
    pub config: String,
    /// XXH3-128 of it.
    pub config_hash: u128,
    /// The moment that the simulation had reached.
    pub time: Cycles,
    /// Bytes of the state.
    pub state_bytes: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}

/// Why there is no snapshot, or no use for one.
#[derive(Debug)]
pub enum SnapshotError {
    /// The file is something else.
    NotASnapshot,
    /// Another version of the envelope.
    Version {
        /// The file's.
        version: u16,
        /// What this program reads.
        known: u16,
    },
    /// A codec that this program does not have.
    Codec(u16),
    /// Flags that this program does not know.
    Flags(u32),
    /// Another version of the model.
    Model {
        /// The file's.
        theirs: u32,
        /// The program's.
        ours: u32,
    },
    /// The same model, laid out otherwise.
    Layout,
    /// The file ends too early.
    Truncated {
        /// Bytes there are.
        found: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// The file has been damaged: how that is known.
    Corrupt(String),
    /// The simulation was not set up to be saved.
    NotKept,
    /// The run has gone wrong, which a snapshot does not hold: what happened.
    Failed(String),
    /// The simulation it is to be loaded into is another.
    OtherExperiment(String),
    /// A trace cannot be read up to where it was.
    Replay(ReplayError),
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SnapshotError::NotASnapshot => f.write_str("not a snapshot; give a file that --checkpoint has written"),
            SnapshotError::Version { version, known } => {
                write!(f, "a snapshot of version {version}, this program reads {known}; use the program that wrote it")
            }
            SnapshotError::Codec(codec) => {
                write!(f, "its payload is written by codec {codec}, which this program does not have; use a newer one")
            }
            SnapshotError::Flags(flags) => write!(f, "flags {flags:#x} are unknown; use the program that wrote it"),
            SnapshotError::Model { theirs, ours } => {
                write!(f, "a snapshot of model version {theirs}, this program has {ours}; run the experiment again")
            }
            SnapshotError::Layout => f.write_str("written by another build of this model; run the experiment again"),
            SnapshotError::Truncated { found, expected } => {
                write!(f, "cut after {found} of {expected} bytes; take an older snapshot")
            }
            SnapshotError::Corrupt(how) => write!(f, "damaged: {how}; take an older snapshot"),
            SnapshotError::NotKept => f.write_str("this simulation was not set up to be saved; see ZapRun"),
            SnapshotError::Failed(what) => write!(f, "the run has gone wrong, there is nothing to go on with: {what}"),
            SnapshotError::OtherExperiment(what) => {
                write!(f, "the snapshot is of another experiment: {what}; set up the one that its configuration says")
            }
            SnapshotError::Replay(error) => error.fmt(f),
        }
    }
}
impl std::error::Error for SnapshotError {}

impl Snapshot {
    /// The bytes of a simulation at the end of a window. `config` says how to set up the same one again; it is not looked into.
    ///
    /// # Errors
    /// A simulation that was not set up to be saved, or whose run has gone wrong.
    pub fn save<A: Arch>(sim: &Sim<A>, config: &str) -> Result<Vec<u8>, SnapshotError> {
        if let Some(what) = sim.failure() {
            return Err(SnapshotError::Failed(what));
        }
        if let Some(violation) = sim.world().violations().first() {
            return Err(SnapshotError::Failed(violation.to_string()));
        }
        let mut writer = Writer(Vec::new());
        writer.put(&config)?;
        writer.put(&sim.now())?;
        sim.write_state(&mut writer).ok_or(SnapshotError::NotKept)??;
        envelope::seal(Envelope { config: xxh3_128(config.as_bytes()), time: sim.now() }, &writer.0)
    }

    /// Reads a snapshot and checks all that can be checked without its experiment.
    ///
    /// # Errors
    /// What is no snapshot, or not one of this program, or damaged.
    pub fn load(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let (Envelope { config: config_hash, time }, packed) = envelope::open(bytes)?;
        let payload = zstd::stream::decode_all(packed).map_err(|error| SnapshotError::Corrupt(error.to_string()))?;
        let mut reader = Reader(&payload);
        let (config, moment): (String, Cycles) = (reader.take()?, reader.take()?);
        if xxh3_128(config.as_bytes()) != config_hash || moment != time {
            return Err(SnapshotError::Corrupt("its envelope is another's".to_owned()));
        }
        let state = reader.0.to_vec();
        let (state_bytes, file_bytes) = (state.len() as u64, bytes.len() as u64);
        Ok(Self { info: Info { config, config_hash, time, state_bytes, file_bytes }, state })
    }

    /// What a snapshot says about itself.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn inspect(bytes: &[u8]) -> Result<Info, SnapshotError> {
        Self::load(bytes).map(|snapshot| snapshot.info)
    }

    /// What it says about itself.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Brings a simulation of the same configuration, set up and not run yet, to where the saved one was.
    ///
    /// # Errors
    /// The simulation is another, or its traces have changed. It must not be used then.
    pub fn restore<A: Arch>(&self, sim: &mut Sim<A>) -> Result<(), SnapshotError> {
        let mut reader = Reader(&self.state);
        sim.read_state(&mut reader).map_err(|misfit| match misfit {
            Misfit::Source(error) => error,
            Misfit::Other(what) => SnapshotError::OtherExperiment(what),
            Misfit::Replay(error) => SnapshotError::Replay(error),
        })?;
        match reader.0.len() {
            0 => Ok(()),
            left => Err(SnapshotError::Corrupt(format!("{left} bytes of state that nothing reads"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use arch_x86_ept::{EptConfig, LongMode, LongModeConfig};
    use mmu_core::machine::Machine;
    use mmu_core::{ByteUnits, Bytes, PageSize};
    use serde::Serialize;
    use serde_wincode::wincode::config::Serialize as _;
    use serde_wincode::{SerdeCompat, wincode};

    use super::codec::{Bincode1Fixint, Codec};
    use super::schema::{Schema, Unknown};
    use super::*;
    use crate::arch::Arch2;
    use crate::engine::{GuestPaging, Threads};
    use crate::experiment::zap::{ZapRequest, strategies};
    use crate::experiment::{Platform, Populate, VmSpec, ZapRun};
    use crate::rng::Seed;
    use crate::workload::{Mix, PatternSpec, Workload};

    impl Sink for Schema {
        type Error = Unknown;

        fn put(&mut self, part: &impl Serialize) -> Result<(), Unknown> {
            self.see(part)
        }
    }

    fn platform() -> Platform<Arch2<LongMode, arch_x86_ept::Ept>> {
        let one = LongModeConfig::new().max_phys_addr(52).build().unwrap();
        let two = EptConfig::new().max_phys_addr(52).build().unwrap();
        Platform::new(Arch2 { name: "x86", one, two }, &Machine::builtin("intel-granite-rapids-host").unwrap())
    }

    /// States of two runs, now and then.
    fn states<S: Sink<Error: std::fmt::Debug>>(sink: &mut S) {
        let pattern =
            PatternSpec { bytes: 1.MiB(), mix: Mix::Zipf { hundredths: 99 }, writes_percent: 30, accesses: 3_000 };
        let vm = VmSpec {
            memory: Bytes(64.MiB()),
            vcpus: 2,
            page: PageSize::SIZE_4K,
            guest: GuestPaging::FirstTouch(PageSize::SIZE_4K),
            populate: Populate::ByFaults,
            workload: Workload::Pattern(pattern),
            seed: Seed(1),
        };
        let mapped = VmSpec { populate: Populate::Mapped, ..vm.clone() };
        let request = ZapRequest { range: Bytes(8.MiB()), after: Cycles(50_000) };
        let all = strategies();
        for (vm, strategy) in [(&vm, all.last()), (&mapped, all.first())] {
            let mut run = ZapRun::new(&platform(), vm, request, strategy.copied(), Threads::One).unwrap();
            let mut turns = 0;
            while turns < 600 && run.turn().unwrap() {
                turns += 1;
                if turns % 7 == 0 {
                    run.sim().write_state(sink).unwrap().unwrap();
                }
            }
        }
    }

    /// Compares each part of a state as two encoders write it.
    struct TwoEncoders {
        parts: u64,
        bytes: usize,
    }

    impl Sink for TwoEncoders {
        type Error = String;

        fn put(&mut self, part: &impl Serialize) -> Result<(), String> {
            fn other<T: Serialize>(part: &T) -> Result<Vec<u8>, String> {
                let config = wincode::config::DefaultConfig::default().disable_preallocation_size_limit();
                SerdeCompat::<T>::serialize(part, config).map_err(|error| error.to_string())
            }
            let mut own = Vec::new();
            Bincode1Fixint::write(part, &mut own)?;
            if own != other(part)? {
                return Err(format!("{} bytes of part {} differ", own.len(), self.parts));
            }
            self.parts += 1;
            self.bytes += own.len();
            Ok(())
        }
    }

    #[test]
    fn another_encoder_writes_the_same_bytes() {
        let mut both = TwoEncoders { parts: 0, bytes: 0 };
        states(&mut both);
        assert!(both.parts > 1_000 && both.bytes > 1 << 20, "{} parts, {} bytes", both.parts, both.bytes);
    }

    const KINDS: &str = "\nNamed types, with what was seen of them:\n\n";

    /// After a change on purpose: MMUSIM_BLESS=1 cargo test -p mmu-sim --lib layout
    #[test]
    fn the_layout_is_the_one_written_down() {
        let mut schema = Schema::default();
        states(&mut schema);
        let (words, _) = LAYOUT.split_once(KINDS).unwrap();
        let text = format!("{words}{KINDS}{schema}");
        if option_env!("MMUSIM_BLESS").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/snapshot/layout.txt"), &text).unwrap();
        } else {
            assert!(text == LAYOUT, "snapshots have another layout:\n{schema}\nsay what it is in snapshot/layout.txt");
        }
    }
}
