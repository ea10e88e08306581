//! The checker of explorations: what is true of pages, tables and translations, told from events alone.
//!
//! It looks at every write before it happens, at every release of a page or a table, at every unlock of `mmu_lock`, and at the end. It asks
//! what a vCPU *may* use (`guest::reach`), so a stale translation is found when the page goes, whether or not the guest happens to touch
//! it. Lives of tables, words last seen and stores that are owed to a log are kept here; protocols know nothing of it.

use std::hash::Hash;

use mmu_core::{Access, BreakRule, Entry, Format, GpaRange, Hpa, HpaRange, Level, NotPresent, PathPlace, Walk};

use super::decision::Agent;
use super::digest::Mix;
use super::guest::Cached;
use super::invariant::Invariant;
use super::lab::Lab;
use super::memory::Sight;
use super::traced::Happened;
use super::words::Life;
use crate::arch::Arch;
use crate::checker::Written;
use crate::engine::{Cleanliness, GuestCaches, LockId, Order};

/// How a word is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Store {
    /// By a store that knows nothing of what was there.
    Plain(Order),
    /// By an atomic read-modify-write.
    Atomic,
    /// By a walk that sets flags.
    Hardware,
}

/// What the checker keeps.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ghost {
    /// What an actor read last of words, in this section.
    saw: Vec<(Agent, Hpa, u64)>,
    /// Pages written and in no log.
    pub(crate) written: Written,
    /// What each write carries, under weak memory.
    pub(crate) carried: Vec<Sight>,
    cleaned: Cleanliness,
    /// Host addresses where there is no memory.
    pub(crate) devices: Vec<HpaRange>,
    /// What is clean at the start: pages that are mapped.
    pub(crate) clean_at_start: Vec<HpaRange>,
    /// Actors that took mappings away since they gave `mmu_lock` back last.
    zapped: u64,
    /// By actor: the word that it stood at when it yielded last, and how often it has stood there without having taken anything away in between.
    stood: [(u64, u32); Agent::MOST_ACTORS],
    /// Guest addresses that are looked at.
    pub(crate) pages: Vec<u64>,
}

impl Ghost {
    pub(crate) fn reset(&mut self) {
        self.saw.clear();
        self.written.begins();
        self.carried.clear();
        self.cleaned = Cleanliness::default();
        for &range in &self.clean_at_start {
            self.cleaned.clean(range);
        }
        self.devices.clear();
        self.zapped = 0;
        self.stood = Default::default();
    }

    /// Adds the account. Where actors stood follows from their answers.
    pub(crate) fn mix(&self, mix: &mut Mix) {
        mix.add_unordered(&self.saw);
        (&self.written, &self.carried, &self.cleaned, self.zapped).hash(mix);
    }

    /// An agent read a word.
    pub(crate) fn saw(&mut self, agent: Agent, at: Hpa, word: u64) {
        match self.saw.iter_mut().rev().find(|(who, place, _)| *who == agent && *place == at) {
            Some((_, _, seen)) => *seen = word,
            None => self.saw.push((agent, at, word)),
        }
        if let Some((stood, _)) = self.stood.get_mut(agent.0 as usize) {
            // The top bit says that it is where the actor is, not yet where it yielded.
            *stood = *stood & !AT | at.raw() << 32 & AT;
        }
    }

    /// What an actor read before this section counts no more.
    pub(crate) fn forget(&mut self, agent: Agent) {
        self.saw.retain(|(who, ..)| *who != agent);
    }

    fn seen(&self, agent: Agent, at: Hpa) -> Option<u64> {
        self.saw.iter().rev().find(|(who, place, _)| *who == agent && *place == at).map(|&(_, _, word)| word)
    }

    pub(crate) fn clean(&mut self, range: HpaRange) {
        self.cleaned.clean(range);
    }
    pub(crate) fn is_memory(&self, range: HpaRange) -> bool {
        !self.devices.iter().any(|device| device.overlaps(range))
    }
    pub(crate) fn soil(&mut self, range: HpaRange) {
        self.cleaned.dirty(range);
    }
}

