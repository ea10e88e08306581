//! Latency curves of two-stage translation, predicted from a machine description and scored against measurements.
//!
//! A microbenchmark chases pointers through `n` pages and measures an access. Here the same accesses go through the
//! machine's TLBs; a miss walks the guest's tables and, for each of its references, the hypervisor's, over real words;
//! every reference passes through the caches by host-physical address. What the machine's sheet does not say follows:
//! knees, plateaus and slopes are not fitted, they come out.
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`curve`] | curves by name, and what a point of each touches |
//! | [`prediction`] | predicting a point, with the events behind it |
//! | [`software`] | costs of events put together from the sheet: shootdowns, faults, atomics |
//! | [`score`] | predictions against a file of measurements: errors by band, knees, order |
//! | [`calibrate`] | figures of a sheet that measurements say directly |
//! | [`fit`] | figures that take a search, and families of curves predicted from the others |
//!
//! # Not here
//!
//! Noise and stolen time: predictions are compared with medians. Prefetching of data: chases defeat it. Where the frames of a
//! benchmark lie is chosen as in a machine that has run for a while; a freshly started one may be faster.

pub mod calibrate;
pub mod chase;
pub mod curve;
pub mod fit;
mod layout;
mod order;
mod overlap;
pub mod prediction;
mod price;
pub mod score;
pub mod software;

pub use curve::{Curve, CurveError, Form};
pub use layout::{LayoutError, Surroundings};
pub use prediction::{Events, PredictError, Prediction, cold_walk, predict, predict_all};
