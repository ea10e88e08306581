//! INVEPT and INVVPID (SDM 28.4.3 and 30.3): what they are called and what they hit.

use std::fmt;

use mmu_core::{Delivery, Flush, FlushPlan, FlushScope, Reach, WalkCaches};

use crate::config::InveptSupport;

/// An invalidation instruction with its type.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum InvTlbi {
    /// INVEPT type 1: guest-physical and combined mappings of one EPTP root (EP4TA).
    InveptSingleContext,
    /// INVEPT type 2: those of all roots.
    InveptAllContext,
    /// INVVPID type 0: linear and combined mappings of one linear address of one VPID.
    InvvpidAddress,
    /// INVVPID type 1: those of one VPID.
    InvvpidSingleContext,
    /// INVVPID type 2: those of all VPIDs but 0.
    InvvpidAllContext,
    /// INVVPID type 3: those of one VPID less global translations.
    InvvpidRetainingGlobals,
}

impl InvTlbi {
    /// The type operand.
    pub const fn operand(self) -> u8 {
        match self {
            InvTlbi::InvvpidAddress => 0,
            InvTlbi::InveptSingleContext | InvTlbi::InvvpidSingleContext => 1,
            InvTlbi::InveptAllContext | InvTlbi::InvvpidAllContext => 2,
            InvTlbi::InvvpidRetainingGlobals => 3,
        }
    }

    /// Whether translations that depend on EPT entries are gone after it. INVVPID drops combined mappings of its VPIDs but
    /// keeps guest-physical ones, hence cannot follow a change of an EPT entry (SDM 28.4.3.1).
    pub const fn follows_ept_changes(self) -> bool {
        matches!(self, InvTlbi::InveptSingleContext | InvTlbi::InveptAllContext)
    }
}

impl fmt::Display for InvTlbi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            InvTlbi::InveptSingleContext => "INVEPT single-context",
            InvTlbi::InveptAllContext => "INVEPT all-context",
            InvTlbi::InvvpidAddress => "INVVPID individual-address",
            InvTlbi::InvvpidSingleContext => "INVVPID single-context",
            InvTlbi::InvvpidAllContext => "INVVPID all-context",
            InvTlbi::InvvpidRetainingGlobals => "INVVPID single-context-retaining-globals",
        })
    }
}

/// INVEPT knows no ranges, and always takes the paging-structure caches along: whatever is asked for, the whole EP4TA goes.
pub(crate) fn plan(flush: Flush, invept: InveptSupport) -> FlushPlan<InvTlbi> {
    FlushPlan {
        instruction: match invept {
            InveptSupport::SingleContext => InvTlbi::InveptSingleContext,
            InveptSupport::AllContextOnly => InvTlbi::InveptAllContext,
        },
        repeats: 1,
        delivery: match flush.reach {
            Reach::Local => Delivery::LocalInstruction,
            Reach::Everyone => Delivery::Interrupt,
        },
        covers: Flush { scope: FlushScope::Vm, walk_caches: WalkCaches::Drop, reach: flush.reach },
    }
}