/// Where an actor is, in the upper half of its account.
const AT: u64 = u64::MAX << 32;

/// Yields at one place after which a walk makes no progress.
const MOST_YIELDS: u32 = 4;

impl<A: Arch> Lab<A> {
    /// A write happens, and is looked at first.
    pub(crate) fn commit(&mut self, at: Hpa, len: u64, new: u64, step: u64, store: Store) {
        let old = self.words.peek(at);
        let agent = self.acting.0;
        let order = match store {
            Store::Plain(order) => order,
            Store::Atomic | Store::Hardware => Order::Synchronizing,
        };
        let entry = self.words.frame(at).copied().filter(|frame| frame.level <= self.format.geometry().root());
        if let Some(frame) = entry {
            self.check_entry(at, frame.level, old, new, store);
            let filled = len > 1 && new & self.format.present_mask() != 0;
            self.hold(Invariant::B4, !filled || frame.life == Life::Private, |_| {
                format!("{len} entries at {at} are filled in a table that is linked already")
            });
            if new & self.format.present_mask() != 0
                && self.format.is_mapped(new)
                && !self.format.is_leaf(frame.level, new)
            {
                let child = self.format.next_table(frame.level, new);
                self.check_link(at, frame.level, old, child, order);
            }
        }
        if at == self.var(crate::engine::Var::MEMSLOTS) {
            self.touched_slots = true;
            self.world.vars[crate::engine::Var::MEMSLOTS.0 as usize] = new;
        }
        if entry.is_some() {
            self.count_write(at, len, old, new);
        }
        self.writing(at, len, new, step);
        self.words.fill(at, len, new, step, agent);
        self.publish(at, len, order);
    }

    fn check_entry(&mut self, at: Hpa, level: Level, old: u64, new: u64, store: Store) {
        let format = self.format;
        let Some(frame) = self.words.frame(at).copied() else { return };
        let present = |word: u64| word & format.present_mask() != 0;
        let linked = frame.life == Life::Linked;
        let links = present(new) && !format.is_leaf(level, new);
        let instead = !present(old) || (links && format.is_leaf(level, old));
        if present(new) && instead && store != Store::Hardware {
            self.check_root(at, new);
        }
        if present(new) {
            let decoded = format.decode(level, new);
            self.hold(Invariant::B5, !matches!(decoded, Entry::Malformed(_)), |_| {
                format!("{new:#x} at {at} is no legal entry: {decoded:?}")
            });
            // Flags of a leaf that is there already change nothing that anybody reaches: an ager may not know yet that its table goes.
            let flags = self.maps_same(level, old, new);
            self.hold(Invariant::R4, frame.life != Life::Retired || flags, |_| {
                format!("{new:#x} is put into {at}, in a table that was given up")
            });
        }
        if linked && matches!(store, Store::Plain(_)) {
            self.check_alone(at, old);
        }
        if linked && store != Store::Hardware {
            self.check_flags(at, old);
        }
        if linked && present(old) && old != new {
            self.check_break(at, level, old, new);
        }
        let mapped = |word: u64| format.is_mapped(word);
        if mapped(old) && (!mapped(new) || format.output(level, old) != format.output(level, new)) {
            self.ghost.zapped |= self.acting.bit();
            // Progress, wherever the walk gives way.
            if let Some((_, times)) = self.ghost.stood.get_mut(self.acting.0 as usize) {
                *times = 0;
            }
        }
        if present(new) && format.is_leaf(level, new) {
            self.check_tracked(at, level, new);
        }
        if linked && present(new) && format.is_leaf(level, new) && store != Store::Hardware {
            self.check_install(at, level, old, new);
        }
    }

