//! [`Format`] for radix trees: words, software's transitions, flushes.

use mmu_core::tlb::Perms;
use mmu_core::{
    Begin, BreakRule, EncodeError, Entry, Flush, FlushPlan, Format, Geometry, GuestUpdates, Hpa, Leaf, Level,
    Malformed, NotPresent, PageSize, PathPlace, Table, UpdateTime, Verdict, Walk,
};

use super::config::{Radix, RcUpdate, Scope};
use super::fault::{RadixFault, Why};
use super::hardware::eaa;
use super::tlbi::{Tlbi, plan};
use super::word::{
    ATT, Att, CHANGED, EAA_EXECUTE, EAA_PRIVILEGED, EAA_READ, EAA_READ_WRITE, FROZEN, LEAF, NLB, NLS, OWNED, PteAttrs,
    REAL_BITS, REFERENCED, RPN, SOFTWARE, SW1, VALID, ignored_mask, next_table, page,
};

impl Radix {
    /// Bits of a leaf at `level` that hardware ignores in this scope.
    fn ignored(&self, level: Level) -> u64 {
        let scope = match self.scope {
            // The privilege bit of a partition-scoped entry is ignored (ISA 3.1 Book III 6.7.13.1).
            Scope::Partition => EAA_PRIVILEGED,
            Scope::Process(_) => 0,
        };
        scope | ignored_mask(self.geometry.page_size(level))
    }

    /// The EAA field for these permissions. User rights are none or all of the privileged ones; stores imply loads.
    fn eaa_of(&self, perms: Perms) -> Result<u64, EncodeError> {
        let mut word = 0;
        for (bit, field) in [
            (Perms::READ, EAA_READ),
            (Perms::WRITE, EAA_READ | EAA_READ_WRITE),
            (Perms::EXEC, EAA_EXECUTE),
            (Perms::NONE, 0),
        ] {
            if bit != Perms::NONE && perms.contains(bit) {
                word |= field;
            }
        }
        if matches!(self.scope, Scope::Process(_)) && !perms.intersects(Perms::USER_READ | Perms::USER_EXEC) {
            word |= EAA_PRIVILEGED;
        }
        if eaa(self.scope, word) == perms.without(Perms::DIRTY) { Ok(word) } else { Err(EncodeError::Perms { perms }) }
    }

    fn decode_table(level: Level, raw: u64) -> Entry<PteAttrs> {
        let bits = (raw & NLS) as u32;
        match level.down() {
            Some(down) if Self::legal_table(down, bits) => {
                Entry::Table(Table { base: next_table(raw), index_bits: bits })
            }
            _ => Entry::Malformed(Malformed::TableSize),
        }
    }
}

impl Format for Radix {
    type Attrs = PteAttrs;
    type Fault = RadixFault;
    type Tlbi = Tlbi;

    const NAME: &'static str = "power-radix";
    /// R and C of a process-scoped entry are set once the partition-scoped tree has allowed the access too (ISA 3.1 Book III
    /// 6.7.12: for accesses that the translation permits).
    const UPDATE_TIME: UpdateTime = UpdateTime::AfterNextStage;
    /// R and C updates of process-scoped entries ask for no write permission and set no C below.
    const GUEST_UPDATES: GuestUpdates = GuestUpdates::ReadSuffices;

    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Leaves at the root (512 GiB) decode as malformed: no supported configuration has them, though a walk that meets
    /// one uses it, as QEMU does.
    fn decode(&self, level: Level, raw: u64) -> Entry<PteAttrs> {
        if raw & VALID == 0 {
            return Entry::NotPresent(match raw {
                0 => NotPresent::Empty,
                FROZEN => NotPresent::Frozen,
                _ if raw & !(0xff << 16) == OWNED => NotPresent::Owner((raw >> 16) as u8),
                _ => NotPresent::Other(raw),
            });
        }
        if raw & LEAF == 0 {
            return Self::decode_table(level, raw);
        }
        if !self.geometry.has_leaves_at(level) {
            return Entry::Malformed(Malformed::LeafLevel);
        }
        let dirty = if raw & CHANGED == 0 { Perms::NONE } else { Perms::DIRTY };
        Entry::Leaf(Leaf {
            output: self.output(level, raw),
            perms: eaa(self.scope, raw).with(dirty),
            accessed: raw & REFERENCED != 0,
            attrs: PteAttrs { att: Att::of(raw), software: raw & SOFTWARE, ignored: raw & self.ignored(level) },
        })
    }

