//! Latency curves by name: what a point of each one touches.
//!
//! | name | a point of `n` is |
//! | --- | --- |
//! | `packed64_4k`, `packed64_thp` | a chase through `n` cache lines side by side, on small or on huge pages; `packed128` takes every other line |
//! | `stride512_4k` | the same for any distance between lines |
//! | `dense4k`, `dense_thp`, `thp_data` | a chase through one line in each of `n` 4 KiB pages of real memory; the guest's own pages are small or huge |
//! | `zero4k`, `zero_thp` | loads from `n` virtual pages that all map one physical page: only translation is left |
//! | `pde_2M_T4096` | 4096 pages of that kind in `n` regions of 2 MiB; `pdpte_1G_T..`, `pml4e_512G_T..` likewise |
//! | `jmp_4k`, `jmp_packed`, `jmp_256`, `jmp_thp` | a ring of `n` jumps: one in each page, side by side, 256 bytes apart, one in each 4 KiB of huge pages |
//! | any with `_k4` | four such chases at once |
//! | any with `_over_2m` | the same on a second stage of such pages |
//!
//! A name is a family with its figure (`packed64`), and words in any order: a page size of the guest (`4k`, `thp`, `2m`, `1g`, `64k`; also behind
//! the family, as in `dense2m`), `data`, a number of chases, a page size of the second stage.

use std::fmt;
use std::str::FromStr;

use mmu_core::PageSize;

/// What a point of a curve touches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Form {
    /// Cache lines at this distance, in bytes.
    Packed {
        /// From the start of one to the start of the next; at least a word.
        stride: u64,
    },
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
    /// A ring of jumps at this distance, in bytes; one in each 4 KiB lies in another line of each.
    Jumps {
        /// From one to the next; at least a line.
        stride: u64,
    },
}

/// A curve.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Curve {
    /// What its points touch.
    pub form: Form,
    /// The guest's pages.
    pub page: PageSize,
    /// The second stage's pages; `None` are those of the machine's sheet.
    pub host_page: Option<PageSize>,
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
            "no curve `{}`; known are packed64_4k, packed64_thp, stride512_4k, dense4k, dense_thp, thp_data, zero4k, zero_thp, pde_2M_T4096, \
             pdpte_1G_T4096, pml4e_512G_T4096, jmp_4k, jmp_packed, jmp_256, with another page size, distance or total, each with _k2, _k4, .. for \
             chases at the same time and _over_2m for pages of the second stage; and the events {}",
            self.name,
            crate::software::known()
        )
    }
}
impl std::error::Error for CurveError {}

/// Most chases at once.
const MOST_CHAINS: u32 = 64;
/// Bytes of a line of all caches here.
const LINE: u64 = 64;
/// Distance of the pages that a dense curve touches, whatever the guest's own pages are.
const SMALL: u64 = 4096;

impl FromStr for Curve {
    type Err = CurveError;

    fn from_str(name: &str) -> Result<Self, CurveError> {
        parse(name).ok_or_else(|| CurveError { name: name.to_owned() })
    }
}

/// The words of a name, as far as they have been understood.
#[derive(Default)]
struct Words {
    form: Option<Form>,
    page: Option<PageSize>,
    host_page: Option<PageSize>,
    chains: Option<u32>,
}

fn parse(name: &str) -> Option<Curve> {
    let mut found = Words::default();
    let mut words = name.split('_');
    while let Some(word) = words.next() {
        match word {
            "over" | "on" | "host" | "s2" => set(&mut found.host_page, page_size(words.next()?)?)?,
            // What the family says already.
            "data" => found.form = Some(found.form.unwrap_or(Form::Dense)),
            _ => understand(&mut found, word, &mut words)?,
        }
    }
    let page = found.page.unwrap_or(PageSize::SIZE_4K);
    Some(Curve { form: found.form?, page, host_page: found.host_page, chains: found.chains.unwrap_or(1) })
}

/// Says a thing once.
fn set<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    slot.replace(value).is_none().then_some(())
}

