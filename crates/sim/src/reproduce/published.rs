//! The published figures, with the messages that have them.

use mmu_core::{ByteUnits, Bytes};

use super::Figure::{Below, Is};
use super::{Case, Figure, Id};

/// A published pair of values.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Published {
    /// vCPUs.
    pub vcpus: usize,
    /// Memory, as in [`Case::bytes`].
    pub bytes: Bytes,
    /// What was measured, as [`super::Row::what`] has it.
    pub what: &'static str,
    /// Before the change and after it.
    pub values: [Figure; 2],
}

/// An experiment with its published figures.
#[derive(Clone, PartialEq, Debug)]
pub struct Experiment {
    /// Its number.
    pub id: Id,
    /// What changed.
    pub title: &'static str,
    /// The test and its options.
    pub command: &'static str,
    /// Where the figures were published.
    pub source: &'static str,
    /// The built-in machine that stands for the authors', which is named in no message.
    pub machine: &'static str,
    /// How much less memory a run has by default, so that it takes seconds.
    pub scale: u64,
    /// What the simulation is known not to explain.
    pub limits: Option<&'static str>,
    /// The figures.
    pub published: Vec<Published>,
}

impl Experiment {
    /// The published cases, each once.
    pub fn cases(&self) -> Vec<Case> {
        let mut cases: Vec<Case> = Vec::new();
        for row in &self.published {
            let case = Case { vcpus: row.vcpus, bytes: row.bytes, scale: self.scale };
            if !cases.contains(&case) {
                cases.push(case);
            }
        }
        cases
    }

    /// What was published about a case.
    pub fn values(&self, case: &Case, what: &str) -> Option<[Figure; 2]> {
        let row = |row: &&Published| (row.vcpus, row.bytes, row.what) == (case.vcpus, case.bytes, what);
        self.published.iter().find(row).map(|row| row.values)
    }
}

fn rows<const N: usize>(bytes: u64, what: &'static str, values: [(usize, [f64; 2]); N]) -> Vec<Published> {
    values.into_iter().map(|(vcpus, values)| figures(bytes, what, vcpus, values.map(Is))).collect()
}

fn figures(bytes: u64, what: &'static str, vcpus: usize, values: [Figure; 2]) -> Published {
    Published { vcpus, bytes: Bytes(bytes), what, values }
}