    /// O3: who stores plainly is alone with the entry.
    fn check_alone(&mut self, at: Hpa, old: u64) {
        let me = self.me();
        let alone = self.locks[LockId::MMU.0 as usize].writer == Some(me as u8);
        // Who has locked the entry owns it, and nobody else.
        let frozen = self.format.encode_not_present(NotPresent::Frozen).is_ok_and(|frozen| frozen == old);
        let locked = frozen && self.words.last_write(at).is_none_or(|write| write.agent == self.acting.0);
        self.hold(Invariant::O3, alone || locked, |lab| {
            format!(
                "{} stores to the live entry {at} ({old:#x}) without holding mmu_lock for write",
                lab.hands[me].name
            )
        });
    }

    /// D1: a store loses no flag that was set since the word was read; a read-modify-write has read it last.
    fn check_flags(&mut self, at: Hpa, old: u64) {
        let format = &self.format;
        let kept = |hardware: bool, mask: u64| if hardware { mask } else { 0 };
        let flags = kept(format.hardware_accessed(), format.accessed_mask())
            | kept(format.hardware_dirty(), format.dirty_mask());
        let flags = if old & format.present_mask() == 0 { 0 } else { flags };
        let seen = self.ghost.seen(self.acting, at).unwrap_or(old);
        let lost = old & !seen & flags;
        self.hold(Invariant::D1, lost == 0 || self.words.last_write(at).is_none(), |_| {
            format!(
                "the store to {at} loses the flags {lost:#x}, set by hardware since the entry was read as {seen:#x}"
            )
        });
    }

    /// B1, with what does not need a break: a leaf whose page stays.
    fn check_break(&mut self, at: Hpa, level: Level, old: u64, new: u64) {
        let format = &self.format;
        if new & format.present_mask() == 0 {
            return self.hold(Invariant::B1, true, |_| String::new());
        }
        if self.maps_same(level, old, new) {
            return;
        }
        let rule = format.break_rule(level, old, new);
        self.hold(Invariant::B1, !matches!(rule, BreakRule::Needed(_)), |_| {
            format!("{old:#x} at {at} is replaced by {new:#x} with no break in between: {rule:?}")
        });
    }

    /// Whether both are leaves of one page.
    pub(crate) fn maps_same(&self, level: Level, old: u64, new: u64) -> bool {
        let format = &self.format;
        let leaf = |word: u64| format.is_mapped(word) && format.is_leaf(level, word);
        leaf(old) && leaf(new) && format.output(level, old) == format.output(level, new)
    }

    /// O1 and T8: what is installed is the page that belongs there.
    fn check_install(&mut self, at: Hpa, level: Level, old: u64, new: u64) {
        let format = self.format;
        let page = format.output(level, new);
        if self.maps_same(level, old, new) {
            return;
        }
        let why = self.world.primary.off_limits(page);
        self.hold(Invariant::O1, why.is_none(), |_| {
            let why = why.map_or_else(String::new, |why| why.to_string());
            format!("{page} is installed at {at}; the page is {why}")
        });
        let Some(frame) = self.words.frame(at).copied() else { return };
        let index = (at.raw() - frame.first.raw()) / 8;
        let gpa = mmu_core::Gpa::new(frame.gpa + (index << format.geometry().shift(level)));
        let size = format.geometry().page_size(level);
        let hvas = self.world.guest_hvas(GpaRange::new(gpa, mmu_core::Bytes(size.bytes())));
        self.check_others(at, gpa.raw(), level, Some(new));
        self.hold(Invariant::T8, !hvas.is_empty(), |_| {
            format!("{page} is installed for {gpa} at {at}, where no memslot is")
        });
        let Some(hva) = hvas.first().map(|range| range.start) else { return };
        let there = self.world.primary.lookup(hva);
        self.hold(Invariant::T8, there.is_none_or(|there| there == page), |_| {
            let there = there.unwrap_or_default();
            format!("{page} is installed for {gpa} at {at}, where the primary MMU has {there}")
        });
    }

