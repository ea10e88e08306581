//! Replay files: a failure that can be repeated for ever.
//!
//! ```text
//! mmusim-replay 1
//! scenario X05
//! bug on
//! memory sc
//! model 2
//! invariant T4
//! decisions 3
//! r3/4 v1/2 r0/2
//! digest 5a7c0000cafe0001
//! end 91b2c3d4e5f60718
//! ```
//!
//! The last line holds a checksum of everything before it, so a file that was cut or changed anywhere is refused.

use std::fmt;
use std::fmt::Write;

use super::decision::{Decision, Kind};
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
        let mut field = |name: &str| -> Result<(usize, String), ReplayError> {
            let Some((number, line)) = lines.next() else {
                return Err(wrong(last, format!("the file ends where {name:?} is expected")));
            };
            match line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')) {
                Some(value) if !value.is_empty() => Ok((number, value.to_owned())),
                _ => Err(wrong(number, format!("expected \"{name} ...\", found {line:?}"))),
            }
        };
        let (number, version) = field("mmusim-replay")?;
        if version != "1" {
            return Err(wrong(number, format!("version {version}; this program reads version 1")));
        }
        let (_, scenario) = field("scenario")?;
        let (_, variant) = field("bug")?;
        let (_, memory) = field("memory")?;
        let (number, model) = field("model")?;
        let model = model.parse().map_err(|_| wrong(number, format!("model version {model:?} is no number")))?;
        let (number, invariant) = field("invariant")?;
        let invariant = invariant.parse().map_err(|error| wrong(number, format!("{error}")))?;
        let (number, count) = field("decisions")?;
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
        Ok(Self { scenario, variant, memory, model, invariant, decisions, digest })
    }
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
