//! The pair of formats that one virtual machine runs on.

use std::fmt;

use mmu_core::Format;

/// An architecture as the engine sees it: the guest's own tables over the hypervisor's.
///
/// Implemented once, by [`Arch2`]; the trait exists so that signatures name one parameter instead of two.
pub trait Arch: Copy + fmt::Debug + Send + Sync + 'static {
    /// First stage: the guest's tables.
    type One: Format;
    /// Second stage: the hypervisor's tables.
    type Two: Format;

    /// Short name for reports: `x86`, `arm64`, `power`.
    fn name(&self) -> &'static str;
    /// The guest's format.
    fn one(&self) -> &Self::One;
    /// The hypervisor's format.
    fn two(&self) -> &Self::Two;
}

/// A first-stage and a second-stage format under one name.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Arch2<F1, F2> {
    /// Short name for reports.
    pub name: &'static str,
    /// The guest's format.
    pub one: F1,
    /// The hypervisor's format.
    pub two: F2,
}

impl<F1: Format, F2: Format> Arch for Arch2<F1, F2> {
    type One = F1;
    type Two = F2;

    fn name(&self) -> &'static str {
        self.name
    }
    fn one(&self) -> &F1 {
        &self.one
    }
    fn two(&self) -> &F2 {
        &self.two
    }
}
