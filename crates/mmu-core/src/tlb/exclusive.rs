//! Hierarchies in which a translation is in one level: what moves between them, and how.

use super::array::Known;
use super::entry::Stored;
use super::hierarchy::{Inclusion, Pair, Put, Searched, Tlb};
use super::{Input, Port, TlbEntry, TlbKey};
use crate::assoc::{Missed, Slot};

impl Tlb {
    /// Whether what this port brings is in one level only.
    pub(super) fn excludes(&self, port: Port) -> bool {
        self.inclusion == Inclusion::Exclusive && port != Port::Fetch
    }

    /// Moves what the second level has [found](Self::found) at a place to the first, and what must leave there the other way.
    // PERF: pages of the one size that both arrays hold go over as they are.
    #[inline(never)]
    pub(super) fn move_up(&mut self, port: Port, input: Input, context: u64, (array, slot): (u8, Slot)) {
        let second = &self.l2.all[array as usize];
        let ((key, entry), shift) = (second.contents(slot), second.sole_shift());
        self.l2.take(port, input, context);
        match shift.and_then(|shift| self.l1.sole_home(port, shift)) {
            Some(first) => {
                let evicted = first.put_absent_sole(key, entry);
                self.demote_page(port, evicted);
            }
            None => self.put_l1_exclusive(port, input, context, self.found.unpack(), Known::Absent),
        }
    }

    /// The second level of a pair is asked for what the first has missed.
    #[inline(never)]
    pub(super) fn second_exclusive(&mut self, port: Port, pair: Pair, missed: Missed, key: &TlbKey) -> Searched {
        let (first, second) = (&mut self.l1.all[pair.l1 as usize], &mut self.l2.all[pair.l2 as usize]);
        let Some((stored, entry)) = second.take_used(key) else {
            self.l2.missed[port as usize] += 1;
            return Searched::Nowhere;
        };
        self.found = entry;
        let evicted = first.exchange_missed(missed, &stored, entry);
        self.demote_page(port, evicted);
        Searched::L2
    }

    pub(super) fn fill_exclusive(&mut self, port: Port, input: Input, context: u64, entry: TlbEntry, known: Known) {
        if known == Known::Unknown {
            self.l2.take(port, input, context);
        }
        let Some(first) = self.l1.sole_home(port, entry.size.shift()) else {
            return self.put_l1_exclusive(port, input, context, entry, known);
        };
        let key = first.sole_key(input, context).with_reach(entry.reach);
        let entry = Stored::pack(&entry).without_gpa();
        if known == Known::Absent || !first.replace_sole(&key, entry) {
            let evicted = first.put_absent_sole(key, entry);
            self.demote_page(port, evicted);
        }
    }

    fn put_l1_exclusive(&mut self, port: Port, input: Input, context: u64, entry: TlbEntry, known: Known) {
        self.unpair();
        match self.l1.put(port, input, context, entry, known) {
            Put::Stored(None) => {}
            Put::Stored(Some((key, victim))) => self.demote(port, key, victim),
            Put::NoPlace => {
                self.l2.put(port, input, context, entry, Known::Unknown);
            }
        }
    }

    /// Moves a page that left the first level to the second.
    fn demote_page(&mut self, port: Port, evicted: Option<(TlbKey, Stored)>) {
        let Some((key, victim)) = evicted else { return };
        if let Some(second) = self.l2.sole_home(port, victim.shift()) {
            second.put_under(&key, victim);
        } else {
            self.unpair();
            self.demote(port, key, victim.unpack());
        }
    }

    /// Moves what left the first level to the second; of a coalesced group every valid page.
    fn demote(&mut self, port: Port, key: TlbKey, victim: TlbEntry) {
        let start = key.input().raw();
        for index in (0..8).filter(|index| victim.valid >> index & 1 == 1) {
            let page = if key.is_grouped() { victim.group_page(index) } else { victim };
            let address = start + (u64::from(index) << victim.size.shift());
            self.l2.put(port, Input::of(key.kind(), address), key.context(), page, Known::Unknown);
        }
    }
}
