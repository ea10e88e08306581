//! The EPT entry format (SDM 28.3.2 and 28.3.3).

use mmu_core::tlb::Perms;
use mmu_core::{
    Access, AccessKind, Begin, BreakRule, EncodeError, Entry, Flush, FlushPlan, Format, Geometry, Gpa, Hpa, Leaf,
    Level, Malformed, Mapped, NotPresent, PageSize, PathPlace, Privilege, Purpose, Settled, Table, UpdateTime, Verdict,
    Walk,
};

use crate::attrs::{EptAttrs, IgnorePat, MemoryType, SuppressVe};
use crate::bits::{
    A, ADDRESS, D, IGNORE_PAT, IGNORED_11, IGNORED_HIGH, LARGE, MAX_PHYS_BITS, MEMORY_TYPE_SHIFT, R, SUPPRESS_VE,
    TABLE_RESERVED, W, X, XU,
};
use crate::config::{AccessedDirty, AdvancedInfo, EptConfig, ExecuteOnly, ModeBasedExecute, ViolationException};
use crate::fault::{EptFault, EptReason, Qualification, Violation, ViolationCause, ViolationDelivery};
use crate::flush::{InvTlbi, plan};
use crate::kvm::{self, Spte};

/// Extended page tables in one configuration; made by [`EptConfig::build`] or [`crate::Eptp::enter`].
///
/// Words of leaves and tables are those that KVM writes: see [`kvm`] for the software bits. [`Format::is_mapped`] is
/// KVM's notion of presence.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Ept {
    config: EptConfig,
    geometry: Geometry,
    /// Bits 51:MAXPHYADDR.
    too_wide: u64,
    /// R, W, X and, with mode-based execute control, XU.
    permission: u64,
    /// What [`Format::settled`] goes by.
    ordinary: Ordinary,
}

/// Words that need no closer look: accessed where there is a flag for it, nothing reserved set, a table pointer with all
/// permissions, and a readable leaf of write-back memory. Every word of a guest's ordinary memory is one.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Ordinary {
    /// Input bits that no walk takes.
    beyond: u64,
    /// Of these bits of a table pointer, `table_set` are set.
    table: u64,
    table_set: u64,
    /// Address bits.
    address: u64,
    /// Of these bits of a leaf, `leaf_set` are set.
    leaf: u64,
    leaf_set: u64,
}

/// Smallest page.
const PAGE_SHIFT: u32 = 12;
/// The memory type of ordinary memory.
const WRITE_BACK: u64 = 6 << MEMORY_TYPE_SHIFT;

impl Ordinary {
    const fn new(has_flags: bool, permission: u64, too_wide: u64, input_bits: u32) -> Self {
        let flag = if has_flags { A } else { 0 };
        Self {
            beyond: !0 << input_bits,
            table: permission | flag | too_wide | LARGE | TABLE_RESERVED,
            table_set: permission | flag,
            address: ADDRESS & !too_wide,
            leaf: R | flag | too_wide | 7 << MEMORY_TYPE_SHIFT,
            leaf_set: R | flag | WRITE_BACK,
        }
    }
}

impl Ept {
    pub(crate) fn from_parts(config: EptConfig, geometry: Geometry) -> Self {
        let permission = match config.mode_based_execute {
            ModeBasedExecute::Off => R | W | X,
            ModeBasedExecute::On => R | W | X | XU,
        };
        let too_wide = (1 << MAX_PHYS_BITS) - (1 << config.max_phys_addr);
        let has_flags = matches!(config.accessed_dirty, AccessedDirty::On);
        let ordinary = Ordinary::new(has_flags, permission, too_wide, geometry.input_bits());
        Self { config, geometry, too_wide, permission, ordinary }
    }

    /// What it was built from.
    pub const fn config(&self) -> &EptConfig {
        &self.config
    }

