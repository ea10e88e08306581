//! Pages touched one by one: what overlays on progressions take.

use mmusim::core::image::RamRange;
use mmusim::core::memory::{Progression, TableMemory};
use mmusim::core::{Format, Leaf};
use mmusim::x86::{EptConfig, WalkLength};
use mmusim::{ByteUnits, Hpa, Level, Perms};

use super::cases::{Measured, timed};
use super::scatter::Scatter;

/// One page of so many is touched.
pub const STRIDE: u64 = 100;

/// Sets accessed and dirty flags of one page, anywhere, of each [`STRIDE`] of a guest of 4K pages. The first touch of a table's page puts an overlay on its
/// progression, the later ones add to it.
pub fn run(memory: u64) -> Measured {
    let format = EptConfig::new().walk_length(WalkLength::Five).max_phys_addr(52).build().expect("legal");
    let pool = RamRange { start: Hpa::new(1.TiB()), bytes: 16.TiB() };
    let mut tables = TableMemory::new(pool, format.present_mask()).expect("an aligned pool");
    let leaves = memory >> 12;
    let leaf = |perms, accessed| {
        let leaf = Leaf { output: Hpa::new(0), perms, accessed, attrs: Default::default() };
        format.encode_leaf(Level::LAST, &leaf).expect("an aligned page")
    };
    let (untouched, touched) = (leaf(Perms::RWX, false), leaf(Perms::RWX.with(Perms::DIRTY), true));
    let first = tables.alloc_run(Level::LAST, 512, leaves / 512, Progression::ZERO).expect("room");
    tables.fill_run(first, leaves, Progression::new(untouched, 4096)).expect("live tables");
    let mut scatter = Scatter(1);
    timed(|| {
        for stretch in 0..leaves / STRIDE {
            let page = stretch * STRIDE + scatter.below(STRIDE);
            tables.fetch_or(first + 8 * page, touched & !untouched).expect("live tables");
        }
        leaves / STRIDE
    })
}