    /// A table is linked: B4, R4, T5.
    fn check_link(&mut self, at: Hpa, level: Level, old: u64, table: Hpa, order: Order) {
        let format = self.format;
        let Some(parent) = self.words.frame(at).copied() else { return };
        let Some(child) = self.words.frame(table).copied() else {
            return self.hold(Invariant::B5, false, |_| format!("{at} points to {table}, which is no table"));
        };
        self.hold(Invariant::T5, child.life != Life::Freed, |_| format!("{at} points to the freed table {table}"));
        self.hold(Invariant::R4, child.life != Life::Retired, |_| {
            format!("{at} points to table {table}, which was given up")
        });
        if format.is_mapped(old) && format.is_leaf(level, old) && parent.life == Life::Linked {
            let entries = format.geometry().entries(child.level) as u32;
            self.hold(Invariant::B4, child.live == entries, |_| {
                format!("table {table} takes the place of a leaf with {} of {entries} entries filled", child.live)
            });
        }
        if child.life == Life::Private && parent.life == Life::Linked {
            self.check_publication(table, order);
        }
        let index = (at.raw() - parent.first.raw()) / 8;
        let gpa = parent.gpa + (index << format.geometry().shift(level));
        if old == 0 && parent.life == Life::Linked {
            self.check_others(at, gpa, level, None);
        }
        self.adopt(table, at, gpa, parent.life == Life::Linked);
    }

    /// A table is where it is now, and so is everything below it.
    pub(crate) fn adopt(&mut self, table: Hpa, parent: Hpa, gpa: u64, linked: bool) {
        let format = self.format;
        let Some(frame) = self.words.frame_mut(table) else { return };
        frame.parent = parent;
        frame.gpa = gpa;
        if !linked || frame.life != Life::Private {
            return;
        }
        frame.life = Life::Linked;
        let (level, live) = (frame.level, frame.live);
        if live == 0 || level == Level::LAST {
            return;
        }
        for index in 0..format.geometry().entries(level) as u64 {
            let at = table + 8 * index;
            let word = self.words.peek(at);
            if format.is_mapped(word) && !format.is_leaf(level, word) {
                let gpa = gpa + (index << format.geometry().shift(level));
                self.adopt(format.next_table(level, word), at, gpa, linked);
            }
        }
    }

    // ---- releases ----

    /// A table is freed: R1, R2.
    pub(crate) fn release(&mut self, table: Hpa) {
        let Some(frame) = self.words.frame(table).copied() else {
            return self.hold(Invariant::R2, false, |_| format!("{table} is freed and is no table"));
        };
        if frame.extra > 0 {
            self.words.frame_mut(table).into_iter().for_each(|frame| frame.extra -= 1);
            return;
        }
        self.hold(Invariant::R2, frame.life != Life::Freed, |_| format!("table {table} is freed twice"));
        if matches!(frame.life, Life::Linked | Life::Retired) && frame.level <= self.format.geometry().root() {
            self.check_order(table, frame.parent, frame.gpa);
            self.check_left_in(&frame);
        }
        if let Some(frame) = self.words.frame_mut(table) {
            frame.life = Life::Freed;
        }
        self.happened(Happened::Free { table });
    }

    /// D1: a table does not go with leaves in it that nobody has asked what they know of their pages.
    fn check_left_in(&mut self, frame: &super::words::Frame) {
        if self.limits.statistics == super::Statistics::Loose {
            return;
        }
        let words = (0..u64::from(frame.words)).map(|index| self.words.peek(frame.first + 8 * index));
        let left = words.filter(|&word| self.format.is_mapped(word) && self.format.is_leaf(frame.level, word)).count();
        self.hold(Invariant::D1, left == 0, |_| {
            format!("table {} is freed with {left} leaves in it, and with what they know of their pages", frame.first)
        });
    }

