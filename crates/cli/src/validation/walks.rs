//! Cold walks counted against the closed form, and replays of the synthetic trace against what other simulators count.

use std::fmt::Write;

use mmusim::core::Format;
use mmusim::core::{Level, PageSize};
use mmusim::predict::{Curve, PredictError, cold_walk};
use mmusim::sim::tlb_replay::{FirstNumber, TlbReplay, TlbReplaySpec, shape_from_text};
use mmusim::trace::synthetic;
use mmusim::{Bytes, Machine};

use crate::CliError;
use crate::machine::load;
use crate::platform::{Formats, formats};

/// Machine, levels of the guest and of the hypervisor, curve whose page is walked for.
const COLD: [(&str, u8, u8, &str); 10] = [
    ("intel-granite-rapids-host", 4, 4, "dense4k"),
    ("intel-granite-rapids-host", 5, 4, "dense4k"),
    ("intel-granite-rapids-host", 4, 5, "dense4k"),
    ("intel-granite-rapids-host", 5, 5, "dense4k"),
    ("intel-granite-rapids-host", 4, 4, "dense2m"),
    ("intel-granite-rapids-host", 4, 4, "dense2m_over_2m"),
    ("intel-granite-rapids-host", 4, 4, "dense1g_over_1g"),
    ("arm-neoverse-n1", 4, 3, "dense4k"),
    ("arm-neoverse-n1", 4, 3, "dense2m_over_2m"),
    ("ibm-power9", 4, 4, "dense64k"),
];

/// A walk's closed form: every guest entry, and the data, at the end of a walk of the second stage.
fn expected<F1: Format, F2: Format>((one, two): (F1, F2), machine: &Machine, curve: &Curve) -> (u64, u64) {
    let references = |levels: usize, leaf: Option<Level>| (levels - leaf.map_or(0, Level::index)) as u64;
    let page = curve.page.max(one.geometry().granule());
    let host: PageSize = curve.host_page.unwrap_or(machine.stages.host_page);
    let guest = references(one.geometry().levels(), one.geometry().level_of(page));
    let second = references(two.geometry().levels(), two.geometry().level_of(host));
    (guest, (guest + 1) * (second + 1) - 1)
}

fn cold<F1: Format, F2: Format>(formats: (F1, F2), machine: &Machine, curve: &Curve) -> Result<[u64; 3], PredictError> {
    let (one, two) = cold_walk(machine, formats, curve)?;
    let (guest, all) = expected(formats, machine, curve);
    // A walk that counted the stages wrongly is as wrong as one that counted them too often.
    Ok([one + two, if one == guest { all } else { 0 }, one])
}

/// The section about walks.
pub(super) fn walks() -> Result<String, CliError> {
    let mut text = String::from(
        "| machine | guest | hypervisor | pages | references of a cold walk | (n+1)(m+1)-1 | |\n| --- | --- | --- | --- | ---: | ---: | --- |\n",
    );
    for (name, first, second, curve) in COLD {
        let mut machine = load(name)?;
        machine.stages.first_levels = first;
        machine.stages.second_levels = second;
        let parsed: Curve = curve.parse().map_err(|error| CliError::input(format!("{curve}: {error}")))?;
        let counted = match &formats(&machine, Bytes(1 << 40))? {
            Formats::X86(pair) => cold((pair.one, pair.two), &machine, &parsed),
            Formats::Arm64(pair) => cold((pair.one, pair.two), &machine, &parsed),
            Formats::Power(pair) => cold((pair.one, pair.two), &machine, &parsed),
        };
        let [counted, expected, guest] = counted.map_err(|error| CliError::input(format!("{name}: {error}")))?;
        let host = parsed.host_page.unwrap_or(machine.stages.host_page);
        let verdict = if counted == expected { "equal" } else { "**different**" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {name} | {first} levels | {second} levels | {} over {host} | {counted}, {guest} of the guest's | {expected} | {verdict} |",
            parsed.page
        );
    }
    Ok(text)
}

/// Records of the trace, first level, second level, page size, and the counts on which others agree: hits and misses of each level.
type Peer = (u64, &'static str, &'static str, PageSize, [u64; 4], &'static str);

const PEERS: [Peer; 6] = [
    (1_000, "64x4", "1536x12", PageSize::SIZE_4K, [499, 501, 55, 446], "move-to-front, drcachesim, ChampSim"),
    (10_000, "64x4", "1536x12", PageSize::SIZE_4K, [5_065, 4_935, 1_315, 3_620], "move-to-front, drcachesim, ChampSim"),
    (
        100_000,
        "64x4",
        "1536x12",
        PageSize::SIZE_4K,
        [50_579, 49_421, 15_219, 34_202],
        "move-to-front, drcachesim, ChampSim",
    ),
    (
        1_000_000,
        "64x4",
        "1536x12",
        PageSize::SIZE_4K,
        [504_460, 495_540, 155_878, 339_662],
        "move-to-front, drcachesim",
    ),
    (100_000, "64x64", "2048x8", PageSize::SIZE_4K, [51_953, 48_047, 15_817, 32_230], "move-to-front"),
    (100_000, "32x4", "1024x8", PageSize::SIZE_2M, [97_065, 2_935, 2_770, 165], "move-to-front"),
];

/// The section about TLBs.
pub(super) fn tlbs() -> Result<String, CliError> {
    let mut text = String::from(
        "| first level | second level | pages | records of S1 | L1 hits, misses | L2 hits, misses | as counted by | |\n\
         | --- | --- | --- | ---: | ---: | ---: | --- | --- |\n",
    );
    for (records, l1, l2, page, peers, who) in PEERS {
        let shape = |text: &str| {
            shape_from_text(text, FirstNumber::Entries).map_err(|error| CliError::input(error.to_string()))
        };
        let spec = TlbReplaySpec { page, ..TlbReplaySpec::new(shape(l1)?, Some(shape(l2)?)) };
        let mut replay = TlbReplay::new(&spec).map_err(|error| CliError::input(error.to_string()))?;
        replay.feed(&synthetic::s1(records).collect::<Vec<_>>());
        let counts = replay.counts();
        let (first, second) = (counts.l1(), counts.l2.unwrap_or_default());
        let verdict =
            if [first.hits, first.misses, second.hits, second.misses] == peers { "equal" } else { "**different**" };
        let _ = writeln!(
            text,
            "| {l1} | {l2} | {page} | {records} | {}, {} | {}, {} | {who} | {verdict} |",
            first.hits, first.misses, second.hits, second.misses
        );
    }
    Ok(text)
}
