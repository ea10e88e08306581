//! The file format of a machine description, as serde reads it. What it means is checked in `check`.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::cost::RawCosts;
use crate::addr::PageSize;
use crate::assoc::{Index, Replacement};
use crate::tlb::{Coalesce, CombinedByGpa, Fill, Inclusion, LargerPages, Port, Stage2Tag};

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMachine {
    pub(super) name: Spanned<String>,
    pub(super) arch: Spanned<String>,
    pub(super) core: String,
    pub(super) clock_ghz: Spanned<f64>,
    pub(super) stages: RawStages,
    pub(super) cache: RawCaches,
    pub(super) tlb: RawTlb,
    #[serde(default)]
    pub(super) psc: RawPsc,
    pub(super) walk: RawWalk,
    pub(super) tags: RawTags,
    pub(super) invalidate: RawInvalidate,
    pub(super) cost: RawCosts,
    pub(super) fetch: Option<RawFetch>,
    pub(super) sockets: Option<RawSockets>,
    #[serde(default)]
    pub(super) software_ns: BTreeMap<String, Spanned<f64>>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSockets {
    pub(super) number: Spanned<u32>,
    pub(super) cores: Spanned<u32>,
    pub(super) line_transfer_ns: Spanned<f64>,
    pub(super) shared_core_speed: Option<Spanned<f64>>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFetch {
    pub(super) levels: Vec<Spanned<RawFetchLevel>>,
    pub(super) beyond_cycles: f64,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFetchLevel {
    pub(super) name: String,
    pub(super) entries: Spanned<u32>,
    pub(super) ways: Spanned<u32>,
    #[serde(default)]
    pub(super) index: Index,
    #[serde(default)]
    pub(super) replacement: Replacement,
    pub(super) cycles: Spanned<f64>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStages {
    pub(super) granule: Spanned<PageSize>,
    pub(super) first_levels: Spanned<u8>,
    pub(super) second_levels: Spanned<u8>,
    pub(super) host_page: Spanned<PageSize>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCaches {
    pub(super) line_bytes: Spanned<u64>,
    pub(super) levels: Vec<Spanned<RawCacheLevel>>,
    pub(super) memory: Spanned<RawLatency>,
    pub(super) fill_buffers: Spanned<u32>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCacheLevel {
    pub(super) name: String,
    pub(super) kib: Spanned<u32>,
    pub(super) ways: Spanned<u32>,
    pub(super) latency_cycles: Option<Spanned<f64>>,
    pub(super) latency_ns: Option<Spanned<f64>>,
    #[serde(default)]
    pub(super) index: Index,
    #[serde(default)]
    pub(super) replacement: Replacement,
    #[serde(default)]
    pub(super) fill: Fill,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLatency {
    pub(super) latency_cycles: Option<Spanned<f64>>,
    pub(super) latency_ns: Option<Spanned<f64>>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTlb {
    #[serde(default)]
    pub(super) inclusion: Inclusion,
    pub(super) l2_hit_extra_cycles: u64,
    pub(super) l2_hit_extra_fetch_cycles: u64,
    pub(super) l1: Spanned<Vec<Spanned<RawArray>>>,
    #[serde(default)]
    pub(super) l2: Vec<Spanned<RawArray>>,
    pub(super) nested: Option<Spanned<RawArray>>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawArray {
    pub(super) name: String,
    pub(super) entries: Spanned<u32>,
    pub(super) ways: Spanned<u32>,
    pub(super) sizes: Vec<PageSize>,
    pub(super) ports: Vec<Port>,
    #[serde(default)]
    pub(super) index: Index,
    #[serde(default)]
    pub(super) replacement: Replacement,
    pub(super) coalesce: Option<Coalesce>,
    #[serde(default)]
    pub(super) larger: LargerPages,
}

#[derive(Deserialize, Debug, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPsc {
    #[serde(default)]
    pub(super) levels: Vec<Spanned<RawPscLevel>>,
    pub(super) guest_physical: Option<Vec<Spanned<RawPscLevel>>>,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPscLevel {
    pub(super) tables: Spanned<u8>,
    pub(super) entries: Spanned<u32>,
    pub(super) ways: Spanned<u32>,
    #[serde(default)]
    pub(super) index: Index,
    #[serde(default)]
    pub(super) replacement: Replacement,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWalk {
    pub(super) walkers: Spanned<u32>,
    pub(super) in_flight: Spanned<u32>,
    pub(super) fixed_cycles: u64,
    pub(super) reference_cycles: u64,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTags {
    pub(super) asid_bits: Spanned<u32>,
    pub(super) vmid_bits: Spanned<u32>,
    #[serde(default)]
    pub(super) second_stage: Stage2Tag,
    #[serde(default)]
    pub(super) combined_by_gpa: CombinedByGpa,
}

#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(super) struct RawInvalidate {
    pub(super) broadcast: super::Broadcast,
    pub(super) range: super::RangeInvalidation,
    pub(super) full_above_pages: u64,
    pub(super) full_above_pages_local: u64,
    pub(super) contention_slope: Spanned<f64>,
}
