//! Protocols in any mixture, under any schedule.

use mmu_explore::programs::{Program, Schedule};

/// A program, then a byte for each decision.
pub(crate) fn protocol_schedule(data: &[u8]) {
    let (program, schedule) = Program::from_bytes(data);
    let report = program.scenario().execute(Box::new(Schedule::new(schedule)));
    if let Some(failure) = report.failure {
        panic!("{program}{}", failure.table());
    }
}
