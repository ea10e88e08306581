//! Predicted curves: their plateaus to the cycle, their knees, the events behind them, and what is refused.

mod common;

use arch_x86_ept::WalkLength;
use mmu_core::machine::Machine;
use mmu_predict::{PredictError, Prediction, predict, predict_all};

use common::{formats, host};

fn at(curve: &str, n: u64) -> Prediction {
    predict(&host(), formats(WalkLength::Four), curve, n, 1).unwrap()
}

#[test]
fn plateaus_are_the_sums_of_the_sheet() {
    // First-level hit; second-level TLB; both with data in the second cache.
    for (curve, n, cycles) in [
        ("dense4k", 64, 5.0),
        ("dense4k", 256, 12.0),
        ("dense4k", 1024, 23.0),
        ("zero4k", 32, 7.0),
        ("zero4k", 1024, 14.0),
        ("packed64_4k", 512, 5.0),
        ("packed64_thp", 4096, 16.0),
    ] {
        let got = at(curve, n).cycles;
        assert!((got - cycles).abs() < 1e-9, "{curve} {n}: {got}");
    }
    // A walk of two references that hit the first cache: 22 cycles over a second-level hit.
    let walked = at("zero4k", 4096);
    assert!((walked.cycles - 36.0).abs() < 0.1, "{}", walked.cycles);
    let events = walked.events.unwrap();
    assert!((events.stage1_references - 1.0).abs() < 0.01 && (events.stage2_references - 1.0).abs() < 0.01);
}

#[test]
fn the_measured_knees_come_out() {
    let rises = |curve, below, above| {
        let (low, high) = (at(curve, below).cycles, at(curve, above).cycles);
        assert!(high > low * 1.3, "{curve} from {below} to {above}: {low} to {high}");
    };
    rises("dense4k", 96, 112);
    rises("dense4k", 768, 1024);
    rises("dense4k", 1536, 2304);
    rises("pde_2M_T4096", 32, 128);
    let warm = at("pde_2M_T4096", 32).events.unwrap();
    let cold = at("pde_2M_T4096", 512).events.unwrap();
    // Beyond 32 regions the guest's last directory is read too.
    assert!(warm.stage1_references < 1.05 && cold.stage1_references > 1.9);
}

#[test]
fn huge_guest_pages_over_small_host_pages_have_small_translations_and_shorter_walks() {
    let (small, huge) = (at("dense4k", 16_384).events.unwrap(), at("dense_thp", 16_384).events.unwrap());
    assert!(small.l2_tlb_misses > 0.99 && huge.l2_tlb_misses > 0.99, "the smaller page is what a TLB keeps");
    assert!(huge.walk_cycles < small.walk_cycles / 2.0, "{} of {}", huge.walk_cycles, small.walk_cycles);
}

#[test]
fn more_levels_cost_nothing_while_the_caches_of_upper_levels_hold() {
    let five = predict(&host(), formats(WalkLength::Five), "dense4k", 4096, 1).unwrap();
    assert!((five.cycles / at("dense4k", 4096).cycles - 1.0).abs() < 0.03);
}

#[test]
fn chases_at_once_overlap_until_the_walkers_are_busy() {
    let cycles = ["zero4k_k1", "zero4k_k2", "zero4k_k4", "zero4k_k8", "zero4k_k16"].map(|name| at(name, 4096).cycles);
    assert!((cycles[0] / cycles[1] - 2.0).abs() < 0.01);
    assert!(cycles.windows(2).all(|pair| pair[1] <= pair[0]));
    assert!(cycles[4] > cycles[0] / 6.0, "four walkers: {cycles:?}");
    // Memory: three chases are more than three times as fast as one, and not many times more.
    let [one, three] = ["dense4k_k1", "dense4k_k3"].map(|name| at(name, 1 << 20).cycles);
    assert!((3.0..4.5).contains(&(one / three)), "{one} {three}");
}

#[test]
fn page_sizes_of_the_second_stage_and_distances_are_part_of_a_name() {
    let walked = |name: &str| at(name, 16_384).events.unwrap();
    let (small, large) = (walked("dense_thp"), walked("dense_thp_over_2m"));
    assert!(
        small.l2_tlb_misses > 0.99 && large.l2_tlb_misses < 0.01,
        "huge pages of both stages make huge translations"
    );
    assert_eq!(at("stride4096_4k", 512), Prediction { curve: "stride4096_4k".into(), ..at("dense4k", 512) });
    let far = at("stride256_4k", 1024).events.unwrap();
    assert_eq!((far.l1_tlb_misses, far.l2_tlb_misses), (0.0, 0.0), "64 pages");
    assert!(at("jmp_4k", 512).cycles > 4.0 * at("jmp_256", 512).cycles, "512 pages and 32");
    for deeper in ["pdpte_1G_T4096", "pml4e_512G_T64"] {
        assert!(at(deeper, 64).cycles > 7.0, "{deeper}");
    }
}

#[test]
fn events_are_put_together_from_the_sheet() {
    let ns = |name, n| at(name, n).ns;
    // An interrupt and its answer, whatever the call does.
    let remote = ns("mprotect_rw_to_r_2t", 16) - ns("mprotect_rw_to_r_1t", 16);
    assert!((remote - 1650.0).abs() < 1.0, "{remote}");
    assert!(ns("munmap_1t", 34) < ns("munmap_1t", 33) / 2.0, "beyond the ceiling everything is flushed at once");
    assert!(at("cpuid_loop", 1).events.is_none());
}

#[test]
fn answers_do_not_depend_on_company() {
    let points = [("dense4k", 512), ("zero4k_k4", 1024), ("nonsense", 1), ("zero4k", 1024)];
    let all = predict_all(&host(), formats(WalkLength::Four), &points, 7);
    for (&(name, n), got) in points.iter().zip(&all) {
        assert_eq!(got, &predict(&host(), formats(WalkLength::Four), name, n, 7), "{name}");
    }
    assert!(matches!(&all[2], Err(PredictError::Curve(_))));
}

#[test]
fn what_cannot_be_predicted_is_said() {
    let error =
        |machine: &Machine, curve, n| predict(machine, formats(WalkLength::Four), curve, n, 1).unwrap_err().to_string();
    assert!(error(&host(), "dense4k", 1 << 40).contains("points go from 1 to"));
    assert!(error(&host(), "dense4k", 0).contains("points go from 1"));
    assert!(error(&host(), "dense64k", 8).contains("4K, 2M, 1G"));
    let mut machine = host();
    machine.software_ns.insert("teleport".into(), 1.0);
    assert!(error(&machine, "dense4k", 8).contains("teleport"));
}
