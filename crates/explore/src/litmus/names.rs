//! Names of a test and what stands under them: pages, entries, values.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::read::{Limits, Wrong, choice, fields, kind};
use super::test::{EntryPattern, Layout, Loc, Place, Pointer, Value, Virtual};
use super::words::{EntryPerm, EntrySpec, StageNumber, Words};

/// What one test calls its things, while it is being read.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) words: Words,
    pub(crate) limits: Limits,
    /// Physical and intermediate pages with the value of their word; a page that is only mapped starts with 0.
    pages: BTreeMap<String, (u32, u64)>,
    virtuals: Vec<(String, u64, Option<u8>)>,
    tables: Vec<(String, u64)>,
    /// Page and word of the entries at stage 2, if there is one.
    second: Option<Vec<(u32, u64)>>,
}

/// The names of the registers of a thread that is being read.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    pub(crate) names: Vec<String>,
}

impl Registers {
    /// The number of a register.
    pub(crate) fn number(&mut self, name: &str, limits: &Limits) -> Result<u8, Wrong> {
        if let Some(found) = self.names.iter().position(|known| known == name) {
            return Ok(found as u8);
        }
        if name.len() > limits.name || self.names.len() == 64 {
            return Err(Wrong::new(
                "",
                format!("more than 64 registers, or a name of more than {} bytes", limits.name),
            ));
        }
        self.names.push(name.to_owned());
        Ok((self.names.len() - 1) as u8)
    }
}

const ENTRY: [&str; 6] = ["map", "perm", "valid", "af", "db", "dbm"];

impl Names {
    pub(crate) fn new(words: &Words, limits: Limits) -> Self {
        Self { words: *words, limits, pages: BTreeMap::new(), virtuals: Vec::new(), tables: Vec::new(), second: None }
    }

    /// Number of a page, which becomes known by being named.
    fn page(&mut self, name: &str) -> Result<u32, Wrong> {
        if let Some(&(number, _)) = self.pages.get(name) {
            return Ok(number);
        }
        let most = self.limits.pages.min(64);
        if self.pages.len() >= most || name.len() > self.limits.name {
            return Err(Wrong::new(
                "",
                format!("more than {most} pages, or a name of more than {} bytes", self.limits.name),
            ));
        }
        let number = self.pages.len() as u32;
        self.pages.insert(name.to_owned(), (number, 0));
        Ok(number)
    }

    fn check_count(&self, count: usize) -> Result<(), Wrong> {
        let most = self.limits.pages.min(64);
        if count > most {
            return Err(Wrong::new("", format!("{count} entries, limit {most}; use fewer")));
        }
        Ok(())
    }

    /// Reads `init`.
    pub(crate) fn init(&mut self, init: &Json) -> Result<(), Wrong> {
        let map = fields(init, &["memory", "stage1", "stage2", "stage1_level2"])?;
        let part = |key: &str| match map.get(key) {
            None => Ok(None),
            Some(Json::Object(inner)) => Ok(Some(inner)),
            Some(other) => Err(Wrong::new(key, format!("{} where an object is expected", kind(other)))),
        };
        for (name, value) in part("memory")?.into_iter().flatten() {
            let inside = |wrong: Wrong| wrong.inside(name).inside("memory");
            let number = self.page(name).map_err(inside)?;
            let value = number_of(value).map_err(inside)?;
            self.pages.insert(name.clone(), (number, value));
        }
        if let Some(stage) = part("stage2")? {
            self.check_count(stage.len()).map_err(|wrong| wrong.inside("stage2"))?;
            let mut entries = Vec::new();
            for (name, entry) in stage {
                let inside = |wrong: Wrong| wrong.inside(name).inside("stage2");
                let page = self.page(name).map_err(inside)?;
                entries.push((page, self.entry(StageNumber::Two, entry).map_err(inside)?));
            }
            self.second = Some(entries);
        }
        if let Some(stage) = part("stage1")? {
            self.check_count(stage.len()).map_err(|wrong| wrong.inside("stage1"))?;
            for (name, entry) in stage {
                let inside = |wrong: Wrong| wrong.inside(name).inside("stage1");
                let word = self.entry(StageNumber::One, entry).map_err(inside)?;
                self.virtuals.push((name.clone(), word, None));
            }
        }
        if let Some(level) = part("stage1_level2")? {
            self.check_count(level.len()).map_err(|wrong| wrong.inside("stage1_level2"))?;
            for (name, table) in level {
                self.table(name, table).map_err(|wrong| wrong.inside(name).inside("stage1_level2"))?;
            }
        }
        Ok(())
    }