    /// The bits that hardware ignores in a leaf at `level` of this configuration; [`EptAttrs::software`] may use them.
    pub fn software_bits(&self, level: Level) -> u64 {
        let mut bits = IGNORED_11 | IGNORED_HIGH;
        if level == Level::LAST {
            bits |= LARGE;
        }
        if matches!(self.config.accessed_dirty, AccessedDirty::Off) {
            bits |= A | D;
        }
        if matches!(self.config.mode_based_execute, ModeBasedExecute::Off) {
            bits |= XU;
        }
        bits
    }

    /// Address bits of an entry: MAXPHYADDR-1:12.
    pub(crate) const fn address_mask(&self) -> u64 {
        ADDRESS & !self.too_wide
    }

    const fn has_flags(&self) -> bool {
        matches!(self.config.accessed_dirty, AccessedDirty::On)
    }

    /// KVM's view of a word under this configuration.
    const fn spte(&self, raw: u64) -> Spte {
        Spte::new(raw, self.permission)
    }

    /// Which misconfiguration a present word is, if any (SDM 28.3.3.1).
    #[inline]
    fn malformed(&self, level: Level, raw: u64) -> Option<Malformed> {
        if raw & R == 0 {
            let executable = raw & self.permission & (X | XU) != 0;
            if raw & W != 0 || executable && self.config.execute_only == ExecuteOnly::Unsupported {
                return Some(Malformed::Permissions);
            }
        }
        let leaf = self.is_leaf(level, raw);
        let mut reserved = self.too_wide;
        if !leaf {
            reserved |= TABLE_RESERVED;
        } else if level != Level::LAST {
            if !self.geometry.has_leaves_at(level) {
                return Some(Malformed::LeafLevel);
            }
            reserved |= (self.geometry.page_size(level).bytes() - 1) & ADDRESS;
        }
        if raw & reserved != 0 {
            return Some(Malformed::Reserved { bits: raw & reserved });
        }
        if leaf && MemoryType::from_code((raw >> MEMORY_TYPE_SHIFT & 7) as u8).is_none() {
            return Some(Malformed::MemoryType);
        }
        None
    }

    /// Permission bits as neutral permissions.
    #[inline]
    fn perms(&self, bits: u64) -> Perms {
        // R, W and X stand in the order of the privileged permissions, and those in that of the unprivileged ones.
        const { assert!(R as u8 == Perms::READ.bits() && W as u8 == Perms::WRITE.bits() && X as u8 == Perms::EXEC.bits()) };
        let privileged = (bits & (R | W | X)) as u8;
        let user = match self.config.mode_based_execute {
            ModeBasedExecute::Off => privileged,
            ModeBasedExecute::On => privileged & (R | W) as u8 | if bits & XU != 0 { X as u8 } else { 0 },
        };
        Perms::from_bits(privileged | user << 3)
    }

    /// The permission bits for `perms`, if some express just them.
    fn permission_bits(&self, perms: Perms) -> Option<u64> {
        let pick = |perm, bit| if perms.intersects(perm) { bit } else { 0 };
        let exec = match self.config.mode_based_execute {
            ModeBasedExecute::Off => pick(Perms::X, X),
            ModeBasedExecute::On => pick(Perms::EXEC, X) | pick(Perms::USER_EXEC, XU),
        };
        let bits = pick(Perms::R, R) | pick(Perms::W, W) | exec;
        (bits != 0 && self.perms(bits) == perms.without(Perms::DIRTY)).then_some(bits)
    }

    /// Whether an access counts as a write: with accessed and dirty flags the processor's reads of guest table entries do
    /// (SDM 28.3.5).
    const fn counts_as_write(&self, access: Access) -> bool {
        access.kind.writes() || self.has_flags() && matches!(access.purpose, Purpose::GuestTable)
    }