/// All experiments.
pub fn experiments() -> Vec<Experiment> {
    vec![
        Experiment {
            id: Id::R1,
            title: "aging: under mmu_lock, then lockless",
            command: "access_tracking_perf_test -p -l -b 1G -v N (x86, 4K pages)",
            source: "20240529180510.2295118-1-jthoughton",
            machine: "intel-sapphire-rapids",
            scale: 512,
            limits: Some(
                "a lockless pass took 27 to 30 ns a page beside 1 to 32 vCPUs (here 28 to 31), 83 and 78 beside 64 and 112, whose entries in both tables (16 bytes a \
                 page, 268 MB for 64 GiB) are more than third caches hold: here 31, since the host's caches are not simulated. Of what first touches share only lines of \
                 locks and counters are: they come 194 ns apart beside 32 and more vCPUs, where 395, 387 and 289 were measured beside 32, 64 and 112, so that locked passes \
                 beside the last two wait for twice as many faults as they did",
            ),
            published: [
                rows(
                    1.GiB(),
                    "one aging pass",
                    [
                        (1, [0.00824, 0.00731]),
                        (2, [0.01799, 0.0140]),
                        (4, [0.05616, 0.02931]),
                        (8, [0.2274, 0.0639]),
                        (16, [1.2471, 0.1216]),
                        (32, [4.3473, 0.2509]),
                        (64, [9.8156, 1.3929]),
                        (112, [13.4738, 2.2922]),
                    ],
                ),
                rows(
                    1.GiB(),
                    "populating memory meanwhile",
                    [
                        (1, [0.938, 0.912]),
                        (2, [1.058, 1.038]),
                        (4, [1.319, 1.315]),
                        (8, [1.589, 1.498]),
                        (16, [2.400, 2.001]),
                        (32, [3.955, 3.355]),
                        (64, [7.128, 6.443]),
                        (112, [10.214, 8.897]),
                    ],
                ),
            ]
            .concat(),
        },
        Experiment {
            id: Id::R2,
            title: "root zap: one pass at the root, then two passes at 1G",
            command: "zap of a root that maps 4K pages",
            source: "1b6043e8e584, 8351779ce65f",
            machine: "intel-skylake-sp",
            scale: 1,
            limits: None,
            published: vec![figures(512.GiB(), "longest stretch without a reschedule", 1, [Is(7.0), Below(0.1)])],
        },
        Experiment {
            id: Id::R3,
            title: "end of dirty logging: zapped and flushed page by page, then with flushes batched, then (faults) recovered in place",
            command: "dirty_log_perf_test -s anonymous_hugetlb_2mb -v 64 -e -b 4g",
            source: "20240823235648.3236880-1-dmatlack",
            machine: "intel-sapphire-rapids",
            scale: 1024,
            limits: Some(
                "a flush that finds all 64 vCPUs in the guest costs what this message says, 73 us, so the time before is no test of its own; sources about other flushes explain 19 us of it. \
                 A walk that has its processor to itself yields twice in each grace period of RCU here, once in 56 ms; it did once in 63",
            ),
            published: [
                rows(4.GiB(), "disable dirty logging", [(64, [14.334, 4.795])]),
                rows(4.GiB(), "remote flushes", [(64, [131_072.0, 76.0])]),
                rows(4.GiB(), "page faults", [(64, [393_599.0, 262_575.0])]),
            ]
            .concat(),
        },
        Experiment {
            id: Id::R4,
            title: "recovery of NX huge pages: under the write lock, then under the read lock",
            command: "nx_huge_pages_perf_test -b 16G -s 1G, period 100 ms, ratio 4",
            source: "nx_huge_pages_perf_test (proposed 2025)",
            machine: "intel-sapphire-rapids",
            scale: 1,
            limits: None,
            published: rows(16.GiB(), "maximum fault latency", [(2, [8.50e6, 0.049e6])]),
        },
        Experiment {
            id: Id::R5,
            title: "arm64 block mappings without FWB: cache maintenance by every faulting vCPU, then by the mapper",
            command: "kvm_page_table_test -g 1G -s 20G -v N",
            source: "20210208112250.163568-1-wangyanan55",
            machine: "huawei-kunpeng-920",
            scale: 20,
            limits: Some(
                "40 vCPUs that read 20 GiB took half as long again as one: here none of them is farther from the memory than another, and no channel is shared",
            ),
            published: [
                rows(20.GiB(), "create mappings", [(20, [52.83, 3.70]), (40, [104.56, 3.70])]),
                rows(20.GiB(), "rebuild mappings", [(40, [103.93, 2.96])]),
                rows(20.GiB(), "rebuild, block first", [(1, [2.824, 0.244]), (40, [2.962, 0.366])]),
            ]
            .concat(),
        },
        Experiment {
            id: Id::R6,
            title: "arm64 faults: under the write lock, then in parallel under the read lock",
            command: "dirty_log_perf_test -b 4G -v N, THP",
            source: "20221107215644.1895162-1-oliver.upton",
            machine: "arm-neoverse-n1",
            scale: 512,
            limits: None,
            published: rows(
                4.GiB(),
                "iteration 1 dirty memory",
                [
                    (1, [0.87, 0.93]),
                    (2, [1.11, 1.16]),
                    (4, [2.39, 1.27]),
                    (8, [5.01, 1.39]),
                    (16, [8.89, 2.07]),
                    (48, [32.10, 6.23]),
                ],
            ),
        },
        Experiment {
            id: Id::R7,
            title: "arm64 unmap of a 4K-backed guest: one TLBI per page, then one range TLBI",
            command: "unmap of the whole guest",
            source: "20230722022251.3446223-1-rananta",
            machine: "arm-neoverse-v1",
            scale: 1,
            limits: None,
            published: [rows(1.GiB(), "unmap", [(1, [0.54, 0.13])]), rows(128.GiB(), "unmap", [(1, [64.65, 14.39])])]
                .concat(),
        },
        Experiment {
            id: Id::R8,
            title: "x86 dirty logging: 1G pages split by faults, then eagerly",
            command: "dirty_log_perf_test -s anonymous_hugetlb_1gb -v 96 -b 1G",
            source: "20220119230739.2234394-1-dmatlack",
            machine: "intel-skylake-sp",
            scale: 1,
            limits: None,
            published: [
                rows(1.GiB(), "enable dirty logging", [(96, [0.00168, 1.547])]),
                rows(1.GiB(), "iteration 1 dirty memory", [(96, [2.944, 0.146])]),
            ]
            .concat(),
        },
        Experiment {
            id: Id::R9,
            title: "arm64 dirty logging, sparse writes: blocks split by faults, then eagerly",
            command: "dirty_log_perf_test -b 1G -i 3, one write in each 2M",
            source: "20221112081714.2169495-1-ricarkol",
            machine: "arm-neoverse-n1",
            scale: 4,
            limits: Some(
                "a sparse fault took 3.9 us with 8 vCPUs, and 211 and 243 ns of the whole machine with 64 and 152, where dense ones took 1.3 us with 8 and 124 ns of \
                 the machine with 48 (R6). What is cold in it are a page structure and a line of the bitmap, 0.2 us; the local TLBI takes 0.3 us",
            ),
            published: rows(
                1.GiB(),
                "dirty memory",
                [(8, [0.00578, 0.00197]), (64, [0.04175, 0.00692]), (152, [0.10972, 0.01894])],
            ),
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_experiment_has_cases_and_values() {
        let all = experiments();
        assert_eq!(all.iter().map(|experiment| experiment.id).collect::<Vec<_>>(), Id::ALL);
        for experiment in &all {
            assert!(!experiment.cases().is_empty());
            for row in &experiment.published {
                let case = Case { vcpus: row.vcpus, bytes: row.bytes, scale: experiment.scale };
                assert_eq!(experiment.values(&case, row.what), Some(row.values));
                assert!(experiment.cases().contains(&case));
            }
        }
        assert_eq!(all[0].cases().len(), 8);
        assert_eq!("r7".parse(), Ok(Id::R7));
        assert!("R10".parse::<Id>().unwrap_err().contains("R1 to R9"));
    }
}
