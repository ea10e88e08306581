//! Random numbers whose values never change: `ChaCha8` words and our own sampling.
//!
//! The word stream of `rand_chacha` is stable across versions, sampling layers are not; so only raw words are taken
//! from it. One root seed per simulation, one stream per component: what a workload draws depends on (seed, workload)
//! alone, never on the policy under test, so that policies are compared on the same requests.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};
use serde::{Deserialize, Serialize};

/// Seed of a whole simulation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seed(pub u64);

/// One component's stream of random numbers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(from = "Position", into = "Position")]
pub struct Rng(ChaCha8Rng);

/// A place in a stream, to be saved.
#[derive(Serialize, Deserialize)]
struct Position {
    seed: [u8; 32],
    stream: u64,
    /// Words of 32 bits drawn so far, the low half first.
    words: [u64; 2],
}

impl From<Rng> for Position {
    fn from(Rng(rng): Rng) -> Self {
        let words = rng.get_word_pos();
        Self { seed: rng.get_seed(), stream: rng.get_stream(), words: [words as u64, (words >> 64) as u64] }
    }
}

impl From<Position> for Rng {
    fn from(Position { seed, stream, words: [low, high] }: Position) -> Self {
        let mut rng = ChaCha8Rng::from_seed(seed);
        rng.set_stream(stream);
        rng.set_word_pos(u128::from(high) << 64 | u128::from(low));
        Self(rng)
    }
}

impl Rng {
    /// Stream number `stream` of `seed`.
    pub fn stream(seed: Seed, stream: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed.0);
        rng.set_stream(stream);
        Self(rng)
    }

    /// Sixty-four random bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `n`, uniformly (Lemire's widening multiply with rejection); 0 when `n` is 0.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        let mut wide = u128::from(self.bits()) * u128::from(n);
        if (wide as u64) < n {
            let threshold = n.wrapping_neg() % n;
            while (wide as u64) < threshold {
                wide = u128::from(self.bits()) * u128::from(n);
            }
        }
        (wide >> 64) as u64
    }

    /// True with probability `numerator / denominator`.
    #[inline]
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

/// Zipf-distributed ranks below `n` with exponent `s` (in hundredths), by inversion over an integer table of the
/// cumulative weights of geometric buckets: exact per bucket, uniform inside one, so that terabytes of pages need a
/// table of a few hundred words.
#[derive(Clone, PartialEq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Zipf {
    /// (first rank of the bucket, cumulative weight before it)
    buckets: Vec<(u64, u64)>,
    ranks: u64,
    total: u64,
}

impl Zipf {
    /// Ranks `0..n` with weight `1 / (rank + 1)^(hundredths / 100)`.
    pub fn new(n: u64, hundredths: u32) -> Self {
        let exponent = f64::from(hundredths) / 100.0;
        let mut buckets = Vec::new();
        let (mut first, mut total) = (0u64, 0u64);
        while first < n {
            // Eight buckets per octave, single ranks at the start.
            let width = (first / 8).max(1).min(n - first);
            let middle = first as f64 + (width as f64 - 1.0) / 2.0 + 1.0;
            let weight = (width as f64 * middle.powf(-exponent) * (1u64 << 40) as f64) as u64;
            buckets.push((first, total));
            total += weight.max(1);
            first += width;
        }
        Self { buckets, ranks: n, total }
    }

    /// A rank; 0 is the most likely.
    pub fn sample(&self, rng: &mut Rng) -> u64 {
        let draw = rng.below(self.total);
        let i = self.buckets.partition_point(|&(_, before)| before <= draw).saturating_sub(1);
        let Some(&(first, _)) = self.buckets.get(i) else { return 0 };
        let end = self.buckets.get(i + 1).map_or(self.ranks, |&(next, _)| next);
        first + rng.below(end - first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_published_ones() {
        // ChaCha8 with seed_from_u64(42), the same from rand_chacha 0.3 to 0.10.
        let mut rng = Rng::stream(Seed(42), 0);
        assert_eq!([rng.bits(), rng.bits()], [0xae90_bfb5_395d_5ba1, 0xf345_3fc6_2579_9188]);
    }

    #[test]
    fn sampling_is_pinned() {
        let mut rng = Rng::stream(Seed(7), 3);
        let drawn: Vec<u64> = (0..6).map(|_| rng.below(1000)).collect();
        let mut again = Rng::stream(Seed(7), 3);
        assert_eq!(drawn, (0..6).map(|_| again.below(1000)).collect::<Vec<_>>());
        assert!(drawn.iter().all(|&n| n < 1000));
    }

    #[test]
    fn zipf_prefers_low_ranks_and_stays_in_range() {
        let zipf = Zipf::new(1 << 20, 99);
        let mut rng = Rng::stream(Seed(1), 0);
        let draws: Vec<u64> = (0..20_000).map(|_| zipf.sample(&mut rng)).collect();
        let low = draws.iter().filter(|&&rank| rank < 1024).count();
        assert!(draws.iter().all(|&rank| rank < 1 << 20));
        assert!(low > 8_000, "half of the draws of a zipf-1 distribution fall in the first thousandth: {low}");
    }
}