    /// The permission bits that an access needs.
    #[inline]
    const fn needed(&self, access: Access) -> u64 {
        match access.kind {
            AccessKind::Execute => match (self.config.mode_based_execute, access.privilege) {
                (ModeBasedExecute::On, Privilege::User) => XU,
                _ => X,
            },
            AccessKind::Write => W,
            AccessKind::ReadWrite => R | W,
            AccessKind::Read if self.counts_as_write(access) => R | W,
            AccessKind::Read => R,
        }
    }

    fn qualification(&self, access: Access, allowed: u64) -> Qualification {
        let mut bits = match access.kind {
            AccessKind::Execute => Qualification::FETCH,
            AccessKind::ReadWrite => Qualification::READ.with(Qualification::WRITE),
            _ if self.counts_as_write(access) => Qualification::WRITE,
            _ => Qualification::READ,
        };
        for (bit, field) in [
            (R, Qualification::READABLE),
            (W, Qualification::WRITABLE),
            (X, Qualification::EXECUTABLE),
            (XU, Qualification::USER_EXECUTABLE),
        ] {
            if allowed & self.permission & bit != 0 {
                bits = bits.with(field);
            }
        }
        bits = bits.with(Qualification::LINEAR_VALID);
        match access.purpose {
            // An access to a guest table entry that counts as a write sets both (SDM 27.2.1, footnote to bits 0 and 1).
            Purpose::GuestTable => bits.with(Qualification::READ),
            Purpose::Data => {
                let user = self.config.advanced_info == AdvancedInfo::Reported && access.privilege == Privilege::User;
                let bits = if user { bits.with(Qualification::USER_LINEAR) } else { bits };
                bits.with(Qualification::FINAL)
            }
        }
    }

    /// [`Format::settled`] for a leaf; `large` is [`LARGE`] above the last level, where it must be set.
    #[inline(always)]
    fn settled_leaf(&self, access: Access, level: Level, large: u64, raw: u64, allowed: u64) -> Settled {
        let Some(size) = PageSize::from_shift(PAGE_SHIFT + 9 * level.index() as u32) else { return Settled::Unsettled };
        let inside = (size.bytes() - 1) & ADDRESS;
        let need = self.needed(access);
        let clean = self.has_flags() && raw & D == 0;
        if raw & (self.ordinary.leaf | inside | large) != self.ordinary.leaf_set | large
            || allowed & need != need
            || clean && self.counts_as_write(access)
        {
            return Settled::Unsettled;
        }
        let perms = self.perms(allowed).with(if clean { Perms::NONE } else { Perms::DIRTY });
        Settled::Leaf(Mapped { output: Hpa::new(raw & self.ordinary.address), size, perms })
    }

    #[cold]
    #[inline(never)]
    fn settled_large(&self, access: Access, level: Level, raw: u64, allowed: u64) -> Settled {
        if self.geometry.has_leaves_at(level) {
            self.settled_leaf(access, level, LARGE, raw, allowed)
        } else {
            Settled::Unsettled
        }
    }

    /// [`Format::is_mapped`] of a word that may not be read through.
    fn is_unreadable_mapped(&self, raw: u64) -> bool {
        let spte = self.spte(raw);
        raw & self.permission != 0 && !spte.is_mmio() || !self.has_flags() && spte.is_access_tracked()
    }

    /// A violation decided by `raw`, with `allowed` the AND of the permissions walked.
    #[cold]
    fn violation(
        &self,
        input: u64,
        access: Access,
        level: Level,
        raw: u64,
        allowed: u64,
        cause: ViolationCause,
    ) -> EptFault {
        let delivery = match self.config.violation_exception {
            ViolationException::On if raw & SUPPRESS_VE == 0 && cause != ViolationCause::Width => {
                ViolationDelivery::Convertible
            }
            _ => ViolationDelivery::Exit,
        };
        let qualification = self.qualification(access, allowed);
        let reason = EptReason::Violation(Violation { qualification, cause, delivery });
        EptFault { gpa: Gpa::new(input), level, reason }
    }

