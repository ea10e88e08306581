//! Latency curves by name: what a point of each one touches.
//!
//! | name | a point of `n` is |
//! | --- | --- |
//! | `packed64_4k`, `packed64_thp` | a chase through `n` cache lines side by side, on small or on huge pages |
//! | `dense4k`, `dense_thp`, `thp_data` | a chase through one line in each of `n` 4 KiB pages of real memory; the guest's own pages are small or huge |
//! | `zero4k` | loads from `n` virtual pages that all map one physical page: only translation is left |
//! | `pde_2M_T4096` | 4096 pages of that kind in `n` regions of 2 MiB; `pdpte_1G_T..`, `pml4e_512G_T..` likewise |
//! | `jmp_4k`, `jmp_packed` | a ring of `n` jumps, one in each page or side by side |
//! | any with `_k4` | four such chases at once |
//!
//! A page size may stand where `4k` and `thp` do (`dense2m`, `zero64k`, `packed64_1g`).

use std::fmt;
use std::str::FromStr;

use mmu_core::PageSize;

/// What a point of a curve touches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Form {
    /// Cache lines side by side.
    Packed,
    /// One line in each 4 KiB of memory.
    Dense,
    /// Virtual pages that all map the same physical page.
    Zero,
    /// So many pages of that kind, spread evenly over regions of `2^region_shift` bytes; points count regions.
    Regions {
        /// Size of a region.
        region_shift: u32,
        /// Pages in all.
        total: u64,
    },
    /// A ring of jumps, one in each 4 KiB.
    Jumps,
    /// A ring of jumps, one in each cache line.
    PackedJumps,
}

/// A curve.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Curve {
    /// What its points touch.
    pub form: Form,
    /// The guest's pages.
    pub page: PageSize,
    /// Chases that run at the same time.
    pub chains: u32,
}

/// A name that is no curve's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CurveError {
    name: String,
}

impl fmt::Display for CurveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no curve `{}`; known are packed64_4k, packed64_thp, dense4k, dense_thp, zero4k, pde_2M_T4096, pdpte_1G_T4096, \
             pml4e_512G_T4096, jmp_4k and jmp_packed, with another page size or total, and each with _k2, _k4, .. for chases \
             at the same time",
            self.name
        )
    }
}
impl std::error::Error for CurveError {}

/// Most chases at once.
const MOST_CHAINS: u32 = 64;

impl FromStr for Curve {
    type Err = CurveError;

    fn from_str(name: &str) -> Result<Self, CurveError> {
        parse(name).ok_or_else(|| CurveError { name: name.to_owned() })
    }
}

fn parse(name: &str) -> Option<Curve> {
    let (base, chains) = match name.rsplit_once("_k") {
        Some((base, chains)) => match chains.parse() {
            Ok(chains) => (base, chains),
            Err(_) => (name, 1),
        },
        None => (name, 1),
    };
    if !(1..=MOST_CHAINS).contains(&chains) {
        return None;
    }
    if let Some((form, page)) = regions(base) {
        return Some(Curve { form, page, chains });
    }
    let (form, page) = match base {
        "thp_data" => (Form::Dense, "2m"),
        "jmp_packed" => (Form::PackedJumps, "4k"),
        _ => {
            let forms =
                [("packed64", Form::Packed), ("dense", Form::Dense), ("zero", Form::Zero), ("jmp", Form::Jumps)];
            forms.into_iter().find_map(|(start, form)| Some((form, base.strip_prefix(start)?)))?
        }
    };
    Some(Curve { form, page: page_size(page.trim_start_matches('_'))?, chains })
}

/// `pde_2M_T4096`
fn regions(base: &str) -> Option<(Form, PageSize)> {
    let (front, total) = base.rsplit_once("_T")?;
    let (_, region) = front.rsplit_once('_')?;
    let (digits, unit) = region.split_at_checked(region.len().checked_sub(1)?)?;
    let shift = match unit {
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        _ => return None,
    };
    let number: u64 = digits.parse().ok()?;
    let total = total.parse().ok()?;
    let region_shift = shift + number.trailing_zeros();
    // Regions lie in the lower half of 47 bits.
    if !number.is_power_of_two() || !(13..=46).contains(&region_shift) || !(1..=1 << 24).contains(&total) {
        return None;
    }
    Some((Form::Regions { region_shift, total }, PageSize::SIZE_4K))
}

fn page_size(text: &str) -> Option<PageSize> {
    match text {
        "thp" => Some(PageSize::SIZE_2M),
        _ => text.to_ascii_uppercase().parse().ok(),
    }
}

impl Curve {
    /// The same, one chase alone.
    pub const fn alone(self) -> Self {
        Self { chains: 1, ..self }
    }

    /// The virtual 4 KiB pages that a point of `n` touches.
    pub fn pages(&self, n: u64) -> u64 {
        match self.form {
            Form::Packed | Form::PackedJumps => n.div_ceil(64),
            Form::Dense | Form::Zero | Form::Jumps => n,
            Form::Regions { total, .. } => total,
        }
    }

    /// The largest point that is simulated: a billion cache lines, 64 million pages, regions as many as 46 bits hold.
    pub fn largest(&self) -> u64 {
        match self.form {
            Form::Packed => 1 << 27,
            Form::Dense => 1 << 22,
            Form::Zero => 1 << 25,
            Form::Jumps | Form::PackedJumps => 1 << 20,
            Form::Regions { region_shift, total } => total.min(1 << (46 - region_shift)),
        }
    }

    /// Whether its points fetch instructions.
    pub fn fetches(&self) -> bool {
        matches!(self.form, Form::Jumps | Form::PackedJumps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood() {
        let curve = |name: &str| name.parse::<Curve>().unwrap();
        assert_eq!(curve("dense4k"), Curve { form: Form::Dense, page: PageSize::SIZE_4K, chains: 1 });
        assert_eq!(curve("thp_data_k12"), Curve { form: Form::Dense, page: PageSize::SIZE_2M, chains: 12 });
        assert_eq!(curve("packed64_thp"), Curve { form: Form::Packed, page: PageSize::SIZE_2M, chains: 1 });
        let regions = curve("pdpte_1G_T16384");
        assert_eq!(regions.form, Form::Regions { region_shift: 30, total: 16384 });
        assert_eq!(curve("jmp_4k").form, Form::Jumps);
        for wrong in ["", "dense", "dense5k", "pde_3M_T4", "zero4k_k0", "zero4k_k65", "rdtsc", "pde_2M_Tx", "_T1"] {
            let error = wrong.parse::<Curve>().unwrap_err().to_string();
            assert!(error.contains("known are"), "{wrong}: {error}");
        }
    }
}
