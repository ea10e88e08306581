//! Latency curves: chases through data and rings of jumps, by the names that `mmusim predict` knows.

use crate::clock::timed;
use crate::sys::{self, Code, HUGE, Map, PAGE, Ring, Use, ZeroChase};
use crate::{BenchError, Host};

/// Points of curves, where their memory allows them: dense about the reach of usual first- and second-level TLBs and caches.
const POINTS: [u64; 46] = [
    8, 16, 24, 32, 48, 64, 72, 80, 88, 96, 104, 112, 128, 160, 192, 256, 384, 512, 768, 1024, 1280, 1536, 1664, 1792,
    1920, 2048, 2176, 2304, 2560, 3072, 3584, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304,
    131_072, 262_144, 524_288, 2_097_152, 4_194_304,
];
/// Points of curves that are looked at for their ends only.
const FEW: [u64; 6] = [64, 1024, 4096, 32768, 262_144, 2_097_152];
/// Points of `pde_..`: regions.
const REGIONS: [u64; 19] = [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096];

const LINE: u64 = 64;
/// Steps of a sample: enough for the timer, not too many for memory's latency.
const STEPS: u64 = 20_000;
/// Most steps of going once round before the first sample.
const WARM_UP: u64 = 3_000_000;

/// What a point touches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    /// Lines side by side.
    Packed(Use),
    /// A line in each page of memory.
    Dense(Use),
    /// Pages of zeroes.
    Zero,
    /// So many pages of zeroes in `n` regions of so many bytes.
    Regions { bytes: u64, total: u64 },
}

/// A generator of orders: splitmix64.
#[derive(Clone, Copy, Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Puts values in a random order (Fisher and Yates).
    fn shuffle(&mut self, values: &mut [u64]) {
        for last in (1..values.len()).rev() {
            values.swap(last, (self.next() % (last as u64 + 1)) as usize);
        }
    }
}

/// A line of its own for each page, so that pages do not share sets of the caches.
fn line_of(page: u64) -> u64 {
    (page.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) * LINE
}

impl Form {
    /// Places in their order, by the run's seed.
    fn offsets(self, n: u64, seed: u64) -> Vec<u64> {
        let mut offsets: Vec<u64> = match self {
            Form::Packed(_) => (0..n).map(|line| line * LINE).collect(),
            Form::Dense(_) | Form::Zero => (0..n).map(|page| page * PAGE + line_of(page)).collect(),
            Form::Regions { bytes, total } => {
                let each = total.div_ceil(n);
                let place = |page: u64| {
                    (page / each) * bytes + (page % each) * (bytes / each / PAGE).max(1) * PAGE + line_of(page)
                };
                (0..total).map(place).collect()
            }
        };
        Random(seed).shuffle(&mut offsets);
        offsets
    }

    /// Bytes of address space.
    fn span(self, n: u64) -> u64 {
        match self {
            Form::Packed(_) => n * LINE,
            Form::Dense(_) | Form::Zero => n * PAGE,
            Form::Regions { bytes, .. } => n * bytes,
        }
    }

    /// Bytes of memory: data, its list, its tables.
    fn memory(self, n: u64) -> u64 {
        match self {
            Form::Packed(_) | Form::Dense(_) => self.span(n) + 8 * n,
            Form::Zero => 16 * n,
            Form::Regions { total, .. } => 8 * total + 2 * PAGE * n,
        }
    }
}

/// A chase of either kind.
enum Chase {
    Ring(Ring),
    Zero(ZeroChase),
}

impl Chase {
    fn new(form: Form, n: u64, chains: usize, seed: u64) -> Result<Self, BenchError> {
        let offsets = form.offsets(n, seed);
        let map =
            |purpose| Map::new(form.span(n), purpose).map_err(|error| BenchError::System("mapping memory", error));
        Ok(match form {
            Form::Packed(purpose) | Form::Dense(purpose) => Chase::Ring(Ring::new(map(purpose)?, &offsets, chains)),
            Form::Zero | Form::Regions { .. } => Chase::Zero(ZeroChase::new(map(Use::Zeroes)?, offsets, chains)),
        })
    }

    fn go(&mut self, steps: u64) {
        match self {
            Chase::Ring(ring) => ring.go(steps),
            Chase::Zero(chase) => chase.go(steps),
        }
    }
}