fn understand<'a>(found: &mut Words, word: &str, rest: &mut impl Iterator<Item = &'a str>) -> Option<()> {
    if let Some(page) = page_size(word) {
        return set(&mut found.page, page);
    }
    if let Some(chains) = chains(word) {
        return set(&mut found.chains, chains);
    }
    if let Some(page) = ["over", "on", "host", "s2"].iter().find_map(|start| page_size(word.strip_prefix(start)?)) {
        return set(&mut found.host_page, page);
    }
    if REGIONS.contains(&word) {
        return set(&mut found.form, regions(rest.next()?, rest.next()?)?);
    }
    // `jmp` stands alone: what follows is a distance or a page.
    if let Some(Form::Jumps { stride }) = &mut found.form
        && let Some(distance) = distance(word)
    {
        *stride = distance;
        return Some(());
    }
    let (form, page) = family(word)?;
    set(&mut found.form, form)?;
    page.map_or(Some(()), |page| set(&mut found.page, page))
}

/// Names of tables, by the size of whose regions the curve is named.
const REGIONS: [&str; 9] = ["pte", "pde", "pdpe", "pdpte", "pml4e", "pml5e", "pmd", "pud", "pgd"];

fn chains(word: &str) -> Option<u32> {
    word.strip_prefix('k')?.parse().ok().filter(|chains| (1..=MOST_CHAINS).contains(chains))
}

/// `packed`, `packed128`, `dense`, `dense4k`, `zero2m`, `jmp`
fn family(word: &str) -> Option<(Form, Option<PageSize>)> {
    let digits = word.find(|letter: char| letter.is_ascii_digit()).unwrap_or(word.len());
    let (name, figure) = word.split_at(digits);
    let distance = |default: u64| match figure {
        "" => Some(default),
        _ => figure.parse().ok().filter(|bytes| (8..=1 << 30).contains(bytes)),
    };
    let page = || if figure.is_empty() { Some(None) } else { page_size(figure).map(Some) };
    Some(match name {
        "packed" => (Form::Packed { stride: distance(LINE)? }, None),
        "stride" => (Form::Packed { stride: distance(0).filter(|&bytes| bytes > 0)? }, None),
        "dense" => (Form::Dense, page()?),
        "zero" => (Form::Zero, page()?),
        "jmp" | "jump" => (Form::Jumps { stride: SMALL }, page()?),
        _ => return None,
    })
}

/// The distance of jumps.
fn distance(word: &str) -> Option<u64> {
    match word {
        "packed" => Some(LINE),
        _ => word.parse().ok().filter(|bytes| (LINE..=1 << 30).contains(bytes)),
    }
}

/// `2M`, `T4096`
fn regions(region: &str, total: &str) -> Option<Form> {
    let (digits, unit) = region.split_at_checked(region.len().checked_sub(1)?)?;
    let shift = match unit {
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return None,
    };
    let number: u64 = digits.parse().ok()?;
    let total = total.strip_prefix(['T', 't'])?.parse().ok()?;
    let region_shift = shift + number.trailing_zeros();
    // Regions lie in the lower half of 47 bits.
    if !number.is_power_of_two() || !(13..=46).contains(&region_shift) || !(1..=1 << 24).contains(&total) {
        return None;
    }
    Some(Form::Regions { region_shift, total })
}

