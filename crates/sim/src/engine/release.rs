//! What a leaf leaves behind when it goes: accessed and dirty state, handed to the page behind it. That page must still be there.

use mmu_core::{Format, Hpa};

use super::world::{ActorState, World};
use crate::arch::Arch;
use crate::checker::Violation;

impl<A: Arch> World<A> {
    /// Checks that none of the leaves in `len` words from `at` on maps a page that the primary MMU has freed. Asked before they are
    /// replaced; looks at runs.
    pub(super) fn check_release(&mut self, at: Hpa, len: u64, actor: &ActorState) {
        if self.backing.freed_bytes() == 0 {
            return;
        }
        let two = *self.arch.two();
        let Ok(level) = self.tables.level(at) else { return };
        let page = two.geometry().page_size(level).bytes();
        let mut done = 0;
        while done < len {
            let Ok(run) = self.tables.run_at(at + 8 * done, len - done) else { return };
            // Words of one table need not be pages one after the other.
            let count = if run.step == page || run.step == 0 && !two.is_mapped(run.first) { run.len } else { 1 };
            if two.is_mapped(run.first) && two.is_leaf(level, run.first) {
                let output = two.output(level, run.first);
                if let Some(at) = self.backing.first_freed(output, count * page) {
                    self.checker.report(Violation::ReleaseAfterFree { at, actor: actor.id, moment: actor.now });
                    return;
                }
            }
            done += count;
        }
    }
}
