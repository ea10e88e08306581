//! What a thread does with an effective address.
//!
//! ```text
//!              MSR[HV]=1                          MSR[HV]=0
//! quadrant 0   LPID 0, PID = PIDR                 LPID = LPIDR, PID = PIDR
//! quadrant 1   LPID = LPIDR, PID = PIDR (data)    segment interrupt
//! quadrant 2   LPID = LPIDR, PID = 0    (data)    segment interrupt
//! quadrant 3   LPID 0, PID = 0                    LPID = LPIDR, PID = 0
//! ```
//!
//! From there (ISA 3.1 Book III 6.7): the partition-table entry of the LPID gives the partition-scoped tree and the process
//! table; the process table's entry, itself at a guest real address, gives the process-scoped tree; that tree's tables
//! and its result go through the partition-scoped tree. For LPID 0 the partition-scoped tree translates the process table's
//! address and nothing else.
//!
//! # References of a cold access
//!
//! One reference is one table entry; a partition-table entry is one aligned quadword. Trees have four levels, pages are
//! base pages, R and C are set already:
//!
//! | access | partition table | process-table entry | trees | total |
//! | --- | --- | --- | --- | --- |
//! | guest real | 1 | - | 4 | 5 |
//! | guest, relocation on | 1 | 4 to translate its address + 1 | (4 + 1)(4 + 1) - 1 = 24 | 30 |
//! | hypervisor, quadrants 0 and 3 | 1 | 4 + 1 | 4 | 10 |
//!
//! Without the partition-table entry, which processors keep, the guest's access makes 29; with the process-table
//! entry kept too ([`KnownTables`]) the textbook's 24.

mod cursor;
mod interrupt;
mod tables;

pub use cursor::{KnownTables, MmuCursor, MmuReference, MmuStep, MmuTranslation};
pub use interrupt::{Interrupt, InterruptKind, Target};
pub use tables::{PartitionEntry, ProcessEntry, PtcrError};

use mmu_core::walk::{Bus, WalkCacheSet};
use mmu_core::{Access, AccessKind, Gva, Privilege};

use crate::radix::{BasePage, FetchDenied, Keys, Radix, RcUpdate};
use tables::PartitionTable;

/// `MSR[HV]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MsrMode {
    /// HV=1.
    Hypervisor,
    /// HV=0.
    Guest,
}

/// `MSR[DR]` for data, `MSR[IR]` for fetches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Relocation {
    /// Addresses are effective.
    On,
    /// Addresses are real: guest real with HV=0.
    Off,
}

/// One access as the program makes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EffectiveAccess {
    /// The effective address.
    pub address: Gva,
    /// Load, store or fetch, and `MSR[PR]`.
    pub access: Access,
    /// `MSR[HV]`.
    pub mode: MsrMode,
    /// `MSR[DR]` or `MSR[IR]`.
    pub relocation: Relocation,
}

impl EffectiveAccess {
    /// A privileged access of a guest with relocation on.
    pub const fn guest(address: Gva, kind: AccessKind) -> Self {
        Self {
            address,
            access: Access { kind, privilege: Privilege::Supervisor, ..Access::READ },
            mode: MsrMode::Guest,
            relocation: Relocation::On,
        }
    }
    /// A privileged access of a guest with relocation off.
    pub const fn guest_real(address: Gva, kind: AccessKind) -> Self {
        Self { relocation: Relocation::Off, ..Self::guest(address, kind) }
    }
    /// A privileged access of the hypervisor with relocation on.
    pub const fn hypervisor(address: Gva, kind: AccessKind) -> Self {
        Self { mode: MsrMode::Hypervisor, ..Self::guest(address, kind) }
    }
    /// The same access made in problem state.
    pub const fn user(mut self) -> Self {
        self.access = self.access.user();
        self
    }
}

/// A thread's translation state.
///
/// ```
/// use arch_ppc_radix::{EffectiveAccess, InterruptKind, MsrMode, PowerMmu};
/// use mmu_core::{AccessKind, Gva, image::MemoryImage, walk::NoCaches};
/// let mmu = PowerMmu::new(0x10_0000).unwrap().with_lpid(5);
/// // An empty partition table: the hypervisor gets the interrupt.
/// let access = EffectiveAccess::guest_real(Gva::new(0x1000), AccessKind::Read);
/// let interrupt = mmu.translate(access, &mut MemoryImage::everywhere(), &mut NoCaches).unwrap_err();
/// assert_eq!(interrupt.kind, InterruptKind::HypervisorDataStorage);
/// assert_eq!(interrupt.cause.bits(), 0x0008_0000);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PowerMmu {
    table: PartitionTable,
    lpid: u32,
    pid: u32,
    keys: Keys,
    rc: RcUpdate,
    fetch_denied: FetchDenied,
}

