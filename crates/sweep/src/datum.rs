//! Values of points and rows: integers, text, flags and lists of these, with one spelling each.
//!
//! There are no fractions. Their text differs between programs, and sums of them depend on the order; whoever needs one divides after
//! the merge.

use std::collections::BTreeMap;

use serde_json::Value as Json;

/// A value.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Datum {
    /// Yes or no.
    Flag(bool),
    /// An integer from 0 on.
    Natural(u64),
    /// An integer below 0.
    Negative(i64),
    /// Text.
    Text(String),
    /// Several: the counts of a histogram's buckets, for example.
    List(Vec<Datum>),
}

/// Named values, in the order of their names.
pub type Record = BTreeMap<String, Datum>;

impl From<bool> for Datum {
    fn from(flag: bool) -> Self {
        Datum::Flag(flag)
    }
}
impl From<u64> for Datum {
    fn from(number: u64) -> Self {
        Datum::Natural(number)
    }
}
impl From<i64> for Datum {
    fn from(number: i64) -> Self {
        u64::try_from(number).map_or(Datum::Negative(number), Datum::Natural)
    }
}
impl From<&str> for Datum {
    fn from(text: &str) -> Self {
        Datum::Text(text.to_owned())
    }
}
impl From<String> for Datum {
    fn from(text: String) -> Self {
        Datum::Text(text)
    }
}

impl Datum {
    /// The value in words, as an argument or a cell of a table has it.
    pub fn plain(&self) -> String {
        match self {
            Datum::Text(text) => text.clone(),
            Datum::List(items) => items.iter().map(Datum::plain).collect::<Vec<_>>().join(","),
            other => other.json(),
        }
    }

    /// Its only spelling in JSON.
    pub fn json(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        match self {
            Datum::Flag(flag) => out.push_str(if *flag { "true" } else { "false" }),
            Datum::Natural(number) => out.push_str(&number.to_string()),
            Datum::Negative(number) => out.push_str(&number.to_string()),
            Datum::Text(text) => write_text(text, out),
            Datum::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    out.push_str(if i == 0 { "" } else { "," });
                    item.write(out);
                }
                out.push(']');
            }
        }
    }

    /// Reads JSON.
    ///
    /// # Errors
    /// A fraction, an object or nothing: which, and what to write instead.
    pub fn from_json(json: &Json) -> Result<Self, String> {
        Ok(match json {
            Json::Bool(flag) => Datum::Flag(*flag),
            Json::Number(number) => match (number.as_u64(), number.as_i64()) {
                (Some(natural), _) => Datum::Natural(natural),
                (None, Some(negative)) => Datum::Negative(negative),
                _ => return Err(format!("{number} is no integer of 64 bits; give it in a smaller unit, or as text")),
            },
            Json::String(text) => Datum::Text(text.clone()),
            Json::Array(items) => Datum::List(items.iter().map(Datum::from_json).collect::<Result<_, _>>()?),
            Json::Null | Json::Object(_) => {
                return Err(format!("{json} is neither integer, text, flag nor a list of these"));
            }
        })
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// A fraction, a date or a table: which, and what to write instead.
    pub fn from_toml(toml: &toml::Value) -> Result<Self, String> {
        Ok(match toml {
            toml::Value::Boolean(flag) => Datum::Flag(*flag),
            toml::Value::Integer(number) => Datum::from(*number),
            toml::Value::String(text) => Datum::Text(text.clone()),
            toml::Value::Array(items) => Datum::List(items.iter().map(Datum::from_toml).collect::<Result<_, _>>()?),
            toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => {
                return Err(format!("{toml} is neither integer, text, flag nor a list of these; give it as text"));
            }
        })
    }
}

fn write_text(text: &str, out: &mut String) {
    // A string has a JSON form, always.
    out.push_str(&Json::String(text.to_owned()).to_string());
}

/// The only spelling of a record in JSON: names sorted, nothing between.
pub fn record_json(record: &Record) -> String {
    let mut out = String::from("{");
    for (i, (name, value)) in record.iter().enumerate() {
        out.push_str(if i == 0 { "" } else { "," });
        write_text(name, &mut out);
        out.push(':');
        value.write(&mut out);
    }
    out.push('}');
    out
}

/// Reads a record from JSON.
///
/// # Errors
/// What is no object, or holds a value that is none of ours; the name is told.
pub fn record_from_json(json: &Json) -> Result<Record, String> {
    let Json::Object(fields) = json else { return Err(format!("{json} is no object")) };
    let read = |(name, value): (&String, &Json)| {
        Ok((name.clone(), Datum::from_json(value).map_err(|why| format!("{name}: {why}"))?))
    };
    fields.iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn datum() -> impl Strategy<Value = Datum> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Datum::from),
            any::<u64>().prop_map(Datum::from),
            any::<i64>().prop_map(Datum::from),
            any::<String>().prop_map(Datum::from),
        ];
        leaf.prop_recursive(2, 8, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Datum::List))
    }

    proptest! {
        #[test]
        fn records_come_back_from_their_spelling(record in prop::collection::btree_map(any::<String>(), datum(), 0..6)) {
            let text = record_json(&record);
            let json: Json = serde_json::from_str(&text).unwrap();
            let again = record_from_json(&json).unwrap();
            prop_assert_eq!(record_json(&again), text);
            prop_assert_eq!(again, record);
        }
    }

    #[test]
    fn fractions_and_objects_are_refused_by_name() {
        for (text, word) in [("1.5", "1.5"), ("{\"a\":1}", "neither"), ("null", "neither"), ("1e30", "64 bits")] {
            let error = Datum::from_json(&serde_json::from_str(text).unwrap()).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        assert!(Datum::from_toml(&toml::Value::Float(0.5)).unwrap_err().contains("as text"));
    }
}
