//! Sets of dirty pages as runs, and the bitmap that they are kept in.
//!
//! Models `memslot->dirty_bitmap` and its accessors (`virt/kvm/kvm_main.c`, Linux 6.6). Locking: none, words change by atomic operations. Flush: none
//! owed by a bit; whoever takes permissions with it owes one. Frees nothing: the bitmap goes with [`disable`](super::disable).

use mmu_core::{Bytes, Format, Gpa, GpaRange, Hpa, PageSize};

use crate::engine::{Apply, Atomicity, Host, ReschedCheck, RunOp};

/// Pages of a memslot as runs, in order: however many are dirty, a uniform stretch is one run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DirtyPages {
    runs: Vec<(u64, u64)>,
    pages: u64,
}

impl DirtyPages {
    /// No pages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `count` pages from `first` on, which lies behind everything before.
    pub fn push(&mut self, first: u64, count: u64) {
        self.pages += count;
        match self.runs.last_mut() {
            Some((start, len)) if *start + *len == first => *len += count,
            _ if count == 0 => {}
            _ => self.runs.push((first, count)),
        }
    }

    /// The runs: first page in the memslot, number of pages.
    pub fn runs(&self) -> &[(u64, u64)] {
        &self.runs
    }
    /// How many pages.
    pub fn count(&self) -> u64 {
        self.pages
    }
    /// Whether a page is among them.
    pub fn contains(&self, page: u64) -> bool {
        let behind = self.runs.partition_point(|&(first, _)| first <= page);
        behind.checked_sub(1).is_some_and(|i| page < self.runs[i].0 + self.runs[i].1)
    }

    /// These pages and those of `other`.
    #[must_use]
    pub fn union(&self, other: &DirtyPages) -> DirtyPages {
        let mut all: Vec<(u64, u64)> = self.runs.iter().chain(&other.runs).copied().collect();
        all.sort_unstable();
        let mut union = DirtyPages::new();
        let mut end = 0;
        for (first, count) in all {
            let start = first.max(end);
            if first + count > start {
                union.push(start, first + count - start);
                end = first + count;
            }
        }
        union
    }

    /// The part inside `[first, first + count)`.
    pub(super) fn within(&self, first: u64, count: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let end = first.saturating_add(count);
        let begin = self.runs.partition_point(|&(start, len)| start + len <= first);
        self.runs[begin..].iter().take_while(move |run| run.0 < end).map(move |&(start, len)| {
            let from = start.max(first);
            (from, (start + len).min(end) - from)
        })
    }
}

/// Where the bit of each page of a slot is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bitmap {
    /// The first word.
    pub(super) first: Hpa,
    /// Pages in the slot.
    pub(super) pages: u64,
}

/// Pages of one word of a bitmap.
pub(super) const WORD: u64 = 64;

impl Bitmap {
    pub(super) fn words(pages: u64) -> u64 {
        pages.div_ceil(WORD)
    }

    fn at(&self, word: u64) -> Hpa {
        self.first + 8 * word
    }

    /// `set_bit_le`
    pub(super) async fn set<F: Format>(&self, host: &Host<F>, page: u64) {
        host.fetch_or(self.at(page / WORD), 1 << (page % WORD)).await;
    }

    /// Sets the bits of `[first, first + count)`.
    pub(super) async fn set_run<F: Format>(&self, host: &Host<F>, first: u64, count: u64) {
        for piece in pieces(first, count) {
            let mut done = 0;
            while done < piece.words {
                let at = self.at(piece.word + done);
                done += if piece.mask == u64::MAX {
                    host.run(words(at, piece.words - done, Apply::Set(u64::MAX), Atomicity::Atomic)).await
                } else {
                    host.fetch_or(at, piece.mask).await;
                    1
                };
            }
        }
    }

    /// Sets the bits of all pages, before anybody else sees the bitmap.
    pub(super) async fn fill<F: Format>(&self, host: &Host<F>) {
        let (whole, rest) = (self.pages / WORD, self.pages % WORD);
        let mut done = 0;
        while done < whole {
            done += host.run(words(self.at(done), whole - done, Apply::Set(u64::MAX), Atomicity::Plain)).await;
        }
        if rest > 0 {
            host.write(self.at(whole), (1 << rest) - 1).await;
        }
    }

    /// Which of the pages `[first, first + count)` are dirty; nothing is changed.
    pub(super) async fn read<F: Format>(&self, host: &Host<F>, first: u64, count: u64) -> DirtyPages {
        let mut dirty = DirtyPages::new();
        for piece in pieces(first, count) {
            let mut done = 0;
            while done < piece.words {
                let run = host.read_run(self.at(piece.word + done), piece.words - done).await;
                let len = if run.step == 0 { run.len } else { 1 };
                let passed = host.run(words(self.at(piece.word + done), len, Apply::Nothing, Atomicity::Plain)).await;
                collect(&mut dirty, piece.word + done, passed, run.first & piece.mask);
                done += passed;
            }
        }
        dirty
    }

