//! Looking at an address space: leaves one by one and table by table, and walks that are more than a glance.

use std::ops::Range;

use super::{Mapper, Miss, Need};
use crate::addr::{Hpa, Level};
use crate::format::{Format, Walk};
use crate::memory::{Run, Stretch};
use crate::walk::{Bus, BusError, Exchange, Translation, walk};

/// The entry that ends a descent.
struct End {
    level: Level,
    raw: u64,
}

impl<F: Format> Mapper<F> {
    /// Level and word of the leaf that maps `input`.
    pub fn leaf(&self, input: u64) -> Option<(Level, u64)> {
        let end = match self.word(Level::LAST, input) {
            Some(raw) => End { level: Level::LAST, raw },
            None => self.descend(input, Level::LAST)?,
        };
        self.format.is_mapped(end.raw).then_some((end.level, end.raw))
    }

    /// Down to the entry of `last` for `input`, or to the entry above that is no pointer. `None`: an address that is too wide, or a table
    /// that is not there.
    fn descend(&self, input: u64, last: Level) -> Option<End> {
        let geometry = self.format.geometry();
        if input.checked_shr(geometry.input_bits()).is_some_and(|beyond| beyond != 0) {
            return None;
        }
        let (mut level, mut table) = (geometry.root(), self.root);
        loop {
            let raw = self.memory.read(table + 8 * self.index(level, input)).ok()?;
            if level == last || !self.format.is_mapped(raw) || self.format.is_leaf(level, raw) {
                return Some(End { level, raw });
            }
            table = self.format.next_table(level, raw);
            level = level.down()?;
        }
    }

    /// Hands the leaves of `inputs` to `look`, in order of their addresses: their level, the address that the first word of a stretch
    /// translates, and the words. Of tables that are held word by word these are parts that hold something; single words in them may
    /// map nothing, so callers look.
    pub fn each_leaf(&mut self, inputs: Range<u64>, mut look: impl FnMut(Level, u64, Stretch<'_>)) {
        let geometry = *self.format.geometry();
        let (page, table) = (geometry.shift(Level::LAST), geometry.shift(Level::new(1)));
        let mut input = inputs.start >> page << page;
        while input < inputs.end {
            // The level whose entry has been looked at, table by table at the last one.
            let seen = match self.reach(Level::LAST, input, Need::Read) {
                Ok(()) => {
                    self.look_at_words(input..inputs.end, &mut look);
                    table
                }
                Err(Miss::Folded) => match self.descend(input, Level::new(1)) {
                    Some(End { level, raw }) if level == Level::new(1) && self.is_pointer(level, raw) => {
                        self.look_at_runs(self.format.next_table(level, raw), input..inputs.end, &mut look);
                        table
                    }
                    Some(End { level, raw }) => self.look_at_end(level, input, raw, &mut look),
                    None => table,
                },
                Err(Miss::NoTable { level, raw }) => self.look_at_end(level, input, raw, &mut look),
                Err(Miss::Refused(_)) => table,
            };
            match (input >> seen).checked_add(1).and_then(|next| next.checked_shl(seen)).filter(|&next| next > input) {
                Some(next) => input = next,
                None => return,
            }
        }
    }

    fn is_pointer(&self, level: Level, raw: u64) -> bool {
        self.format.is_mapped(raw) && !self.format.is_leaf(level, raw)
    }

    /// An entry above the last level that is no pointer; the shift of what it covers.
    fn look_at_end(&self, level: Level, input: u64, raw: u64, look: &mut impl FnMut(Level, u64, Stretch<'_>)) -> u32 {
        let shift = self.format.geometry().shift(level);
        if self.format.is_mapped(raw) {
            look(level, input >> shift << shift, Stretch::Run(Run { first: raw, step: 0, len: 1 }));
        }
        shift
    }

    /// The part of a last-level table at hand that translates `inputs`.
    fn look_at_words(&self, inputs: Range<u64>, look: &mut impl FnMut(Level, u64, Stretch<'_>)) {
        let ways = &self.levels[Level::LAST.index()];
        let (Some(home), Some((_, lines))) = (ways.find(inputs.start), ways.find_table(inputs.start)) else { return };
        let (page, from, to) = self.part(&inputs);
        let words = &self.memory.plain()[home.item(0)..];
        for stretch in lines.stretches(from, to) {
            let at = inputs.start + ((stretch.start - from) << page);
            look(Level::LAST, at, Stretch::Words(&words[stretch.start as usize..stretch.end as usize]));
        }
    }

    /// The same of a table in a smaller form.
    fn look_at_runs(&self, table: Hpa, inputs: Range<u64>, look: &mut impl FnMut(Level, u64, Stretch<'_>)) {
        let (page, from, to) = self.part(&inputs);
        let Ok(stretches) = self.memory.stretches(table + 8 * from, to - from) else { return };
        for (offset, stretch) in stretches {
            look(Level::LAST, inputs.start + (offset << page), stretch);
        }
    }

    /// The entries for `inputs` of the last-level table that translates the first of them: the shift of a page, the first entry, and the
    /// one behind the last.
    fn part(&self, inputs: &Range<u64>) -> (u32, u64, u64) {
        let geometry = self.format.geometry();
        let (page, from) = (geometry.shift(Level::LAST), self.index(Level::LAST, inputs.start));
        let pages = (inputs.end - inputs.start).div_ceil(1 << page);
        (page, from, from.saturating_add(pages).min(geometry.entries(Level::LAST) as u64))
    }

    /// Any walk.
    #[cold]
    #[inline(never)]
    pub(super) fn walk_anew(&mut self, of: &Walk) -> Result<Translation, F::Fault> {
        let (format, root) = (self.format, self.root);
        walk(&format, root, of.input, of.access, &mut Open { mapper: self, input: of.input })
    }
}

/// Memory with tables at hand, as a walk of `input` sees it.
struct Open<'a, F: Format> {
    mapper: &'a mut Mapper<F>,
    input: u64,
}

impl<F: Format> Bus for Open<'_, F> {
    fn read(&mut self, at: Hpa) -> Result<u64, BusError> {
        Ok(self.mapper.memory.read(at)?)
    }
    fn cmpxchg(&mut self, at: Hpa, old: u64, new: u64) -> Result<Exchange, BusError> {
        let (mapper, input) = (&mut *self.mapper, self.input);
        let leaf = 8 * mapper.index(Level::LAST, input);
        if mapper.levels[Level::LAST.index()].find_table(input).is_some_and(|(table, _)| table + leaf == at) {
            return Ok(match mapper.word(Level::LAST, input) {
                Some(raw) if raw != old => Exchange::Found(raw),
                _ => {
                    mapper.set(Level::LAST, input, new);
                    Exchange::Done
                }
            });
        }
        // A pointer's flags are set once, and tables below it are reached by a glance from then on.
        mapper.close();
        Ok(mapper.memory.cmpxchg(at, old, new)?)
    }
}
