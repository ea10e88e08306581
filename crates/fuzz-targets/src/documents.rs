//! Readers of documents that the program writes itself, or that others have written for it.

use mmu_report::{Input, page};
use mmu_sim::explore::ReplayFile;
use mmu_sim::snapshot::Snapshot;
use mmu_sweep::Point;

use crate::explained;

/// A permission matrix or break-before-make rules.
pub(crate) fn matrix(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match mmu_vectors::check_matrix("fuzz", text) {
        Ok(report) => {
            let excepted: u64 = report.excepted.iter().map(|(_, cases)| cases).sum();
            assert_eq!(report.agreeing + report.disagreeing + excepted, report.cases);
        }
        Err(error) => explained(&error),
    }
}

/// Measured latency curves.
pub(crate) fn measurements(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match mmu_predict::score::read(text) {
        Ok(rows) => assert!(rows.iter().all(|row| row.core_cycles_median.is_finite())),
        Err(error) => {
            assert!(error.to_string().contains("core_cycles_median"), "{error} does not say what a file looks like");
        }
    }
}

/// A replay file of the explorer.
pub(crate) fn replay(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match ReplayFile::read(text) {
        Ok(file) => assert_eq!(file.write(), text, "another file than the one that was read"),
        Err(error) => assert!((1..=text.lines().count().max(1)).contains(&error.line), "{error} is nowhere"),
    }
}

/// A snapshot.
pub(crate) fn snapshot(data: &[u8]) {
    match Snapshot::inspect(data) {
        Ok(info) => assert_eq!(info.file_bytes, data.len() as u64),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A line of a sweep's plan.
pub(crate) fn sweep_point(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else { return };
    match Point::from_line(line, mmu_sim::MODEL_VERSION) {
        Ok(point) => assert_eq!(point.line(), line, "another point than the one that was read"),
        Err(what) => assert!(!what.is_empty()),
    }
}

/// A document for the HTML page. Nothing of it may become markup.
pub(crate) fn report(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let input = Input { name: "fuzz".to_owned(), text: text.to_owned() };
    match page("", &[input]) {
        Ok(page) => assert!(!page.contains("<script"), "{page}"),
        Err(error) => explained(&error),
    }
}
