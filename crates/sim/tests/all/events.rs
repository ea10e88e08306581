//! Recordings: the same bytes for any number of threads, a timeline that viewers accept, and no effect on what is recorded.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::{small_vm, x86};
use mmu_core::{ByteUnits, Bytes, Cycles};
use mmu_sim::engine::Threads;
use mmu_sim::events::chrome::Timeline;
use mmu_sim::events::{Collector, Event, Extent, Recording, Trace, Track, json};
use mmu_sim::experiment::zap::{ZapReport, ZapRequest, compare_zap, strategies};

const REQUEST: ZapRequest = ZapRequest { range: Bytes(8 << 20), after: Cycles(200_000) };

fn recorded(threads: Threads, limit: usize) -> (ZapReport, Vec<Recording>) {
    let collector = Collector::with_limit(limit);
    let platform = x86().recording(&collector);
    let vm = small_vm(64.MiB(), 3, 20_000);
    let chosen = [strategies()[2], strategies()[4], strategies()[8]];
    let report = compare_zap(&platform, &vm, REQUEST, &chosen, threads, || {}).unwrap();
    (report, collector.take())
}

fn as_json(recordings: &[Recording]) -> String {
    let mut text = String::new();
    recordings.iter().enumerate().for_each(|(run, recording)| json::write(&mut text, run, recording));
    text
}

fn as_timeline(recordings: &[Recording]) -> String {
    let (mut text, mut timeline) = (String::new(), Timeline::new());
    for recording in recordings {
        timeline.write(&mut text, recording);
    }
    timeline.finish(&mut text);
    text
}

#[test]
fn the_same_bytes_for_one_and_for_many_threads() {
    let (one, many) = (recorded(Threads::One, Collector::LIMIT), recorded(Threads::Pool, Collector::LIMIT));
    assert_eq!(one.0, many.0);
    // Without a zap the guest finds everything mapped, and little happens.
    assert!(one.1.iter().all(|recording| recording.lost == 0));
    assert!(one.1[1..].iter().all(|recording| recording.events.len() > 100));
    assert_eq!(as_json(&one.1), as_json(&many.1));
    assert_eq!(as_timeline(&one.1), as_timeline(&many.1));
}

#[test]
fn recording_changes_nothing_that_is_recorded() {
    let vm = small_vm(64.MiB(), 3, 20_000);
    let chosen = [strategies()[2], strategies()[4], strategies()[8]];
    let plain = compare_zap(&x86(), &vm, REQUEST, &chosen, Threads::One, || {}).unwrap();
    assert_eq!(plain, recorded(Threads::One, Collector::LIMIT).0);
    assert_eq!(plain, recorded(Threads::One, 10).0);
}

/// Counts agree with the counters that the engine keeps anyway.
#[test]
fn events_tell_what_the_counters_count() {
    let (report, recordings) = recorded(Threads::One, Collector::LIMIT);
    assert_eq!(recordings[0].name, "without a zap");
    for (row, recording) in report.rows.iter().zip(&recordings[1..]) {
        assert_eq!(recording.name, row.strategy.name);
        let count = |name| recording.events.iter().filter(|event| event.what.name() == name).count() as u64;
        let (faults, exits) = (row.guest.faults, count("kvm_exit"));
        assert_eq!(count("kvm_page_fault"), faults, "{}", recording.name);
        assert!(exits > faults, "{}", recording.name);
        assert_eq!(count("sim_flush"), row.host.remote_flushes, "{}", recording.name);
        assert_eq!(count("kvm_exit"), count("kvm_entry"), "{}", recording.name);
        assert_eq!(count("sim_ipi"), row.host.ipis, "{}", recording.name);
        assert_eq!(count("sim_ipi_done"), row.host.ipis, "{}", recording.name);
    }
}

/// The events of one range zap say which pages lost their mapping: exactly those of the range, each at least once.
#[test]
fn changed_entries_name_their_guest_pages() {
    let (_, recordings) = recorded(Threads::One, Collector::LIMIT);
    let mut zapped = BTreeMap::new();
    for event in &recordings[1].events {
        if let Trace::KvmTdpMmuSpteChanged { gfn, old_spte, new_spte: 0, level: 1, count, .. } = event.what
            && old_spte != 0
            && matches!(event.track, Track::Actor(_))
        {
            (gfn..gfn + count).for_each(|gfn| *zapped.entry(gfn).or_insert(0) += 1);
        }
    }
    // The VM's end zaps everything that is left.
    let twice: Vec<u64> = zapped.iter().filter(|&(_, &times)| times > 1).map(|(&gfn, _)| gfn).collect();
    assert_eq!(zapped.len() as u64, 64.MiB() >> 12);
    assert!(!twice.is_empty() && twice.iter().all(|&gfn| gfn < REQUEST.range.0 >> 12), "{twice:x?}");
}

