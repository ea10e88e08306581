//! The bitmap of `test_clear_young`: which pages of a range are asked about, and which were young.
//!
//! Conventions of "mm/kvm: lockless accessed bit harvest" (v1, `20230217041230.2417228-1-yuzhao@google.com`) and "locklessly clear
//! the accessed bit" (v2, `20230526234435.662652-1-yuzhao@google.com`). Bits are counted from the *end* of the range: the page at
//! `addr` has bit `(end - addr) / PAGE_SIZE - 1`.
//!
//! | convention | the bit of a young page | its accessed flag is cleared |
//! | --- | --- | --- |
//! | v1 | flips | if the bit was 1 |
//! | v2, testing | is set | no |
//! | v2, clearing | stays | if the bit is 1 |

use mmu_core::{Gpa, GpaRange, PageSize};
use serde::{Deserialize, Serialize};

/// Which series' rule the bits follow.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Convention {
    /// v1: the bit of each young page flips, and its flag is cleared if the bit was 1.
    V1,
    /// v2: testing sets the bits of young pages, clearing clears the flags of young pages whose bit is set.
    V2,
}

/// What `test_clear_young` is asked to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Clear {
    /// To tell which pages are young.
    Test,
    /// To make them old as well.
    Clear,
}

/// One bit per page of a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct YoungBitmap {
    range: GpaRange,
    page: PageSize,
    convention: Convention,
    words: Vec<u64>,
}

impl YoungBitmap {
    /// A bitmap of zeroes, one bit per `page` of `range`.
    pub fn new(range: GpaRange, page: PageSize, convention: Convention) -> Self {
        let words = vec![0; range.bytes.0.div_ceil(page.bytes()).div_ceil(64) as usize];
        Self { range, page, convention, words }
    }

    /// The bitmap that makes every young page of `range` old and tells which: ones under v1 (a page whose bit flipped to 0 was
    /// young), zeroes to be filled by a test before the clearing under v2.
    pub fn asking_for_all(range: GpaRange, page: PageSize, convention: Convention) -> Self {
        let mut bitmap = Self::new(range, page, convention);
        if convention == Convention::V1 {
            bitmap.update(0, bitmap.pages(), |_| u64::MAX);
        }
        bitmap
    }