    /// Makes known the virtual pages that threads name and `stage1` does not: their entries are invalid.
    pub(crate) fn unmapped(&mut self, threads: &Json) -> Result<(), Wrong> {
        let accesses = threads.as_array().into_iter().flatten().filter_map(|thread| thread.get("ops")?.as_array());
        for access in accesses.flatten().filter_map(Json::as_object) {
            let places = ["from", "to", "loc"].into_iter().filter_map(|key| access.get(key)?.as_object());
            let named =
                places.flatten().filter(|(what, _)| matches!(what.as_str(), "va" | "pte1")).map(|(_, name)| name);
            let by_va = access.get("by").and_then(Json::as_str) == Some("va");
            for name in named.chain(access.get("target").filter(|_| by_va)).filter_map(Json::as_str) {
                if self.virtuals.iter().any(|(known, ..)| known == name) {
                    continue;
                }
                self.check_count(self.virtuals.len() + 1)?;
                if name.len() > self.limits.name {
                    return Err(Wrong::new("", format!("a name of more than {} bytes; shorten it", self.limits.name)));
                }
                self.virtuals.push((name.to_owned(), 0, None));
            }
        }
        Ok(())
    }

    /// A table entry one level up.
    fn table(&mut self, name: &str, table: &Json) -> Result<(), Wrong> {
        let map = fields(table, &["valid", "covers"])?;
        let number = self.tables.len() as u8;
        let valid = flag(map, "valid", true)?;
        let word = self.pointer(number, valid)?;
        self.tables.push((name.to_owned(), word));
        let Some(Json::Array(covered)) = map.get("covers") else {
            return Err(Wrong::new("covers", "missing, or no list of virtual pages"));
        };
        for va in covered {
            let index = self.virtual_page(va).map_err(|wrong| wrong.inside("covers"))?;
            let slot = &mut self.virtuals[usize::from(index)].2;
            if slot.is_some() {
                return Err(Wrong::new("covers", format!("{} stands under two tables; name it once", kind(va))));
            }
            *slot = Some(number);
        }
        Ok(())
    }

    fn pointer(&self, table: u8, valid: bool) -> Result<u64, Wrong> {
        if !valid {
            return Ok(0);
        }
        self.words.encode_table(u32::from(table)).map_err(|what| Wrong::new("", what))
    }

    fn spec(&mut self, entry: &Json) -> Result<Option<EntrySpec>, Wrong> {
        let map = fields(entry, &ENTRY)?;
        let valid = flag(map, "valid", true)?;
        let page = match map.get("map") {
            Some(Json::String(name)) => self.page(name).map_err(|wrong| wrong.inside("map"))?,
            None if !valid => return Ok(None),
            None => return Err(Wrong::new("map", "missing; a valid entry maps a page")),
            Some(other) => return Err(Wrong::new("map", format!("{} where a page's name is expected", kind(other)))),
        };
        let perm = |write, user| EntryPerm { write, user };
        let perm = match map.get("perm") {
            None => perm(true, true),
            Some(_) => choice(
                map,
                "perm",
                &[
                    ("rw", perm(true, true)),
                    ("ro", perm(false, true)),
                    ("rw_el1", perm(true, false)),
                    ("ro_el1", perm(false, false)),
                ],
            )?,
        };
        let (accessed, dirty, dbm) = (flag(map, "af", true)?, flag(map, "db", true)?, flag(map, "dbm", false)?);
        Ok(Some(EntrySpec { page, perm, valid, accessed, dirty, dbm }))
    }

    /// The word of an entry. An invalid one that maps nothing is 0.
    pub(crate) fn entry(&mut self, stage: StageNumber, entry: &Json) -> Result<u64, Wrong> {
        match self.spec(entry)? {
            Some(spec) => self.encode(stage, &spec),
            None => Ok(0),
        }
    }

    fn encode(&self, stage: StageNumber, spec: &EntrySpec) -> Result<u64, Wrong> {
        self.words
            .encode(stage, spec)
            .map_err(|what| Wrong::new("", format!("not an entry of {}: {what}", stage.other_name())))
    }

