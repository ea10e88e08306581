//! What the hardware walk decides about one word.

use mmu_core::tlb::Perms;
use mmu_core::{Access, AccessKind, Level, Mapped, Purpose, Verdict, Walk};

use super::config::{FetchDenied, Keys, Radix, RcUpdate, Scope};
use super::fault::{RadixFault, Why};
use super::word::{
    Att, CHANGED, EAA_EXECUTE, EAA_PRIVILEGED, EAA_READ, EAA_READ_WRITE, LEAF, NLS, REFERENCED, VALID, next_table, page,
};

/// Accumulated attributes: index bits of the table being read, and whether that size is unsupported.
pub(super) const ACC_BITS: u64 = 0x1f;
/// The directory entry above gave a size that the processor does not support. Its answer comes only after the entry's
/// address went through the partition-scoped tree (as in QEMU; the ISA gives no order), hence one level late.
const ACC_BAD_CONFIG: u64 = 1 << 8;

const SUPERVISOR: Perms = Perms::READ.with(Perms::WRITE).with(Perms::EXEC);

/// Whether the access needs C. A walk's update of a table entry does not: quirk of all implementations that set R and C by walk.
const fn stores(access: Access) -> bool {
    access.kind.writes() && matches!(access.purpose, Purpose::Data)
}

/// What the EAA field says, before keys and attributes.
pub(super) fn eaa(scope: Scope, raw: u64) -> Perms {
    let mut perms = Perms::NONE;
    if raw & (EAA_READ | EAA_READ_WRITE) != 0 {
        perms = perms.with(Perms::R);
    }
    if raw & EAA_READ_WRITE != 0 {
        perms = perms.with(Perms::W);
    }
    if raw & EAA_EXECUTE != 0 {
        perms = perms.with(Perms::X);
    }
    match scope {
        Scope::Process(_) if raw & EAA_PRIVILEGED != 0 => perms & SUPERVISOR,
        _ => perms,
    }
}

/// What the keys take from privileged accesses to a page that problem state may use.
const fn denied_by(keys: Keys) -> Perms {
    let mut denied = Perms::NONE;
    if keys.denies_loads() {
        denied = denied.with(Perms::READ);
    }
    if keys.denies_stores() {
        denied = denied.with(Perms::WRITE);
    }
    if keys.denies_fetches() {
        denied = denied.with(Perms::EXEC);
    }
    denied
}

impl Radix {
    /// What the leaf word `raw` allows: EAA, keys and attribute together, without [`Perms::DIRTY`].
    pub fn rights(&self, raw: u64) -> Perms {
        let mut perms = eaa(self.scope, raw);
        if Att::of(raw) == Att::NonIdempotentIo {
            perms = perms.without(Perms::X);
        }
        match self.scope {
            Scope::Process(keys) if raw & EAA_PRIVILEGED == 0 => perms.without(denied_by(keys)),
            _ => perms,
        }
    }

    /// Whether the leaf word `raw` allows `access`: guarded storage, then permissions, then (if software sets them) R
    /// and C.
    ///
    /// # Errors
    /// What forbids it.
    #[inline]
    pub fn permit(&self, raw: u64, access: &Access) -> Result<(), Why> {
        let fetch = access.kind == AccessKind::Execute;
        if fetch && Att::of(raw) == Att::NonIdempotentIo {
            return Err(Why::NoExecute);
        }
        // Reading or updating a table of the guest needs read permission only.
        let needed = match access.purpose {
            Purpose::GuestTable => Perms::READ,
            Purpose::Data => Perms::needed_by(access).without(Perms::DIRTY),
        };
        if !self.rights(raw).contains(needed) {
            return Err(match (fetch, self.fetch_denied) {
                (true, FetchDenied::NoExecute) => Why::NoExecute,
                _ => Why::Protection,
            });
        }
        match self.rc {
            RcUpdate::Hardware => Ok(()),
            RcUpdate::Interrupt if raw & REFERENCED == 0 => Err(Why::Reference),
            RcUpdate::Interrupt if stores(*access) && raw & CHANGED == 0 => Err(Why::Change),
            RcUpdate::Interrupt => Ok(()),
        }
    }

    /// The leaf word after a permitted `access`: with hardware updates R is set, and C for a store.
    #[inline]
    pub(super) fn touched(&self, raw: u64, access: Access) -> u64 {
        match self.rc {
            RcUpdate::Hardware => raw | REFERENCED | if stores(access) { CHANGED } else { 0 },
            RcUpdate::Interrupt => raw,
        }
    }

    pub(super) fn fault(&self, walk: &Walk, level: Option<Level>, why: Why) -> RadixFault {
        RadixFault { scope: self.scope, why, access: walk.access, level }
    }

    #[inline]
    pub(super) fn on_entry(&self, walk: &Walk, level: Level, raw: u64, acc: &mut u64) -> Verdict<RadixFault> {
        let fault = |why| Verdict::Fault(self.fault(walk, Some(level), why));
        if *acc & ACC_BAD_CONFIG != 0 {
            return fault(Why::BadConfig);
        }
        if raw & VALID == 0 {
            return fault(Why::NoEntry);
        }
        if raw & LEAF != 0 {
            let size = Self::leaf_size(level, (*acc & ACC_BITS) as u32);
            return match self.permit(raw, &walk.access) {
                Ok(()) => {
                    let dirty = if self.touched(raw, walk.access) & CHANGED == 0 { Perms::NONE } else { Perms::DIRTY };
                    Verdict::Leaf(Mapped { output: page(raw, size), size, perms: self.rights(raw).with(dirty) })
                }
                Err(why) => fault(why),
            };
        }
        let Some(down) = level.down() else { return fault(Why::BadConfig) };
        let bits = (raw & NLS) as u32;
        *acc = u64::from(bits) | if Self::legal_table(down, bits) { 0 } else { ACC_BAD_CONFIG };
        Verdict::Table(mmu_core::Table { base: next_table(raw), index_bits: bits })
    }
}
