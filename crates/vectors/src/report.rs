//! What checking a file found.

use serde::Serialize;

/// A known difference between an emulator and the manual, or a freedom that the manual leaves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Quirk {
    /// Short name.
    pub name: &'static str,
    /// What differs, with the manual's section.
    pub why: &'static str,
}

/// One case in which the walker's answer is not the recorded one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Disagreement {
    /// Name of the image.
    pub image: String,
    /// Line of the file, from 1.
    pub line: usize,
    /// Index of the case in its image, from 0.
    pub case: usize,
    /// The access.
    pub access: String,
    /// The recorded answer.
    pub expected: String,
    /// The walker's answer, with the entries it read.
    pub got: String,
}

/// What one file gave.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct FileReport {
    /// Name of the file.
    pub file: String,
    /// Images read.
    pub images: u64,
    /// Cases read.
    pub cases: u64,
    /// Cases in which walker and record agree.
    pub agreeing: u64,
    /// Cases in which they do not.
    pub disagreeing: u64,
    /// Cases set aside, with the quirk that says why.
    pub excepted: Vec<(Quirk, u64)>,
    /// The first few disagreements.
    pub disagreements: Vec<Disagreement>,
}

impl FileReport {
    /// How many disagreements are kept with their explanation.
    pub const EXPLAINED: usize = 5;

    /// Whether every case agrees or is excepted by a rule.
    pub fn passed(&self) -> bool {
        self.disagreeing == 0
    }

    pub(crate) fn agree(&mut self) {
        self.cases += 1;
        self.agreeing += 1;
    }

    pub(crate) fn except(&mut self, quirk: Quirk) {
        self.cases += 1;
        match self.excepted.iter_mut().find(|(known, _)| *known == quirk) {
            Some((_, count)) => *count += 1,
            None => self.excepted.push((quirk, 1)),
        }
    }

    pub(crate) fn disagree(&mut self, disagreement: Disagreement) {
        self.cases += 1;
        self.disagreeing += 1;
        if self.disagreements.len() < Self::EXPLAINED {
            self.disagreements.push(disagreement);
        }
    }
}
