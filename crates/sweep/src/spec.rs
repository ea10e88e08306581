//! What a user writes: commands, arguments they share, and axes.
//!
//! ```toml
//! schema = 1
//! name = "strategies by vCPUs"
//!
//! [[experiment]]
//! command = "compare zap"
//! with = { memory = "64MiB", workload = "zipf" }            # every point has these
//! over.arch = ["x86", "arm64", "power"]                     # every combination of these is a point
//! over.vcpus = [1, 2, 4, 8]
//! over.seed = { from = 1, to = 10 }                         # inclusive; `step` when it is not 1
//! except = [{ arch = "power", vcpus = 8 }]                  # but not these
//! ```
//!
//! The same as JSON in a file that ends in `.json`.

use serde::Deserialize;

use crate::datum::{Datum, Record};
use crate::error::SweepError;

/// A sweep as it is written.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Version of this layout.
    pub schema: u32,
    /// For people.
    pub name: String,
    /// What is run.
    pub experiment: Vec<ExperimentSpec>,
}

/// One command over its axes.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExperimentSpec {
    /// The command.
    pub command: String,
    /// Arguments of every point.
    #[serde(default)]
    pub with: toml::Table,
    /// Axes: argument to its values. Axes turn in the order of their names, the last one fastest.
    #[serde(default)]
    pub over: toml::Table,
    /// Combinations to leave out: a point that has all values of one of these.
    #[serde(default)]
    pub except: Vec<toml::Table>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    from: i64,
    to: i64,
    #[serde(default = "one")]
    step: i64,
}

fn one() -> i64 {
    1
}

/// Points of one sweep at most: what a directory and a scheduler can still hold.
pub const MOST_POINTS: usize = 10_000_000;

/// How a sweep is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notation {
    /// TOML.
    Toml,
    /// JSON.
    Json,
}

impl Spec {
    /// Reads a sweep; `place` names its file in errors.
    ///
    /// # Errors
    /// What does not read, with line and column.
    pub fn parse(place: &str, text: &str, notation: Notation) -> Result<Self, SweepError> {
        let spec: Spec = match notation {
            Notation::Toml => toml::from_str(text).map_err(|error| SweepError::spec(place, error.to_string()))?,
            Notation::Json => serde_json::from_str(text).map_err(|error| SweepError::spec(place, error.to_string()))?,
        };
        if spec.schema != crate::SCHEMA_VERSION {
            let what = format!("schema = {}; this program reads schema {}", spec.schema, crate::SCHEMA_VERSION);
            return Err(SweepError::spec(place, what));
        }
        if spec.experiment.is_empty() {
            return Err(SweepError::spec(place, "no [[experiment]]; a sweep needs at least one"));
        }
        Ok(spec)
    }

    /// Every command with its arguments, in order.
    ///
    /// # Errors
    /// An axis that is none, a value that no argument can have, an argument on both sides, more points than [`MOST_POINTS`].
    pub fn expand(&self, place: &str) -> Result<Vec<(String, Record)>, SweepError> {
        let mut points = Vec::new();
        for (number, experiment) in (1..).zip(&self.experiment) {
            let place = format!("{place}: experiment {number} ({})", experiment.command);
            let fixed = arguments(&experiment.with).map_err(|what| SweepError::spec(format!("{place}: with"), what))?;
            let axes = experiment.axes().map_err(|what| SweepError::spec(format!("{place}: over"), what))?;
            if let Some((both, _)) = axes.iter().find(|(name, _)| fixed.contains_key(name)) {
                return Err(SweepError::spec(place, format!("{both} stands in `with` and in `over`; keep one")));
            }
            let count = axes.iter().try_fold(1usize, |count, (_, values)| count.checked_mul(values.len()));
            if count.is_none_or(|count| count.saturating_add(points.len()) > MOST_POINTS) {
                return Err(SweepError::spec(place, format!("more than {MOST_POINTS} points; sweep over less")));
            }
            let except = experiment.except.iter().map(arguments).collect::<Result<Vec<_>, _>>();
            let except = except.map_err(|what| SweepError::spec(format!("{place}: except"), what))?;
            for arguments in combinations(&fixed, &axes) {
                let excepted = |out: &Record| out.iter().all(|(name, value)| arguments.get(name) == Some(value));
                if !except.iter().any(|out| !out.is_empty() && excepted(out)) {
                    points.push((experiment.command.clone(), arguments));
                }
            }
        }
        Ok(points)
    }
}

impl ExperimentSpec {
    fn axes(&self) -> Result<Vec<(String, Vec<Datum>)>, String> {
        let axis = |(name, values): (&String, &toml::Value)| {
            let values = axis(values).map_err(|what| format!("{name}: {what}"))?;
            if values.is_empty() { Err(format!("{name}: an axis without values")) } else { Ok((name.clone(), values)) }
        };
        self.over.iter().map(axis).collect()
    }
}

