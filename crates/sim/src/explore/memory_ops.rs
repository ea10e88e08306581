//! Table frames and grace periods, the primary MMU, memslots, dirty logging and upkeep.

use mmu_core::{Bytes, Format, Gpa, GpaRange, Hpa, Level};

use super::decision::{Agent, Kind};
use super::invariant::Invariant;
use super::lab::{Grace, Lab, NO_TIME};
use super::traced::Happened;
use super::words::Life;
use crate::arch::Arch;
use crate::engine::world::table_words;
use crate::engine::{ActorState, DirtyOp, PrimaryOp, Reply, SlotsOp, Upkeep, WaitQueue, Wake};

impl<A: Arch> Lab<A> {
    // ---- frames ----

    pub(crate) fn alloc(&mut self, level: Level) -> Reply {
        if self.failures > 0 && self.pick(Kind::Alloc, 2) == 1 {
            self.failures -= 1;
            return Reply { a: 0, b: 1, c: 0 };
        }
        let words = table_words(&self.format, level);
        self.counters.tables_allocated += 1;
        let table = self.words.alloc(level, words);
        self.happened(Happened::NewTable { table, words: words as u64, level });
        Reply::one(table.raw())
    }

    pub(crate) fn start_grace(&mut self, frames: Vec<Hpa>, subtree: Option<(Hpa, Level)>) -> u64 {
        let readers = self.hands.iter().enumerate().filter(|(_, hand)| hand.rcu_depth > 0);
        let waits_for = readers.map(|(number, _)| Agent::actor(number).bit()).fold(0, |set, bit| set | bit);
        self.grace_number += 1;
        if self.memory == super::MemoryOrder::Weak {
            let me = self.me();
            self.rcu_view.join(&self.hands[me].view.seen);
        }
        self.graces.push(Grace { number: self.grace_number, waits_for, frames, subtree });
        self.grace_number
    }

    /// The oldest grace period that can end does.
    pub(crate) fn end_grace(&mut self) {
        let Some(ripe) = self.graces.iter().position(|grace| grace.waits_for == 0) else { return };
        let grace = self.graces.remove(ripe);
        self.note(|_| {
            let tables: Vec<String> = grace.frames.iter().map(ToString::to_string).collect();
            format!(
                "a grace period ends; freed: {}",
                if tables.is_empty() { "nothing".into() } else { tables.join(" ") }
            )
        });
        for table in grace.frames {
            self.release(table);
        }
        if let Some((table, level)) = grace.subtree {
            self.release_subtree(table, level);
        }
    }

    pub(crate) fn release_subtree(&mut self, table: Hpa, level: Level) {
        let entries = self.format.geometry().entries(level) as u64;
        for index in 0..entries {
            if level == Level::LAST || self.end.is_some() {
                break;
            }
            let at = table + 8 * index;
            let word = self.words.peek(at);
            if self.format.is_mapped(word)
                && !self.format.is_leaf(level, word)
                && self.is_word(at)
                && let Some(down) = level.down()
            {
                self.release_subtree(self.format.next_table(level, word), down);
            }
        }
        self.release(table);
    }

    // ---- the primary MMU ----

    pub(crate) fn primary(&mut self, op: PrimaryOp) -> Reply {
        self.touched_primary = true;
        self.in_order();
        let mut actor = ActorState::new(self.me(), NO_TIME);
        let reply = self.world.perform_primary(op, &mut actor, &[]);
        self.world.woken.clear();
        if matches!(op, PrimaryOp::MoveFinish(..)) {
            self.wake(WaitQueue::MIGRATION, Wake::All);
        }
        self.collect_reports();
        if !matches!(op, PrimaryOp::Fault(..) | PrimaryOp::Dereference(_) | PrimaryOp::Mark(..)) {
            self.check_pages();
        }
        reply
    }

    pub(crate) fn slots(&mut self, op: SlotsOp) -> Reply {
        self.touched_slots = true;
        self.in_order();
        let mut actor = ActorState::new(self.me(), NO_TIME);
        let reply = self.world.perform_slots(op, &mut actor);
        self.collect_reports();
        reply
    }

