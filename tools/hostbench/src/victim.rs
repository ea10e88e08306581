//! The victim's side of shootdowns: what a thread loses that does nothing but read the timer while another one changes its mappings.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::events::{beside, map, nothing, system};
use crate::sys::{self, Barrier, Map, PAGE, Use, ticks};
use crate::{BenchError, Host};

/// Calls of a sample.
const CALLS: u64 = 200;
/// Pages of a call.
const PAGES: [u64; 9] = [1, 4, 16, 32, 33, 34, 64, 128, 512];
/// Two readings of the timer that are further apart have something between them.
const GAP_NS: f64 = 300.0;

/// What the victim has noticed so far.
#[derive(Debug, Default)]
struct Noticed {
    /// Ticks of all gaps.
    lost: AtomicU64,
    /// Their number.
    gaps: AtomicU64,
}

impl Noticed {
    /// Reads the timer over and over until told to stop.
    fn watch(&self, gap: u64, stopped: &dyn Fn() -> bool) {
        let mut last = ticks();
        while !stopped() {
            let now = ticks();
            let between = now.wrapping_sub(last);
            last = now;
            if between > gap {
                self.lost.fetch_add(between, Ordering::Relaxed);
                self.gaps.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn read(&self) -> (u64, u64) {
        (self.lost.load(Ordering::Relaxed), self.gaps.load(Ordering::Relaxed))
    }
}

/// Measures beside a victim, whose losses so far can be read.
fn with_victim(
    host: &mut Host<'_>,
    measure: impl FnOnce(&mut Host<'_>, &Noticed) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let gap = (GAP_NS * host.clock.per_ns) as u64;
    let noticed = Noticed::default();
    beside(host, |stopped| noticed.watch(gap, stopped), |host| measure(host, &noticed))
}

/// The rows of family `shoot` that a victim sees: ticks lost for each call, and gaps for each thousand calls.
pub(crate) fn shoot(host: &mut Host<'_>) -> Result<(), BenchError> {
    with_victim(host, |host, noticed| {
        for n in PAGES {
            let fresh = |_| map(n * PAGE, Use::Small);
            let calls = |map: &mut Map| {
                let before = noticed.read();
                for _ in 0..CALLS {
                    (0..n).for_each(|page| map.write(page * PAGE, 1));
                    system("giving memory back", map.forget(0..n * PAGE))?;
                }
                let after = noticed.read();
                Ok((after.0 - before.0, after.1 - before.1))
            };
            host.measure(("shoot", "dontneed_victim_lost", n, "per_call"), fresh, |map| {
                calls(map).map(|(lost, _)| lost as f64 / CALLS as f64)
            })?;
            // A number, which the file has as ticks.
            host.measure(("shoot", "dontneed_victim_gaps_x1000", n, "count_x1000"), fresh, |map| {
                calls(map).map(|(_, gaps)| 1000.0 * gaps as f64 / CALLS as f64)
            })?;
        }
        Ok(())
    })
}

/// The row of family `membarrier` that a victim sees.
pub(crate) fn membarrier(host: &mut Host<'_>) -> Result<(), BenchError> {
    with_victim(host, |host, noticed| {
        host.measure(("membarrier", "victim_lost", 1, "per_call"), nothing, |()| {
            let before = noticed.read().0;
            let done = (0..CALLS).try_for_each(|_| sys::membarrier(Barrier::Private));
            system("making a barrier", done)?;
            Ok((noticed.read().0 - before) as f64 / CALLS as f64)
        })
    })
}