    /// What an entry in a condition stands for.
    pub(crate) fn pattern(&mut self, stage: Option<StageNumber>, entry: &Json) -> Result<EntryPattern, Wrong> {
        let Some(spec) = self.spec(entry)? else { return Ok(EntryPattern::Invalid) };
        Ok(match stage {
            Some(stage) => EntryPattern::Word(self.encode(stage, &spec)?),
            None => EntryPattern::Either(self.encode(StageNumber::One, &spec)?, self.encode(StageNumber::Two, &spec)?),
        })
    }

    /// Number of a virtual page.
    pub(crate) fn virtual_page(&self, name: &Json) -> Result<u8, Wrong> {
        let known = name.as_str().and_then(|text| self.virtuals.iter().position(|(va, ..)| va == text));
        known.map(|index| index as u8).ok_or_else(|| {
            Wrong::new("", format!("{}: no such virtual page; init.stage1 gives it an entry", kind(name)))
        })
    }

    /// The page that an invalidation by intermediate address names. The name of a virtual page is an address that stage 2 need not know.
    pub(crate) fn intermediate(&self, name: &Json) -> Result<Option<u32>, Wrong> {
        let text = name.as_str().unwrap_or_default();
        match self.pages.get(text) {
            Some(&(number, _)) => Ok(Some(number)),
            None if self.virtual_page(name).is_ok() => Ok(None),
            None => Err(Wrong::new("", format!("{}: no page of this name", kind(name)))),
        }
    }

    /// The word of a page, for conditions.
    pub(crate) fn page_word(&self, name: &Json) -> Result<Loc, Wrong> {
        let found = name.as_str().and_then(|text| self.pages.get(text));
        found.map(|&(number, _)| self.locations().pages + number as Loc).ok_or_else(|| {
            Wrong::new("", format!("{}: no page of this name; init.memory gives it a value", kind(name)))
        })
    }

    /// Where an access goes, and whose entries it would hold.
    pub(crate) fn place(&self, place: &Json) -> Result<(PlaceName, StageNumber), Wrong> {
        let map = fields(place, &["va", "pte1", "pte2", "pte1_level2"])?;
        let mut named = map.iter();
        let (Some((what, name)), None) = (named.next(), named.next()) else {
            return Err(Wrong::new("", "a place is one of va, pte1, pte2, pte1_level2"));
        };
        let inside = |wrong: Wrong| wrong.inside(what);
        Ok(match what.as_str() {
            "va" => (PlaceName::Virtual(self.virtual_page(name).map_err(inside)?), StageNumber::One),
            "pte1" => (PlaceName::Leaf(self.virtual_page(name).map_err(inside)?), StageNumber::One),
            "pte2" => {
                let page = self.intermediate(name).map_err(inside)?;
                let known = self.second.iter().flatten().position(|&(entry, _)| Some(entry) == page);
                let absent = || Wrong::new(what, format!("{}: init.stage2 has no such entry", kind(name)));
                (PlaceName::Second(known.ok_or_else(absent)? as u8), StageNumber::Two)
            }
            _ => {
                let known = self.tables.iter().position(|(table, _)| Some(table.as_str()) == name.as_str());
                let absent = || Wrong::new(what, format!("{}: init.stage1_level2 has no such entry", kind(name)));
                (PlaceName::Table(known.ok_or_else(absent)? as u8), StageNumber::One)
            }
        })
    }

    /// A value: a number, a register, an entry, a table pointer. `at`: where it goes.
    pub(crate) fn value(&mut self, value: &Json, at: ValueFor, regs: &mut Registers) -> Result<Value, Wrong> {
        let Json::Object(map) = value else { return Ok(Value::Word(number_of(value)?)) };
        if map.contains_key("reg") {
            let map = fields(value, &["reg"])?;
            let name = super::read::text(map, "reg", &self.limits)?;
            return Ok(Value::Reg(regs.number(name, &self.limits)?));
        }
        if map.contains_key("table") {
            let valid = flag(fields(value, &["table"])?, "table", true)?;
            let ValueFor::Table(table) = at else {
                return Err(Wrong::new("table", "goes to a pte1_level2 only"));
            };
            return Ok(Value::Word(self.pointer(table, valid)?));
        }
        match at {
            ValueFor::Data => {
                Err(Wrong::new("", "an entry goes to a pte1 or pte2; data pages and pointers hold numbers and tables"))
            }
            ValueFor::Table(_) => {
                let map = fields(value, &["valid"])?;
                if flag(map, "valid", true)? {
                    return Err(Wrong::new("valid", "write {\"table\": 1} to link the table"));
                }
                Ok(Value::Word(0))
            }
            ValueFor::Entry(stage) => Ok(Value::Word(self.entry(stage, value)?)),
        }
    }

