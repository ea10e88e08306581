//! The configuration value and what makes it legal.

use std::fmt;

use mmu_core::{Geometry, Hpa, Level, PageSize};

use super::word::REAL_BITS;

/// Smallest page of a tree: decides the size of last-level tables.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BasePage {
    /// 4 KiB: levels of 13, 9, 9 and 9 bits.
    K4,
    /// 64 KiB: levels of 13, 9, 9 and 5 bits.
    K64,
}

impl BasePage {
    /// The page size.
    pub const fn size(self) -> PageSize {
        match self {
            BasePage::K4 => PageSize::SIZE_4K,
            BasePage::K64 => PageSize::SIZE_64K,
        }
    }
    /// Index bits of a last-level table.
    pub const fn last_level_bits(self) -> u8 {
        match self {
            BasePage::K4 => 9,
            BasePage::K64 => 5,
        }
    }
}

/// Storage keys that limit *privileged* accesses to pages which problem state may use: key 0 of AMR and IAMR (ISA 3.1 Book III
/// 6.7.13.2, radix trees have no other key).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Keys {
    amr: u64,
    iamr: u64,
}

impl Keys {
    /// The keys in these register values.
    pub const fn new(amr: u64, iamr: u64) -> Self {
        Self { amr, iamr }
    }
    /// AMR bit 0: stores are refused.
    pub const fn denies_stores(self) -> bool {
        self.amr >> 63 == 1
    }
    /// AMR bit 1: loads are refused.
    pub const fn denies_loads(self) -> bool {
        self.amr >> 62 & 1 == 1
    }
    /// IAMR bit 1: fetches are refused.
    pub const fn denies_fetches(self) -> bool {
        self.iamr >> 62 & 1 == 1
    }
}

/// Which translation a tree makes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Scope {
    /// Guest real to host real: the second stage. Privilege and keys play no part.
    Partition,
    /// Effective to guest real (or, for LPID 0, to real): the first stage.
    Process(Keys),
}

/// Who sets R and C.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RcUpdate {
    /// The walk (allowed by the ISA; what QEMU 7 does).
    Hardware,
    /// Software, upon a storage interrupt with cause 0x00040000 (POWER9, POWER10, QEMU 10).
    Interrupt,
}

/// The cause reported for a fetch from a page whose EAA lacks execute permission. The manual's wording leaves both.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FetchDenied {
    /// 0x10000000, no-execute or guarded.
    NoExecute,
    /// 0x08000000, protection; 0x10000000 is left to guarded storage.
    Protection,
}

/// A tree or root word that the processor does not accept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RadixError {
    /// POWER9 and POWER10 have trees of 52 bits with a root of 13 only (user's manuals, 4.10.4.1 and 5.10.6.1).
    Unsupported {
        /// Address bits of the tree.
        tree_bits: u32,
        /// Index bits of its root.
        root_bits: u32,
    },
    /// A root is aligned to its size (64 KiB).
    Misaligned {
        /// The root asked for.
        root: Hpa,
    },
}

impl fmt::Display for RadixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RadixError::Unsupported { tree_bits, root_bits } => {
                write!(f, "a tree of {tree_bits} bits with a root of {root_bits} bits: use 52 and 13")
            }
            RadixError::Misaligned { root } => write!(f, "root at {root}: align it to 64K below 2^60"),
        }
    }
}
impl std::error::Error for RadixError {}

/// The doubleword that describes a tree: the first one of a partition-table or process-table entry (ISA 3.1 Book III 6.7.6).
///
/// `HR` (bit 0, partition table only), `RTS1` (1:2), `RPDB` (4:55), `RTS2` (56:58), `RPDS` (59:63).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RootWord(u64);

impl RootWord {
    pub(crate) const HOST_RADIX: u64 = 1 << 63;

    /// Wraps a raw doubleword; any pattern is allowed.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    /// The raw doubleword.
    pub const fn raw(self) -> u64 {
        self.0
    }
    /// The word of a 52-bit tree at `root`, without HR.
    ///
    /// # Errors
    /// A root that is misaligned or too far up.
    pub fn of(root: Hpa) -> Result<Self, RadixError> {
        let raw = root.raw();
        if raw & 0xffff != 0 || raw >> 60 != 0 {
            return Err(RadixError::Misaligned { root });
        }
        // Tree size = RTS + 31; 52 gives RTS = 0b10101, split into 0b10 and 0b101.
        Ok(Self(0b10 << 61 | raw | 0b101 << 5 | u64::from(Radix::ROOT_BITS)))
    }
    /// Address bits of the tree: RTS + 31.
    pub const fn tree_bits(self) -> u32 {
        ((self.0 >> 58 & 0x18) | (self.0 >> 5 & 7)) as u32 + 31
    }
    /// Index bits of the root: RPDS.
    pub const fn root_bits(self) -> u32 {
        (self.0 & 0x1f) as u32
    }
    /// The root: RPDB, less the bits inside the root's size.
    pub const fn root(self) -> Hpa {
        Hpa::new(self.0 & super::word::NLB & !((8 << self.root_bits()) - 1))
    }
    /// Host radix (HR), in a partition-table entry.
    pub const fn host_radix(self) -> bool {
        self.0 & Self::HOST_RADIX != 0
    }
    /// Whether a processor walks such a tree.
    ///
    /// # Errors
    /// [`RadixError::Unsupported`].
    pub const fn check(self) -> Result<(), RadixError> {
        match (self.tree_bits(), self.root_bits()) {
            (Radix::TREE_BITS, Radix::ROOT_BITS) => Ok(()),
            (tree_bits, root_bits) => Err(RadixError::Unsupported { tree_bits, root_bits }),
        }
    }
    /// Where the root's entry for `input` is, for any size at all: processors translate this address before they refuse
    /// the size.
    pub(crate) const fn first_entry(self, input: u64) -> Hpa {
        let index = match self.tree_bits().checked_sub(self.root_bits()) {
            Some(shift) if shift < 64 => input >> shift & ((1 << self.root_bits()) - 1),
            _ => 0,
        };
        Hpa::new(self.root().raw() + index * 8)
    }
}

