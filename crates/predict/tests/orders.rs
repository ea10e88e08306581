//! Names that are free combinations: no measurement says what they cost, but physics says which of two costs more.

mod common;

use arch_x86_ept::WalkLength;
use mmu_predict::{Curve, cold_walk, predict, predict_all};

use common::{formats, host};

fn all(points: &[(&str, u64)]) -> Vec<f64> {
    let made = predict_all(&host(), formats(WalkLength::Four), points, 1);
    made.into_iter().map(|point| point.unwrap().cycles).collect()
}

/// Each point costs at least as much as the one before, but for a share that the order of accesses makes.
fn rises(points: &[(&str, u64)], slack: f64) {
    let cycles = all(points);
    for (pair, names) in cycles.windows(2).zip(points.windows(2)) {
        assert!(pair[1] >= pair[0] * (1.0 - slack), "{names:?}: {pair:?}");
    }
}

#[test]
fn curves_rise_with_their_points() {
    for (curve, points) in [
        ("dense4k", &[64, 256, 1024, 4096, 16_384, 65_536][..]),
        ("dense_thp", &[64, 256, 1024, 4096, 16_384, 65_536]),
        ("dense4k_over_2m", &[64, 256, 1024, 4096, 16_384]),
        ("pdpte_1G_T4096", &[16, 64, 256, 1024]),
        // With fewer regions pages of one region meet in few sets of the first cache, which is as real.
        ("pml4e_512G_T4096", &[64, 128]),
        ("zero_thp_k4", &[64, 1024, 4096, 16_384]),
        ("jmp_thp", &[64, 1024, 4096]),
    ] {
        let points: Vec<(&str, u64)> = points.iter().map(|&n| (curve, n)).collect();
        rises(&points, 0.03);
    }
}

#[test]
fn larger_pages_of_either_stage_never_cost_more() {
    for n in [512, 4096, 32_768] {
        rises(&[("dense_thp_over_2m", n), ("dense_thp", n), ("dense4k", n)], 0.02);
        rises(&[("dense_thp_over_2m", n), ("dense4k_over_2m", n), ("dense4k", n)], 0.02);
        // Small and huge pages of one frame differ in the reach of their addresses, not only in their size.
        rises(&[("zero_thp_over_2m", n), ("zero_thp", n)], 0.02);
        rises(&[("zero4k_over_2m", n), ("zero4k", n)], 0.02);
    }
    rises(&[("dense1g_over_1g", 4096), ("dense2m_over_2m", 4096), ("dense2m", 4096)], 0.02);
}

#[test]
fn regions_of_higher_tables_cost_more() {
    // As many pages, one in each region: one more table of the guest for each step.
    rises(&[("zero4k", 64), ("pde_2M_T64", 64), ("pdpte_1G_T64", 64), ("pml4e_512G_T64", 64)], 0.02);
    rises(&[("pde_2M_T4096", 4096), ("pdpte_1G_T4096", 4096)], 0.02);
}

#[test]
fn another_level_of_the_second_stage_is_never_cheaper() {
    for (curve, n) in [("dense4k", 8192), ("pdpte_1G_T2048", 2048), ("pml4e_512G_T128", 128), ("zero4k", 8192)] {
        let [four, five] = [WalkLength::Four, WalkLength::Five]
            .map(|levels| predict(&host(), formats(levels), curve, n, 1).unwrap().cycles);
        assert!(five >= four * 0.98, "{curve} {n}: {four} {five}");
    }
    let cold = |curve: &str, levels| {
        let curve: Curve = curve.parse().unwrap();
        cold_walk(&host(), formats(levels), &curve).unwrap()
    };
    assert_eq!(cold("dense4k", WalkLength::Four), (4, 20));
    assert_eq!(cold("dense4k", WalkLength::Five), (4, 25));
    assert_eq!(cold("dense2m", WalkLength::Four), (3, 16), "(3+1)(4+1)-1");
    assert_eq!(cold("dense2m_over_2m", WalkLength::Four), (3, 12), "(3+1)(3+1)-1");
    assert_eq!(cold("dense1g_over_1g", WalkLength::Four), (2, 6), "(2+1)(2+1)-1");
}

#[test]
fn more_chases_never_make_an_access_slower_and_never_gain_much_more_than_their_number() {
    for (curve, n) in [("dense4k", 4096), ("dense_thp", 16_384), ("zero4k", 65_536), ("pdpte_1G_T512", 512)] {
        let names: Vec<String> = [1, 2, 3, 4, 8, 16].iter().map(|k| format!("{curve}_k{k}")).collect();
        let points: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), n)).collect();
        let cycles = all(&points);
        assert!(cycles.windows(2).all(|pair| pair[1] <= pair[0] * 1.001), "{curve}: {cycles:?}");
        for (&k, &several) in [1.0, 2.0, 3.0, 4.0, 8.0, 16.0].iter().zip(&cycles) {
            // Memory answers several a little sooner than one.
            assert!(cycles[0] / several <= 1.3 * k, "{curve} {k}: {cycles:?}");
        }
    }
}

#[test]
fn shootdowns_grow_with_pages_and_threads_and_drop_once_at_the_ceiling() {
    for call in ["mprotect_rw_to_r", "mprotect_r_to_rw", "dontneed", "munmap"] {
        for threads in [1, 2, 3, 8] {
            let name = format!("{call}_{threads}t");
            let points = |pages: &[u64]| pages.iter().map(|&n| (name.as_str(), n)).collect::<Vec<_>>();
            rises(&points(&[1, 2, 8, 20, 33]), 0.0);
            rises(&points(&[34, 50, 100, 500, 5000]), 0.0);
            let edge = all(&points(&[33, 34]));
            assert!(edge[1] < edge[0], "{name}: {edge:?}");
        }
        for n in [1, 33, 34, 200] {
            let names: Vec<String> = [1, 2, 3, 16].iter().map(|threads| format!("{call}_{threads}t")).collect();
            rises(&names.iter().map(|name| (name.as_str(), n)).collect::<Vec<_>>(), 0.0);
        }
        for what in ["victim_lost", "victim_gaps_x1000"] {
            let name = format!("{call}_{what}");
            rises(&[1, 8, 33].map(|n| (name.as_str(), n)), 0.0);
            rises(&[34, 100, 1000].map(|n| (name.as_str(), n)), 0.0);
        }
    }
}
