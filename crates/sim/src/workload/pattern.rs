//! Synthetic access patterns.

use mmu_core::{AccessKind, ByteUnits, Gva, PageSize};
use serde::{Deserialize, Serialize};

use super::GuestAccess;
use crate::rng::{Rng, Seed, Zipf};

/// Order in which lines are touched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mix {
    /// One after the other.
    Sequential,
    /// Every so many bytes, wrapping around with an offset of one line.
    Strided {
        /// Distance in bytes.
        stride: u64,
    },
    /// Independently and uniformly.
    Uniform,
    /// Pages by a Zipf distribution with this exponent in hundredths (99 is the usual choice), scattered over the region.
    Zipf {
        /// Exponent times 100.
        hundredths: u32,
    },
    /// A random cycle through all pages, one access each: every access depends on the one before.
    PointerChase,
}

/// A synthetic workload.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatternSpec {
    /// Bytes that each vCPU touches.
    pub bytes: u64,
    /// Order.
    pub mix: Mix,
    /// Stores among a hundred accesses.
    pub writes_percent: u32,
    /// Accesses per vCPU.
    pub accesses: u64,
}

/// A synthetic stream.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Pattern {
    spec: PatternSpec,
    base: u64,
    left: u64,
    position: u64,
    rng: Rng,
    zipf: Option<Zipf>,
}

const LINE: u64 = 64;

impl Pattern {
    /// Stream of vCPU `vcpu`, touching memory from `base` on.
    pub fn new(spec: &PatternSpec, base: Gva, seed: Seed, vcpu: u64) -> Self {
        let pages = (spec.bytes >> 12).max(1);
        let zipf = match spec.mix {
            Mix::Zipf { hundredths } => Some(Zipf::new(pages, hundredths)),
            _ => None,
        };
        let rng = Rng::stream(seed, 1 + vcpu);
        Self { spec: spec.clone(), base: base.raw(), left: spec.accesses, position: 0, rng, zipf }
    }

    /// Size of the region in bytes, rounded up to the page.
    pub fn region(&self, page: PageSize) -> u64 {
        self.spec.bytes.next_multiple_of(page.bytes())
    }
}

impl Iterator for Pattern {
    type Item = GuestAccess;

    #[inline]
    fn next(&mut self) -> Option<GuestAccess> {
        self.left = self.left.checked_sub(1)?;
        let bytes = self.spec.bytes.max(4.KiB());
        let offset = match self.spec.mix {
            Mix::Sequential => {
                let at = self.position;
                self.position = (at + LINE) % bytes;
                at
            }
            Mix::Strided { stride } => {
                let at = self.position;
                let next = at + stride.max(LINE);
                self.position = if next < bytes { next } else { (next + LINE) % bytes };
                at
            }
            Mix::Uniform => self.rng.below(bytes / LINE) * LINE,
            Mix::Zipf { .. } => {
                let rank = self.zipf.as_ref().map_or(0, |zipf| zipf.sample(&mut self.rng));
                scatter(rank, bytes >> 12) * 4.KiB() + self.rng.below(64) * LINE
            }
            Mix::PointerChase => {
                let pages = bytes >> 12;
                let page = scatter(self.position, pages);
                self.position = (self.position + 1) % pages;
                page * 4.KiB() + (page % 64) * LINE
            }
        };
        let write = self.spec.writes_percent > 0 && self.rng.below(100) < u64::from(self.spec.writes_percent);
        let kind = if write { AccessKind::Write } else { AccessKind::Read };
        Some(GuestAccess { gva: Gva::new(self.base + offset), kind })
    }
}

/// A fixed permutation of `0..n`: a four-round Feistel network over the next power of four, walked until it lands inside.
fn scatter(index: u64, n: u64) -> u64 {
    if n <= 1 {
        return 0;
    }
    let half = (64 - (n - 1).leading_zeros()).div_ceil(2);
    let mask = (1u64 << half) - 1;
    let mut x = index % n;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for key in [0x9e37_79b9_7f4a_7c15u64, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0x2545_f491_4f6c_dd1d] {
            let mixed = right.wrapping_add(key).wrapping_mul(key | 1);
            (left, right) = (right, left ^ (mixed >> 32 & mask));
        }
        x = left << half | right;
        if x < n {
            return x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(mix: Mix) -> PatternSpec {
        PatternSpec { bytes: 1.MiB(), mix, writes_percent: 30, accesses: 10_000 }
    }

    #[test]
    fn every_pattern_stays_in_its_region_and_repeats() {
        for mix in [
            Mix::Sequential,
            Mix::Strided { stride: 4160 },
            Mix::Uniform,
            Mix::Zipf { hundredths: 99 },
            Mix::PointerChase,
        ] {
            let base = Gva::new(0x5500_0000_0000);
            let mut a = Pattern::new(&spec(mix), base, Seed(3), 1);
            let mut b = Pattern::new(&spec(mix), base, Seed(3), 1);
            let mut writes = 0;
            for access in a.by_ref() {
                assert_eq!(Some(access), b.next());
                assert!(access.gva.raw() - base.raw() < 1.MiB(), "{mix:?}");
                writes += u64::from(access.kind == AccessKind::Write);
            }
            assert!((2_700..3_300).contains(&writes), "{mix:?}: {writes} of 10000 are writes");
        }
    }

    #[test]
    fn a_pointer_chase_visits_every_page_once_per_round() {
        let mut chase = Pattern::new(&spec(Mix::PointerChase), Gva::new(0), Seed(0), 0);
        let pages: std::collections::BTreeSet<u64> =
            (0..256).filter_map(|_| chase.next()).map(|access| access.gva.raw() >> 12).collect();
        assert_eq!(pages.len(), 256);
    }

    proptest! {
        #[test]
        fn scatter_is_a_permutation(n in 1u64..2000) {
            let image: std::collections::BTreeSet<u64> = (0..n).map(|i| scatter(i, n)).collect();
            prop_assert_eq!(image.len() as u64, n);
            prop_assert!(image.into_iter().all(|x| x < n));
        }
    }
}
