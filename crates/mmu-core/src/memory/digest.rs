//! A hash of words that does not see how they are held.
//!
//! The hash is `sum(word[w] * r^w)` in two prime fields with fixed `r`: a polynomial in the words, so that sums over
//! templates have closed forms and any cutting of the same words gives the same sum. One field alone would confuse words that
//! differ by its prime; two primes whose product exceeds 2^64 do not.

use super::TableMemory;
use super::frame::{Body, Kind, PIECE_WORDS, Record};
use super::progression::Line;

/// Exponents of frame terms start above those of words.
const FRAMES: u64 = 1 << 52;

/// Arithmetic modulo a prime.
trait Field {
    const PRIME: u64;
    /// The base of the powers; arbitrary.
    const BASE: u64;

    fn reduce(x: u128) -> u64;

    fn of(x: u64) -> u64 {
        x % Self::PRIME
    }
    fn mul(a: u64, b: u64) -> u64 {
        Self::reduce(u128::from(a) * u128::from(b))
    }
    fn add(a: u64, b: u64) -> u64 {
        ((u128::from(a) + u128::from(b)) % u128::from(Self::PRIME)) as u64
    }
    fn negative(a: u64) -> u64 {
        if a == 0 { 0 } else { Self::PRIME - a }
    }
    fn power(base: u64, mut exponent: u64) -> u64 {
        let (mut result, mut square) = (1, base);
        while exponent != 0 {
            if exponent & 1 == 1 {
                result = Self::mul(result, square);
            }
            square = Self::mul(square, square);
            exponent >>= 1;
        }
        result
    }

    /// `sum(r^i)` and `sum(i * r^i)` over `i < n`, by doubling: from `k` terms to `2k`, then perhaps one more.
    fn sums(r: u64, n: u64) -> (u64, u64) {
        let (mut k, mut power, mut plain, mut weighted) = (0u64, 1, 0, 0);
        for bit in (0..u64::BITS - n.leading_zeros()).rev() {
            let shifted = Self::add(weighted, Self::mul(Self::of(k), plain));
            weighted = Self::add(weighted, Self::mul(power, shifted));
            plain = Self::add(plain, Self::mul(power, plain));
            power = Self::mul(power, power);
            k *= 2;
            if n >> bit & 1 == 1 {
                plain = Self::add(plain, power);
                weighted = Self::add(weighted, Self::mul(Self::of(k), power));
                power = Self::mul(power, r);
                k += 1;
            }
        }
        (plain, weighted)
    }

    /// `sum((first + i * step) * r^i)` over `i < n` for words that do not wrap, with a signed step.
    fn progression(first: u64, step: u64, n: u64) -> u64 {
        let (plain, weighted) = Self::sums(Self::BASE, n);
        let slope = if (step as i64) < 0 { Self::negative(Self::of(step.wrapping_neg())) } else { Self::of(step) };
        Self::add(Self::mul(Self::of(first), plain), Self::mul(slope, weighted))
    }
}

struct Mersenne61;
impl Field for Mersenne61 {
    const PRIME: u64 = (1 << 61) - 1;
    const BASE: u64 = 0x1234_5678_9abc_def1;
    fn reduce(x: u128) -> u64 {
        let sum = (x as u64 & Self::PRIME) + ((x >> 61) as u64 & Self::PRIME) + (x >> 122) as u64;
        sum % Self::PRIME
    }
}

struct Goldilocks;
impl Field for Goldilocks {
    const PRIME: u64 = 0xffff_ffff_0000_0001;
    const BASE: u64 = 0x0fed_cba9_8765_4321;
    /// 2^64 is 2^32 - 1 here, and 2^96 is -1.
    fn reduce(x: u128) -> u64 {
        const EPSILON: u64 = 0xffff_ffff;
        let (low, high) = (x as u64, (x >> 64) as u64);
        let (difference, borrow) = low.overflowing_sub(high >> 32);
        let difference = if borrow { difference.wrapping_sub(EPSILON) } else { difference };
        let (sum, carry) = difference.overflowing_add((high & EPSILON) * EPSILON);
        Self::of(if carry { sum.wrapping_add(EPSILON) } else { sum })
    }
}

