//! Threads and their operations.

use mmu_core::access::Privilege;
use serde_json::{Map, Value as Json};

use super::names::{Names, Registers, ValueFor, flag, number_of};
use super::read::{Wrong, choice, fields, kind, text};
use super::test::{BarrierKind, Change, OnFault, Op, OpKind, Ordered, Place, Scope, Stages, Thread, TlbiBy, TlbiOp};
use super::words::{EntryBit, Managed, StageNumber};

const THREAD: [&str; 8] = ["privilege", "asid", "vmid", "hw_af", "hw_dirty", "regs", "ops", "on_fault"];

type Fields = Map<String, Json>;

impl Names {
    /// Reads `threads`.
    pub(crate) fn threads(&mut self, threads: &Json) -> Result<Vec<Thread>, Wrong> {
        let Json::Array(threads) = threads else { return Err(Wrong::new("", "no list of threads")) };
        let most = self.limits.threads.min(8);
        if threads.len() > most {
            return Err(Wrong::new("", format!("{} threads, limit {most}", threads.len())));
        }
        (0..)
            .zip(threads)
            .map(|(number, thread): (usize, _)| {
                self.thread(thread).map_err(|wrong| wrong.inside(&format!("[{number}]")))
            })
            .collect()
    }

    fn thread(&mut self, thread: &Json) -> Result<Thread, Wrong> {
        let map = fields(thread, &THREAD)?;
        let privileges = [("el0", Privilege::User), ("el1", Privilege::Supervisor), ("el2", Privilege::Supervisor)];
        let mut regs = Registers::default();
        let mut initial = Vec::new();
        if let Some(values) = map.get("regs") {
            initial = self.assignments(values, &mut regs).map_err(|wrong| wrong.inside("regs"))?;
        }
        let Some(Json::Array(ops)) = map.get("ops") else { return Err(Wrong::new("ops", "missing, or no list")) };
        let most = self.limits.ops.min(64);
        if ops.len() > most {
            return Err(Wrong::new("ops", format!("{} operations, limit {most}", ops.len())));
        }
        let ops: Vec<Op> = (0..)
            .zip(ops)
            .map(|(number, op): (usize, _)| {
                self.op(op, &mut regs).map_err(|wrong| wrong.inside(&format!("[{number}]")).inside("ops"))
            })
            .collect::<Result<_, _>>()?;
        let on_fault = match map.get("on_fault") {
            None => OnFault::Stop,
            Some(action) => self.on_fault(action, &mut regs).map_err(|wrong| wrong.inside("on_fault"))?,
        };
        let mut values = vec![None; regs.names.len()];
        for (reg, value) in initial {
            values[usize::from(reg)] = Some(value);
        }
        Ok(Thread {
            privilege: match map.get("privilege") {
                None => Privilege::Supervisor,
                Some(_) => choice(map, "privilege", &privileges)?,
            },
            asid: identifier(map, "asid")?.unwrap_or(0),
            vmid: identifier(map, "vmid")?.unwrap_or(0),
            managed: Managed { accessed: flag(map, "hw_af", false)?, dirty: flag(map, "hw_dirty", false)? },
            reg_names: regs.names,
            regs: values,
            on_fault,
            needs: needs(&ops),
            ops,
        })
    }

    /// Registers and the words they get.
    fn assignments(&mut self, values: &Json, regs: &mut Registers) -> Result<Vec<(u8, u64)>, Wrong> {
        let Json::Object(map) = values else {
            return Err(Wrong::new("", format!("{} where registers and values are expected", kind(values))));
        };
        let mut found = Vec::new();
        for (name, value) in map {
            let inside = |wrong: Wrong| wrong.inside(name);
            let reg = regs.number(name, &self.limits).map_err(inside)?;
            let word = match value {
                Json::Object(_) => self.entry(StageNumber::One, value),
                _ => number_of(value),
            };
            found.push((reg, word.map_err(inside)?));
        }
        Ok(found)
    }

    fn on_fault(&mut self, action: &Json, regs: &mut Registers) -> Result<OnFault, Wrong> {
        match action {
            Json::String(word) if word == "stop" => Ok(OnFault::Stop),
            Json::Object(map) if map.contains_key("level2") || map.contains_key("level3") => {
                let map = fields(action, &["level2", "level3"])?;
                let mut level = |key: &str| match map.get(key) {
                    None => Ok(Vec::new()),
                    Some(values) => self.assignments(values, regs).map_err(|wrong| wrong.inside(key)),
                };
                Ok(OnFault::ByLevel { level2: level("level2")?, level3: level("level3")? })
            }
            Json::Object(_) => Ok(OnFault::Set(self.assignments(action, regs)?)),
            other => Err(Wrong::new("", format!("{}: unknown; \"stop\", or registers to set", kind(other)))),
        }
    }

