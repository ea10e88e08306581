//! Programs by name: what each actor does, and on which pages of the host.
//!
//! A name is `discard,age+log:huge`: acts of one actor separated by commas, actors by `+`, and `:huge` behind them where the host has huge
//! pages. [`Program::name`] writes it, [`Program::named`] reads the names of pairs; reports, JSON and replay files have no other.

use std::fmt;

use super::{Act, Backing, Program, Step};
use crate::museum::Architecture;

/// Behind the acts of a program on huge pages.
const HUGE: &str = ":huge";

/// Why a name is no pair's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NameError {
    /// It is not two names with a `+` between them: something else's, perhaps.
    NoPair,
    /// One of the two is no act's.
    NoAct {
        /// What stands there.
        name: String,
    },
    /// One of the two means nothing on the architecture.
    Nowhere {
        /// Which.
        act: Act,
        /// Where.
        arch: Architecture,
    },
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::NoPair => f.write_str("a pair is two acts with a + between them, as in discard+log"),
            NameError::NoAct { name } => {
                let all = Act::ALL.map(Act::name).join(", ");
                write!(f, "{name:?} is no act; use two of {all}")
            }
            NameError::Nowhere { act, arch } => {
                let known: Vec<&str> = act.architectures().iter().map(|arch| arch.name()).collect();
                write!(f, "{act} means nothing on {arch}; it does on {}", known.join(" and "))
            }
        }
    }
}
impl std::error::Error for NameError {}

impl Program {
    /// Its acts and the host's pages, as in `discard+log:huge`.
    pub fn name(&self) -> String {
        let names = |steps: &Vec<Step>| steps.iter().map(|step| step.act.name()).collect::<Vec<_>>().join(",");
        let acts = self.actors.iter().map(names).collect::<Vec<_>>().join("+");
        match self.backing {
            Backing::Small => acts,
            Backing::Huge => acts + HUGE,
        }
    }

    /// The [pair](Program::pair) of a name such as `discard+log` or `discard+log:huge`.
    ///
    /// # Errors
    /// [`NameError`]
    pub fn named(name: &str, arch: Architecture) -> Result<Program, NameError> {
        let (acts, backing) = match name.strip_suffix(HUGE) {
            Some(acts) => (acts, Backing::Huge),
            None => (name, Backing::Small),
        };
        let (one, two) = acts.split_once('+').ok_or(NameError::NoPair)?;
        let act = |name: &str| {
            let act = Act::of_name(name).ok_or_else(|| NameError::NoAct { name: name.to_owned() })?;
            if act.architectures().contains(&arch) { Ok(act) } else { Err(NameError::Nowhere { act, arch }) }
        };
        Ok(Program { backing, ..Program::pair(act(one)?, act(two)?, arch) })
    }
}