    fn encode_leaf(&self, level: Level, leaf: &Leaf<PteAttrs>) -> Result<u64, EncodeError> {
        if !self.geometry.has_leaves_at(level) {
            return Err(EncodeError::LeafLevel { level });
        }
        let size = self.geometry.page_size(level);
        let raw = leaf.output.raw();
        if raw & (size.bytes() - 1) != 0 || raw >> REAL_BITS != 0 {
            return Err(EncodeError::Address { address: leaf.output, align: size, bits: REAL_BITS.into() });
        }
        if leaf.attrs.software & !SOFTWARE != 0 {
            return Err(EncodeError::Attribute { what: "software bits are 0x2000000000000e00; clear the others" });
        }
        if leaf.attrs.ignored & !self.ignored(level) != 0 {
            return Err(EncodeError::Attribute { what: "hardware does not ignore these bits here; clear them" });
        }
        let accessed = if leaf.accessed { REFERENCED } else { 0 };
        let dirty = if leaf.perms.contains(Perms::DIRTY) { CHANGED } else { 0 };
        let attrs = leaf.attrs.att.bits() | leaf.attrs.software | leaf.attrs.ignored;
        Ok(VALID | LEAF | raw | accessed | dirty | attrs | self.eaa_of(leaf.perms)?)
    }

    fn encode_table(&self, level: Level, base: Hpa) -> Result<u64, EncodeError> {
        let Some(down) = level.down().filter(|_| level <= self.geometry.root()) else {
            return Err(EncodeError::Attribute { what: "tables hang below levels 1 to 3; use one of these" });
        };
        let bits = self.geometry.index_bits(down);
        let align = PageSize::from_shift(bits + 3).unwrap_or(PageSize::SIZE_4K);
        if !base.is_aligned(align) || base.raw() & !NLB != 0 {
            return Err(EncodeError::Address { address: base, align, bits: 60 });
        }
        Ok(VALID | base.raw() | u64::from(bits))
    }

    fn encode_not_present(&self, entry: NotPresent) -> Result<u64, EncodeError> {
        let raw = match entry {
            NotPresent::Empty => 0,
            NotPresent::Frozen => FROZEN,
            NotPresent::Owner(owner) => OWNED | u64::from(owner) << 16,
            NotPresent::Other(raw) => raw,
        };
        if self.decode(Level::LAST, raw) == Entry::NotPresent(entry) {
            Ok(raw)
        } else {
            Err(EncodeError::Attribute { what: "this payload is present or another marker; choose another" })
        }
    }