fn page_size(text: &str) -> Option<PageSize> {
    match text {
        "thp" | "huge" | "hugetlb" => Some(PageSize::SIZE_2M),
        // A bare number is a distance.
        _ if text.ends_with(|letter: char| letter.is_ascii_digit()) => None,
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
            Form::Packed { stride } | Form::Jumps { stride } if stride < SMALL => {
                n.saturating_mul(stride).div_ceil(SMALL)
            }
            Form::Packed { .. } | Form::Jumps { .. } | Form::Dense | Form::Zero => n,
            Form::Regions { total, .. } => total,
        }
    }

    /// Bytes from the start of the first page that a point of `n` touches to the end of the last.
    pub fn span(&self, n: u64) -> u64 {
        match self.form {
            Form::Packed { stride } | Form::Jumps { stride } => n.saturating_mul(stride),
            Form::Dense => n.saturating_mul(SMALL),
            Form::Zero => n.saturating_mul(self.page.bytes()),
            Form::Regions { region_shift, .. } => n.saturating_mul(1 << region_shift),
        }
    }

    /// The largest point that is simulated: 8 GiB of lines side by side, 16 GiB of pages, 32 million translations, regions as many as 46 bits hold.
    pub fn largest(&self) -> u64 {
        match self.form {
            Form::Packed { stride } => ((1 << 33) / stride.max(LINE)).clamp(1, 1 << 27),
            Form::Dense => 1 << 22,
            Form::Zero => (1 << 45 >> self.page.shift()).min(1 << 25),
            Form::Jumps { stride } => ((1 << 32) / stride.max(LINE)).clamp(1, 1 << 20),
            Form::Regions { region_shift, total } => total.min(1 << (46 - region_shift)),
        }
    }

    /// Whether its points fetch instructions.
    pub fn fetches(&self) -> bool {
        matches!(self.form, Form::Jumps { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(name: &str) -> Curve {
        name.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn names_are_understood() {
        let of = |form, page, chains| Curve { form, page, host_page: None, chains };
        assert_eq!(curve("dense4k"), of(Form::Dense, PageSize::SIZE_4K, 1));
        assert_eq!(curve("thp_data_k12"), of(Form::Dense, PageSize::SIZE_2M, 12));
        assert_eq!(curve("packed64_thp"), of(Form::Packed { stride: 64 }, PageSize::SIZE_2M, 1));
        assert_eq!(curve("packed_2m_k2"), of(Form::Packed { stride: 64 }, PageSize::SIZE_2M, 2));
        assert_eq!(curve("stride512_4k").form, Form::Packed { stride: 512 });
        let regions = curve("pdpte_1G_T16384");
        assert_eq!(regions.form, Form::Regions { region_shift: 30, total: 16384 });
        assert_eq!(curve("pml4e_512G_T64_k4").chains, 4);
        assert_eq!(curve("jmp_4k"), of(Form::Jumps { stride: 4096 }, PageSize::SIZE_4K, 1));
        assert_eq!(curve("jmp_packed").form, Form::Jumps { stride: 64 });
        assert_eq!(curve("jmp_256").form, Form::Jumps { stride: 256 });
        assert_eq!(curve("jmp_packed_thp"), of(Form::Jumps { stride: 64 }, PageSize::SIZE_2M, 1));
        for over in ["dense4k_over_2m", "dense4k_over2m", "over2m_dense_4k"] {
            assert_eq!(curve(over).host_page, Some(PageSize::SIZE_2M), "{over}");
        }
    }

    #[test]
    fn other_spellings_are_the_same_curve() {
        for (one, other) in
            [("dense_thp", "thp_data"), ("dense2m", "dense_thp"), ("zero_2m", "thp_zero"), ("jmp", "jmp_4k")]
        {
            assert_eq!(curve(one), curve(other));
        }
        assert_eq!(curve("pde_2M_T4096"), curve("pmd_2m_t4096"));
    }

    #[test]
    fn what_is_no_curve_is_refused_with_what_is_known() {
        let wrong = [
            "",
            "thp",
            "dense5k",
            "pde_3M_T4",
            "zero4k_k0",
            "zero4k_k65",
            "rdtsc",
            "pde_2M_Tx",
            "_T1",
            "dense4k_4k",
            "dense_zero",
            "packed4_4k",
            "stride_4k",
            "jmp_32",
            "dense4k_over",
            "dense4k_k2_k4",
            "pde_2M",
        ];
        for wrong in wrong {
            let error = wrong.parse::<Curve>().unwrap_err().to_string();
            assert!(error.contains("known are") && error.contains("mprotect_rw_to_r_2t"), "{wrong}: {error}");
        }
    }

    #[test]
    fn points_have_pages_and_ends() {
        assert_eq!((curve("packed64_4k").pages(65), curve("stride8192_4k").pages(65)), (2, 65));
        assert_eq!((curve("jmp_256").pages(16), curve("jmp_4k").pages(16)), (1, 16));
        assert_eq!(
            (curve("zero_2m").span(3), curve("pde_2M_T64").span(3), curve("jmp_256").span(3)),
            (6 << 20, 6 << 20, 768)
        );
        assert_eq!(curve("pml4e_512G_T64").largest(), 64);
        assert_eq!(curve("zero1g").largest(), 1 << 15);
    }
}
