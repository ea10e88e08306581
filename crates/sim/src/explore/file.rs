//! Replay files: a failure that can be repeated for ever.
//!
//! ```text
//! mmusim-replay 1
//! scenario X05
//! bug on
//! memory sc
//! arch arm64
//! without 1 3
//! store-failures 2
//! model 2
//! invariant T4
//! decisions 3
//! r3/4 v1/2 r0/2
//! digest 5a7c0000cafe0001
//! end 91b2c3d4e5f60718
//! ```
//!
//! `arch` is the architecture, where it is not the scenario's own; `without` has actors that do nothing, by number; `store-failures`
//! says how many compare-and-swaps may fail for no reason. These three lines are there if they say something.
//! The last line holds a checksum of everything before it, so a file that was cut or changed anywhere is refused.

use std::fmt;
use std::fmt::Write;

use super::decision::{Actors, Agent, Decision, Kind};
use super::invariant::Invariant;

/// What a replay file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplayFile {
    /// The scenario.
    pub scenario: String,
    /// Which variant of it: `on` with the defect, `off` without.
    pub variant: String,
    /// The memory order.
    pub memory: String,
    /// The architecture, if it is not the scenario's own.
    pub arch: Option<String>,
    /// Actors that do nothing.
    pub without: Actors,
    /// How many compare-and-swaps may fail for no reason ([`Limits::store_failures`](super::Limits)).
    pub store_failures: u32,
    /// [`MODEL_VERSION`](crate::MODEL_VERSION) of the program that wrote it.
    pub model: u32,
    /// The invariant that is broken.
    pub invariant: Invariant,
    /// The decisions.
    pub decisions: Vec<Decision>,
    /// What the execution amounts to.
    pub digest: u64,
}

/// Why a replay file cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplayError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong, what was expected.
    pub what: String,
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}
impl std::error::Error for ReplayError {}

const HEADER: &str = "mmusim-replay 1";
/// Decisions in a file, at most.
const MOST_DECISIONS: usize = 1 << 20;
/// Decisions of one line.
const IN_LINE: usize = 16;