    fn leaf(&self, level: Level, raw: u64) -> Leaf<EptAttrs> {
        let flags = self.has_flags();
        let dirty = if flags && raw & D == 0 { Perms::NONE } else { Perms::DIRTY };
        Leaf {
            output: self.output(level, raw),
            perms: self.perms(raw).with(dirty),
            accessed: !flags || raw & A != 0,
            attrs: EptAttrs {
                memory_type: MemoryType::from_code((raw >> MEMORY_TYPE_SHIFT & 7) as u8).unwrap_or_default(),
                ignore_pat: if raw & IGNORE_PAT == 0 { IgnorePat::Honour } else { IgnorePat::Ignore },
                suppress_ve: if raw & SUPPRESS_VE == 0 { SuppressVe::Convertible } else { SuppressVe::Suppressed },
                software: raw & self.software_bits(level),
            },
        }
    }

    fn flag_bits(&self, leaf: &Leaf<EptAttrs>) -> Result<u64, EncodeError> {
        let dirty = leaf.perms.contains(Perms::DIRTY);
        match (self.config.accessed_dirty, leaf.accessed, dirty) {
            (AccessedDirty::Off, true, true) => Ok(0),
            (AccessedDirty::Off, ..) => Err(EncodeError::Attribute {
                what: "EPT without accessed and dirty flags: a leaf is always accessed and dirty; set both, or mark it old",
            }),
            (AccessedDirty::On, accessed, dirty) => Ok(if accessed { A } else { 0 } | if dirty { D } else { 0 }),
        }
    }

    fn check_address(&self, address: Hpa, size: PageSize) -> Result<u64, EncodeError> {
        let bits = self.config.max_phys_addr;
        if address.is_aligned(size) && address.raw() >> bits == 0 {
            Ok(address.raw())
        } else {
            Err(EncodeError::Address { address, align: size, bits })
        }
    }
}

impl Format for Ept {
    type Attrs = EptAttrs;
    type Fault = EptFault;
    type Tlbi = InvTlbi;

    const NAME: &'static str = "x86-ept";
    const LOGS_MODIFICATIONS: bool = true;
    const UPDATE_TIME: UpdateTime = UpdateTime::BeforeNextStage;

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn decode(&self, level: Level, raw: u64) -> Entry<EptAttrs> {
        if raw & self.permission == 0 {
            return Entry::NotPresent(match raw {
                0 => NotPresent::Empty,
                raw if raw == self.spte(raw).frozen() => NotPresent::Frozen,
                raw => NotPresent::Other(raw),
            });
        }
        match self.malformed(level, raw) {
            Some(why) => Entry::Malformed(why),
            None if self.is_leaf(level, raw) => Entry::Leaf(self.leaf(level, raw)),
            None => Entry::Table(Table { base: self.next_table(level, raw), index_bits: 9 }),
        }
    }

    fn encode_leaf(&self, level: Level, leaf: &Leaf<EptAttrs>) -> Result<u64, EncodeError> {
        if !self.geometry.has_leaves_at(level) {
            return Err(EncodeError::LeafLevel { level });
        }
        let address = self.check_address(leaf.output, self.geometry.page_size(level))?;
        let perms = EncodeError::Perms { perms: leaf.perms };
        let permission = self.permission_bits(leaf.perms).ok_or(perms.clone())?;
        let flags = self.flag_bits(leaf)?;
        let EptAttrs { memory_type, ignore_pat, suppress_ve, software } = leaf.attrs;
        if software & !self.software_bits(level) != 0 {
            return Err(EncodeError::Attribute {
                what: "EPT: software bits outside those that this configuration ignores; see Ept::software_bits",
            });
        }
        let large = if level == Level::LAST { 0 } else { LARGE };
        let mut word = address | permission | flags | software | large;
        word |= u64::from(memory_type.code()) << MEMORY_TYPE_SHIFT;
        word |= if ignore_pat == IgnorePat::Ignore { IGNORE_PAT } else { 0 };
        word |= if suppress_ve == SuppressVe::Suppressed { SUPPRESS_VE } else { 0 };
        match self.malformed(level, word) {
            Some(_) => Err(perms),
            None => Ok(word),
        }
    }