/// The running sums.
#[derive(Default)]
struct Sum {
    a: u64,
    b: u64,
}

impl Sum {
    /// Adds `len` words on `line`, cut where they wrap.
    fn line(&mut self, line: Line, mut w: u64, len: u64) {
        if line == Line::ZERO {
            return;
        }
        let end = w + len;
        while w < end {
            let (first, step) = (line.word(w), line.step());
            let until_wrap = match step as i64 {
                0 => end - w,
                1.. => (u64::MAX - first) / step + 1,
                _ => (first / step.wrapping_neg()).saturating_add(1),
            };
            let n = until_wrap.min(end - w);
            self.add(w, Mersenne61::progression(first, step, n), Goldilocks::progression(first, step, n));
            w += n;
        }
    }

    fn word(&mut self, w: u64, word: u64) {
        self.add(w, Mersenne61::of(word), Goldilocks::of(word));
    }

    /// Replaces a template's word by an exception.
    fn exception(&mut self, w: u64, base: u64, word: u64) {
        self.word(w, word);
        self.add(w, Mersenne61::negative(Mersenne61::of(base)), Goldilocks::negative(Goldilocks::of(base)));
    }

    fn words(&mut self, start: u64, words: &[u64]) {
        let horner = |of: fn(u64) -> u64, mul: fn(u64, u64) -> u64, add: fn(u64, u64) -> u64, base| {
            words.iter().rev().fold(0, |sum, &word| add(mul(sum, base), of(word)))
        };
        let a = horner(Mersenne61::of, Mersenne61::mul, Mersenne61::add, Mersenne61::BASE);
        let b = horner(Goldilocks::of, Goldilocks::mul, Goldilocks::add, Goldilocks::BASE);
        self.add(start, a, b);
    }

    /// Adds `n` frames of `words` words with one description.
    fn frames(&mut self, start: u64, words: u64, n: u64, level: u8, refs: u32) {
        // Sizes are powers of two below 2^19 and levels below 6: the description is unique, and not zero.
        let code = u64::from(refs) << 16 | u64::from(level) << 8 | u64::from(words.trailing_zeros());
        let term = |of: fn(u64) -> u64, mul: fn(u64, u64) -> u64, sums: fn(u64, u64) -> (u64, u64), stride| {
            mul(of(code), sums(stride, n).0)
        };
        let stride = (Mersenne61::power(Mersenne61::BASE, words), Goldilocks::power(Goldilocks::BASE, words));
        let a = term(Mersenne61::of, Mersenne61::mul, Mersenne61::sums, stride.0);
        let b = term(Goldilocks::of, Goldilocks::mul, Goldilocks::sums, stride.1);
        self.add(start + FRAMES, a, b);
    }

    fn add(&mut self, exponent: u64, a: u64, b: u64) {
        self.a = Mersenne61::add(self.a, Mersenne61::mul(a, Mersenne61::power(Mersenne61::BASE, exponent)));
        self.b = Goldilocks::add(self.b, Goldilocks::mul(b, Goldilocks::power(Goldilocks::BASE, exponent)));
    }
}

/// The digest of all live frames.
pub(super) fn of(memory: &TableMemory) -> u128 {
    let mut sum = Sum::default();
    let mut p = 0;
    while p < memory.pieces.len() {
        let piece = memory.pieces[p];
        let mut pieces = 1;
        match piece.kind {
            Kind::Absent | Kind::Freed => {}
            Kind::Uniform => {
                let same = |other: &&super::Piece| other.kind == Kind::Uniform && other.index == piece.index;
                pieces = memory.pieces[p..].iter().take_while(same).count();
                let uniform = memory.uniforms[piece.index as usize].0;
                let (start, words) = (p as u64 * PIECE_WORDS, pieces as u64 * PIECE_WORDS);
                sum.line(uniform.line, start, words);
                sum.frames(start, piece.words(), words >> piece.shift, uniform.level, uniform.refs);
            }
            Kind::Parted => parted(memory, p, &mut sum),
            Kind::Frames => records(memory, p, &mut sum),
        }
        p += pieces;
    }
    u128::from(sum.a) << 64 | u128::from(sum.b)
}