    fn check_order(&mut self, table: Hpa, parent: Hpa, gpa: u64) {
        let format = self.format;
        let level = self.words.frame(parent).filter(|frame| frame.life != Life::Freed).map(|frame| frame.level);
        let mut cached = None;
        let pages: Vec<u64> = std::iter::once(gpa).chain(self.ghost.pages.iter().copied()).collect();
        for vcpu in self.exposed() {
            for &gpa in &pages {
                self.reach(vcpu, gpa, Access::READ, |at| cached = cached.or((at == table).then_some(vcpu)), |_| {});
            }
        }
        self.hold(Invariant::R1, cached.is_none(), |_| {
            format!("table {table} is freed while vCPU {} may have it in its walk caches", cached.unwrap_or(0))
        });
        let inside = self.hands.iter().enumerate().find(|(number, hand)| {
            let agent = Agent::actor(*number);
            hand.rcu_depth > 0
                && agent != self.acting
                && self.ghost.seen(agent, parent).is_some_and(|word| {
                    level.is_some_and(|level| {
                        format.is_mapped(word)
                            && !format.is_leaf(level, word)
                            && format.next_table(level, word) == table
                    })
                })
        });
        let inside = inside.map(|(_, hand)| hand.name);
        self.hold(Invariant::R1, inside.is_none(), |_| {
            format!("table {table} is freed while {} may be inside it", inside.unwrap_or(""))
        });
    }

    /// T1: pages that went are reached by nobody.
    pub(crate) fn check_pages(&mut self) {
        let mut found = None;
        let pages = std::mem::take(&mut self.ghost.pages);
        for vcpu in self.exposed() {
            for &gpa in &pages {
                let primary = &self.world.primary;
                self.reach(
                    vcpu,
                    gpa,
                    Access::READ,
                    |_| {},
                    |cached| {
                        if cached.denied.is_some() {
                            return;
                        }
                        if let Some(why) =
                            primary.off_limits(cached.page + (gpa & (cached_bytes(&self.format, cached.level) - 1)))
                        {
                            found = found.or(Some((vcpu, cached, why)));
                        }
                    },
                );
            }
        }
        self.ghost.pages = pages;
        self.hold(Invariant::T1, found.is_none(), |_| match found {
            Some((vcpu, cached, why)) => format!(
                "vCPU {vcpu} may still translate {} to {}, which is {why}: {}",
                cached.gpa,
                cached.page,
                if cached.current { "its entry is there" } else { "it was not flushed" }
            ),
            None => String::new(),
        });
    }

    /// T4: what the actor took away is flushed when it gives `mmu_lock` back.
    pub(crate) fn check_debt(&mut self) {
        let me = self.acting;
        if self.ghost.zapped & me.bit() == 0 {
            return;
        }
        let format = self.format;
        let mut found = None;
        let pages = std::mem::take(&mut self.ghost.pages);
        for vcpu in self.exposed() {
            for &gpa in &pages {
                self.reach(
                    vcpu,
                    gpa,
                    Access::READ,
                    |_| {},
                    |cached| {
                        if !cached.current
                            && !self.still_maps(vcpu, gpa, cached.output(gpa, cached_bytes(&format, cached.level)))
                            && self.taken_by(cached.at, cached.word, me)
                        {
                            found = found.or(Some((vcpu, cached)));
                        }
                    },
                );
            }
        }
        self.ghost.pages = pages;
        if found.is_none() {
            self.ghost.zapped &= !me.bit();
        }
        self.hold(Invariant::T4, found.is_none(), |_| match found {
            Some((vcpu, cached)) => format!(
                "mmu_lock is given back while vCPU {vcpu} may still translate {} to {}: {:#x} at {} was taken away and not flushed",
                cached.gpa, cached.page, cached.word, cached.at
            ),
            None => String::new(),
        });
    }

    /// Whether the tables of a vCPU, as software reads them, still map an address to this page.
    fn still_maps(&self, vcpu: usize, gpa: u64, page: Hpa) -> bool {
        self.mapped_below(self.guests[vcpu].root, gpa) == Some(page)
    }

