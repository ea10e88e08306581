//! 4 PiB through the engine: what a hypervisor does to a guest as large as 52 bits of addresses, on three formats.
//!
//! The guest is built as KVM's `max_guest_memory_test` builds one: memslots of 4 TiB follow each other and all stand for the same memory, so that host
//! addresses are left for 8 TiB of tables. Nobody runs meanwhile; the cycles are those of one entry after the other.

use std::cell::Cell;
use std::rc::Rc;

use mmusim::arm64::{Features, GranuleSupport, Stage1Config, Stage2Config};
use mmusim::core::{Format, Leaf};
use mmusim::power::{BasePage, Radix};
use mmusim::sim::arch::Arch2;
use mmusim::sim::engine::{Host, LockId, LockMode, Sim};
use mmusim::sim::experiment::build;
use mmusim::sim::protocols::aging::{AgingPolicy, clear_young};
use mmusim::sim::protocols::coalesce::{Changed, CoalescePolicy, EntryAt, Walkers, table_to_block};
use mmusim::sim::protocols::dirty_log::{Breaks, DirtyLog, DirtyPolicy, LogKind, SplitWhen, Tracking, enable};
use mmusim::sim::protocols::iter::Yield;
use mmusim::sim::protocols::split::{SplitPolicy, eager_split};
use mmusim::sim::protocols::zap::ZapLock;
use mmusim::{
    Arch, ByteUnits, Bytes, Cycles, Gpa, GpaRange, GuestPaging, Level, Machine, PageSize, Perms, Platform, Populate,
    Seed, VmSpec, Workload, arch,
};

use super::cases::{Measured, finish, timed};

/// What is done with the guest beside zapping it.
pub const WORK: [&str; 5] = ["build", "age", "protect", "coalesce", "split"];
/// Blocks that are coalesced and split, here and there.
const SAMPLES: u64 = 300;
/// Memory behind each memslot.
const SHARED: Bytes = Bytes(4 << 40);

/// Does it on a guest of so much memory.
pub fn run(format: &str, memory: u64, work: &str) -> Measured {
    let machine = |name: &str| Machine::builtin(name).expect("a machine of ours");
    match format {
        "ept" => {
            let machine = machine("intel-granite-rapids-host");
            let arch = arch::x86(&machine, Bytes(memory)).expect("its own architecture");
            on(&Platform::new(arch, &machine), memory, work)
        }
        "arm64" => {
            let features = Features { pa_bits: 52, granule_4k: GranuleSupport::Lpa2, ..Features::default() };
            let two = Stage2Config { ipa_bits: 52, features, ..Stage2Config::default() };
            let one = Stage1Config { features, ..Stage1Config::default() };
            let arch = Arch2 { name: "arm64", one: one.build().expect("legal"), two: two.build().expect("legal") };
            on(&Platform::new(arch, &machine("arm-neoverse-v2")), memory, work)
        }
        _ => {
            let (one, two) = (Radix::process(BasePage::K4), Radix::partition(BasePage::K4));
            on(&Platform::new(Arch2 { name: "power", one, two }, &machine("ibm-power10")), memory, work)
        }
    }
}

fn on<A: Arch>(platform: &Platform<A>, memory: u64, work: &str) -> Measured {
    let shared = Bytes(SHARED.0.min(memory));
    let vm = VmSpec {
        memory: Bytes(memory),
        vcpus: 2,
        page: PageSize::SIZE_4K,
        guest: GuestPaging::Flat,
        populate: Populate::Shared(shared),
        workload: Workload::Idle,
        seed: Seed(1),
    };
    let mut built = None;
    let build = timed(|| {
        built = Some(build(platform, &vm).expect("a legal machine"));
        memory
    });
    let Some(mut sim) = built.filter(|_| work != "build") else { return build };
    let all = GpaRange::new(Gpa::new(0), Bytes(memory));
    match work {
        "age" => {
            sim.spawn("age", Cycles::ZERO, move |host| {
                Box::pin(async move {
                    let aged = clear_young(&host, all, &AgingPolicy::V6_15).await;
                    assert_eq!(aged.made_old, all.bytes.0 >> 12);
                })
            });
        }
        "protect" => protect(&mut sim, all),
        "coalesce" | "split" => {
            let done = Rc::new(Cell::new(0));
            let count = Rc::clone(&done);
            sim.spawn("coalesce", Cycles::ZERO, move |host| {
                Box::pin(async move { count.set(coalesce(&host, memory).await) })
            });
            if work == "split" {
                finish(&mut sim);
                assert_eq!(done.get(), SAMPLES.min(memory >> 21));
                sim.spawn("split", Cycles::ZERO, move |host| Box::pin(async move { split(&host, memory).await }));
            }
        }
        strategy => super::zap::spawn(&mut sim, shared.0, strategy.parse().expect("a number")),
    }
    let leaves = memory >> 12;
    timed(|| {
        finish(&mut sim);
        if work.parse::<usize>().is_ok() {
            assert_eq!(sim.world().counters().zapped_leaves, leaves);
        }
        memory
    })
}

