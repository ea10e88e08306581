//! Points: one experiment each, complete, with a name that follows from the content.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde_json::Value as Json;
use xxhash_rust::xxh3::xxh3_128;

use crate::datum::{Datum, Record, record_from_json, record_json};

/// Name of a point: a hash of the plan's schema, the model's version and the canonical point. The same name is the same result.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId(pub u128);

impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}
impl fmt::Debug for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PointId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let canonical = text.len() == 32 && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
        let number = u128::from_str_radix(text, 16).ok().filter(|_| canonical);
        number.map(PointId).ok_or_else(|| format!("{text:?} is no point's name: 32 lower-case hexadecimal digits"))
    }
}

/// One experiment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Point {
    /// Its name.
    pub id: PointId,
    /// What is run.
    pub command: String,
    /// With which arguments.
    pub arguments: Record,
    /// Arguments that name files: argument to name in the plan's `inputs`, which begins with the content's hash.
    pub inputs: BTreeMap<String, String>,
}

impl Point {
    /// A point for this version of the model.
    pub fn new(model: u32, command: String, arguments: Record, inputs: BTreeMap<String, String>) -> Self {
        let mut point = Self { id: PointId(0), command, arguments, inputs };
        point.id = point.named(model);
        point
    }

    fn named(&self, model: u32) -> PointId {
        let text = format!("mmu-sweep {} {model}\n{}", crate::SCHEMA_VERSION, record_line(&self.fields()));
        PointId(xxh3_128(text.as_bytes()))
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let inputs: Record =
            self.inputs.iter().map(|(name, file)| (name.clone(), Datum::from(file.as_str()))).collect();
        vec![
            ("arguments", record_json(&self.arguments)),
            ("command", Datum::from(self.command.as_str()).json()),
            ("inputs", record_json(&inputs)),
        ]
    }

    /// The point as a line of the plan.
    pub fn line(&self) -> String {
        let mut fields = self.fields();
        fields.insert(2, ("id", Datum::from(self.id.to_string()).json()));
        record_line(&fields)
    }

    /// Reads a line of a plan for this version of the model.
    ///
    /// # Errors
    /// What is no point, has another name than its content gives, or is not [as a plan has it](Self::line): other spaces, other fields, fields twice.
    pub fn from_line(line: &str, model: u32) -> Result<Self, String> {
        let json: Json = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let field = |name: &str| json.get(name).ok_or_else(|| format!("a point has a field {name}"));
        let text = |name: &str| field(name)?.as_str().map(str::to_owned).ok_or_else(|| format!("{name} is text"));
        let file = |(name, value): (String, Datum)| match value {
            Datum::Text(file) if !file.contains('/') => Ok((name, file)),
            other => Err(format!("input {name}: {} is no file of the plan", other.json())),
        };
        let inputs: BTreeMap<String, String> =
            record_from_json(field("inputs")?)?.into_iter().map(file).collect::<Result<_, _>>()?;
        let id: PointId = text("id")?.parse()?;
        let point = Self { id, command: text("command")?, arguments: record_from_json(field("arguments")?)?, inputs };
        let named = point.named(model);
        if named != id {
            return Err(format!(
                "the point's name is {id}, its content says {named}; plan again rather than edit a plan"
            ));
        }
        // One point, one line: what is ignored here would be lost, and plans are compared byte by byte.
        let written = point.line();
        if written != line {
            let at = written.bytes().zip(line.bytes()).take_while(|(written, found)| written == found).count();
            return Err(format!(
                "from byte {at} on this is not the point as a plan has it ({written}); plan again rather than edit a plan"
            ));
        }
        Ok(point)
    }
}

/// The hash of a file's content, as names in plans begin.
pub fn content_hash(content: &[u8]) -> String {
    format!("{:032x}", xxh3_128(content))
}

/// An object of fields that are JSON already, in this order.
pub(crate) fn record_line(fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, json)| format!("\"{name}\":{json}")).collect();
    format!("{{{}}}", fields.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point() -> Point {
        let arguments = Record::from([("vcpus".into(), 4u64.into()), ("arch".into(), "x86".into())]);
        let inputs = BTreeMap::from([("trace".into(), "0f-a.mmut".into())]);
        Point::new(2, "compare zap".into(), arguments, inputs)
    }

    #[test]
    fn names_are_pinned() {
        // Results of years are kept under these names.
        let line = point().line();
        assert_eq!(line, PINNED);
        assert_eq!(Point::from_line(&line, 2).unwrap(), point());
    }
    const PINNED: &str = r#"{"arguments":{"arch":"x86","vcpus":4},"command":"compare zap","id":"0e7011c6aff36b4f80ba3c185ce29cd9","inputs":{"trace":"0f-a.mmut"}}"#;

    #[test]
    fn everything_counts_for_the_name() {
        let line = point().line();
        let other_model = Point::from_line(&line, 3).unwrap_err();
        assert!(other_model.contains("plan again"), "{other_model}");
        for (from, to) in [("x86", "arm64"), ("4", "5"), ("zap", "zip"), ("0f-a", "0e-a"), ("arch", "bend")] {
            assert!(Point::from_line(&line.replacen(from, to, 1), 2).is_err(), "{from} -> {to}");
        }
    }

    #[test]
    fn a_point_is_one_line_and_no_other() {
        let line = point().line();
        for (from, to) in [(":4", "\t:4"), ("{\"arg", "{\"more\":1,\"arg"), ("\"vcpus\":4", "\"vcpus\":5,\"vcpus\":4")]
        {
            let other = line.replacen(from, to, 1);
            let error = Point::from_line(&other, 2).unwrap_err();
            assert!(error.contains("from byte") && error.contains("plan again"), "{other}: {error}");
        }
    }
}
