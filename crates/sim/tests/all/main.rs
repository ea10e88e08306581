//! Tests of the engine and of the protocols, on every architecture that has them.
//!
//! One binary on purpose: each protocol is generic over the architecture, so every test program would compile all of it again.

#[macro_use]
mod accessed;
mod access_tracking;
mod aging;
mod coalesce;
mod common;
mod dirty_log;
mod events;
mod every_root;
mod faults;
mod four_pebibytes;
mod guest_lines;
mod host_costs;
mod hpt_switch;
mod memslots;
mod museum;
mod nested;
mod notifier;
mod nx;
mod petabytes;
mod pfncache;
mod premapped;
mod roots;
mod runs;
mod selftests_faults;
mod selftests_logging;
mod selftests_slots;
mod slices;
mod snapshot;
mod split;
mod tlb_replay;
mod unlike;
mod zap;
