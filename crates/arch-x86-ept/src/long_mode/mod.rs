//! The guest's own paging in IA-32e mode (SDM chapter 4): 4- and 5-level, 4 KiB, 2 MiB and 1 GiB pages.
//!
//! [`Format::decode`] tells what the word says of itself: user and supervisor rights from R/W, U/S and XD. What CR0.WP,
//! SMEP and SMAP add depends on the whole path, so it is applied by the walk, and the permissions of a finished walk are what
//! the processor allows. Protection keys, shadow stacks and EFLAGS.AC are not modelled (a guest that runs with AC set is a
//! walk without SMAP).

mod config;
mod fault;

pub use config::{LongModeAttrs, LongModeConfig, LongModeConfigError, NoExecute, Smap, Smep, WriteProtect};
pub use fault::{GuestTlbi, LongModeFault, PageFaultCode};

use mmu_core::tlb::Perms;
use mmu_core::{
    AccessKind, Begin, BreakRule, Delivery, EncodeError, Entry, Flush, FlushPlan, FlushScope, Format, Geometry, Hpa,
    Leaf, Level, Malformed, Mapped, NotPresent, PageSize, PathPlace, Privilege, Reach, Table, UpdateTime, Verdict,
    Walk, WalkCaches,
};

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
/// PAT of a 4 KiB leaf.
const PAT_SMALL: u64 = 1 << 7;
const G: u64 = 1 << 8;
/// PAT of a large leaf.
const PAT_LARGE: u64 = 1 << 12;
/// Software's bit for "was writable" (an AVL bit; ours, the architecture leaves it free).
const WAS_WRITABLE: u64 = 1 << 9;
const AVL: u64 = 7 << 9 | 0x7ff << 52;
const NX: u64 = 1 << 63;
const ADDRESS: u64 = (1 << 52) - (1 << 12);
/// Largest number of pages that Linux flushes one by one (`tlb_single_page_flush_ceiling`).
const SINGLE_PAGE_CEILING: u64 = 33;

/// IA-32e paging in one configuration; made by [`LongModeConfig::build`].
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct LongMode {
    config: LongModeConfig,
    geometry: Geometry,
    reserved: u64,
}

impl LongMode {
    fn from_parts(config: LongModeConfig, geometry: Geometry) -> Self {
        let mut reserved = (1 << 52) - (1 << config.max_phys_addr);
        if config.no_execute == NoExecute::Off {
            reserved |= NX;
        }
        Self { config, geometry, reserved }
    }

    /// What it was built from.
    pub const fn config(&self) -> &LongModeConfig {
        &self.config
    }

    const fn address_mask(&self) -> u64 {
        ADDRESS & !self.reserved
    }

    fn malformed(&self, level: Level, raw: u64) -> Option<Malformed> {
        let mut reserved = self.reserved;
        if level != Level::LAST && raw & PS != 0 {
            if !self.geometry.has_leaves_at(level) {
                return Some(Malformed::LeafLevel);
            }
            reserved |= (self.geometry.page_size(level).bytes() - 1) & ADDRESS & !PAT_LARGE;
        }
        (raw & reserved != 0).then_some(Malformed::Reserved { bits: raw & reserved })
    }

    /// The rights that R/W, U/S and XD bits give, before the control registers are asked.
    const fn own_perms(raw: u64) -> Perms {
        let mut perms = Perms::READ;
        if raw & RW != 0 {
            perms = perms.with(Perms::WRITE);
        }
        if raw & NX == 0 {
            perms = perms.with(Perms::EXEC);
        }
        if raw & US != 0 { Perms::from_bits(perms.bits() | perms.bits() << 3) } else { perms }
    }

    /// What the processor allows with path bits `acc` (SDM 4.6.1).
    fn allowed(&self, acc: u64) -> Perms {
        let mut perms = Self::own_perms(acc);
        if self.config.write_protect == WriteProtect::Off {
            perms = perms.with(Perms::WRITE);
        }
        if acc & US != 0 && self.config.smep == Smep::On {
            perms = perms.without(Perms::EXEC);
        }
        if acc & US != 0 && self.config.smap == Smap::On {
            perms = perms.without(Perms::READ.with(Perms::WRITE));
        }
        perms
    }

    fn code(&self, walk: &Walk) -> PageFaultCode {
        let mut code = PageFaultCode::default();
        if walk.access.kind.writes() {
            code = code.with(PageFaultCode::WRITE);
        }
        if walk.access.privilege == Privilege::User {
            code = code.with(PageFaultCode::USER);
        }
        let tells_fetch = self.config.no_execute == NoExecute::On || self.config.smep == Smep::On;
        if walk.access.kind == AccessKind::Execute && tells_fetch {
            code = code.with(PageFaultCode::FETCH);
        }
        code
    }

    fn software_bits() -> u64 {
        AVL
    }