    /// Where each kind of word begins; known as soon as `init` is read. Pages come last, because any entry may name a new one.
    pub(crate) fn locations(&self) -> Locations {
        let tables = self.virtuals.len() as Loc;
        let second = tables + self.tables.len() as Loc;
        Locations { tables, second, pages: second + self.second.as_ref().map_or(0, Vec::len) as Loc }
    }

    /// The layout of the test's memory.
    pub(crate) fn layout(&self) -> Layout {
        let at = self.locations();
        let mut layout = Layout { entries: at.pages, ..Layout::default() };
        for (leaf, (name, word, table)) in (0..).zip(&self.virtuals) {
            layout.virtuals.push(Virtual { name: name.clone(), leaf, table: *table });
            layout.initial.push(*word);
        }
        for (loc, (name, word)) in (at.tables..).zip(&self.tables) {
            layout.tables.push(Pointer { name: name.clone(), loc });
            layout.initial.push(*word);
        }
        if let Some(entries) = &self.second {
            let mut second = vec![None; self.pages.len()];
            for (loc, &(page, word)) in (at.second..).zip(entries) {
                second[page as usize] = Some(loc);
                layout.initial.push(word);
            }
            layout.second = Some(second);
        }
        let mut pages: Vec<_> = self.pages.iter().map(|(name, &(number, value))| (number, name, value)).collect();
        pages.sort_unstable();
        for (_, name, value) in pages {
            layout.pages.push(name.clone());
            layout.initial.push(value);
        }
        layout
    }
}

/// What a value is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ValueFor {
    Data,
    Entry(StageNumber),
    Table(u8),
}

/// A place by the number of what it belongs to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PlaceName {
    Virtual(u8),
    Leaf(u8),
    Table(u8),
    Second(u8),
}

impl PlaceName {
    /// What may be written there.
    pub(crate) const fn holds(self, stage: StageNumber) -> ValueFor {
        match self {
            PlaceName::Virtual(_) => ValueFor::Data,
            PlaceName::Table(table) => ValueFor::Table(table),
            PlaceName::Leaf(_) | PlaceName::Second(_) => ValueFor::Entry(stage),
        }
    }
}

/// Where the kinds of words begin; leaf entries begin at 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Locations {
    tables: Loc,
    second: Loc,
    pages: Loc,
}

impl Locations {
    /// The place of a name.
    pub(crate) fn place(&self, name: PlaceName) -> Place {
        match name {
            PlaceName::Virtual(va) => Place::Virtual(va),
            PlaceName::Leaf(va) => Place::Word(Loc::from(va)),
            PlaceName::Table(table) => Place::Word(self.tables + Loc::from(table)),
            PlaceName::Second(entry) => Place::Word(self.second + Loc::from(entry)),
        }
    }
}

/// A number, or one in hexadecimal as text; a negative one in two's complement.
pub(crate) fn number_of(value: &Json) -> Result<u64, Wrong> {
    let hexadecimal = || u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok();
    let number = value.as_u64().or_else(|| value.as_i64().map(|signed| signed as u64)).or_else(hexadecimal);
    number.ok_or_else(|| Wrong::new("", format!("{} where a whole number of 64 bits is expected", kind(value))))
}

/// A bit, as 0, 1, false or true.
pub(crate) fn flag(map: &Map<String, Json>, key: &str, default: bool) -> Result<bool, Wrong> {
    match map.get(key) {
        None => Ok(default),
        Some(Json::Bool(value)) => Ok(*value),
        Some(value) => match value.as_u64() {
            Some(bit @ (0 | 1)) => Ok(bit == 1),
            _ => Err(Wrong::new(key, format!("{} where 0 or 1 is expected", kind(value)))),
        },
    }
}