    fn present_mask(&self) -> u64 {
        VALID
    }
    fn is_leaf(&self, _level: Level, raw: u64) -> bool {
        raw & LEAF != 0
    }
    #[inline]
    fn output(&self, level: Level, raw: u64) -> Hpa {
        page(raw, self.geometry.page_size(level))
    }
    #[inline]
    fn next_table(&self, _level: Level, raw: u64) -> Hpa {
        next_table(raw)
    }
    fn progression(&self, level: Level, output: Hpa) -> u64 {
        ((RPN + (1 << 12)).saturating_sub(output.raw())) >> self.geometry.shift(level)
    }
    fn accessed_mask(&self) -> u64 {
        REFERENCED
    }
    fn dirty_mask(&self) -> u64 {
        CHANGED
    }
    fn hardware_accessed(&self) -> bool {
        self.rc == RcUpdate::Hardware
    }
    fn hardware_dirty(&self) -> bool {
        self.rc == RcUpdate::Hardware
    }
    fn is_writable(&self, raw: u64) -> bool {
        raw & EAA_READ_WRITE != 0
    }
    fn write_protect(&self, raw: u64) -> u64 {
        if self.is_writable(raw) { raw & !EAA_READ_WRITE | EAA_READ | SW1 } else { raw }
    }
    fn restore_write(&self, raw: u64) -> Option<u64> {
        (raw & SW1 != 0).then_some(raw & !SW1 | EAA_READ | EAA_READ_WRITE | CHANGED)
    }
    fn mark_old(&self, raw: u64) -> u64 {
        raw & !REFERENCED
    }
    fn mark_young(&self, raw: u64) -> Option<u64> {
        (raw & REFERENCED == 0).then_some(raw | REFERENCED)
    }

    fn flush_plan(&self, flush: Flush) -> FlushPlan<Tlbi> {
        plan(self, flush)
    }

    /// What Linux keeps to (`radix_pgtable.c`, `book3s_64_mmu_radix.c`): R, C, permissions and software bits of a valid leaf change in place
    /// (tightening them owes a flush afterwards); everything else of a valid entry is cleared and flushed first.
    fn break_rule(&self, _level: Level, old: u64, new: u64) -> BreakRule {
        if old & VALID == 0 || new & VALID == 0 || old == new {
            return BreakRule::NotNeeded;
        }
        match (old & LEAF != 0, new & LEAF != 0) {
            (true, true) if (old ^ new) & (RPN | ATT) == 0 => BreakRule::NotNeeded,
            (true, true) => BreakRule::Needed("another page or attribute: clear the entry and flush it first"),
            (false, false) if (old ^ new) & (NLB | NLS) == 0 => BreakRule::NotNeeded,
            (false, false) => BreakRule::Needed("another table: clear the entry and flush the page walk cache first"),
            _ => BreakRule::Needed("page size changes: clear the entry and flush both sizes first"),
        }
    }

    /// A partition-scoped input beyond 52 bits meets no entry; effective address bits 2:11 are a segment interrupt, and the
    /// quadrant (bits 0:1) is not looked at.
    #[inline]
    fn begin(&self, root: Hpa, walk: &Walk) -> Result<Begin, RadixFault> {
        const BEYOND: u64 = !((1 << Radix::TREE_BITS) - 1);
        match self.scope {
            Scope::Partition if walk.input & BEYOND != 0 => return Err(self.fault(walk, None, Why::NoEntry)),
            Scope::Process(_) if walk.input & BEYOND << 2 >> 2 != 0 => {
                return Err(self.fault(walk, None, Why::Segment));
            }
            _ => {}
        }
        let table = Table { base: root, index_bits: Self::ROOT_BITS };
        Ok(Begin { level: self.geometry.root(), table, acc: Self::ROOT_BITS.into() })
    }

    #[inline]
    fn entry_index(&self, level: Level, table: Table, input: u64) -> u64 {
        // A size that does not fit is refused after the read (see `on_entry`), so any index will do for it.
        match Self::top(level).checked_sub(table.index_bits) {
            Some(shift) => input >> shift & ((1 << table.index_bits) - 1),
            None => 0,
        }
    }

    #[inline]
    fn entry(&self, walk: &Walk, level: Level, raw: u64, acc: &mut u64) -> Verdict<RadixFault> {
        self.on_entry(walk, level, raw, acc)
    }

    #[inline]
    fn updated(&self, walk: &Walk, _level: Level, raw: u64, place: PathPlace) -> u64 {
        match place {
            PathPlace::Table => raw,
            PathPlace::Leaf => self.touched(raw, walk.access),
        }
    }

    fn bus_fault(&self, walk: &Walk, level: Level) -> RadixFault {
        self.fault(walk, Some(level), Why::Bus)
    }
}