#[test]
fn what_does_not_fit_is_counted_and_said() {
    let (_, recordings) = recorded(Threads::One, 50);
    let (_, whole) = recorded(Threads::One, Collector::LIMIT);
    for (cut, whole) in recordings.iter().zip(&whole) {
        assert_eq!(cut.events.len() as u64 + cut.lost, whole.events.len() as u64);
        assert_eq!(cut.lost_since.is_some(), cut.lost > 0);
        assert_eq!(cut.end, whole.end);
    }
    assert!(recordings[1].lost > 0);
    let header = as_json(&recordings[1..]).lines().next().unwrap().to_owned();
    assert!(header.contains(&format!("\"lost\":{}", recordings[1].lost)), "{header}");
    assert!(as_timeline(&recordings).contains("events from cycle"));
}

/// What a viewer needs: timestamps that never go back in a thread, slices that nest, arrows with both ends.
#[test]
fn a_timeline_is_well_formed() {
    let (_, recordings) = recorded(Threads::One, Collector::LIMIT);
    let text = as_timeline(&recordings);
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut ends: BTreeMap<(u64, u64), Vec<u128>> = BTreeMap::new();
    let mut last: BTreeMap<(u64, u64), u128> = BTreeMap::new();
    let mut arrows: BTreeMap<String, i64> = BTreeMap::new();
    let mut named = BTreeSet::new();
    // Six decimals of these few microseconds are far within a float's precision.
    let picoseconds = |value: &serde_json::Value| (value.as_f64().unwrap() * 1e6).round() as u128;
    for event in document["traceEvents"].as_array().unwrap() {
        let thread = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
        match event["ph"].as_str().unwrap() {
            "M" => {
                assert!(named.insert((thread, event["name"].to_string())), "named once: {event}");
                continue;
            }
            "X" => {
                let (at, took) = (picoseconds(&event["ts"]), picoseconds(&event["dur"]));
                let open = ends.entry(thread).or_default();
                while open.last().is_some_and(|&end| end <= at) {
                    open.pop();
                }
                assert!(open.last().is_none_or(|&end| at + took <= end), "crosses the end of what is open: {event}");
                open.push(at + took);
            }
            "i" => assert_eq!(event["s"], "t"),
            "s" => *arrows.entry(event["id"].to_string()).or_default() += 1,
            "f" => *arrows.entry(event["id"].to_string()).or_default() -= 1,
            other => panic!("phase {other}"),
        }
        let at = picoseconds(&event["ts"]);
        assert!(last.insert(thread, at).is_none_or(|before| before <= at), "goes back in time: {event}");
        assert!(named.contains(&(thread, "\"thread_name\"".to_owned())), "thread without a name: {event}");
    }
    assert!(!arrows.is_empty() && arrows.values().all(|&ends| ends == 0));
    assert!(last.len() > 4 * 4, "vCPUs, actors and grace periods of four runs: {}", last.len());
}

#[test]
fn slices_of_a_vcpu_fill_its_time() {
    let (_, recordings) = recorded(Threads::One, Collector::LIMIT);
    for recording in &recordings {
        let vcpu: Vec<&Event> = recording.events.iter().filter(|event| event.track == Track::Vcpu(0)).collect();
        let mut covered = Cycles::ZERO;
        let mut until = Cycles::ZERO;
        for event in vcpu {
            if let (Trace::Guest { .. } | Trace::InHost { .. }, Extent::Slice { took, .. }) = (event.what, event.extent)
            {
                assert!(event.at >= until, "{}: {event:?} begins before {until:?}", recording.name);
                until = event.end();
                covered += took;
            }
        }
        assert_eq!(covered, until, "{}: guest and host follow each other without gaps", recording.name);
    }
}

/// Events that only protocols know of: what they name is filled in where the engine knows it.
#[test]
fn protocols_speak_for_themselves() {
    let (_, recordings) = recorded(Threads::One, Collector::LIMIT);
    let of = |run: usize, name| recordings[run].events.iter().filter(move |event| event.what.name() == name);
    let gone: Vec<_> = of(1, "kvm_unmap_hva_range").map(|event| event.what).collect();
    let [Trace::KvmUnmapHvaRange { start, end }] = gone[..] else { panic!("{gone:?}") };
    assert_eq!(end - start, REQUEST.range.0);
    let fast: Vec<_> = of(2, "kvm_mmu_zap_all_fast").map(|event| event.what).collect();
    let [Trace::KvmMmuZapAllFast { mmu_used_pages, .. }] = fast[..] else { panic!("{fast:?}") };
    assert!(mmu_used_pages > 64.MiB() >> 21, "tables of the guest, and the new root: {mmu_used_pages}");
}
