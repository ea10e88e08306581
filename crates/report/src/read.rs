//! Which command wrote a document, and what is wrong with those that none did.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// Version of the layout that is read, `schema_version` of the documents.
pub const SCHEMA_VERSION: u64 = 1;

/// A document with its name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Input {
    /// Name that errors and the page call it by: that of its file.
    pub name: String,
    /// What the file holds: a JSON document, or lines of JSON.
    pub text: String,
}

/// A document that no page can be made of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReportError {
    /// Name of the input.
    pub file: String,
    /// What is wrong, in which line, and the remedy.
    pub what: String,
}

impl fmt::Display for ReportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.what)
    }
}
impl std::error::Error for ReportError {}

/// What wrote a document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// `compare zap --json`.
    Zap,
    /// `run --json`.
    Run,
    /// `selftest NAME --json`.
    Selftest,
    /// `reproduce --json`.
    Reproduce,
    /// `predict --curve NAME --json`.
    Curve,
    /// `predict --against FILE --json`.
    Score,
    /// `sweep merge`, lines.
    Sweep,
    /// `--timeline FILE`.
    Timeline,
    /// `--events FILE`, lines.
    Events,
}

impl Kind {
    /// All, with the command that writes each.
    const ALL: [(Kind, &'static str); 9] = [
        (Kind::Zap, "compare zap --json"),
        (Kind::Run, "run --json"),
        (Kind::Selftest, "selftest NAME --json"),
        (Kind::Reproduce, "reproduce ID --json"),
        (Kind::Curve, "predict --curve NAME --json"),
        (Kind::Score, "predict --against FILE --json"),
        (Kind::Sweep, "sweep merge PLAN -o FILE"),
        (Kind::Timeline, "compare zap --timeline FILE"),
        (Kind::Events, "compare zap --events FILE"),
    ];

    /// The command, without what every use of it has of its own.
    pub(crate) fn command(self) -> &'static str {
        Kind::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, command)| command)
    }
}

/// What a document's first value is looked at for.
#[derive(Deserialize)]
struct Probe {
    schema_version: Option<Value>,
    experiment: Option<Value>,
    #[serde(rename = "traceEvents")]
    trace_events: Option<serde::de::IgnoredAny>,
    row: Option<serde::de::IgnoredAny>,
    bands: Option<serde::de::IgnoredAny>,
    run: Option<Value>,
    clock_hz: Option<Value>,
}

/// What wrote an input.
///
/// # Errors
/// No JSON, or none of a known command; another version of the layout.
pub(crate) fn kind(input: &Input) -> Result<Kind, ReportError> {
    let mut values = serde_json::Deserializer::from_str(&input.text).into_iter::<Probe>();
    let probe = match values.next() {
        None => return Err(refused(input, format!("is empty; {}", known()))),
        Some(Err(error)) if error.is_data() => {
            return Err(refused(input, format!("is no document of mmusim; {}", known())));
        }
        Some(Err(error)) => return Err(refused(input, format!("is no JSON: {error}; {}", known()))),
        Some(Ok(probe)) => probe,
    };
    let kind = probe
        .kind()
        .ok_or_else(|| refused(input, format!("is no document of mmusim that can be shown; {}", known())))?;
    match probe.schema_version.as_ref().and_then(Value::as_u64) {
        None | Some(SCHEMA_VERSION) => Ok(kind),
        Some(other) => {
            let what = format!(
                "has schema version {other}, and this program reads {SCHEMA_VERSION}; write it again with `mmusim {}`",
                kind.command()
            );
            Err(refused(input, what))
        }
    }
}

