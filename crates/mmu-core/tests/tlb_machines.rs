//! Machine descriptions: the shipped ones load, and every defect is reported with its place and a remedy.

use std::collections::BTreeSet;

use mmu_core::Cycles;
use mmu_core::machine::{Arch, Machine, MachineError};

const HOST: &str = "intel-granite-rapids-host";

fn host_with(from: &str, to: &str) -> Result<Machine, Vec<MachineError>> {
    let sheet = Machine::sheet(HOST).unwrap();
    assert!(sheet.contains(from), "{from}");
    Machine::from_toml(&sheet.replacen(from, to, 1))
}

fn only_error(from: &str, to: &str) -> MachineError {
    let errors = host_with(from, to).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(!errors[0].help.is_empty());
    errors[0].clone()
}

#[test]
fn every_sheet_loads_under_its_own_name() {
    for name in Machine::names() {
        let machine = Machine::builtin(name).unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
        assert_eq!(machine.name, name);
        assert!(Machine::sheet(name).unwrap().is_ascii(), "{name}");
    }
    assert!(Machine::names().is_sorted());
    let archs: BTreeSet<String> =
        Machine::names().map(|name| Machine::builtin(name).unwrap().arch.to_string()).collect();
    assert_eq!((Machine::names().count(), archs.len()), (15, 3));
}

#[test]
fn every_figure_of_a_sheet_has_a_confidence() {
    for name in Machine::names() {
        let sheet = Machine::sheet(name).unwrap();
        let costs = &sheet[sheet.find("[cost]").unwrap()..];
        for line in costs.lines().skip(1).filter(|line| line.contains(" = ")) {
            let comment = line.split_once('#').map(|(_, comment)| comment.trim());
            let code = comment.and_then(|comment| comment.chars().next());
            assert!(code.is_some_and(|code| "MVTSDRG".contains(code)), "{name}: {line}");
            if code == Some('G') {
                assert!(comment.unwrap().starts_with("G: "), "a guess gives its reason: {name}: {line}");
            }
        }
    }
}

#[test]
fn nanoseconds_become_cycles_of_the_clock() {
    let host = Machine::builtin(HOST).unwrap();
    assert_eq!(host.arch, Arch::X86_64);
    assert_eq!(host.costs.vm_exit, Cycles(1451));
    assert_eq!(host.costs.assist_dirty, Cycles(785));
    assert_eq!(host.caches.memory, Cycles(593));
    assert_eq!(host.costs.tlbie, Cycles::ZERO);
    assert!(host.costs.iter().any(|(name, cycles)| name == "vm_exit" && cycles == Cycles(1451)));
}

#[test]
fn all_defects_are_reported_with_their_places() {
    let sheet = Machine::sheet(HOST).unwrap();
    let broken = sheet
        .replacen("entries = 96, ways = 6", "entries = 96, ways = 7", 1)
        .replacen("ipi_ack_ns = 1455.0", "ipi_akc_ns = 1455.0", 1)
        .replacen("clock_ghz = 3.9", "clock_ghz = 0.0", 1)
        .replacen("arch = \"x86_64\"", "arch = \"vax\"", 1);
    let errors = Machine::from_toml(&broken).unwrap_err();
    let text = |error: &MachineError| broken[error.span.clone()].to_owned();
    let found: Vec<(String, &str)> = errors.iter().map(|error| (text(error), error.message.as_str())).collect();
    for (place, message) in [
        ("\"vax\"", "unknown architecture `vax`"),
        ("0.0", "clock_ghz is 0"),
        ("7", "96 entries cannot be cut into sets of 7 ways"),
        ("ipi_akc_ns", "unknown cost `ipi_akc`"),
    ] {
        assert!(found.contains(&(place.to_owned(), message)), "{place} {message} not in {found:?}");
    }
    assert!(errors.iter().any(|error| error.help.contains("`ipi_ack`")));
    assert!(errors.iter().any(|error| error.message == "cost `ipi_ack` is missing"));
    assert!(errors.is_sorted_by_key(|error| error.span.start));
}

#[test]
fn single_defects() {
    for (from, to, message) in [
        ("entries = 2048, ways = 32", "entries = 0, ways = 16", "a structure of 0 entries"),
        ("latency_cycles = 5 }", "latency_cycles = 0 }", "a latency of 0"),
        ("latency_cycles = 5 }", "latency_cycles = 500 }", "a latency of 16 cycles is no longer"),
        ("latency_ns = 152.0", "latency_ns = 152.0, latency_cycles = 3", "two latencies"),
        ("vm_exit_ns = 372.0", "vm_exit_ns = -1.0", "cost `vm_exit` is -1"),
        ("vm_exit_ns = 372.0", "vm_exit_ns = 0.0", "cost `vm_exit` is 0"),
        ("vm_exit_ns = 372.0", "vm_exit_ns = nan", "cost `vm_exit` is NaN"),
        ("[cost]", "[cost]\ntlbie_ns = 5.0", "cost `tlbie` does not exist on x86_64"),
        ("[cost]", "[cost]\nvm_exit_cycles = 5.0", "cost `vm_exit` is given twice"),
        ("[cost]", "[cost]\nvm_exit = 5.0", "cost `vm_exit` has no unit"),
        ("vmid_bits = 16", "vmid_bits = 17", "vmid_bits is 17"),
        ("line_bytes = 64", "line_bytes = 96", "lines of 96 bytes"),
        ("host_page = \"4K\"", "host_page = \"1K\"", "host pages of 1K are smaller"),
        ("tables = 2,", "tables = 3,", "tables of level 3 are the root's"),
        ("tables = 2,", "tables = 1,", "tables of level 1 have two caches"),
        (
            "index = \"hashed\", larger",
            "index = \"skewed\", replacement = \"tree-plru\", larger",
            "tree-PLRU cannot order",
        ),
        ("ports = [\"store\"]", "ports = []", "TLB array `l1d-store`: nobody asks"),
        ("ports = [\"store\"]", "ports = [\"load\"]", "no first-level TLB serves Store"),
        ("larger = \"skip\"", "larger = \"skip\", coalesce = { pages = 3 }", "TLB array `l2`: 3 pages"),
    ] {
        let error = only_error(from, to);
        assert!(error.message.starts_with(message), "{to}: {}", error.message);
    }
}

#[test]
fn malformed_files_name_their_place() {
    for (from, to, part) in [
        ("clock_ghz = 3.9", "clock_ghz = \"fast\"", "invalid type"),
        ("clock_ghz = 3.9", "clock_ghz = 3.9\ncolour = 1", "unknown field"),
        ("sizes = [\"1G\"]", "sizes = [\"3G\"]", "a page size is a power of two"),
        ("ports = [\"store\"]", "ports = [\"stoer\"]", "unknown variant"),
        ("[tags]", "[tags", ""),
    ] {
        let error = only_error(from, to);
        assert!(error.message.contains(part), "{to}: {}", error.message);
        assert_ne!(error.span, 0..0, "{to}");
    }
}

#[test]
fn unknown_machines_are_helped() {
    let errors = Machine::builtin("arm-neoverse-n2").unwrap_err();
    assert!(errors[0].help.starts_with("did you mean `arm-neoverse-n1`?"), "{}", errors[0]);
}
