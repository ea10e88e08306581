//! What the checker takes over from the world's own, and what may be left when everybody has finished.

use mmu_core::{Format, Hpa, Level};

use super::invariant::Invariant;
use super::lab::Lab;
use super::words::Life;
use crate::arch::Arch;
use crate::engine::Var;

/// Room for finding out what is reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scratch {
    /// By frame.
    reached: Vec<bool>,
    open: Vec<Hpa>,
}

impl<A: Arch> Lab<A> {
    /// What the world's own checker has found.
    pub(crate) fn collect_reports(&mut self) {
        for (invariant, ran) in [(Invariant::R2, true), (Invariant::O2, true)] {
            if ran {
                self.evaluations.count(invariant);
            }
        }
        for violation in self.world.checker.take() {
            let text = violation.to_string();
            let (id, what) = text.split_once(": ").unwrap_or(("T1", &text));
            let what =
                what.split_once(": ").filter(|(time, _)| time.starts_with("cycle")).map_or(what, |(_, what)| what);
            self.broken(id.parse().unwrap_or(Invariant::T1), what.to_owned());
        }
    }

    /// R3: what is left at the end is reached from the roots.
    pub(crate) fn check_leaks(&mut self, roots: &[Hpa]) {
        // PERF: the vectors are those of the last execution.
        let Scratch { mut reached, mut open } = std::mem::take(&mut self.scratch);
        reached.clear();
        reached.resize(self.words.frames().len(), false);
        open.extend_from_slice(roots);
        while let Some(table) = open.pop() {
            let Some(number) = self.words.frame_number(table) else { continue };
            if std::mem::replace(&mut reached[number], true) {
                continue;
            }
            let frame = self.words.frames()[number];
            if frame.live == 0 || frame.level == Level::LAST || frame.level > self.format.geometry().root() {
                continue;
            }
            // PERF: a table is looked at up to its last present word, mostly the first.
            let mut left = frame.live;
            for index in 0..u64::from(frame.words) {
                let word = self.words.peek(frame.first + 8 * index);
                if word & self.format.present_mask() == 0 {
                    continue;
                }
                if self.format.is_mapped(word) && !self.format.is_leaf(frame.level, word) {
                    open.push(self.format.next_table(frame.level, word));
                }
                left = left.saturating_sub(1);
                if left == 0 {
                    break;
                }
            }
        }
        let root = self.format.geometry().root();
        let left = self.words.frames().iter().zip(&reached);
        let leaked = left
            .filter(|(frame, reached)| !**reached && frame.level <= root && frame.life != Life::Freed)
            .map(|(frame, _)| frame.first.to_string());
        let leaked: Vec<String> = leaked.collect();
        self.scratch = Scratch { reached, open };
        self.hold(Invariant::R3, leaked.is_empty(), |_| format!("tables left over: {}", leaked.join(", ")));
        let held = self.world.primary.held_bytes();
        self.hold(Invariant::R3, held.0 == 0, |_| format!("references to {held} of pages are left over"));
        let count = self.words.peek(self.var(Var::IN_PROGRESS));
        self.hold(Invariant::R7, count == 0, |_| format!("{count} invalidations are left in progress"));
    }
}