impl Probe {
    fn kind(&self) -> Option<Kind> {
        if self.trace_events.is_some() {
            return Some(Kind::Timeline);
        }
        if self.row.is_some() {
            return Some(Kind::Sweep);
        }
        if self.run.is_some() && self.clock_hz.is_some() {
            return Some(Kind::Events);
        }
        match self.experiment.as_ref()?.as_str()? {
            "compare zap" => Some(Kind::Zap),
            "run" => Some(Kind::Run),
            "selftest" => Some(Kind::Selftest),
            "reproduce" => Some(Kind::Reproduce),
            "predict" if self.bands.is_some() => Some(Kind::Score),
            "predict" => Some(Kind::Curve),
            _ => None,
        }
    }
}

fn known() -> String {
    let all: Vec<String> = Kind::ALL.iter().map(|(_, command)| format!("`mmusim {command}`")).collect();
    format!("give what one of these wrote: {}", all.join(", "))
}

fn refused(input: &Input, what: String) -> ReportError {
    ReportError { file: input.name.clone(), what }
}

/// The whole input as one document.
///
/// # Errors
/// A field that is missing or is something else, with its line.
pub(crate) fn document<'a, T: Deserialize<'a>>(input: &'a Input, kind: Kind) -> Result<T, ReportError> {
    serde_json::from_str(&input.text).map_err(|error| misfit(input, kind, &error))
}

/// Every line of the input as one value; `each` gets its number, from one on.
///
/// # Errors
/// The first line that is something else.
pub(crate) fn lines<'a, T: Deserialize<'a>>(
    input: &'a Input,
    kind: Kind,
    mut each: impl FnMut(usize, T) -> Result<(), String>,
) -> Result<(), ReportError> {
    for (index, text) in input.text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let number = index + 1;
        let wrong = |what: String| {
            refused(input, format!("line {number}: {what}; write it again with `mmusim {}`", kind.command()))
        };
        let value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        each(number, value).map_err(wrong)?;
    }
    Ok(())
}

fn misfit(input: &Input, kind: Kind, error: &serde_json::Error) -> ReportError {
    let command = kind.command();
    refused(
        input,
        format!(
            "looks like the output of `mmusim {command}`, but: {error}; write it again with this version of the program"
        ),
    )
}

/// Versions that made a result.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub(crate) struct Versions {
    /// The program's.
    pub(crate) mmusim: String,
    /// The model's: figures of different ones are not to be compared.
    pub(crate) model: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str) -> Input {
        Input { name: "x.json".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn documents_are_told_apart() {
        let of = |text: &str| kind(&input(text)).unwrap();
        assert_eq!(of(r#"{"experiment": "compare zap", "schema_version": 1}"#), Kind::Zap);
        assert_eq!(of(r#"{"experiment": "predict", "points": []}"#), Kind::Curve);
        assert_eq!(of(r#"{"experiment": "predict", "points": [], "bands": {}}"#), Kind::Score);
        assert_eq!(of("{\"traceEvents\":[\n{\"ph\":\"M\"}]}"), Kind::Timeline);
        assert_eq!(of("{\"run\":0,\"clock_hz\":5,\"name\":\"a\"}\n{\"run\":0,\"at\":3}\n"), Kind::Events);
        assert_eq!(of("{\"arguments\":{},\"row\":{}}\n{\"arguments\":{},\"row\":{}}\n"), Kind::Sweep);
    }

    #[test]
    fn whatever_is_none_is_refused_with_its_name_and_a_remedy() {
        for text in [
            "",
            "  \n",
            "nonsense",
            "[1, 2]",
            "3",
            "{}",
            "{\"experiment\": 5}",
            "{\"experiment\": \"lunch\"}",
            "{\"run\":0}",
            "{",
        ] {
            let error = kind(&input(text)).unwrap_err().to_string();
            assert!(
                error.starts_with("x.json: ") && error.contains("`mmusim compare zap --json`"),
                "{text:?}: {error}"
            );
        }
        let newer = kind(&input(r#"{"experiment": "run", "schema_version": 7}"#)).unwrap_err().to_string();
        assert!(newer.contains("schema version 7") && newer.contains("`mmusim run --json`"), "{newer}");
    }
}
