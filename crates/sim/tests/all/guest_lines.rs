//! What guest code pays beside translation: the lines that it reads and writes, and a core that it shares.

use crate::common::{small_vm, x86};
use mmu_core::machine::SocketSpec;
use mmu_core::{AccessKind, ByteUnits, Bytes, Cycles, Gpa, GpaRange, Gva, PageSize, Share};
use mmu_sim::engine::{GuestPaging, LockMode, Stopped, VcpuId, VcpuStats};
use mmu_sim::experiment::{Populate, VmSpec, build_without_threads};
use mmu_sim::protocols::aging::{AgingPolicy, clear_young};
use mmu_sim::protocols::fault::FaultPolicy;
use mmu_sim::protocols::vcpu;
use mmu_sim::workload::{GuestAccess, GuestWork, Workload};

const READ: AccessKind = AccessKind::Read;

/// Whether the pages' accessed flags are set before the guest runs.
#[derive(Clone, Copy, PartialEq)]
enum Pages {
    Young,
    Old,
}

/// Runs the same accesses on so many vCPUs of the machine.
fn run(vcpus: usize, sockets: Option<SocketSpec>, pages: Pages, accesses: &[(u64, AccessKind)]) -> Vec<VcpuStats> {
    let mut platform = x86();
    platform.costs.sockets = sockets;
    let vm = VmSpec {
        populate: Populate::Mapped,
        guest: GuestPaging::Flat,
        workload: Workload::Idle,
        ..small_vm(8.MiB(), vcpus, 0)
    };
    let mut sim = build_without_threads(&platform, &vm).unwrap();
    for vcpu in (0..vcpus).map(VcpuId) {
        let list: Vec<_> = accesses.iter().map(|&(at, kind)| GuestAccess { gva: Gva::new(at), kind }).collect();
        sim.spawn_vcpu(vcpu, move |host| {
            Box::pin(async move {
                if pages == Pages::Old {
                    clear_young(&host, GpaRange::new(Gpa::new(0), Bytes(8.MiB())), &AgingPolicy::V6_15).await;
                }
                host.assign(vcpu, GuestWork::List(list));
                vcpu::thread(host, vcpu, FaultPolicy::new(LockMode::Read, PageSize::SIZE_4K)).await;
            })
        });
    }
    assert_eq!(sim.run(), Stopped::Finished);
    sim.vcpu_stats()
}

/// What one vCPU's accesses take beside look-ups and walks.
fn lines(pages: Pages, accesses: &[(u64, AccessKind)]) -> (u64, VcpuStats) {
    let nothing = run(1, None, pages, &[])[0].finished;
    let stats = run(1, None, pages, accesses)[0];
    let translation = x86().costs.access.times(accesses.len() as u64) + stats.walk_cycles + Cycles(7 * stats.l2_hits);
    ((stats.finished.since(nothing + translation)).0, stats)
}

#[test]
fn lines_overlap_as_walks_do_and_an_access_that_sets_a_flag_waits_for_its_line() {
    let costs = x86().costs;
    let line = costs.cold_line.0 - costs.access.0;
    let (walked, hit) = (line / u64::from(costs.walk.in_flight), line / u64::from(costs.fill_buffers));
    let of = |pages, accesses: &[_]| {
        let (cycles, stats) = lines(pages, accesses);
        (stats.walks, stats.flag_updates, cycles)
    };
    assert_eq!(of(Pages::Young, &[(0, READ)]), (1, 0, walked));
    assert_eq!(of(Pages::Old, &[(0, READ)]), (1, 1, line), "the assist waits for all that is under way");
    assert_eq!(of(Pages::Young, &[(0, READ), (8, READ)]), (1, 0, walked), "the first cache has it");
    assert_eq!(of(Pages::Young, &[(0, READ), (64, READ)]), (1, 0, walked + hit), "behind a hit in the TLB");
    // More pages than have translations, so that later lines of some are behind walks again.
    let all: Vec<_> = (0..2_040).map(|page| (page << 12, READ)).collect();
    let later: Vec<_> = (0..2_040).map(|page| (page << 12 | 128, READ)).collect();
    let (walks, updates, cycles) = of(Pages::Young, &[all, later].concat());
    assert!(walks > 2_500 && updates == 0, "{walks}");
    assert_eq!(cycles, walks * walked + (4_080 - walks) * hit);
}

#[test]
fn two_vcpus_on_one_core_get_in_each_others_way() {
    let accesses: Vec<_> = (0..500).map(|page| (page << 12, READ)).collect();
    let sockets =
        |cores, shared_core_speed| Some(SocketSpec { number: 2, cores, line_transfer: Cycles(500), shared_core_speed });
    let half = Some(Share::of_one(0.5));
    let finished = |vcpus, sockets| {
        run(vcpus, sockets, Pages::Young, &accesses).iter().map(|stats| stats.finished.0).collect::<Vec<_>>()
    };
    let alone = finished(1, None)[0];
    assert_eq!(finished(4, sockets(2, half)), [alone; 4], "each has a core");
    assert_eq!(finished(4, sockets(1, half)), [2 * alone; 4], "two on each of two cores");
    assert_eq!(finished(4, sockets(1, None)), [alone; 4], "the sheet has one thread for each core");
    assert_eq!(finished(3, sockets(1, half)), [2 * alone, alone, 2 * alone], "one has a core of its own");
}