    /// A table pointer as KVM writes it (`make_nonleaf_spte`): all permissions, accessed, the A/D type in bits 53:52.
    fn encode_table(&self, level: Level, base: Hpa) -> Result<u64, EncodeError> {
        if level == Level::LAST || level > self.geometry.root() {
            return Err(EncodeError::Attribute { what: "EPT: no table pointer may stand at this level; use a leaf" });
        }
        let base = self.check_address(base, self.geometry.granule())?;
        let flags = if self.has_flags() { A } else { kvm::AD_DISABLED };
        Ok(base | self.permission | flags | kvm::MMU_PRESENT)
    }

    fn encode_not_present(&self, entry: NotPresent) -> Result<u64, EncodeError> {
        let frozen = self.spte(0).frozen();
        match entry {
            NotPresent::Empty => Ok(0),
            NotPresent::Frozen => Ok(frozen),
            NotPresent::Other(raw) if raw & self.permission == 0 && raw != 0 && raw != frozen => Ok(raw),
            NotPresent::Other(_) => Err(EncodeError::Attribute {
                what: "EPT: the payload must not be zero, not the frozen marker, and leave the permission bits clear",
            }),
            NotPresent::Owner(_) => {
                Err(EncodeError::Attribute { what: "EPT: KVM keeps no owner in x86 entries; use another payload" })
            }
        }
    }

    fn present_mask(&self) -> u64 {
        self.permission
    }

    #[inline]
    fn is_mapped(&self, raw: u64) -> bool {
        // PERF: what is readable is mapped, and what is zero is not; both are asked first.
        raw & R != 0 || raw != 0 && self.is_unreadable_mapped(raw)
    }

    #[inline]
    fn is_leaf(&self, level: Level, raw: u64) -> bool {
        level == Level::LAST || raw & LARGE != 0
    }
    #[inline]
    fn output(&self, level: Level, raw: u64) -> Hpa {
        Hpa::new(raw & self.address_mask() & !(self.geometry.page_size(level).bytes() - 1))
    }
    #[inline]
    fn next_table(&self, _level: Level, raw: u64) -> Hpa {
        Hpa::new(raw & self.address_mask())
    }

    fn progression(&self, level: Level, output: Hpa) -> u64 {
        (1u64 << self.config.max_phys_addr).saturating_sub(output.raw()) >> self.geometry.shift(level)
    }

    fn accessed_mask(&self) -> u64 {
        if self.has_flags() { A } else { 0 }
    }
    fn dirty_mask(&self) -> u64 {
        if self.has_flags() { D } else { 0 }
    }
    fn hardware_accessed(&self) -> bool {
        self.has_flags()
    }
    fn hardware_dirty(&self) -> bool {
        self.has_flags()
    }

    fn is_writable(&self, raw: u64) -> bool {
        raw & W != 0
    }
    fn write_protect(&self, raw: u64) -> u64 {
        self.spte(raw).write_protect().raw()
    }
    fn restore_write(&self, raw: u64) -> Option<u64> {
        self.spte(raw).restore_write().map(|spte| spte.raw() | self.dirty_mask())
    }
    fn mark_old(&self, raw: u64) -> u64 {
        if self.has_flags() { raw & !A } else { self.spte(raw).mark_access_tracked().raw() }
    }
    fn mark_young(&self, raw: u64) -> Option<u64> {
        if self.has_flags() {
            (raw & A == 0).then_some(raw | A)
        } else {
            self.spte(raw).restore_access_tracked().map(Spte::raw)
        }
    }

    fn flush_plan(&self, flush: Flush) -> FlushPlan<InvTlbi> {
        plan(flush, self.config.invept)
    }