    /// What an address is mapped to below a root, as software reads the tables now.
    pub(crate) fn mapped_below(&self, root: Hpa, gpa: u64) -> Option<Hpa> {
        let format = &self.format;
        let geometry = format.geometry();
        let (mut table, mut level) = (root, geometry.root());
        loop {
            let at = table + 8 * geometry.index(level, gpa) as u64;
            let word = self.words.peek(at);
            if !format.is_mapped(word) {
                return None;
            }
            if format.is_leaf(level, word) {
                let size = geometry.page_size(level).bytes();
                return Some(Hpa::new(format.output(level, word).raw() + (gpa & (size - 1))));
            }
            (table, level) = (format.next_table(level, word), level.down()?);
        }
    }

    /// Whether this agent made the entry something else than `word`, or unlinked the table that it is in.
    fn taken_by(&self, at: Hpa, word: u64, agent: Agent) -> bool {
        let mut at = at;
        let mut word = Some(word);
        for _ in 0..Level::MAX_LEVELS {
            let changed = word.is_none_or(|word| self.words.peek(at) != word);
            if changed && self.words.last_write(at).is_some_and(|write| write.agent == agent.0) {
                return true;
            }
            // Nothing points to a root.
            let Some(frame) = self.words.frame(at).filter(|frame| frame.parent.raw() != 0) else { return false };
            (at, word) = (frame.parent, None);
        }
        false
    }

    /// Whether another actor took the leaf of a translation away: up to then the tables allowed what the translation does, and the flush is his.
    fn taken_by_another(&self, cached: &Cached) -> bool {
        let last = self.words.last_write(cached.at).filter(|write| write.agent != self.acting.0);
        let gone = !self.maps_same(cached.level, self.words.peek(cached.at), cached.word);
        gone && last.is_some_and(|write| self.maps_same(cached.level, write.old, cached.word))
    }

    /// D4: what was reported clean again cannot be written unnoticed.
    pub(crate) fn check_clean(&mut self, range: GpaRange) {
        let format = self.format;
        let mut found = None;
        for vcpu in self.exposed() {
            for &gpa in self.ghost.pages.iter().filter(|&&gpa| range.contains(mmu_core::Gpa::new(gpa))) {
                let walk = Walk { input: gpa, access: Access::WRITE };
                self.reach(
                    vcpu,
                    gpa,
                    Access::READ,
                    |_| {},
                    |cached| {
                        let silent = cached.denied.is_none()
                            && format.is_writable(cached.word)
                            && format.updated(&walk, cached.level, cached.word, PathPlace::Leaf) == cached.word;
                        if silent && !cached.current && !self.taken_by_another(&cached) {
                            found = found.or(Some((vcpu, cached)));
                        }
                    },
                );
            }
        }
        self.hold(Invariant::D4, found.is_none(), |_| match found {
            Some((vcpu, cached)) => format!(
                "{} is reported and clean again, but vCPU {vcpu} may write it through the cached {:#x}",
                cached.gpa, cached.word
            ),
            None => String::new(),
        });
    }

    /// B7: a guest without caches sees what was last written.
    pub(crate) fn check_data(&mut self, vcpu: usize, gpa: u64, page: Hpa) {
        if self.guests[vcpu].caches == GuestCaches::Off && self.format.uncached() == mmu_core::Uncached::NeedsClean {
            let clean = self.ghost.cleaned.is_clean(page);
            self.hold(Invariant::B7, clean, |_| {
                format!("vCPU {vcpu}, its caches off, reads {page} through {gpa:#x}: nobody has cleaned the page")
            });
        }
    }

    /// P1: a walk that gives way has got somewhere since it did so last.
    pub(crate) fn check_progress(&mut self, actor: usize) {
        let Some((stood, times)) = self.ghost.stood.get_mut(actor) else { return };
        let here = *stood >> 32;
        *times = if *stood & !AT == here { *times + 1 } else { 0 };
        *stood = here << 32 | here;
        let stalled = *times >= MOST_YIELDS;
        self.hold(Invariant::P1, !stalled, |lab| {
            format!("{} has given way {MOST_YIELDS} times in a row at the same entry", lab.hands[actor].name)
        });
    }
}

fn cached_bytes<F: Format>(format: &F, level: Level) -> u64 {
    format.geometry().page_size(level).bytes()
}
