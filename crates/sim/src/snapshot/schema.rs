//! The layout of values in words, from values: what a golden file holds, so that nobody changes a snapshot without noticing.
//!
//! A serializer that writes down names and kinds instead of contents. Each type with a name is described once, by all that was seen of
//! it: an empty list says nothing about what it could hold, so several values are described together.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use serde::ser::{self, Serialize};

/// What was seen of each named type: fields of a struct with their kinds, variants of an enum with theirs.
#[derive(Default)]
pub(super) struct Schema(BTreeMap<&'static str, BTreeMap<String, BTreeSet<String>>>);

impl Schema {
    /// Looks at one more value.
    pub(super) fn see(&mut self, value: &impl Serialize) -> Result<(), Unknown> {
        value.serialize(Describe(self)).map(drop)
    }

    fn note(&mut self, name: &'static str, part: &str, kind: String) {
        let kinds = self.0.entry(name).or_default().entry(part.to_owned()).or_default();
        if !kind.is_empty() {
            kinds.insert(kind);
        }
    }
}

impl Display for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, parts) in &self.0 {
            writeln!(f, "{name}")?;
            for (part, kinds) in parts {
                writeln!(f, "    {part}: {}", kinds.iter().cloned().collect::<Vec<_>>().join(" | "))?;
            }
        }
        Ok(())
    }
}

/// A kind of value that nobody has described yet.
#[derive(Debug)]
pub(super) struct Unknown;

impl Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a kind of value that `Describe` does not know")
    }
}
impl std::error::Error for Unknown {}
impl ser::Error for Unknown {
    fn custom<T: Display>(_: T) -> Self {
        Unknown
    }
}

/// Describes one value; answers with its kind in words. Nothing is known of what is not there.
struct Describe<'a>(&'a mut Schema);

macro_rules! scalars {
    ($($method:ident: $type:ty),*) => {
        $(fn $method(self, _: $type) -> Result<String, Unknown> {
            Ok(stringify!($type).to_owned())
        })*
    };
}

impl<'a> ser::Serializer for Describe<'a> {
    type Ok = String;
    type Error = Unknown;
    type SerializeSeq = Parts<'a>;
    type SerializeTuple = Parts<'a>;
    type SerializeTupleStruct = Parts<'a>;
    type SerializeTupleVariant = Parts<'a>;
    type SerializeMap = Parts<'a>;
    type SerializeStruct = Parts<'a>;
    type SerializeStructVariant = Parts<'a>;

    scalars!(serialize_bool: bool, serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_i128: i128, serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_u128: u128, serialize_f32: f32, serialize_f64: f64, serialize_char: char, serialize_str: &str,
        serialize_bytes: &[u8]);

    fn is_human_readable(&self) -> bool {
        false
    }
    fn serialize_none(self) -> Result<String, Unknown> {
        Ok(String::new())
    }
    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<String, Unknown> {
        Ok(format!("{}?", value.serialize(self)?))
    }
    fn serialize_unit(self) -> Result<String, Unknown> {
        Ok("()".to_owned())
    }
    fn serialize_unit_struct(self, name: &'static str) -> Result<String, Unknown> {
        Ok(name.to_owned())
    }
    fn serialize_unit_variant(self, name: &'static str, i: u32, variant: &'static str) -> Result<String, Unknown> {
        self.0.note(name, &format!("{i} {variant}"), "()".to_owned());
        Ok(name.to_owned())
    }
    fn serialize_newtype_struct<T: ?Sized + Serialize>(self, name: &'static str, value: &T) -> Result<String, Unknown> {
        let kind = value.serialize(Describe(self.0))?;
        self.0.note(name, "0", kind);
        Ok(name.to_owned())
    }
    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        name: &'static str,
        i: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<String, Unknown> {
        let kind = value.serialize(Describe(self.0))?;
        self.0.note(name, &format!("{i} {variant}"), kind);
        Ok(name.to_owned())
    }
    fn serialize_seq(self, _: Option<usize>) -> Result<Parts<'a>, Unknown> {
        Ok(Parts::new(self.0, Shape::Seq))
    }
    fn serialize_tuple(self, _: usize) -> Result<Parts<'a>, Unknown> {
        Ok(Parts::new(self.0, Shape::Tuple))
    }
    fn serialize_tuple_struct(self, name: &'static str, _: usize) -> Result<Parts<'a>, Unknown> {
        Ok(Parts::new(self.0, Shape::Struct(name)))
    }
    fn serialize_tuple_variant(
        self,
        name: &'static str,
        i: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, Unknown> {
        Ok(Parts::new(self.0, Shape::Variant(name, format!("{i} {variant}"))))
    }
    fn serialize_map(self, _: Option<usize>) -> Result<Parts<'a>, Unknown> {
        Ok(Parts::new(self.0, Shape::Map))
    }
    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Parts<'a>, Unknown> {
        Ok(Parts::new(self.0, Shape::Struct(name)))
    }
    fn serialize_struct_variant(
        self,
        name: &'static str,
        i: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, Unknown> {
        Ok(Parts::new(self.0, Shape::Variant(name, format!("{i} {variant}"))))
    }
}