    fn op(&mut self, op: &Json, regs: &mut Registers) -> Result<Op, Wrong> {
        let Json::Object(map) = op else { return Err(Wrong::new("", "no object")) };
        let name = text(map, "op", &self.limits)?.to_owned();
        let label = match map.get("label") {
            None | Some(Json::Null) => None,
            Some(_) => Some(text(map, "label", &self.limits)?.to_owned()),
        };
        let kind = match name.as_str() {
            "read" | "write" | "cas" | "rmw" | "ldx" | "stx" => self.access(&name, op, regs)?,
            _ => self.other(&name, op, regs)?,
        };
        Ok(Op { kind, label })
    }

    fn access(&mut self, name: &str, op: &Json, regs: &mut Registers) -> Result<OpKind, Wrong> {
        const COMMON: [&str; 8] = ["op", "label", "order", "acquire", "release", "addr_dep", "data_dep", "ctrl_dep"];
        let own: &[&str] = match name {
            "read" | "ldx" => &["from", "reg"],
            "write" => &["to", "value"],
            "cas" => &["loc", "expect", "value", "reg"],
            "rmw" => &["kind", "loc", "value", "bit", "reg"],
            _ => &["to", "value", "status"],
        };
        let map = fields(op, &[&COMMON, own].concat())?;
        let key = own.iter().find(|key| matches!(**key, "from" | "to" | "loc")).copied().unwrap_or("loc");
        let place = map.get(key).ok_or_else(|| Wrong::new(key, "missing; add it"))?;
        let (place, stage) = self.place(place).map_err(|wrong| wrong.inside(key))?;
        let holds = place.holds(stage);
        let ordered = ordered(map)?;
        let optional = |key: &str, regs: &mut Registers| match map.get(key) {
            None | Some(Json::Null) => Ok(None),
            Some(_) => {
                let name = text(map, key, &self.limits)?;
                regs.number(name, &self.limits).map(Some).map_err(|wrong| wrong.inside(key))
            }
        };
        let reg = optional("reg", regs)?;
        let status = optional("status", regs)?;
        let target = || reg.ok_or_else(|| Wrong::new("reg", "missing; name the register that is loaded"));
        let here = self.locations().place(place);
        Ok(match name {
            "read" => OpKind::Read { from: here, reg: target()?, ordered },
            "ldx" => OpKind::Ldx { from: here, reg: target()?, ordered },
            "write" => OpKind::Write { to: here, value: self.required(map, "value", holds, regs)?, ordered },
            "stx" => OpKind::Stx { to: here, value: self.required(map, "value", holds, regs)?, status, ordered },
            "cas" => {
                let expect = self.required(map, "expect", holds, regs)?;
                OpKind::Cas { at: here, expect, value: self.required(map, "value", holds, regs)?, reg, ordered }
            }
            _ => OpKind::Rmw { at: here, change: self.change(map, holds, regs)?, reg, ordered },
        })
    }

    fn required(
        &mut self,
        map: &Fields,
        key: &str,
        at: ValueFor,
        regs: &mut Registers,
    ) -> Result<super::test::Value, Wrong> {
        let value = map.get(key).ok_or_else(|| Wrong::new(key, "missing; add it"))?;
        self.value(value, at, regs).map_err(|wrong| wrong.inside(key))
    }

    fn change(&mut self, map: &Fields, at: ValueFor, regs: &mut Registers) -> Result<Change, Wrong> {
        let kind = choice(map, "kind", &[("swap", 0), ("add", 1), ("set_bits", 2), ("clear_bits", 3)])?;
        if map.contains_key("bit") && kind >= 2 {
            let bits = [
                ("valid", EntryBit::Valid),
                ("af", EntryBit::Accessed),
                ("db", EntryBit::Dirty),
                ("dbm", EntryBit::Dbm),
            ];
            let bit = choice(map, "bit", &bits)?;
            let ValueFor::Entry(stage) = at else { return Err(Wrong::new("bit", "of a pte1 or pte2 only")) };
            let (clear, set) = self.words.set_bit(stage, bit);
            return Ok(if kind == 2 {
                Change::Exactly { clear, set }
            } else {
                Change::Exactly { clear: set, set: clear }
            });
        }
        let value = self.required(map, "value", at, regs)?;
        Ok(match kind {
            0 => Change::Swap(value),
            1 => Change::Add(value),
            2 => Change::SetBits(value),
            _ => Change::ClearBits(value),
        })
    }