/// Dirty logging of everything begins. arm64 breaks the walk up by entries of the root, as Linux did up to 6.0.
fn protect<A: Arch>(sim: &mut Sim<A>, all: GpaRange) {
    let breaks = match A::Two::NAME {
        "arm64-stage2" => Breaks::Chunks(Bytes(512.GiB())),
        _ => Breaks::EachEntry(Yield::YieldedGfn),
    };
    let policy = DirtyPolicy {
        tracking: Tracking::WriteProtect,
        split: SplitWhen::Lazily,
        breaks,
        ..DirtyPolicy::X86_WRITE_PROTECT
    };
    let log = DirtyLog::new(all, sim.new_var(0), PageSize::SIZE_4K, LogKind::Rings);
    sim.spawn("log", Cycles::ZERO, move |host| {
        Box::pin(async move {
            let enabled = enable(&host, &log, &policy).await.expect("room for a log");
            assert_eq!(enabled.protected.leaves, all.bytes.0 >> 12);
        })
    });
}

/// Where the samples are: an odd multiplier visits different blocks.
fn samples(memory: u64) -> impl Iterator<Item = Gpa> {
    let blocks = memory >> 21;
    (0..SAMPLES.min(blocks)).map(move |i| Gpa::new((i * 0x9e37_79b1 % blocks) << 21))
}

/// A block where a table was, here and there; how many.
async fn coalesce<F: Format>(host: &Host<F>, memory: u64) -> u64 {
    let format = *host.format();
    let (geometry, policy) = (*format.geometry(), CoalescePolicy::of(&format));
    let mut done = 0;
    for gpa in samples(memory) {
        host.lock(LockId::MMU, LockMode::Write).await;
        host.rcu_read_lock().await;
        let (mut level, mut table) = (geometry.root(), host.root().await);
        let block = Level::new(1);
        while level > block {
            let word = host.read(table + 8 * geometry.index(level, gpa.raw()) as u64).await;
            table = format.next_table(level, word);
            level = level.down().expect("above the block");
        }
        let at = EntryAt { ptep: table + 8 * geometry.index(level, gpa.raw()) as u64, level, gpa };
        let old = host.read(at.ptep).await;
        let output = format.output(Level::LAST, host.read(format.next_table(level, old)).await);
        let perms = Perms::RWX.with(Perms::DIRTY);
        let leaf = Leaf { output, perms, accessed: true, attrs: F::Attrs::default() };
        let new = format.encode_leaf(level, &leaf).expect("an aligned block");
        done += u64::from(table_to_block(host, at, old, new, &policy, Walkers::Exclusive).await == Changed::Done);
        host.rcu_read_unlock().await;
        host.unlock(LockId::MMU).await;
    }
    done
}

/// Tables again where the blocks are.
async fn split<F: Format>(host: &Host<F>, memory: u64) {
    let policy = SplitPolicy { lock: ZapLock::Write, ..SplitPolicy::X86_5_18 };
    for gpa in samples(memory) {
        host.lock(LockId::MMU, LockMode::Write).await;
        let (root, range) = (host.root().await, GpaRange::new(gpa, Bytes(2.MiB())));
        let splits = eager_split(host, root, range, PageSize::SIZE_4K, &policy).await.expect("room for a table");
        assert_eq!(splits.leaves, 1);
        host.unlock(LockId::MMU).await;
    }
}
