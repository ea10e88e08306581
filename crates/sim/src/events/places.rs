//! Which guest page a table word stands for.
//!
//! A word's address says nothing about the guest page that it translates; the kernel's tracepoints name that page. So a
//! recording keeps, for every stretch of consecutive table frames, where the guest-physical stretch begins that they translate. It learns them
//! from a root downward, by runs, and from every table pointer that is written below a table it knows. Tables that no known root
//! reaches - being built, or long detached - have no place, and their words are not recorded, as in the kernel.

use std::collections::BTreeMap;

use mmu_core::memory::{Run, TableMemory};
use mmu_core::{Format, Gpa, Hpa, Level};

/// Consecutive tables that translate consecutive guest-physical stretches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stretch {
    end: u64,
    start_gpa: u64,
    level: Level,
}

/// Known tables by address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    stretches: BTreeMap<u64, Stretch>,
}

impl Places {
    /// Guest-physical address and level of the entry at `at`.
    pub(crate) fn of<F: Format>(&self, format: &F, at: Hpa) -> Option<(Gpa, Level)> {
        let (&start, stretch) = self.stretches.range(..=at.raw()).next_back()?;
        if at.raw() >= stretch.end {
            return None;
        }
        let entry = (at.raw() - start) / 8;
        let gpa = entry.checked_shl(format.geometry().shift(stretch.level))?.checked_add(stretch.start_gpa)?;
        Some((Gpa::new(gpa), stretch.level))
    }

    /// Learns `count` consecutive tables of `level` from `first` on, which translate from `gpa` on, and all below them.
    pub(crate) fn learn<F: Format>(
        &mut self,
        format: &F,
        tables: &TableMemory,
        first: Hpa,
        count: u64,
        level: Level,
        gpa: Gpa,
    ) {
        let mut ahead = vec![(first, count, level, gpa)];
        while let Some((first, count, level, gpa)) = ahead.pop() {
            let words = format.geometry().entries(level) as u64 * count;
            let end = first.raw() + 8 * words;
            self.forget(format, first.raw(), end);
            self.stretches.insert(first.raw(), Stretch { end, start_gpa: gpa.raw(), level });
            let Some(below) = level.down() else { continue };
            let mut done = 0;
            while done < words {
                let Ok(run) = tables.run_at(first + 8 * done, words - done) else { break };
                let at = gpa + (done << format.geometry().shift(level));
                Self::push_children(format, run, (level, below), at, &mut ahead);
                done += run.len;
            }
        }
    }

    /// Puts the tables that a run of words points to onto the list of those to learn.
    fn push_children<F: Format>(
        format: &F,
        Run { first: word, step, len }: Run,
        (level, below): (Level, Level),
        gpa: Gpa,
        ahead: &mut Vec<(Hpa, u64, Level, Gpa)>,
    ) {
        if !format.is_mapped(word) || format.is_leaf(level, word) {
            return;
        }
        let bytes = format.geometry().table_bytes(below);
        if len == 1 || step == bytes {
            ahead.push((format.next_table(level, word), len, below, gpa));
            return;
        }
        for i in 0..len {
            let child = format.next_table(level, word.wrapping_add(i.wrapping_mul(step)));
            ahead.push((child, 1, below, gpa + (i << format.geometry().shift(level))));
        }
    }

    /// A table pointer was written at a known place: its table is known from now on.
    pub(crate) fn linked<F: Format>(&mut self, format: &F, tables: &TableMemory, at: Hpa, word: u64) {
        let Some((gpa, level)) = self.of(format, at) else { return };
        if let Some(below) = level.down()
            && format.is_mapped(word)
            && !format.is_leaf(level, word)
        {
            self.learn(format, tables, format.next_table(level, word), 1, below, gpa);
        }
    }

    /// Cuts `[start, end)` out of what is known; what is left on either side stays.
    fn forget<F: Format>(&mut self, format: &F, start: u64, end: u64) {
        let overlaps = |stretch: &Stretch| stretch.end > start;
        let touched: Vec<u64> =
            self.stretches.range(..end).rev().take_while(|(_, old)| overlaps(old)).map(|(&at, _)| at).collect();
        for at in touched {
            let Some(old) = self.stretches.remove(&at) else { continue };
            if at < start {
                self.stretches.insert(at, Stretch { end: start, ..old });
            }
            if old.end > end {
                let skipped = ((end - at) / 8) << format.geometry().shift(old.level);
                self.stretches.insert(end, Stretch { start_gpa: old.start_gpa.wrapping_add(skipped), ..old });
            }
        }
    }
}