    fn leaf(&self, level: Level, raw: u64) -> Leaf<LongModeAttrs> {
        let pat_bit = if level == Level::LAST { PAT_SMALL } else { PAT_LARGE };
        let pat = (raw & PWT != 0) as u8 | ((raw & PCD != 0) as u8) << 1 | ((raw & pat_bit != 0) as u8) << 2;
        let dirty = if raw & D != 0 { Perms::DIRTY } else { Perms::NONE };
        Leaf {
            output: self.output(level, raw),
            perms: Self::own_perms(raw).with(dirty),
            accessed: raw & A != 0,
            attrs: LongModeAttrs { pat_index: pat, global: raw & G != 0, software: raw & Self::software_bits() },
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

    fn permission_bits(&self, perms: Perms) -> Option<u64> {
        let mut bits = if perms.contains(Perms::WRITE) { RW } else { 0 };
        if perms.contains(Perms::USER_READ) {
            bits |= US;
        }
        if !perms.contains(Perms::EXEC) {
            bits |= NX;
        }
        let fits = Self::own_perms(bits) == perms.without(Perms::DIRTY) && bits & self.reserved == 0;
        fits.then_some(bits)
    }
}

impl Format for LongMode {
    type Attrs = LongModeAttrs;
    type Fault = LongModeFault;
    type Tlbi = GuestTlbi;

    const NAME: &'static str = "x86-long-mode";
    const UPDATE_TIME: UpdateTime = UpdateTime::BeforeNextStage;

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn decode(&self, level: Level, raw: u64) -> Entry<LongModeAttrs> {
        if raw & P == 0 {
            return Entry::NotPresent(if raw == 0 { NotPresent::Empty } else { NotPresent::Other(raw) });
        }
        match self.malformed(level, raw) {
            Some(why) => Entry::Malformed(why),
            None if self.is_leaf(level, raw) => Entry::Leaf(self.leaf(level, raw)),
            None => Entry::Table(Table { base: self.next_table(level, raw), index_bits: 9 }),
        }
    }

    fn encode_leaf(&self, level: Level, leaf: &Leaf<LongModeAttrs>) -> Result<u64, EncodeError> {
        if !self.geometry.has_leaves_at(level) {
            return Err(EncodeError::LeafLevel { level });
        }
        let address = self.check_address(leaf.output, self.geometry.page_size(level))?;
        let permission = self.permission_bits(leaf.perms).ok_or(EncodeError::Perms { perms: leaf.perms })?;
        let LongModeAttrs { pat_index, global, software } = leaf.attrs;
        if software & !Self::software_bits() != 0 || pat_index > 7 {
            return Err(EncodeError::Attribute {
                what: "long mode: software bits are 11:9 and 62:52, a PAT index is 0 to 7",
            });
        }
        let (size, pat) = if level == Level::LAST { (0, PAT_SMALL) } else { (PS, PAT_LARGE) };
        let when = |condition, bit| if condition { bit } else { 0 };
        Ok(P | address
            | permission
            | size
            | software
            | when(leaf.accessed, A)
            | when(leaf.perms.contains(Perms::DIRTY), D)
            | when(pat_index & 1 != 0, PWT)
            | when(pat_index & 2 != 0, PCD)
            | when(pat_index & 4 != 0, pat)
            | when(global, G))
    }

    /// A pointer that leaves all rights to the leaves: writable, user, executable. A is clear, as in a fresh table.
    fn encode_table(&self, level: Level, base: Hpa) -> Result<u64, EncodeError> {
        if level == Level::LAST || level > self.geometry.root() {
            return Err(EncodeError::Attribute {
                what: "long mode: no table pointer may stand at this level; use a leaf",
            });
        }
        Ok(self.check_address(base, PageSize::SIZE_4K)? | P | RW | US)
    }

    fn encode_not_present(&self, entry: NotPresent) -> Result<u64, EncodeError> {
        match entry {
            NotPresent::Empty => Ok(0),
            NotPresent::Other(raw) if raw & P == 0 && raw != 0 => Ok(raw),
            NotPresent::Other(_) => Err(EncodeError::Attribute {
                what: "long mode: the payload must not be zero and must leave bit 0 clear",
            }),
            NotPresent::Frozen | NotPresent::Owner(_) => {
                Err(EncodeError::Attribute { what: "long mode: guests have no such marker; use another payload" })
            }
        }
    }

    fn present_mask(&self) -> u64 {
        P
    }
    #[inline]
    fn is_leaf(&self, level: Level, raw: u64) -> bool {
        level == Level::LAST || raw & PS != 0
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
        A
    }
    fn dirty_mask(&self) -> u64 {
        D
    }
    fn hardware_accessed(&self) -> bool {
        true
    }
    fn hardware_dirty(&self) -> bool {
        true
    }
    fn is_writable(&self, raw: u64) -> bool {
        raw & RW != 0
    }
    fn write_protect(&self, raw: u64) -> u64 {
        if raw & RW != 0 { raw & !RW | WAS_WRITABLE } else { raw }
    }
    fn restore_write(&self, raw: u64) -> Option<u64> {
        (raw & RW == 0 && raw & WAS_WRITABLE != 0).then_some(raw & !WAS_WRITABLE | RW | D)
    }
    fn mark_old(&self, raw: u64) -> u64 {
        raw & !A
    }
    fn mark_young(&self, raw: u64) -> Option<u64> {
        (raw & A == 0).then_some(raw | A)
    }

    /// Single pages up to Linux's ceiling, the whole address space beyond it. INVLPG also drops all paging-structure caches
    /// of the current PCID, whatever the address (SDM 4.10.4.1).
    fn flush_plan(&self, flush: Flush) -> FlushPlan<GuestTlbi> {
        let delivery = match flush.reach {
            Reach::Local => Delivery::LocalInstruction,
            Reach::Everyone => Delivery::Interrupt,
        };
        let whole = Flush { scope: FlushScope::Vm, walk_caches: WalkCaches::Drop, reach: flush.reach };
        let FlushScope::Range { start, bytes, level } = flush.scope else {
            return FlushPlan { instruction: GuestTlbi::InvpcidSingleContext, repeats: 1, delivery, covers: whole };
        };
        let size = self.geometry.page_size(level.unwrap_or(Level::LAST).min(self.geometry.root()));
        let last = start.raw().saturating_add(bytes.saturating_sub(1));
        let pages = (last >> size.shift()) - (start.raw() >> size.shift()) + 1;
        if pages > SINGLE_PAGE_CEILING {
            return FlushPlan { instruction: GuestTlbi::InvpcidSingleContext, repeats: 1, delivery, covers: whole };
        }
        let scope = FlushScope::Range { start: start.align_down(size), bytes: pages << size.shift(), level };
        FlushPlan {
            instruction: GuestTlbi::Invlpg,
            repeats: pages,
            delivery,
            covers: Flush { scope, walk_caches: WalkCaches::Drop, reach: flush.reach },
        }
    }

    /// As for EPT: never required, but a change of page size leaves both sizes usable until the flush (SDM 4.10.2.3).
    fn break_rule(&self, level: Level, old: u64, new: u64) -> BreakRule {
        let leaf = |raw| match self.decode(level, raw) {
            Entry::Table(_) => Some(false),
            Entry::Leaf(_) => Some(true),
            Entry::NotPresent(_) | Entry::Malformed(_) => None,
        };
        match (leaf(old), leaf(new)) {
            (Some(old), Some(new)) if old != new => BreakRule::Relaxed(
                "the page size changes: translations of either size are used until the flush; keep frame and rights equal",
            ),
            _ => BreakRule::NotNeeded,
        }
    }

    fn begin(&self, root: Hpa, walk: &Walk) -> Result<Begin, LongModeFault> {
        let unused = 64 - self.geometry.input_bits();
        let canonical = ((walk.input << unused) as i64 >> unused) as u64 == walk.input;
        if !canonical {
            return Err(LongModeFault::NonCanonical { linear: walk.input });
        }
        let level = self.geometry.root();
        Ok(Begin { level, table: Table { base: root, index_bits: 9 }, acc: RW | US })
    }

    #[inline]
    fn entry(&self, walk: &Walk, level: Level, raw: u64, acc: &mut u64) -> Verdict<LongModeFault> {
        let fault = |code| Verdict::Fault(LongModeFault::PageFault { linear: walk.input, code, level });
        if raw & P == 0 {
            return fault(self.code(walk));
        }
        if self.malformed(level, raw).is_some() {
            return fault(self.code(walk).with(PageFaultCode::PRESENT).with(PageFaultCode::RESERVED));
        }
        // R/W and U/S count when set in every entry, XD when set in any.
        *acc = *acc & raw & (RW | US) | (*acc | raw) & NX;
        if !self.is_leaf(level, raw) {
            return Verdict::Table(Table { base: self.next_table(level, raw), index_bits: 9 });
        }
        let perms = self.allowed(*acc);
        if !perms.with(Perms::DIRTY).contains(Perms::needed_by(&walk.access)) {
            return fault(self.code(walk).with(PageFaultCode::PRESENT));
        }
        let dirty = raw & D != 0 || walk.access.kind.writes();
        Verdict::Leaf(Mapped {
            output: self.output(level, raw),
            size: self.geometry.page_size(level),
            perms: if dirty { perms.with(Perms::DIRTY) } else { perms },
        })
    }

    #[inline]
    fn updated(&self, walk: &Walk, _level: Level, raw: u64, place: PathPlace) -> u64 {
        match place {
            PathPlace::Leaf if walk.access.kind.writes() => raw | A | D,
            _ => raw | A,
        }
    }

    fn bus_fault(&self, walk: &Walk, level: Level) -> LongModeFault {
        LongModeFault::External { linear: walk.input, level }
    }
}