    /// The range it describes.
    pub fn range(&self) -> GpaRange {
        self.range
    }
    /// The size of a page.
    pub fn page(&self) -> PageSize {
        self.page
    }
    /// Pages of the range.
    pub fn pages(&self) -> u64 {
        self.range.bytes.0.div_ceil(self.page.bytes())
    }
    /// Bits that are set.
    pub fn ones(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }
    /// The words, lowest bits first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Number of the bit of the page at `gpa`, counted from the end of the range.
    pub fn bit_of(&self, gpa: Gpa) -> u64 {
        (self.range.end() - gpa).div_ceil(self.page.bytes()).saturating_sub(1)
    }
    /// Whether the page's bit is set; false outside the range.
    pub fn get(&self, gpa: Gpa) -> bool {
        self.range.contains(gpa) && self.at(self.bit_of(gpa))
    }
    /// Sets a page's bit; nothing outside the range.
    pub fn set(&mut self, gpa: Gpa) {
        if self.range.contains(gpa) {
            let bit = self.bit_of(gpa);
            self.update(bit, bit + 1, |_| u64::MAX);
        }
    }
    /// First bytes of the pages whose bit is set, in order of address.
    pub fn set_pages(&self) -> impl Iterator<Item = Gpa> + '_ {
        let page = self.page.bytes();
        (0..self.pages()).map(move |i| self.range.start + i * page).filter(|&gpa| self.get(gpa))
    }

    /// Sets the bits of the pages that `answer`, a v1 bitmap which asked for all, has found young.
    pub fn join_zeroes(&mut self, answer: &YoungBitmap) {
        let page = answer.page.bytes();
        for gpa in (0..answer.pages()).map(|i| answer.range.start + i * page) {
            if !answer.get(gpa) {
                self.set(gpa);
            }
        }
    }

    /// Changes every bit that `answer` has changed since it was `asked` and this one has not yet.
    pub fn join_changes(&mut self, asked: &YoungBitmap, answer: &YoungBitmap) {
        for ((mine, asked), answer) in self.words.iter_mut().zip(&asked.words).zip(&answer.words) {
            *mine = asked ^ ((*mine ^ asked) | (asked ^ answer));
        }
    }

    fn at(&self, bit: u64) -> bool {
        self.words[(bit / 64) as usize] >> (bit % 64) & 1 != 0
    }

    /// Replaces the bits `[from, to)` by what `new` makes of their words.
    fn update(&mut self, from: u64, to: u64, new: impl Fn(u64) -> u64) {
        let mut bit = from;
        while bit < to {
            let (word, low) = ((bit / 64) as usize, bit % 64);
            let len = (64 - low).min(to - bit);
            let mask = (u64::MAX >> (64 - len)) << low;
            self.words[word] = self.words[word] & !mask | new(self.words[word]) & mask;
            bit += len;
        }
    }

    /// The pages of `[gpa, gpa + bytes)` that lie in the range, as bits.
    fn bits(&self, gpa: Gpa, bytes: u64) -> Option<(u64, u64)> {
        let last = (gpa + bytes).min(self.range.end());
        let first = gpa.max(self.range.start);
        (first < last).then(|| (self.bit_of(Gpa::new(last.raw() - 1)), self.bit_of(first) + 1))
    }

    /// How many of `leaves` leaves of `leaf` bytes from `gpa` on have equal bits, and whether a young one of them is to be made old.
    /// A leaf of several pages is treated alone; one set bit among its pages stands for all.
    pub fn plan(&self, gpa: Gpa, leaves: u64, leaf: PageSize, clear: Clear) -> (u64, bool) {
        if leaf > self.page {
            let wanted = self.bits(gpa, leaf.bytes()).is_some_and(|(from, to)| (from..to).any(|bit| self.at(bit)));
            return (1, self.wants(wanted, clear));
        }
        let first = self.get(gpa);
        let page = self.page.bytes();
        let alike = (1..leaves).take_while(|i| self.get(gpa + i * page) == first).count() as u64;
        (1 + alike, self.wants(first, clear))
    }

    fn wants(&self, bit: bool, clear: Clear) -> bool {
        match (self.convention, clear) {
            (Convention::V1, _) | (Convention::V2, Clear::Clear) => bit,
            (Convention::V2, Clear::Test) => false,
        }
    }

    /// The leaves in `[gpa, gpa + bytes)` were young.
    pub fn note_young(&mut self, gpa: Gpa, bytes: u64, clear: Clear) {
        let Some((from, to)) = self.bits(gpa, bytes) else { return };
        match (self.convention, clear) {
            (Convention::V1, _) => self.update(from, to, |word| !word),
            (Convention::V2, Clear::Test) => self.update(from, to, |_| u64::MAX),
            (Convention::V2, Clear::Clear) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mmu_core::{ByteUnits, Bytes};

    const PAGE: PageSize = PageSize::SIZE_4K;

    fn page(i: u64) -> Gpa {
        Gpa::new(1.GiB() + 4096 * i)
    }

    fn bitmap(pages: u64, convention: Convention) -> YoungBitmap {
        YoungBitmap::new(GpaRange::new(page(0), Bytes(4096 * pages)), PAGE, convention)
    }

    #[test]
    fn bits_are_counted_from_the_end() {
        let mut map = bitmap(100, Convention::V2);
        map.set(page(0));
        map.set(page(99));
        assert_eq!([map.bit_of(page(0)), map.bit_of(page(99))], [99, 0]);
        assert_eq!(map.words(), [1, 1 << 35]);
        assert_eq!(map.set_pages().collect::<Vec<_>>(), [page(0), page(99)]);
    }

    #[test]
    fn v1_flips_and_clears_what_was_one() {
        let mut map = YoungBitmap::asking_for_all(GpaRange::new(page(0), Bytes(4096 * 70)), PAGE, Convention::V1);
        assert_eq!(map.plan(page(3), 10, PAGE, Clear::Test), (10, true));
        map.note_young(page(3), 10 * 4096, Clear::Clear);
        assert_eq!(map.ones(), 60);
        assert_eq!(map.plan(page(0), 70, PAGE, Clear::Clear), (3, true));
        assert_eq!(map.plan(page(3), 67, PAGE, Clear::Clear), (10, false), "a zero only tests");
    }

    #[test]
    fn v2_tests_and_then_clears_what_is_set() {
        let mut map = bitmap(200, Convention::V2);
        assert_eq!(map.plan(page(0), 200, PAGE, Clear::Test), (200, false));
        map.note_young(page(60), 70 * 4096, Clear::Test);
        assert_eq!(map.ones(), 70);
        assert_eq!(map.plan(page(60), 140, PAGE, Clear::Clear), (70, true));
        assert_eq!(map.plan(page(130), 70, PAGE, Clear::Clear), (70, false));
        map.note_young(page(60), 70 * 4096, Clear::Clear);
        assert_eq!(map.ones(), 70);
    }

    #[test]
    fn a_huge_leaf_stands_for_all_its_pages_in_the_range() {
        let leaf = PageSize::SIZE_2M;
        let mut map = bitmap(700, Convention::V2);
        map.note_young(page(512), leaf.bytes(), Clear::Test);
        assert_eq!(map.ones(), 188, "the range ends inside the leaf");
        assert_eq!(map.plan(page(512), 1, leaf, Clear::Clear), (1, true));
        assert_eq!(map.plan(page(0), 1, leaf, Clear::Clear), (1, false));
    }
}
