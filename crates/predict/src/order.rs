//! Bijections that stand for randomness: the order of a pointer chase, and where frames lie.

/// One round of mixing that can be undone, on numbers of `bits` bits.
fn round(x: u64, bits: u32, odd: u64) -> u64 {
    let mask = (1 << bits) - 1;
    let x = x.wrapping_mul(odd | 1).wrapping_add(odd >> 7) & mask;
    x ^ (x >> bits.div_ceil(2))
}

/// A number below `2^bits` for each number below `2^bits`, no two alike and with no order left.
pub(crate) fn scatter(x: u64, bits: u32, seed: u64) -> u64 {
    if bits == 0 {
        return 0;
    }
    const ODD: [u64; 4] = [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];
    ODD.iter().fold(x, |x, odd| round(x, bits, odd ^ (seed << 1)))
}

/// A fixed random order of the numbers below `len`: a chase follows it round after round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    len: u64,
    bits: u32,
    seed: u64,
}

impl Order {
    /// Of the numbers below `len`.
    pub(crate) fn new(len: u64, seed: u64) -> Self {
        let bits = 64 - len.saturating_sub(1).leading_zeros();
        Self { len, bits, seed }
    }

    /// Which number is visited at a step; steps from `len` on start over.
    pub(crate) fn at(&self, step: u64) -> u64 {
        // Walks its cycle until it is back in range, which keeps it a bijection.
        let mut x = step % self.len;
        loop {
            x = scatter(x, self.bits, self.seed);
            if x < self.len {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_visits_everything_once() {
        for len in [1, 2, 3, 7, 64, 1000, 4096, 5000] {
            let order = Order::new(len, 3);
            let mut seen = vec![0; len as usize];
            (0..len).for_each(|step| seen[order.at(step) as usize] += 1);
            assert!(seen.iter().all(|&times| times == 1), "{len}");
        }
    }

    #[test]
    fn neighbours_in_an_order_are_strangers() {
        let order = Order::new(4096, 1);
        let near = (0..4095).filter(|&step| order.at(step).abs_diff(order.at(step + 1)) < 8).count();
        assert!(near < 4096 / 100, "{near}");
    }
}