/// One tree's format: ISA 3.0/3.1 radix as POWER9 and POWER10 implement it.
///
/// The walk follows the size fields of the tree itself, so that last-level tables of 9 and of 5 bits may mix in one tree
/// whatever the base page; the base page says what software builds.
///
/// ```
/// use arch_ppc_radix::{BasePage, Radix};
/// use mmu_core::{Format, PageSize};
/// let radix = Radix::partition(BasePage::K64);
/// let sizes: Vec<_> = radix.geometry().page_sizes().collect();
/// assert_eq!(sizes, [PageSize::SIZE_64K, PageSize::SIZE_2M, PageSize::SIZE_1G]);
/// ```
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Radix {
    pub(super) scope: Scope,
    pub(super) base: BasePage,
    pub(super) rc: RcUpdate,
    pub(super) fetch_denied: FetchDenied,
    pub(super) geometry: Geometry,
}

impl Radix {
    /// Address bits of a legal tree.
    pub const TREE_BITS: u32 = 52;
    /// Index bits of a legal root.
    pub const ROOT_BITS: u32 = 13;

    /// The tree of this scope and size, with hardware R/C updates.
    ///
    /// # Errors
    /// A tree or root size that POWER9 and POWER10 do not walk.
    pub fn new(scope: Scope, tree_bits: u32, root_bits: u32, base: BasePage) -> Result<Self, RadixError> {
        let unsupported = RadixError::Unsupported { tree_bits, root_bits };
        if (tree_bits, root_bits) != (Self::TREE_BITS, Self::ROOT_BITS) {
            return Err(unsupported);
        }
        let levels = [base.last_level_bits(), 9, 9, 13];
        let geometry = Geometry::uniform(base.size(), &levels, REAL_BITS, &[0, 1, 2]).map_err(|_| unsupported)?;
        Ok(Self { scope, base, rc: RcUpdate::Hardware, fetch_denied: FetchDenied::NoExecute, geometry })
    }

    /// A second-stage tree of the one legal size.
    pub fn partition(base: BasePage) -> Self {
        Self::legal(Scope::Partition, base)
    }

    /// A first-stage tree of the one legal size, with keys that deny nothing.
    pub fn process(base: BasePage) -> Self {
        Self::legal(Scope::Process(Keys::default()), base)
    }

    fn legal(scope: Scope, base: BasePage) -> Self {
        match Self::new(scope, Self::TREE_BITS, Self::ROOT_BITS, base) {
            Ok(radix) => radix,
            Err(error) => unreachable!("52 and 13 are the legal sizes: {error}"),
        }
    }

    /// The same tree with R and C set by `rc`.
    pub const fn with_rc(mut self, rc: RcUpdate) -> Self {
        self.rc = rc;
        self
    }
    /// The same tree reporting fetches without execute permission as `cause`.
    pub const fn with_fetch_denied(mut self, cause: FetchDenied) -> Self {
        self.fetch_denied = cause;
        self
    }
    /// The same tree limited by these keys; a partition-scoped tree has none and stays as it is.
    pub const fn with_keys(mut self, keys: Keys) -> Self {
        if let Scope::Process(_) = self.scope {
            self.scope = Scope::Process(keys);
        }
        self
    }
    /// Which translation it makes.
    pub const fn scope(&self) -> Scope {
        self.scope
    }
    /// The base page.
    pub const fn base_page(&self) -> BasePage {
        self.base
    }
    /// Who sets R and C.
    pub const fn rc(&self) -> RcUpdate {
        self.rc
    }

    /// Lowest address bit above those that index a table of `level`.
    #[inline]
    pub(super) const fn top(level: Level) -> u32 {
        match level.index() {
            0 => 21,
            1 => 30,
            2 => 39,
            _ => Self::TREE_BITS,
        }
    }
    /// Whether a table of `level` may have `bits` index bits (user's manuals: 9, and 9 or 5 at the last level).
    #[inline]
    pub(super) const fn legal_table(level: Level, bits: u32) -> bool {
        matches!((level.index(), bits), (0, 9 | 5) | (1 | 2, 9) | (3, 13))
    }
    /// Page size of a leaf of `level` in a table of `bits` index bits.
    #[inline]
    pub(super) const fn leaf_size(level: Level, bits: u32) -> PageSize {
        match PageSize::from_shift(Self::top(level).saturating_sub(bits)) {
            Some(size) => size,
            None => PageSize::SIZE_4K,
        }
    }
}