impl PowerMmu {
    /// A thread whose PTCR is `ptcr` (PATB in bits 4:51, PATS in bits 59:63), with LPIDR and PIDR 0, keys clear and R/C set
    /// by hardware.
    ///
    /// # Errors
    /// A size that the register cannot hold legally (PATS above 24, 2^36 bytes). A misaligned table is not an error here: the
    /// accesses that need it are interrupted.
    pub fn new(ptcr: u64) -> Result<Self, PtcrError> {
        Ok(Self {
            table: PartitionTable::new(ptcr)?,
            lpid: 0,
            pid: 0,
            keys: Keys::default(),
            rc: RcUpdate::Hardware,
            fetch_denied: FetchDenied::NoExecute,
        })
    }
    /// The thread with this LPIDR.
    pub const fn with_lpid(mut self, lpid: u32) -> Self {
        self.lpid = lpid;
        self
    }
    /// The thread with this PIDR.
    pub const fn with_pid(mut self, pid: u32) -> Self {
        self.pid = pid;
        self
    }
    /// The thread with these storage keys.
    pub const fn with_keys(mut self, keys: Keys) -> Self {
        self.keys = keys;
        self
    }
    /// The thread of a processor that sets R and C so.
    pub const fn with_rc(mut self, rc: RcUpdate) -> Self {
        self.rc = rc;
        self
    }
    /// The thread of a processor that reports fetches without execute permission so.
    pub const fn with_fetch_denied(mut self, cause: FetchDenied) -> Self {
        self.fetch_denied = cause;
        self
    }

    /// The format of the partition-scoped trees it walks (the base page is for builders; the walk reads it from the tree).
    pub fn partition_format(&self) -> Radix {
        Radix::partition(BasePage::K4).with_rc(self.rc).with_fetch_denied(self.fetch_denied)
    }
    /// The format of the process-scoped trees it walks.
    pub fn process_format(&self) -> Radix {
        Radix::process(BasePage::K4).with_keys(self.keys).with_rc(self.rc).with_fetch_denied(self.fetch_denied)
    }

    /// A walk that can stop after every reference, with nothing known beforehand.
    pub fn walk(&self, access: EffectiveAccess) -> MmuCursor {
        self.walk_knowing(access, KnownTables::default())
    }
    /// A walk that finds these entries cached and does not read them.
    pub fn walk_knowing(&self, access: EffectiveAccess, known: KnownTables) -> MmuCursor {
        MmuCursor::new(*self, access, known)
    }

    /// The whole translation at once.
    ///
    /// # Errors
    /// The interrupt it ends with.
    pub fn translate<B: Bus + ?Sized, C: WalkCacheSet + ?Sized>(
        &self,
        access: EffectiveAccess,
        bus: &mut B,
        caches: &mut C,
    ) -> Result<MmuTranslation, Interrupt> {
        self.walk(access).run(bus, caches)
    }

    /// LPID and PID that an effective address belongs to, or `None` for a segment interrupt.
    fn qualify(&self, access: &EffectiveAccess) -> Option<(u32, u32)> {
        let address = access.address.raw();
        // Bits 2:11 lie outside every tree. QEMU asks this of guest real addresses too, where the ISA would ignore the
        // bits or interrupt the hypervisor (3.1 Book III 6.7.2).
        if address >> 52 & 0x3ff != 0 {
            return None;
        }
        let fetch = access.access.kind == AccessKind::Execute;
        match (access.mode, address >> 62) {
            (MsrMode::Hypervisor, 0) => Some((0, self.pid)),
            (MsrMode::Hypervisor, 3) => Some((0, 0)),
            (MsrMode::Guest, 0) => Some((self.lpid, self.pid)),
            (MsrMode::Guest, 3) => Some((self.lpid, 0)),
            // Instructions are not fetched across partitions (6.7.5.1).
            (MsrMode::Hypervisor, 1) if !fetch => Some((self.lpid, self.pid)),
            (MsrMode::Hypervisor, 2) if !fetch => Some((self.lpid, 0)),
            _ => None,
        }
    }
}
