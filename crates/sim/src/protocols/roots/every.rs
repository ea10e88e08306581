//! Walks over a whole VM: which roots they go through, and what keeps those alive meanwhile.
//!
//! Models `for_each_tdp_mmu_root`, its RCU form of 6.15, and `for_each_valid_tdp_mmu_root_yield_safe` (`arch/x86/kvm/mmu/tdp_mmu.c`). Aging looks into every
//! root, invalid ones too: a vCPU may not have left one yet, and its pages are young there. Dirty logging goes through valid roots only:
//! nobody enters the guest on an invalid one any more, and vCPUs have been kicked out of it (X39: eager splits that do not look).
//!
//! Locking: without references the caller holds `mmu_lock` for write all along, or is inside an RCU section, behind which a root is freed; with references it
//! may drop the lock in between. Flush: none. Frees: a root whose last reference was the walk's, as [`Roots::put`] says.
//!
//! The memslots of both address spaces of x86 are one set here, so a walk over a slot goes through the roots of both.

use mmu_core::{Format, GpaRange, Hpa};

use super::{Root, Roots, UnmapRoots};
use crate::engine::Host;
use crate::protocols::iter::FlushDebt;
use crate::protocols::nested::Shadow;
use crate::protocols::vm::NO_TABLES;
use crate::protocols::zap::{ZapLock, ZapPolicy, zap_leafs};

/// The roots of a VM, as walks find them.
#[derive(Debug)]
pub enum VmRoots<F> {
    /// One for the VM's whole life, or the one that a fast zap has put in its place: Arm, POWER, and x86 without a list. A VM may have none for a while
    /// ([`NO_TABLES`]): a guest of POWER that has a hashed table.
    Current,
    /// Those on a list.
    List(Roots<F>),
    /// One, and beside it the shadow tree that a nested guest runs on: dirty logging goes through its chains too.
    Nested(Shadow),
    /// Those on a list, and beside them a shadow tree.
    ListAndNested(Roots<F>, Shadow),
}

impl<F> Clone for VmRoots<F> {
    fn clone(&self) -> Self {
        match self {
            VmRoots::Current => VmRoots::Current,
            VmRoots::List(roots) => VmRoots::List(roots.clone()),
            VmRoots::Nested(shadow) => VmRoots::Nested(*shadow),
            VmRoots::ListAndNested(roots, shadow) => VmRoots::ListAndNested(roots.clone(), *shadow),
        }
    }
}

/// A root that a walk has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Visited {
    /// Its table.
    pub table: Hpa,
    root: Option<Root>,
}

impl<F: Format> VmRoots<F> {
    /// The tree of a nested guest, if there is one.
    pub fn shadow(&self) -> Option<&Shadow> {
        match self {
            VmRoots::Nested(shadow) | VmRoots::ListAndNested(_, shadow) => Some(shadow),
            VmRoots::Current | VmRoots::List(_) => None,
        }
    }

    /// The list of roots, if there is one.
    pub fn list(&self) -> Option<&Roots<F>> {
        match self {
            VmRoots::List(roots) | VmRoots::ListAndNested(roots, _) => Some(roots),
            VmRoots::Current | VmRoots::Nested(_) => None,
        }
    }

    /// `kvm_unmap_gfn_range`: what maps a range of guest memory goes, from the chains of a nested guest and from every root. Caller holds `mmu_lock` for
    /// write, and owes the returned flush before it drops it; what the nested guest had is flushed already, because its addresses are others.
    pub async fn unmap_gfn_range(&self, host: &Host<F>, range: GpaRange, zap: &ZapPolicy) -> FlushDebt {
        if let Some(shadow) = self.shadow() {
            shadow.unmap_locked(host, range).await;
        }
        match self.list() {
            Some(roots) => roots.unmap_gfn_range_by(host, range, zap).await,
            None => match host.root().await {
                NO_TABLES => FlushDebt::Clean,
                root => zap_leafs(host, root, range, zap).await,
            },
        }
    }

    /// The root after `previous`, without a reference.
    pub async fn next(&self, host: &Host<F>, previous: Option<Visited>, which: UnmapRoots) -> Option<Visited> {
        let Some(roots) = self.list() else {
            return match previous {
                None => Some(host.root().await)
                    .filter(|&table| table != NO_TABLES)
                    .map(|table| Visited { table, root: None }),
                Some(_) => None,
            };
        };
        let mut after = serial_of(previous);
        while let Some(root) = roots.successor(after) {
            if which == UnmapRoots::All || host.load(root.invalid).await == 0 {
                return Some(Visited { table: root.table, root: Some(root) });
            }
            after = root.serial;
        }
        None
    }

    /// The root after `previous`, with a reference; that of `previous` is put. The caller holds `mmu_lock` in this mode and goes through to the end.
    pub async fn next_yield_safe(
        &self,
        host: &Host<F>,
        previous: Option<Visited>,
        which: UnmapRoots,
        held: ZapLock,
    ) -> Option<Visited> {
        let Some(roots) = self.list() else { return self.next(host, previous, which).await };
        let found = roots.next_root(host, previous.and_then(|visited| visited.root), which, held).await;
        found.map(|root| Visited { table: root.table, root: Some(root) })
    }
}

fn serial_of(visited: Option<Visited>) -> u32 {
    visited.and_then(|visited| visited.root).map_or(0, |root| root.serial)
}
