//! Readers of files that nobody vouches for.

use std::io::Cursor;

use mmu_core::machine::Machine;
use mmu_trace::{ReadOptions, TraceFormat, TraceReader};

use crate::bytes::Bytes;
use crate::explained;

const RECORDS: u64 = 10_000;

/// First byte: the format, or 0 for detection; then the trace.
pub(crate) fn trace(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let choice = usize::from(bytes.u8()) % (TraceFormat::ALL.len() + 1);
    let format = choice.checked_sub(1).map(|i| TraceFormat::ALL[i]);
    let limits = mmu_trace::Limits {
        records: RECORDS,
        decompressed_bytes: 1 << 20,
        line_bytes: 256,
        xz_memory_kib: 4 << 10,
        pages: 1 << 10,
    };
    let input = Cursor::new(bytes.rest().to_vec());
    let mut reader = match TraceReader::from_reader(input, "fuzz", &ReadOptions { format, limits }) {
        Ok(reader) => reader,
        Err(error) => return explained(&error),
    };
    let (mut batch, mut records) = (Vec::new(), 0);
    loop {
        batch.clear();
        match reader.fill(&mut batch, 4096) {
            Ok(0) => return,
            Ok(n) => {
                assert_eq!(n, batch.len());
                records += n as u64;
                assert!(records <= RECORDS, "{records} records, limit {RECORDS}");
            }
            Err(error) => return explained(&error),
        }
    }
}

/// A machine sheet.
pub(crate) fn machine_toml(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else { return };
    let Err(errors) = Machine::from_toml(source) else { return };
    assert!(!errors.is_empty(), "refused without a reason");
    for error in &errors {
        assert!(!error.message.is_empty() && !error.help.is_empty(), "{error:?} tells no message or no remedy");
        assert!(error.span.end <= source.len(), "{error:?} points behind the end");
        let (line, column) = error.line_column(source);
        assert!(line >= 1 && column >= 1, "{error:?} is nowhere");
    }
}

/// Recorded translations as JSON lines, plain or xz.
pub(crate) fn vectors(data: &[u8]) {
    let limits = mmu_vectors::Limits { line_bytes: 64 << 10, images: 16 };
    match mmu_vectors::check_reader("fuzz", Cursor::new(data), limits) {
        Ok(report) => assert!(report.images <= limits.images),
        Err(error) => explained(&error),
    }
}

/// Litmus tests, and the same bytes as protocol traces.
pub(crate) fn litmus(data: &[u8]) {
    use mmu_explore::explorer::{Bounds, Extent};
    use mmu_explore::{lint, litmus};

    const STATES: u64 = 500;
    let bounds = Bounds { states: STATES, transitions: 5_000, depth: 300 };
    let limits = litmus::Limits { bytes: 64 << 10, xz_memory_kib: 4 << 10, tests: 8, bounds, ..Default::default() };
    match litmus::read_each("fuzz", Cursor::new(data), &limits) {
        Ok(tests) => tests.iter().for_each(|test| match test {
            Ok(test) => {
                let judgement = litmus::judge(test, None, &limits);
                for found in [&judgement.sequential, &judgement.store_buffer] {
                    assert!(found.stats.states <= STATES, "{} states", found.stats.states);
                    assert!(!found.stuck, "{}: somebody waits for ever", judgement.id);
                    assert!(found.extent != Extent::Stopped || found.path.is_some(), "stopped without a reason");
                }
            }
            Err(error) => explained(error),
        }),
        Err(error) => explained(&error),
    }
    let limits = lint::Limits { bytes: 64 << 10, xz_memory_kib: 4 << 10, traces: 64, steps: 1_000 };
    match lint::judge_file("fuzz", Cursor::new(data), &limits) {
        Ok(traces) => assert!(traces.len() <= limits.traces),
        Err(error) => explained(&error),
    }
}