fn checksum(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl ReplayFile {
    /// As text.
    pub fn write(&self) -> String {
        let mut text = format!("{HEADER}\nscenario {}\nbug {}\nmemory {}\n", self.scenario, self.variant, self.memory);
        if let Some(arch) = &self.arch {
            let _ = writeln!(text, "arch {arch}");
        }
        if self.without != Actors::NOBODY {
            let numbers: Vec<String> = self.without.iter().map(|actor| actor.to_string()).collect();
            let _ = writeln!(text, "without {}", numbers.join(" "));
        }
        if self.store_failures != 0 {
            let _ = writeln!(text, "store-failures {}", self.store_failures);
        }
        let Self { model, invariant, .. } = self;
        let _ = write!(text, "model {model}\ninvariant {invariant}\ndecisions {}\n", self.decisions.len());
        for line in self.decisions.chunks(IN_LINE) {
            let line: Vec<String> = line.iter().map(Decision::to_string).collect();
            let _ = writeln!(text, "{}", line.join(" "));
        }
        let _ = writeln!(text, "digest {:016x}", self.digest);
        let sum = checksum(&text);
        let _ = writeln!(text, "end {sum:016x}");
        text
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Anything that [`write`](Self::write) would not have written, with the line.
    pub fn read(text: &str) -> Result<Self, ReplayError> {
        let wrong = |line: usize, what: String| ReplayError { line, what };
        let last = text.lines().count();
        let Some(body_end) = text.rfind("end ").filter(|_| text.ends_with('\n')) else {
            return Err(wrong(last.max(1), "the file ends before its line \"end CHECKSUM\": it was cut".to_owned()));
        };
        let (body, end) = text.split_at(body_end);
        let sum = checksum(body);
        if end != format!("end {sum:016x}\n") {
            return Err(wrong(last, "the checksum does not match: the file was changed or cut".to_owned()));
        }
        let mut lines = (1..).zip(body.lines());
        // The next line, which has one of these names.
        let mut one_of = |names: &[&'static str]| -> Result<(usize, &'static str, String), ReplayError> {
            let Some((number, line)) = lines.next() else {
                return Err(wrong(
                    last,
                    format!("the file ends where \"{} ...\" is expected", names.join(" ...\" or \"")),
                ));
            };
            let found = names.iter().find_map(|&name| Some((name, line.strip_prefix(name)?.strip_prefix(' ')?)));
            match found {
                Some((name, value)) if !value.is_empty() => Ok((number, name, value.to_owned())),
                _ => {
                    let names = names.join(" ...\" or \"");
                    Err(wrong(number, format!("expected \"{names} ...\", found {line:?}")))
                }
            }
        };
        let (number, _, version) = one_of(&["mmusim-replay"])?;
        if version != "1" {
            return Err(wrong(number, format!("version {version}; this program reads version 1")));
        }
        let (_, _, scenario) = one_of(&["scenario"])?;
        let (_, _, variant) = one_of(&["bug"])?;
        let (_, _, memory) = one_of(&["memory"])?;
        let (mut arch, mut without, mut store_failures) = (None, Actors::NOBODY, 0);
        let (number, model) = loop {
            match one_of(&["arch", "without", "store-failures", "model"])? {
                (number, "model", value) => break (number, value),
                (_, "arch", value) => arch = Some(value),
                (number, "without", value) => {
                    without =
                        actors(&value).ok_or_else(|| wrong(number, format!("{value:?}: no numbers of actors")))?;
                }
                (number, _, value) => {
                    let count = value.parse().ok().filter(|&count| count != 0);
                    store_failures =
                        count.ok_or_else(|| wrong(number, format!("{value:?} is no number of failures")))?;
                }
            }
        };
        let model = model.parse().map_err(|_| wrong(number, format!("model version {model:?} is no number")))?;
        let (number, _, invariant) = one_of(&["invariant"])?;
        let invariant = invariant.parse().map_err(|error| wrong(number, format!("{error}")))?;
        let (number, _, count) = one_of(&["decisions"])?;
        let count: usize = count.parse().map_err(|_| wrong(number, format!("{count:?} is no number of decisions")))?;
        if count > MOST_DECISIONS {
            return Err(wrong(number, format!("{count} decisions; at most {MOST_DECISIONS} are read")));
        }
        let mut decisions = Vec::new();
        let rest = lines.by_ref();
        while decisions.len() < count {
            let Some((number, line)) = rest.next() else {
                return Err(wrong(last, format!("{} of {count} decisions", decisions.len())));
            };
            for word in line.split(' ') {
                decisions.push(decision(word).ok_or_else(|| wrong(number, format!("{word:?} is no decision")))?);
            }
        }
        let (number, line) = rest.next().ok_or_else(|| wrong(last, "the digest is missing".to_owned()))?;
        let digest = line.strip_prefix("digest ").and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let digest = digest.ok_or_else(|| wrong(number, format!("expected \"digest ...\", found {line:?}")))?;
        if let Some((number, line)) = rest.next() {
            return Err(wrong(number, format!("nothing is expected here, found {line:?}")));
        }
        let file =
            Self { scenario, variant, memory, arch, without, store_failures, model, invariant, decisions, digest };
        // What has been let pass so far: numbers with signs and zeros in front, lines of other lengths, names out of order or twice.
        let written = file.write();
        let differs =
            (1..).zip(written.split('\n').zip(text.split('\n'))).find(|(_, (written, found))| written != found);
        match differs {
            Some((number, (written, found))) => {
                Err(wrong(number, format!("expected {written:?}, as it is written, found {found:?}")))
            }
            None => Ok(file),
        }
    }
}

/// Actors by number, each a legal one.
fn actors(text: &str) -> Option<Actors> {
    text.split(' ').try_fold(Actors::NOBODY, |actors, word| {
        let number = word.parse().ok().filter(|&number: &usize| number < Agent::MOST_ACTORS)?;
        Some(actors.with(number))
    })
}

fn decision(word: &str) -> Option<Decision> {
    let kind = Kind::of_letter(word.chars().next()?)?;
    let (chosen, of) = word.get(1..)?.split_once('/')?;
    Some(Decision { kind, chosen: chosen.parse().ok()?, of: of.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ReplayFile {
        let decisions = (0..40).map(|n| Decision { kind: Kind::Run, of: 3, chosen: n % 3 }).collect();
        ReplayFile {
            scenario: "X05".to_owned(),
            variant: "on".to_owned(),
            memory: "sc".to_owned(),
            arch: Some("arm64".to_owned()),
            without: Actors::NOBODY.with(1).with(3),
            store_failures: 2,
            model: 2,
            invariant: Invariant::T4,
            decisions,
            digest: 77,
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let text = sample().write();
        assert_eq!(ReplayFile::read(&text), Ok(sample()), "{text}");
        let plain = ReplayFile { arch: None, without: Actors::NOBODY, store_failures: 0, ..sample() };
        let text = plain.write();
        assert!(
            text.starts_with("mmusim-replay 1\nscenario X05\nbug on\nmemory sc\nmodel 2\n"),
            "as it always was: {text}"
        );
        assert_eq!(ReplayFile::read(&text), Ok(plain));
    }

    #[test]
    fn a_file_is_written_in_one_way() {
        let body = sample().write();
        let body = body.split_once("end ").unwrap().0;
        let others = [
            ("model 2", "model +2"),
            ("decisions 40", "decisions 040"),
            ("r0/3 r1/3", "r0/3\nr1/3"),
            ("arch arm64\nwithout 1 3", "without 1 3\narch arm64"),
            ("without 1 3", "without 3 1"),
            ("bug on\n", "bug on\r\n"),
        ];
        for (from, to) in others {
            let changed = body.replacen(from, to, 1);
            assert_ne!(changed, body, "{from}");
            let sum = checksum(&changed);
            let error = ReplayFile::read(&format!("{changed}end {sum:016x}\n")).unwrap_err();
            assert!(error.what.contains("as it is written"), "{to}: {error}");
        }
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_an_error() {
        let text = sample().write();
        for end in 0..text.len() {
            assert!(ReplayFile::read(&text[..end]).is_err(), "cut at {end}");
        }
        for at in 0..text.len() {
            for bit in 0..7 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let Ok(changed) = String::from_utf8(bytes) else { continue };
                assert!(ReplayFile::read(&changed).is_err(), "bit {bit} of byte {at}");
            }
        }
    }
}