    fn other(&mut self, name: &str, op: &Json, regs: &mut Registers) -> Result<OpKind, Wrong> {
        let barriers = [("full", BarrierKind::Full), ("st", BarrierKind::Stores), ("ld", BarrierKind::Loads)];
        let known: &[&str] = match name {
            "dsb" | "dmb" => &["op", "label", "kind", "domain"],
            "isb" | "nop" => &["op", "label", "domain"],
            "context_sync" => &["op", "label", "via"],
            "ctrl_dep" => &["op", "label", "on"],
            "tlbi" => &["op", "label", "stage", "scope", "by", "target", "asid", "vmid", "domain"],
            "set_context" => &["op", "label", "asid", "vmid"],
            "mov" => &["op", "label", "reg", "value"],
            other => {
                let known = "read, write, cas, rmw, ldx, stx, dsb, dmb, isb, context_sync, ctrl_dep, tlbi, set_context, mov, nop";
                return Err(Wrong::new("op", format!("`{other}`: unknown; known: {known}")));
            }
        };
        let map = fields(op, known)?;
        let barrier = || match map.get("kind") {
            None => Ok(BarrierKind::Full),
            Some(_) => choice(map, "kind", &barriers),
        };
        Ok(match name {
            "dsb" => OpKind::Dsb(barrier()?),
            "dmb" => OpKind::Dmb(barrier()?),
            "tlbi" => OpKind::Tlbi(self.tlbi(map)?),
            "set_context" => OpKind::SetContext { asid: identifier(map, "asid")?, vmid: identifier(map, "vmid")? },
            "mov" => {
                let reg =
                    regs.number(text(map, "reg", &self.limits)?, &self.limits).map_err(|wrong| wrong.inside("reg"))?;
                OpKind::Mov { reg, value: self.required(map, "value", ValueFor::Entry(StageNumber::One), regs)? }
            }
            _ => OpKind::Nothing,
        })
    }

    fn tlbi(&self, map: &Fields) -> Result<TlbiOp, Wrong> {
        let stages = match map.get("stage").and_then(Json::as_u64) {
            Some(1) => Stages::One,
            Some(2) => Stages::Two,
            Some(12) => Stages::Both,
            _ => return Err(Wrong::new("stage", "1, 2 or 12 is expected")),
        };
        let scope = choice(map, "scope", &[("local", Scope::Local), ("broadcast", Scope::Broadcast)])?;
        let target = || map.get("target").ok_or_else(|| Wrong::new("target", "missing; name what is invalidated"));
        let inside = |wrong: Wrong| wrong.inside("target");
        let by = match choice(map, "by", &[("va", 0), ("ipa", 1), ("asid", 2), ("vmid", 3)])? {
            0 => TlbiBy::Va(self.virtual_page(target()?).map_err(inside)?),
            1 => TlbiBy::Ipa(self.intermediate(target()?).map_err(inside)?),
            2 => TlbiBy::Asid,
            _ => TlbiBy::Vmid,
        };
        match (stages, by) {
            (Stages::One, TlbiBy::Ipa(_)) | (Stages::Two | Stages::Both, TlbiBy::Va(_) | TlbiBy::Asid) => {
                Err(Wrong::new("by", "stage 1 is invalidated by va, asid or vmid, stage 2 by ipa or vmid"))
            }
            _ => Ok(TlbiOp { stages, scope, by, asid: identifier(map, "asid")?, vmid: identifier(map, "vmid")? }),
        }
    }
}

/// An ASID or VMID.
fn identifier(map: &Fields, key: &str) -> Result<Option<u16>, Wrong> {
    let Some(value) = map.get(key) else { return Ok(None) };
    let number = value.as_u64().and_then(|number| u16::try_from(number).ok());
    number.map(Some).ok_or_else(|| Wrong::new(key, format!("{} where 0 to 65535 is expected", kind(value))))
}

fn ordered(map: &Fields) -> Result<Ordered, Wrong> {
    let order = |acquire, release| Ordered { acquire, release };
    let named = match map.get("order") {
        None | Some(Json::Null) => order(false, false),
        Some(_) => choice(
            map,
            "order",
            &[
                ("relaxed", order(false, false)),
                ("plain", order(false, false)),
                ("acquire", order(true, false)),
                ("release", order(false, true)),
                ("acq_rel", order(true, true)),
                ("acquire_release", order(true, true)),
            ],
        )?,
    };
    let (acquire, release) = (flag(map, "acquire", false)?, flag(map, "release", false)?);
    Ok(order(acquire || named.acquire, release || named.release))
}

/// The virtual pages accessed from each operation on.
fn needs(ops: &[Op]) -> Vec<u64> {
    let mut needed = vec![0; ops.len() + 1];
    for (i, op) in ops.iter().enumerate().rev() {
        let here = match op.kind.place() {
            Some(Place::Virtual(va)) => 1 << va,
            _ => 0,
        };
        needed[i] = needed[i + 1] | here;
    }
    needed
}