fn axis(values: &toml::Value) -> Result<Vec<Datum>, String> {
    match values {
        toml::Value::Array(values) => values.iter().map(scalar).collect(),
        toml::Value::Table(_) => {
            let Range { from, to, step } =
                values.clone().try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
            if step < 1 || to < from {
                return Err(format!("from {from} to {to} by {step} has no values; count upward"));
            }
            let count = usize::try_from((to.abs_diff(from)) / step.unsigned_abs()).unwrap_or(usize::MAX);
            if count >= MOST_POINTS {
                return Err(format!("more than {MOST_POINTS} values"));
            }
            Ok((0..=count as i64).map(|i| Datum::from(from + i * step)).collect())
        }
        other => Err(format!("{other} is no axis; give a list of values, or {{ from = 1, to = 10 }}")),
    }
}

fn scalar(value: &toml::Value) -> Result<Datum, String> {
    match Datum::from_toml(value)? {
        Datum::List(_) => Err("an argument has one value; lists are axes".to_owned()),
        datum => Ok(datum),
    }
}

/// Reads options alone: names and values, without axes.
///
/// # Errors
/// What does not read, with line and column; a value that no option can have.
pub fn options(text: &str) -> Result<Record, String> {
    let table: toml::Table = toml::from_str(text).map_err(|error| error.to_string())?;
    arguments(&table)
}

fn arguments(table: &toml::Table) -> Result<Record, String> {
    let read = |(name, value): (&String, &toml::Value)| {
        Ok((name.clone(), scalar(value).map_err(|what| format!("{name}: {what}"))?))
    };
    table.iter().map(read).collect()
}

fn combinations(fixed: &Record, axes: &[(String, Vec<Datum>)]) -> Vec<Record> {
    let mut points = vec![fixed.clone()];
    for (name, values) in axes {
        let with = |point: &Record, value: &Datum| {
            let mut point = point.clone();
            point.insert(name.clone(), value.clone());
            point
        };
        points = points.iter().flat_map(|point| values.iter().map(move |value| with(point, value))).collect();
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: &str = r#"
        schema = 1
        name = "test"
        [[experiment]]
        command = "compare zap"
        with = { memory = "64MiB" }
        over.vcpus = [1, 2]
        over.seed = { from = 3, to = 7, step = 2 }
        except = [{ vcpus = 2, seed = 5 }]
    "#;

    fn expand(text: &str) -> Result<Vec<(String, Record)>, String> {
        let spec = Spec::parse("s.toml", text, Notation::Toml).map_err(|error| error.to_string())?;
        spec.expand("s.toml").map_err(|error| error.to_string())
    }

    #[test]
    fn axes_turn_in_order_and_exceptions_are_left_out() {
        let points = expand(SPEC).unwrap();
        let pairs: Vec<_> = points.iter().map(|(_, point)| (point["seed"].plain(), point["vcpus"].plain())).collect();
        let expected = [("3", "1"), ("3", "2"), ("5", "1"), ("7", "1"), ("7", "2")];
        assert_eq!(pairs, expected.map(|(seed, vcpus)| (seed.to_owned(), vcpus.to_owned())));
        assert!(points.iter().all(|(command, point)| command == "compare zap" && point["memory"] == "64MiB".into()));
    }

    #[test]
    fn json_says_the_same() {
        let json = r#"{"schema": 1, "name": "test", "experiment": [{"command": "compare zap", "with": {"memory": "64MiB"},
            "over": {"vcpus": [1, 2], "seed": {"from": 3, "to": 7, "step": 2}}, "except": [{"vcpus": 2, "seed": 5}]}]}"#;
        let json = Spec::parse("s.json", json, Notation::Json).unwrap();
        assert_eq!(json, Spec::parse("s.toml", SPEC, Notation::Toml).unwrap());
    }

    #[test]
    fn what_cannot_be_planned_is_told_with_its_place() {
        for (from, to, words) in [
            ("schema = 1", "schema = 9", &["schema = 9"][..]),
            ("over.vcpus = [1, 2]", "over.memory = [1, 2]", &["experiment 1", "memory stands in"]),
            ("over.vcpus = [1, 2]", "over.vcpus = []", &["vcpus", "without values"]),
            ("over.vcpus = [1, 2]", "over.vcpus = 3", &["vcpus", "no axis"]),
            ("over.vcpus = [1, 2]", "over.vcpus = [[1]]", &["vcpus", "lists are axes"]),
            ("over.vcpus = [1, 2]", "over.vcpus = [1.5]", &["vcpus", "as text"]),
            ("to = 7", "to = 1", &["seed", "count upward"]),
            ("to = 7", "too = 7", &["seed", "too"]),
            ("to = 7", "to = 99999999999", &["seed", "more than"]),
            ("command", "comand", &["comand", "line 5"]),
            ("memory = \"64MiB\"", "memory = 1979-05-27", &["memory", "as text"]),
        ] {
            let error = expand(&SPEC.replacen(from, to, 1)).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{to}: {error}");
            }
        }
        assert!(expand("schema = 1\nname = \"a\"\nexperiment = []").unwrap_err().contains("at least one"));
    }
}