fn parted(memory: &TableMemory, p: usize, sum: &mut Sum) {
    let piece = memory.pieces[p];
    let Some(halves) = memory.halves(piece) else { return };
    let start = p as u64 * PIECE_WORDS;
    sum.line(halves.below.line, start, halves.border);
    sum.line(halves.above.line, start + halves.border, PIECE_WORDS - halves.border);
    sum.frames(start, piece.words(), u64::from(piece.slots()), halves.above.level, halves.above.refs);
}

fn records(memory: &TableMemory, p: usize, sum: &mut Sum) {
    let piece = memory.pieces[p];
    for slot in 0..1u32 << piece.log {
        let record: Record = memory.record(p, slot);
        if !record.is_live() {
            continue;
        }
        let start = memory.first_word(p, slot);
        sum.frames(start, piece.words(), 1, record.level(), record.refs);
        match record.body {
            Body::Template(line) => sum.line(line, start, piece.words()),
            Body::Overlay { index, line } => {
                sum.line(line, start, piece.words());
                let overlay = &memory.overlays[index as usize];
                for i in overlay.indices() {
                    let base = line.word(start + i);
                    sum.exception(start + i, base, overlay.word(i, base));
                }
            }
            Body::Dense { index, .. } => sum.words(start, memory.dense.slice(index, piece.shift as u32)),
            Body::Never | Body::Freed { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Progression;
    use proptest::prelude::*;

    fn naive(start: u64, words: &[u64]) -> (u64, u64) {
        let mut sum = Sum::default();
        for (w, &word) in (start..).zip(words) {
            sum.word(w, word);
        }
        (sum.a, sum.b)
    }

    proptest! {
        #[test]
        fn closed_forms_are_the_sums(first: u64, step: u64, shift in 0u32..64, start in 0u64..1 << 40, len in 1u64..200) {
            let step = step >> shift;
            for step in [step, step.wrapping_neg()] {
                let line = Line::through(start, Progression::new(first, step));
                let words: Vec<u64> = (start..start + len).map(|w| line.word(w)).collect();
                let mut sum = Sum::default();
                sum.line(line, start, len);
                prop_assert_eq!((sum.a, sum.b), naive(start, &words));
                let mut sum = Sum::default();
                sum.words(start, &words);
                prop_assert_eq!((sum.a, sum.b), naive(start, &words));
            }
        }

        #[test]
        fn products_are_reduced(a: u64, b: u64) {
            let (x, y) = (Mersenne61::of(a), Mersenne61::of(b));
            prop_assert_eq!(u128::from(Mersenne61::mul(x, y)), u128::from(x) * u128::from(y) % u128::from(Mersenne61::PRIME));
            let (x, y) = (Goldilocks::of(a), Goldilocks::of(b));
            prop_assert_eq!(u128::from(Goldilocks::mul(x, y)), u128::from(x) * u128::from(y) % u128::from(Goldilocks::PRIME));
        }

        #[test]
        fn frame_terms_add_up(start in 0u64..1 << 30, n in 1u64..50, refs: u32) {
            let mut whole = Sum::default();
            whole.frames(start * 512, 512, n, 2, refs);
            let mut parts = Sum::default();
            for i in 0..n {
                parts.frames((start + i) * 512, 512, 1, 2, refs);
            }
            prop_assert_eq!((whole.a, whole.b), (parts.a, parts.b));
        }
    }
}
