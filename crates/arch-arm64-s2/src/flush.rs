//! From "these translations must go" to TLBI instructions.
//!
//! A range becomes instructions by address or, with `FEAT_TLBIRANGE`, as few range instructions as cover it exactly: one
//! for each SCALE from 3 down, several at SCALE 3 when it is longer than one instruction can say, and one instruction by
//! address for an odd page. (Encoding a long range in one operand cuts it short: Linux e3ba51ab24fd lost dirty pages so.)

use mmu_core::Gpa;
use mmu_core::format::{Delivery, Flush, FlushPlan, FlushScope, Reach, WalkCaches};

use crate::granule::{ArmLevel, Granule};
use crate::layout::Split;
use crate::stage2::Stage2;
use crate::tlbi::{AddressOperand, BaseUnit, Entries, RangeOperand, Space, Tlbi};

/// How ranges are turned into instructions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RangePolicy {
    /// Granule of the tables.
    pub granule: Granule,
    /// Unit of range operands, or `None` without `FEAT_TLBIRANGE`.
    pub range_unit: Option<BaseUnit>,
    /// Level that all leaves of the range have, where `FEAT_TTL` may be told.
    pub hint: Option<ArmLevel>,
    /// Bytes that one instruction by address takes care of: the size of the leaves.
    pub stride: u64,
}

/// One instruction's share of a range.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Piece {
    /// One address, good for the policy's stride.
    One(AddressOperand),
    /// A range.
    Range(RangeOperand),
}

/// The pieces that together cover a range exactly, in ascending order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pieces {
    policy: RangePolicy,
    at: u64,
    left: u64,
}

impl RangePolicy {
    /// Cuts `bytes` bytes from `start` on; both are widened to the policy's stride first.
    pub fn cut(self, start: Gpa, bytes: u64) -> Pieces {
        let (at, left) = self.widen(start, bytes);
        Pieces { policy: self, at, left }
    }

    /// Whether a range instruction may be used. A leaf longer than the longest range is left to an instruction by address: with
    /// a level hint, a base inside the leaf would invalidate nothing.
    const fn takes_ranges(&self) -> bool {
        self.range_unit.is_some() && self.stride <= RangeOperand::MAX_PAGES << self.granule.shift()
    }

    fn widen(&self, start: Gpa, bytes: u64) -> (u64, u64) {
        let inside = start.raw() % self.stride;
        let widened = bytes.saturating_add(inside).div_ceil(self.stride).saturating_mul(self.stride);
        (start.raw() - inside, if bytes == 0 { 0 } else { widened })
    }
}

impl Pieces {
    /// How many pieces are left, without making them.
    pub fn count_left(mut self) -> u64 {
        if !self.policy.takes_ranges() {
            return self.left / self.policy.stride;
        }
        let mut count = 0;
        loop {
            // Runs of the longest piece are counted at once; what is left takes a few steps.
            let longest = RangeOperand::MAX_PAGES << self.policy.granule.shift();
            let whole = if self.range_unit_here().is_some() { self.left / longest } else { 0 };
            self.at = self.at.wrapping_add(whole * longest);
            self.left -= whole * longest;
            count += whole;
            if self.next().is_none() {
                return count;
            }
            count += 1;
        }
    }

    /// The unit, if a range operand may start here.
    fn range_unit_here(&self) -> Option<BaseUnit> {
        let unit = self.policy.range_unit?;
        self.at.is_multiple_of(1 << unit.shift(self.policy.granule)).then_some(unit)
    }

    fn one(&self) -> Piece {
        let hint = self.policy.hint.map(|level| (self.policy.granule, level));
        Piece::One(AddressOperand { address: Gpa::new(self.at), hint })
    }