    // ---- dirty logging, upkeep ----

    pub(crate) fn dirty(&mut self, op: DirtyOp) -> Reply {
        match op {
            DirtyOp::AllocWords(words) => {
                let at = self.words.alloc(super::words::WORDS, words as usize);
                return Reply::one(at.raw());
            }
            DirtyOp::SetLog(entries) => self.modification_log = entries,
            DirtyOp::PopModified(vcpu) => {
                let page = self.guests[vcpu.0].modified.pop_front();
                return Reply { a: page.map_or(0, Gpa::raw), b: u64::from(page.is_some()), c: 0 };
            }
            DirtyOp::Peek(at) => return Reply::one(self.words.peek(at)),
            DirtyOp::Visit(_) => {}
            DirtyOp::Begins => {
                self.ghost.written.begins();
                self.check_clean(GpaRange::new(Gpa::new(0), Bytes(u64::MAX)));
            }
            DirtyOp::Reported(range) => {
                self.ghost.written.reported(range);
                self.check_clean(range);
            }
            DirtyOp::Settled => {
                let lost: Vec<String> = self.ghost.written.lost().map(|gpa| gpa.to_string()).collect();
                self.hold(Invariant::D3, lost.is_empty(), |_| {
                    format!("written while writes were logged, and in no log: {}", lost.join(", "))
                });
            }
        }
        Reply::default()
    }

    pub(crate) fn upkeep(&mut self, op: Upkeep) -> Reply {
        match op {
            Upkeep::GetTable(table) => {
                let count = self.words.frame_mut(table).map(|frame| {
                    frame.extra += 1;
                    frame.extra
                });
                return Reply::one(u64::from(count.unwrap_or(0)) + 1);
            }
            Upkeep::PutTable(table) => {
                let extra = self.words.frame(table).map_or(0, |frame| frame.extra);
                self.hold(Invariant::R6, extra > 0, |_| {
                    format!("a reference to table {table} is put that nobody took")
                });
                if let Some(frame) = self.words.frame_mut(table) {
                    frame.extra = extra.saturating_sub(1);
                }
                return Reply::one(u64::from(extra));
            }
            Upkeep::TableCount(table) => {
                self.is_word(table);
                let count = self.words.frame(table).map_or(0, |frame| 1 + frame.extra + frame.live);
                return Reply::one(u64::from(count));
            }
            Upkeep::CallRcuSubtree(table, level) => {
                self.retire(table);
                self.start_grace(Vec::new(), Some((table, level)));
            }
            Upkeep::Emulated(vcpu) => self.guests[vcpu.0].skip(),
            Upkeep::UnhandledConflict(vcpu, gpa) => self.hold(Invariant::T7, false, |_| {
                format!("vCPU {} met translations of different sizes at {gpa}, and nobody handles the abort", vcpu.0)
            }),
            Upkeep::Clean(range) => {
                self.counters.cleaned_bytes += range.bytes.0;
                self.hold(Invariant::B7, self.ghost.is_memory(range), |_| {
                    format!("{range:?} is cleaned, where a device is and no memory")
                });
                self.ghost.clean(range);
            }
            Upkeep::HostWrites(range) => {
                for page in self.world.guest_pages(range) {
                    self.ghost.soil(page);
                }
            }
            Upkeep::SetGuestCaches(vcpu, caches) => self.guests[vcpu.0].caches = caches,
            Upkeep::InvalidateFetched(_)
            | Upkeep::CountBreak(_)
            | Upkeep::UserExit
            | Upkeep::RunFailed
            | Upkeep::Announce(_)
            | Upkeep::Tagged(_) => {}
        }
        Reply::default()
    }

    /// A frame is given up: it takes no entries any more.
    pub(crate) fn retire(&mut self, table: Hpa) {
        let life = self.words.frame(table).map(|frame| frame.life);
        let held = matches!(life, Some(Life::Private | Life::Linked));
        self.hold(Invariant::R2, held, |_| format!("table {table} is given up although it is {life:?}"));
        if let Some(frame) = self.words.frame_mut(table) {
            frame.life = Life::Retired;
        }
    }
}
