//! Decisions for people.

use super::model::{Decision, Model};
use super::translate::{After, FaultLevel, Outcome};

impl Model<'_> {
    /// One decision in words.
    pub fn describe(&self, decision: &Decision) -> String {
        match *decision {
            Decision::Step { thread, outcome } => format!("thread {thread}: {}", self.outcome(&outcome)),
            Decision::Drain { thread, index } => format!("thread {thread}: buffered store {index} reaches memory"),
            Decision::Perform { index, target } => format!("thread {target}: performs invalidation {index}"),
        }
    }

    fn outcome(&self, outcome: &Outcome) -> String {
        match *outcome {
            Outcome::Proceed => "goes on".to_owned(),
            Outcome::Access(loc) => format!("accesses {}", self.word(loc)),
            Outcome::Fault(FaultLevel::Two) => "faults at the table pointer".to_owned(),
            Outcome::Fault(FaultLevel::Three) => "faults at the leaf".to_owned(),
            Outcome::SetAccessed { entry, new } => format!("hardware makes {} {new:#x}", self.word(entry)),
            Outcome::SetDirty { entries, page } => {
                let entries: Vec<_> = entries.into_iter().flatten().map(|(entry, _)| self.word(entry)).collect();
                format!("hardware marks {} dirty, for {}", entries.join(" and "), self.word(page))
            }
            Outcome::BeginUpdate { entry, new, .. } => format!("has read {} and will write {new:#x}", self.word(entry)),
            Outcome::FinishUpdate(After::Access) => "writes the entry, and goes to the page".to_owned(),
            Outcome::FinishUpdate(After::Walk) => "writes the entry, and walks again".to_owned(),
            Outcome::FailExclusive => "fails its exclusive store".to_owned(),
        }
    }

    /// The name of a word.
    fn word(&self, loc: u16) -> String {
        let layout = &self.test.layout;
        if let Some(page) = loc.checked_sub(layout.entries) {
            return layout.pages.get(usize::from(page)).cloned().unwrap_or_default();
        }
        if let Some(page) = layout.virtuals.get(usize::from(loc)) {
            return format!("pte1 {}", page.name);
        }
        if let Some(table) = layout.tables.iter().find(|table| table.loc == loc) {
            return format!("pte1_level2 {}", table.name);
        }
        let second = layout.second.iter().flatten().position(|entry| *entry == Some(loc));
        format!("pte2 {}", second.and_then(|page| layout.pages.get(page)).map_or("?", String::as_str))
    }
}
