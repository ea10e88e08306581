//! Refreshing a `gfn_to_pfn_cache` under storms of invalidations that do not concern it: who finishes, and after how many rounds.
//!
//! Seed thread 1 (August 2024): `MADV_DONTNEED` from several threads on other parts of the address space keeps the count of active
//! invalidations from ever being zero, and the refresh of 5.19 goes round for ever.

use std::cell::Cell;
use std::rc::Rc;

use mmu_core::{Bytes, Cycles, Format, Hva, HvaRange, Level};
use serde::Serialize;

use super::platform::Platform;
use super::vm::{GUEST_MEMORY, Populate, VmSpec, build_without_threads};
use super::zap::RunError;
use crate::arch::Arch;
use crate::engine::{Blockable, GuestPaging, Sim, Stopped, Unmapping};
use crate::protocols::notifier::{Notifier, range_end, range_start};
use crate::protocols::pfncache::{Gpc, GpcError, GpcForm, Place, refresh, use_for};
use crate::protocols::primary::{Storm, madvise_storm};
use crate::rng::Seed;
use crate::workload::Workload;

/// Where the storms are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum StormPlace {
    /// In guest memory below the cached page.
    Below,
    /// In guest memory on both sides: ranges merge to one that covers the page.
    BothSides,
    /// In memory of the process that no memslot knows.
    Elsewhere,
}

/// The storms of one run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct StormSpec {
    /// Threads, each with a range of its own.
    pub threads: u64,
    /// Where.
    pub place: StormPlace,
    /// How long one invalidation lasts between start and end, beyond its own work.
    pub hold: Cycles,
    /// What a thread does between two.
    pub pause: Cycles,
    /// Invalidations of one thread after which it stops.
    pub times: u64,
}

/// How a refresh ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refreshed {
    /// While the storms went on.
    InTheStorm,
    /// Not before they had ended.
    AfterTheStorm,
    /// Given up after the policy's most rounds.
    GivenUp,
}

/// What one form made of a storm.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct GpcRow {
    /// The form.
    pub form: &'static str,
    /// How it ended.
    pub outcome: Refreshed,
    /// Times the page was looked up.
    pub rounds: u64,
    /// From the start of the refresh to its end.
    pub cycles: Cycles,
    /// Invalidations that the storms made meanwhile, and before.
    pub invalidations: u64,
}

/// When the refresh begins: the storms are in full swing.
const BEGIN: Cycles = Cycles(500_000);

/// Pages of each half of guest memory.
const HALF: u64 = 512;

/// Refreshes a cache of a page in the middle of guest memory under storms.
///
/// # Errors
/// When the VM cannot be built, or an invariant is violated.
pub fn refresh_in_storm<A: Arch>(platform: &Platform<A>, form: GpcForm, spec: StormSpec) -> Result<GpcRow, RunError> {
    let (mut sim, page) = guest(platform)?;
    let notifier = Notifier::new(form.notifier());
    let gpc = Gpc::create(&mut sim, &notifier.gpcs);
    let stop = sim.new_var(0);
    let storming = sim.new_var(spec.threads);
    let invalidations = Rc::new(Cell::new(0));
    for thread in 0..spec.threads {
        let storm = Storm {
            range: storm_range(spec.place, thread, page),
            times: spec.times,
            stop: Some(stop),
            hold: spec.hold,
            pause: spec.pause,
        };
        let (notifier, count) = (notifier.clone(), invalidations.clone());
        // Spread over one period, so that they overlap.
        let period = spec.hold + spec.pause;
        sim.spawn("storm", Cycles(period.0 * thread / spec.threads.max(1)), move |host| {
            Box::pin(async move {
                let done = madvise_storm(&host, &notifier, storm).await;
                count.set(count.get() + done);
                host.add(storming, -1).await;
            })
        });
    }
    let out = Rc::new(Cell::new(None));
    let result = out.clone();
    sim.spawn("refresh", BEGIN, move |host| {
        Box::pin(async move {
            let at = Place::Host(GUEST_MEMORY + HALF * page);
            let refreshed = refresh(&host, gpc, at, &form.policy).await;
            let outcome = match refreshed {
                Err(_) => Refreshed::GivenUp,
                Ok(_) if host.load(storming).await == 0 => Refreshed::AfterTheStorm,
                Ok(_) => Refreshed::InTheStorm,
            };
            let rounds = match refreshed {
                Ok(rounds) | Err(GpcError::Starved(rounds)) => rounds,
                Err(_) => 0,
            };
            result.set(Some((outcome, rounds, host.now().await.since(BEGIN))));
            host.store(stop, 1).await;
        })
    });
    finish(&mut sim)?;
    let Some((outcome, rounds, cycles)) = out.get() else {
        return Err(RunError::Guest("the refresh never ended".to_owned()));
    };
    Ok(GpcRow { form: form.name, outcome, rounds, cycles, invalidations: invalidations.get() })
}