    fn range(&self) -> Option<RangeOperand> {
        let unit = self.range_unit_here()?;
        let pages = self.left >> self.policy.granule.shift();
        // Below a scale's unit the quotient is 0; above 32 units the instruction takes 32.
        let (scale, units) =
            (0..4u8).rev().map(|scale| (scale, pages >> (5 * scale + 1))).find(|&(_, units)| units > 0)?;
        let num = (units.min(32) - 1) as u8;
        let RangePolicy { granule, hint, .. } = self.policy;
        Some(RangeOperand { base: Gpa::new(self.at), granule, unit, scale, num, hint })
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.left == 0 {
            return None;
        }
        let (piece, bytes) = match self.range() {
            // One leaf is cheaper by address, and a range shorter than a leaf would miss it.
            Some(range) if self.left > self.policy.stride && self.policy.takes_ranges() => {
                (Piece::Range(range), range.bytes())
            }
            _ => (self.one(), self.policy.stride),
        };
        self.at = self.at.wrapping_add(bytes);
        self.left = self.left.saturating_sub(bytes);
        Some(piece)
    }
}

/// How a plan's instructions travel.
pub(crate) const fn delivery(reach: Reach) -> Delivery {
    match reach {
        Reach::Local => Delivery::LocalInstruction,
        Reach::Everyone => Delivery::Broadcast,
    }
}

/// The plan for a range in either stage; `None` when it takes more than `most` instructions, or none of them.
pub(crate) fn plan_range(policy: RangePolicy, space: Space, flush: Flush, most: u32) -> Option<FlushPlan<Tlbi>> {
    let FlushScope::Range { start, bytes, level } = flush.scope else { return None };
    let mut pieces = policy.cut(start, bytes);
    let count = pieces.clone().count_left();
    if count > u64::from(most) {
        return None;
    }
    let entries = match flush.walk_caches {
        WalkCaches::Keep => Entries::LastLevel,
        WalkCaches::Drop => Entries::AllLevels,
    };
    let (covered, length) = (Gpa::new(pieces.at), pieces.left);
    let reach = flush.reach;
    let instruction = match pieces.next().unwrap_or(pieces.one()) {
        Piece::One(operand) => Tlbi::Address { space, operand, entries, reach },
        Piece::Range(operand) => Tlbi::Range { space, operand, entries, reach },
    };
    let covers = Flush { scope: FlushScope::Range { start: covered, bytes: length, level }, ..flush };
    Some(FlushPlan { instruction, repeats: count, delivery: delivery(reach), covers })
}

impl Stage2 {
    /// How this stage turns ranges into instructions. The level of leaves helps when only leaves changed: each then takes one
    /// instruction by address. Under an unlinked table they may have any size, so every granule is named.
    pub fn range_policy(&self, flush: &Flush) -> RangePolicy {
        let level = match (flush.scope, flush.walk_caches) {
            (FlushScope::Range { level, .. }, WalkCaches::Keep) => level.filter(|&l| self.geometry.has_leaves_at(l)),
            _ => None,
        };
        let unit = if self.layout.split == Split::Lpa2 { BaseUnit::Kib64 } else { BaseUnit::Granule };
        RangePolicy {
            granule: self.layout.granule,
            range_unit: self.options.tlbi_range.then_some(unit),
            hint: level.map(ArmLevel::of).filter(|&l| self.options.ttl && AddressOperand::can_hint(l)),
            stride: level.map_or(self.layout.granule.page(), |l| self.geometry.page_size(l)).bytes(),
        }
    }

    pub(crate) fn plan(&self, flush: Flush) -> FlushPlan<Tlbi> {
        let policy = self.range_policy(&flush);
        plan_range(policy, Space::Ipa, flush, self.options.max_invalidations).unwrap_or(FlushPlan {
            instruction: Tlbi::Vmalls12e1(flush.reach),
            repeats: 1,
            delivery: delivery(flush.reach),
            covers: Flush { scope: FlushScope::Vm, walk_caches: WalkCaches::Drop, reach: flush.reach },
        })
    }
}
