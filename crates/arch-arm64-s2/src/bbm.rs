//! Break-before-make: which changes of a live stage-2 entry need an invalid entry and a flush in between.
//!
//! Before you work on this file read Arm ARM D8.17 (TLB maintenance, using break-before-make) and Arm's own memory model file
//! `aarch64bbm.cat`. The rule: both entries can be cached (valid, and AF=1 for a leaf), and the memory type or
//! shareability differs, or the output address differs while one of them is writable or the contents differ, or the size
//! of the mapping or a table pointer changes. Permissions, AF, DBM and software bits never need it. `FEAT_BBM` relaxes
//! changes of size.

use mmu_core::Level;
use mmu_core::format::{BreakRule, Entry, Format, Leaf};

use crate::features::BbmLevel;
use crate::stage2::{S2Attrs, Stage2};

/// What is known of the memory that an old and a new output address hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PageContents {
    /// Nothing: they may differ.
    MayDiffer,
    /// Both hold the same bytes.
    Same,
}

/// A change of the size of a mapping, with the nT bit of the blocks that take part.
fn size_change(bbm: BbmLevel, not_table: bool, why: &'static str) -> BreakRule {
    match bbm {
        BbmLevel::Level2 => BreakRule::Relaxed("FEAT_BBM level 2: a TLB conflict abort may follow until the flush"),
        BbmLevel::Level1 if not_table => {
            BreakRule::Relaxed("FEAT_BBM level 1 with nT: the block may fault or translate either way until the flush")
        }
        BbmLevel::Level0 | BbmLevel::Level1 => BreakRule::Needed(why),
    }
}

impl Stage2 {
    /// [`Format::break_rule`] for somebody who knows more about the memory behind the two outputs.
    pub fn break_rule_for(&self, level: Level, old: u64, new: u64, contents: PageContents) -> BreakRule {
        match (self.decode(level, old), self.decode(level, new)) {
            (Entry::Leaf(old), Entry::Leaf(new)) => self.leaf_to_leaf(&old, &new, contents),
            (Entry::Table(old), Entry::Table(new)) if old.base != new.base => {
                BreakRule::Needed("a table pointer changes")
            }
            (Entry::Table(_), Entry::Leaf(leaf)) | (Entry::Leaf(leaf), Entry::Table(_)) if leaf.accessed => {
                size_change(self.options.bbm, leaf.attrs.not_table, "a block becomes a table or a table a block")
            }
            // One of them cannot be cached, or nothing changed.
            _ => BreakRule::NotNeeded,
        }
    }

    fn leaf_to_leaf(&self, old: &Leaf<S2Attrs>, new: &Leaf<S2Attrs>, contents: PageContents) -> BreakRule {
        use mmu_core::tlb::Perms;
        if !old.accessed || !new.accessed {
            return BreakRule::NotNeeded;
        }
        if old.attrs.memory != new.attrs.memory {
            return BreakRule::Needed("the memory type changes");
        }
        if self.shareability(&old.attrs) != self.shareability(&new.attrs) {
            return BreakRule::Needed("the shareability changes");
        }
        if old.output != new.output {
            if old.perms.intersects(Perms::W) || new.perms.intersects(Perms::W) {
                return BreakRule::Needed("the output address of a writable mapping changes");
            }
            if contents == PageContents::MayDiffer {
                return BreakRule::Needed("the output address changes and the contents may differ");
            }
        }
        if old.attrs.contiguous != new.attrs.contiguous {
            let not_table = old.attrs.not_table || new.attrs.not_table;
            return size_change(self.options.bbm, not_table, "the contiguous hint changes the size of the mapping");
        }
        BreakRule::NotNeeded
    }
}