    /// Takes the dirty pages of `[first, first + count)` out: whole words by exchange, parts of a word by an atomic AND.
    pub(super) async fn take<F: Format>(&self, host: &Host<F>, first: u64, count: u64) -> DirtyPages {
        let mut dirty = DirtyPages::new();
        for piece in pieces(first, count) {
            let mut done = 0;
            while done < piece.words {
                let word = piece.word + done;
                let run = host.read_run(self.at(word), piece.words - done).await;
                done += if run.first & piece.mask == 0 {
                    let len = if run.step == 0 { run.len } else { 1 };
                    host.run(words(self.at(word), len, Apply::Nothing, Atomicity::Plain)).await
                } else if piece.mask == u64::MAX && run.first == u64::MAX && run.step == 0 {
                    let taken = host.run(words(self.at(word), run.len, Apply::Set(0), Atomicity::Atomic)).await;
                    dirty.push(word * WORD, taken * WORD);
                    taken
                } else if piece.mask == u64::MAX {
                    // Bits set since the word was read are taken too.
                    let bits = host.xchg(self.at(word), 0).await;
                    collect(&mut dirty, word, 1, bits);
                    1
                } else {
                    let bits = host.fetch_and(self.at(word), !piece.mask).await & piece.mask;
                    collect(&mut dirty, word, 1, bits);
                    1
                };
            }
        }
        dirty
    }
}

fn words(at: Hpa, len: u64, apply: Apply, atomicity: Atomicity) -> RunOp {
    RunOp { at, len, apply, atomicity, work: None, check: ReschedCheck::Never }
}

/// Consecutive words of a bitmap, and which of their bits are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Piece {
    word: u64,
    words: u64,
    mask: u64,
}

/// `[first, first + count)` as a part of a word, whole words, and a part of a word.
fn pieces(first: u64, count: u64) -> Vec<Piece> {
    let end = first + count;
    let mut pieces = Vec::with_capacity(3);
    let mut at = first;
    while at < end {
        let (word, bit) = (at / WORD, at % WORD);
        if bit == 0 && end - at >= WORD {
            let words = (end - at) / WORD;
            pieces.push(Piece { word, words, mask: u64::MAX });
            at += words * WORD;
        } else {
            let bits = (WORD - bit).min(end - at);
            pieces.push(Piece { word, words: 1, mask: (u64::MAX >> (WORD - bits)) << bit });
            at += bits;
        }
    }
    pieces
}

/// Adds the pages of `len` words alike.
fn collect(dirty: &mut DirtyPages, word: u64, len: u64, bits: u64) {
    if bits == u64::MAX {
        dirty.push(word * WORD, len * WORD);
        return;
    }
    if bits == 0 {
        return;
    }
    for word in word..word + len {
        let mut left = bits;
        while left != 0 {
            let from = left.trailing_zeros();
            let ones = (left >> from).trailing_ones();
            dirty.push(word * WORD + u64::from(from), u64::from(ones));
            left &= if from + ones == 64 { 0 } else { u64::MAX << (from + ones) };
        }
    }
}

/// The guest-physical range of a run of pages.
pub(super) fn range(start: Gpa, page: PageSize, run: (u64, u64)) -> GpaRange {
    GpaRange::new(start + (run.0 << page.shift()), Bytes(run.1 << page.shift()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn set(pages: &DirtyPages) -> BTreeSet<u64> {
        pages.runs().iter().flat_map(|&(first, count)| first..first + count).collect()
    }

    proptest! {
        #[test]
        fn pieces_cover_a_range_once(first in 0u64..300, count in 0u64..500) {
            let mut covered = Vec::new();
            for Piece { word, words, mask } in pieces(first, count) {
                prop_assert!(mask == u64::MAX || words == 1);
                for word in word..word + words {
                    covered.extend((0..64).filter(|bit| mask >> bit & 1 != 0).map(|bit| word * WORD + bit));
                }
            }
            prop_assert_eq!(covered, (first..first + count).collect::<Vec<_>>());
        }

        #[test]
        fn runs_are_sets(a: [u64; 3], b: [u64; 3], cut in 0u64..200, len in 0u64..200) {
            let pages = |words: [u64; 3]| {
                let mut dirty = DirtyPages::new();
                (0..).zip(words).for_each(|(word, bits)| collect(&mut dirty, word, 1, bits));
                dirty
            };
            let (one, other) = (pages(a), pages(b));
            prop_assert_eq!(one.count(), a.iter().map(|word| u64::from(word.count_ones())).sum::<u64>());
            let union = one.union(&other);
            let wanted: BTreeSet<u64> = set(&one).union(&set(&other)).copied().collect();
            prop_assert_eq!(set(&union), wanted.clone());
            prop_assert_eq!(union.count(), wanted.len() as u64);
            prop_assert!(union.runs().windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0));
            prop_assert!((0..200).all(|page| union.contains(page) == wanted.contains(&page)));
            let within: Vec<u64> = union.within(cut, len).flat_map(|(first, count)| first..first + count).collect();
            prop_assert_eq!(within, wanted.range(cut..cut + len).copied().collect::<Vec<_>>());
        }
    }
}