/// Measures one curve.
fn curve(
    host: &mut Host<'_>,
    bench: &'static str,
    name: &str,
    form: Form,
    chains: usize,
    own: &[u64],
) -> Result<(), BenchError> {
    let points = if host.options.points.is_empty() { own.to_vec() } else { host.options.points.clone() };
    for n in points {
        let regions_fit =
            !matches!(form, Form::Regions { bytes, total } if n > total || total.div_ceil(n) > bytes / PAGE);
        if n < chains as u64 || !regions_fit {
            continue;
        }
        if form.memory(n) > host.options.memory || form.span(n) > 1 << 45 {
            (host.say)(&format!(
                "{bench} {name} {n}: left out, takes {} MiB; raise --memory-limit",
                form.memory(n) >> 20
            ));
            continue;
        }
        let each = n / chains as u64;
        let make = |seed| {
            let mut chase = Chase::new(form, n, chains, seed)?;
            chase.go(each.clamp(STEPS, WARM_UP));
            Ok(chase)
        };
        let sample = |chase: &mut Chase| Ok(timed(STEPS * chains as u64, || chase.go(STEPS)));
        host.measure((bench, name, n, "per_load"), make, sample)?;
    }
    Ok(())
}

/// Family `chase`.
pub(crate) fn chase(host: &mut Host<'_>) -> Result<(), BenchError> {
    let curves = [
        ("packed64_thp", Form::Packed(Use::Huge)),
        ("packed64_4k", Form::Packed(Use::Small)),
        ("dense4k", Form::Dense(Use::Small)),
        ("zero4k", Form::Zero),
    ];
    curves.into_iter().try_for_each(|(name, form)| curve(host, "chase", name, form, 1, &POINTS))
}

/// Family `psc`: what each paging-structure cache reaches.
pub(crate) fn psc(host: &mut Host<'_>) -> Result<(), BenchError> {
    for total in [4096, 16384] {
        let form = Form::Regions { bytes: HUGE, total };
        curve(host, "psc", &format!("pde_2M_T{total}"), form, 1, &REGIONS)?;
    }
    Ok(())
}

/// Family `mlp`: several chases at once.
pub(crate) fn mlp(host: &mut Host<'_>) -> Result<(), BenchError> {
    for chains in [1, 2, 4, 8, 16] {
        curve(host, "mlp", &format!("zero4k_k{chains}"), Form::Zero, chains, &FEW)?;
    }
    for chains in [1, 3, 6, 12] {
        curve(host, "mlp", &format!("dense4k_k{chains}"), Form::Dense(Use::Small), chains, &[131_072])?;
    }
    for chains in [1, 2, 3, 4, 6, 8, 12, 16] {
        curve(host, "mlp", &format!("thp_data_k{chains}"), Form::Dense(Use::Huge), chains, &[131_072])?;
    }
    Ok(())
}

/// Family `itlb`: rings of jumps.
pub(crate) fn itlb(host: &mut Host<'_>) -> Result<(), BenchError> {
    for (name, stride) in [("jmp_packed", LINE), ("jmp_4k", PAGE)] {
        let points = if host.options.points.is_empty() { POINTS.to_vec() } else { host.options.points.clone() };
        for n in
            points.into_iter().filter(|n| n * stride <= host.options.memory.min(sys::FARTHEST_JUMP) && *n <= 32_768)
        {
            let rounds = STEPS.div_ceil(n);
            let make = |seed| {
                let place = |jump: u64| jump * stride + if stride == PAGE { line_of(jump) } else { 0 };
                let mut offsets: Vec<u64> = (0..n).map(place).collect();
                Random(seed).shuffle(&mut offsets);
                let map = Map::new(n * stride, Use::Small).and_then(|map| Code::new(map, &offsets));
                let code = map.map_err(|error| BenchError::System("mapping code", error))?;
                code.go(3 * rounds);
                Ok(code)
            };
            let sample = |code: &mut Code| Ok(timed(rounds * n, || code.go(rounds)));
            host.measure(("itlb", name, n, "per_jump"), make, sample)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_visited_once_and_lies_in_the_mapping() {
        let forms =
            [Form::Packed(Use::Small), Form::Dense(Use::Huge), Form::Zero, Form::Regions { bytes: HUGE, total: 4096 }];
        for form in forms {
            for n in [8, 12, 64, 1000] {
                let mut offsets = form.offsets(n, 3);
                let count = offsets.len();
                assert!(offsets.iter().all(|offset| offset + 8 <= form.span(n)), "{form:?} {n}");
                assert!(offsets.windows(2).any(|pair| pair[0] > pair[1]), "{form:?} {n}: in a random order");
                offsets.sort_unstable();
                offsets.dedup();
                assert_eq!(offsets.len(), count, "{form:?} {n}");
            }
        }
    }

    #[test]
    fn rings_of_jumps_come_back() {
        let code = Code::new(Map::new(8 * PAGE, Use::Small).unwrap(), &[64, 4096, 2 * 4096 + 128, 5 * 4096]).unwrap();
        code.go(1);
        code.go(1000);
    }

    #[test]
    fn rings_of_pointers_go_round_in_every_width() {
        for chains in [1, 2, 3, 4, 6, 8, 12, 16] {
            let mut chase = Chase::new(Form::Dense(Use::Small), 64, chains, 1).unwrap();
            chase.go(1000);
            let mut chase = Chase::new(Form::Zero, 64, chains, 1).unwrap();
            chase.go(1000);
        }
    }
}
