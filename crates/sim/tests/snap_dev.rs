#[path = "all/common.rs"]
mod common;
#[path = "all/snapshot.rs"]
mod snapshot;