    /// x86 never requires break-before-make. Changing the page size of a range together with its frame or rights leaves
    /// translations of both kinds usable, any of them at any time, until the flush (SDM 4.10.2.3).
    fn break_rule(&self, level: Level, old: u64, new: u64) -> BreakRule {
        let kind = |raw| match self.decode(level, raw) {
            Entry::Table(_) => Some(false),
            Entry::Leaf(_) => Some(true),
            Entry::NotPresent(_) | Entry::Malformed(_) => None,
        };
        match (kind(old), kind(new)) {
            (Some(old), Some(new)) if old != new => BreakRule::Relaxed(
                "the page size changes: translations of either size are used until the flush; keep frame and rights equal",
            ),
            _ => BreakRule::NotNeeded,
        }
    }

    #[inline]
    fn begin(&self, root: Hpa, walk: &Walk) -> Result<Begin, EptFault> {
        let level = self.geometry.root();
        if walk.input & self.ordinary.beyond != 0 {
            return Err(self.violation(walk.input, walk.access, level, 0, 0, ViolationCause::Width));
        }
        Ok(Begin { level, table: Table { base: root, index_bits: 9 }, acc: self.permission })
    }

    #[inline]
    fn entry_index(&self, level: Level, _table: Table, input: u64) -> u64 {
        input >> (PAGE_SHIFT + 9 * level.index() as u32) & 511
    }

    #[inline]
    fn settled(&self, walk: &Walk, level: Level, raw: u64, acc: &mut u64) -> Settled {
        if level == Level::LAST {
            self.settled_leaf(walk.access, level, 0, raw, *acc & raw)
        } else if raw & self.ordinary.table == self.ordinary.table_set {
            // All permissions: they leave `acc` as it is.
            Settled::Table(Table { base: Hpa::new(raw & self.ordinary.address), index_bits: 9 })
        } else {
            self.settled_large(walk.access, level, raw, *acc & raw)
        }
    }

    #[inline]
    fn entry(&self, walk: &Walk, level: Level, raw: u64, acc: &mut u64) -> Verdict<EptFault> {
        *acc &= raw;
        if raw & self.permission == 0 {
            return Verdict::Fault(self.violation(
                walk.input,
                walk.access,
                level,
                raw,
                *acc,
                ViolationCause::NotPresent,
            ));
        }
        // A misconfigured entry is found when it is read; permissions count once the whole path is known.
        if let Some(why) = self.malformed(level, raw) {
            let reason = EptReason::Misconfiguration(why);
            return Verdict::Fault(EptFault { gpa: Gpa::new(walk.input), level, reason });
        }
        if !self.is_leaf(level, raw) {
            return Verdict::Table(Table { base: self.next_table(level, raw), index_bits: 9 });
        }
        let need = self.needed(walk.access);
        if *acc & need != need {
            return Verdict::Fault(self.violation(
                walk.input,
                walk.access,
                level,
                raw,
                *acc,
                ViolationCause::Permission,
            ));
        }
        let clean = self.has_flags() && raw & D == 0 && !self.counts_as_write(walk.access);
        let dirty = if clean { Perms::NONE } else { Perms::DIRTY };
        Verdict::Leaf(Mapped {
            output: self.output(level, raw),
            size: self.geometry.page_size(level),
            perms: self.perms(*acc).with(dirty),
        })
    }

    #[inline]
    fn updated(&self, walk: &Walk, _level: Level, raw: u64, place: PathPlace) -> u64 {
        if !self.has_flags() {
            return raw;
        }
        match place {
            PathPlace::Leaf if self.counts_as_write(walk.access) => raw | A | D,
            _ => raw | A,
        }
    }

    fn bus_fault(&self, walk: &Walk, level: Level) -> EptFault {
        EptFault { gpa: Gpa::new(walk.input), level, reason: EptReason::External }
    }
}