/// Drops a page while a user holds its mapping, and while a second user refreshes it: what the checker finds. Sound forms make the
/// invalidation wait for the user, and the refresh for the invalidation.
///
/// # Errors
/// When the VM cannot be built.
pub fn drop_a_page_in_use<A: Arch>(platform: &Platform<A>, form: GpcForm) -> Result<Vec<String>, RunError> {
    let (mut sim, page) = guest(platform)?;
    let notifier = Notifier::new(form.notifier());
    let gpc = Gpc::create(&mut sim, &notifier.gpcs);
    let at = GUEST_MEMORY + HALF * page;
    sim.spawn("user", Cycles(0), move |host| {
        Box::pin(async move {
            // What becomes of the refresh is the form's affair; what is valid is used.
            let _ = refresh(&host, gpc, Place::Host(at), &form.policy).await;
            use_for(&host, gpc, Place::Host(at), Cycles(200_000)).await;
        })
    });
    sim.spawn("madvise", Cycles(50_000), move |host| {
        Box::pin(async move {
            let range = HvaRange::new(at, Bytes(page));
            let open = range_start(&host, &notifier, range, Blockable::Yes).await;
            host.sleep(Cycles(300_000)).await;
            host.unmap_pages(range, Unmapping::Discard).await;
            host.sleep(Cycles(100_000)).await;
            range_end(&host, &notifier, open).await;
        })
    });
    sim.spawn("second user", Cycles(260_000), move |host| {
        Box::pin(async move {
            let _ = refresh(&host, gpc, Place::Host(at), &form.policy).await;
            use_for(&host, gpc, Place::Host(at), Cycles(1_000)).await;
        })
    });
    match finish(&mut sim) {
        Ok(()) => Ok(Vec::new()),
        Err(RunError::Violations(found)) => Ok(found),
        Err(error) => Err(error),
    }
}

fn guest<A: Arch>(platform: &Platform<A>) -> Result<(Sim<A>, u64), RunError> {
    let page = platform.arch.two().geometry().page_size(Level::LAST);
    let spec = VmSpec {
        memory: Bytes(2 * HALF * page.bytes()),
        vcpus: 1,
        page,
        guest: GuestPaging::Flat,
        populate: Populate::ByFaults,
        workload: Workload::Idle,
        seed: Seed(1),
    };
    Ok((build_without_threads(platform, &spec).map_err(RunError::Build)?, page.bytes()))
}

fn storm_range(place: StormPlace, thread: u64, page: u64) -> HvaRange {
    let start = match place {
        StormPlace::Below => GUEST_MEMORY + 16 * thread * page,
        StormPlace::BothSides => GUEST_MEMORY + (16 * thread + if thread.is_multiple_of(2) { 0 } else { HALF }) * page,
        StormPlace::Elsewhere => Hva::new(GUEST_MEMORY.raw() / 2 + 16 * thread * page),
    };
    HvaRange::new(start, Bytes(8 * page))
}

fn finish<A: Arch>(sim: &mut Sim<A>) -> Result<(), RunError> {
    if let Stopped::Deadlock { at, actors } = sim.run() {
        return Err(RunError::Deadlock { at, actors });
    }
    if let Stopped::Deadlock { at, actors } = sim.destroy() {
        return Err(RunError::Deadlock { at, actors });
    }
    let violations: Vec<String> = sim.world().violations().iter().map(ToString::to_string).collect();
    if violations.is_empty() { Ok(()) } else { Err(RunError::Violations(violations)) }
}
