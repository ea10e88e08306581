//! The condition at the end of a test.

use serde_json::Value as Json;

use super::names::{Names, number_of};
use super::read::{Wrong, choice, fields, kind};
use super::test::{Condition, Loc, Place, Thread, Use};
use super::words::StageNumber;

/// Deepest nesting of a condition.
const DEEPEST: usize = 50;

impl Names {
    /// Reads `final`: the condition that an execution is searched for.
    pub(crate) fn final_condition(&mut self, last: &Json, usage: Use, threads: &[Thread]) -> Result<Condition, Wrong> {
        let map = fields(last, &["quantifier", "condition"])?;
        let all = choice(map, "quantifier", &[("exists", false), ("forall", true)])?;
        let condition = map.get("condition").ok_or_else(|| Wrong::new("condition", "missing; add it"))?;
        let mut budget = self.limits.condition;
        let condition =
            self.condition(condition, threads, 0, &mut budget).map_err(|wrong| wrong.inside("condition"))?;
        // What always holds is searched for an execution in which it does not.
        Ok(if all || usage == Use::MustAlwaysHold { condition.negated() } else { condition })
    }

    fn condition(
        &mut self,
        tree: &Json,
        threads: &[Thread],
        depth: usize,
        budget: &mut usize,
    ) -> Result<Condition, Wrong> {
        let expected = "and, or, not, true, false, reg, regpte, mem, pte, fault";
        let Some((Json::String(head), rest)) = tree.as_array().and_then(|list| list.split_first()) else {
            return Err(Wrong::new(
                "",
                format!("{}: a condition is a list that begins with one of {expected}", kind(tree)),
            ));
        };
        if *budget == 0 || depth > DEEPEST {
            let most = self.limits.condition;
            return Err(Wrong::new("", format!("more than {most} nodes, or deeper than {DEEPEST}; simplify it")));
        }
        *budget -= 1;
        let inside = |wrong: Wrong| wrong.inside(head);
        let count = |wanted: usize| {
            if rest.len() == wanted {
                Ok(())
            } else {
                Err(Wrong::new(head, format!("{} operands where {wanted} are expected", rest.len())))
            }
        };
        let mut parts = |names: &mut Self| {
            let part = |part| names.condition(part, threads, depth + 1, budget);
            rest.iter().map(part).collect::<Result<Vec<_>, _>>().map_err(inside)
        };
        match head.as_str() {
            "true" => count(0).map(|()| Condition::And(Vec::new())),
            "false" => count(0).map(|()| Condition::Or(Vec::new())),
            "and" => Ok(Condition::And(parts(self)?)),
            "or" => Ok(Condition::Or(parts(self)?)),
            "not" => {
                count(1)?;
                let mut inner = parts(self)?;
                Ok(Condition::Not(Box::new(inner.swap_remove(0))))
            }
            "reg" => {
                count(3)?;
                let (thread, reg) = register(&rest[0], &rest[1], threads).map_err(inside)?;
                Ok(Condition::Reg { thread, reg, value: number_of(&rest[2]).map_err(inside)? })
            }
            "regpte" => {
                count(3)?;
                let (thread, reg) = register(&rest[0], &rest[1], threads).map_err(inside)?;
                Ok(Condition::RegEntry { thread, reg, entry: self.pattern(None, &rest[2]).map_err(inside)? })
            }
            "mem" => {
                count(2)?;
                let loc = self.page_word(&rest[0]).map_err(inside)?;
                Ok(Condition::Word { loc, value: number_of(&rest[1]).map_err(inside)? })
            }
            "pte" => {
                count(2)?;
                let va = self.virtual_page(&rest[0]).map_err(inside)?;
                let entry = self.pattern(Some(StageNumber::One), &rest[1]).map_err(inside)?;
                Ok(Condition::Entry { loc: Loc::from(va), entry })
            }
            "fault" => {
                count(3)?;
                self.fault(rest, threads).map_err(inside)
            }
            other => Err(Wrong::new("", format!("`{other}`: unknown; known: {expected}"))),
        }
    }

    fn fault(&self, operands: &[Json], threads: &[Thread]) -> Result<Condition, Wrong> {
        let (number, thread) = thread_of(&operands[0], threads)?;
        let label = match &operands[1] {
            Json::Null => None,
            Json::String(label) if thread.ops.iter().any(|op| op.label.as_ref() == Some(label)) => Some(label),
            other => {
                return Err(Wrong::new("", format!("{}: no operation of thread {number} has this label", kind(other))));
            }
        };
        let va = match &operands[2] {
            Json::Null => None,
            name => Some(self.virtual_page(name)?),
        };
        let mut ops = 0;
        for (bit, op) in thread.ops.iter().enumerate() {
            let Some(Place::Virtual(accessed)) = op.kind.place() else { continue };
            if label.is_none_or(|label| op.label.as_ref() == Some(label)) && va.is_none_or(|va| va == accessed) {
                ops |= 1 << bit;
            }
        }
        Ok(Condition::Fault { thread: number, ops })
    }
}

fn thread_of<'a>(number: &Json, threads: &'a [Thread]) -> Result<(u8, &'a Thread), Wrong> {
    let index = number.as_u64().and_then(|index| usize::try_from(index).ok());
    let found = index.and_then(|index| threads.get(index).map(|thread| (index as u8, thread)));
    found.ok_or_else(|| Wrong::new("", format!("{}: there are {} threads, from 0", kind(number), threads.len())))
}

fn register(number: &Json, name: &Json, threads: &[Thread]) -> Result<(u8, Option<u8>), Wrong> {
    let (number, thread) = thread_of(number, threads)?;
    let Some(name) = name.as_str() else {
        return Err(Wrong::new("", format!("{} where a register's name is expected", kind(name))));
    };
    Ok((number, thread.reg_names.iter().position(|known| known == name).map(|index| index as u8)))
}