enum Shape {
    Seq,
    Tuple,
    Map,
    Struct(&'static str),
    Variant(&'static str, String),
}

/// Items of a list that are looked at.
const MOST_ITEMS: u64 = 64;

struct Parts<'a> {
    schema: &'a mut Schema,
    shape: Shape,
    kinds: Vec<String>,
    seen: u64,
}

impl<'a> Parts<'a> {
    fn new(schema: &'a mut Schema, shape: Shape) -> Self {
        Self { schema, shape, kinds: Vec::new(), seen: 0 }
    }

    fn part(&mut self, name: Option<&str>, value: &(impl ?Sized + Serialize)) -> Result<(), Unknown> {
        self.seen += 1;
        // The cells of a cache are alike, and there are millions.
        if matches!(self.shape, Shape::Seq) && self.seen > MOST_ITEMS {
            return Ok(());
        }
        let kind = value.serialize(Describe(self.schema))?;
        if let Shape::Struct(owner) = self.shape {
            let number = self.kinds.len();
            let part = name.map_or_else(|| number.to_string(), |name| format!("{number} {name}"));
            self.schema.note(owner, &part, kind.clone());
        }
        let named = name.map_or_else(|| kind.clone(), |name| format!("{name}: {kind}"));
        // Items of a list are alike; what each says about its type has been noted.
        if !matches!(self.shape, Shape::Seq | Shape::Map) || self.kinds.len() < 2 {
            self.kinds.push(named);
        }
        Ok(())
    }

    fn finish(self) -> String {
        let kinds = self.kinds.join(", ");
        match self.shape {
            Shape::Seq => self.kinds.first().map_or_else(String::new, |kind| format!("[{kind}]")),
            Shape::Map if self.kinds.is_empty() => String::new(),
            Shape::Map => format!("{{{kinds}}}"),
            Shape::Tuple => format!("({kinds})"),
            Shape::Struct(name) => name.to_owned(),
            Shape::Variant(name, variant) => {
                self.schema.note(name, &variant, format!("({kinds})"));
                name.to_owned()
            }
        }
    }
}

macro_rules! parts {
    ($($trait:ident $method:ident),*) => {
        $(impl ser::$trait for Parts<'_> {
            type Ok = String;
            type Error = Unknown;
            fn $method<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Unknown> {
                self.part(None, value)
            }
            fn end(self) -> Result<String, Unknown> {
                Ok(self.finish())
            }
        })*
    };
}
parts!(SerializeSeq serialize_element, SerializeTuple serialize_element, SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field);

impl ser::SerializeMap for Parts<'_> {
    type Ok = String;
    type Error = Unknown;
    fn serialize_key<T: ?Sized + Serialize>(&mut self, key: &T) -> Result<(), Unknown> {
        self.part(None, key)
    }
    fn serialize_value<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Unknown> {
        self.part(None, value)
    }
    fn end(self) -> Result<String, Unknown> {
        Ok(self.finish())
    }
}

impl ser::SerializeStruct for Parts<'_> {
    type Ok = String;
    type Error = Unknown;
    fn serialize_field<T: ?Sized + Serialize>(&mut self, name: &'static str, value: &T) -> Result<(), Unknown> {
        self.part(Some(name), value)
    }
    fn end(self) -> Result<String, Unknown> {
        Ok(self.finish())
    }
}

impl ser::SerializeStructVariant for Parts<'_> {
    type Ok = String;
    type Error = Unknown;
    fn serialize_field<T: ?Sized + Serialize>(&mut self, name: &'static str, value: &T) -> Result<(), Unknown> {
        self.part(Some(name), value)
    }
    fn end(self) -> Result<String, Unknown> {
        Ok(self.finish())
    }
}
