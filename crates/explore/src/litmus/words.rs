//! Entries of litmus tests as the real words of Arm's stage 1 and stage 2, and what the formats say of them.
//!
//! Pages of a test, physical and intermediate alike, are numbered; page `n` has the address `(n + 1) << 12`. A name that stands for
//! both is one page. Hence `{valid: 0}` is the word 0 and every valid entry is a page descriptor of the last level, written by the
//! format's own encoder; whether it translates, faults, or asks for an update of hardware is the format's own verdict.

use arch_arm64_s2::{HardwareUpdates, S1Attrs, S2Attrs, Stage1, Stage1Config, Stage2, Stage2Config};
use mmu_core::access::{AccessKind, Privilege};
use mmu_core::format::{Entry, FaultClass, FaultReport, Format, Leaf, PathPlace, Verdict, Walk};
use mmu_core::tlb::Perms;
use mmu_core::{Access, Hpa, Level};

const PAGE_SHIFT: u32 = 12;

/// Which translation stage an entry belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum StageNumber {
    /// Virtual to intermediate physical.
    One,
    /// Intermediate physical to physical.
    Two,
}

/// Who may do what, as a test says it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EntryPerm {
    pub(crate) write: bool,
    pub(crate) user: bool,
}

/// An entry as a test writes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EntrySpec {
    /// Number of the page it maps.
    pub(crate) page: u32,
    pub(crate) perm: EntryPerm,
    pub(crate) valid: bool,
    pub(crate) accessed: bool,
    pub(crate) dirty: bool,
    pub(crate) dbm: bool,
}

/// A bit of an entry, by the tests' names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EntryBit {
    Valid,
    Accessed,
    Dirty,
    Dbm,
}

/// What hardware management a thread has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Managed {
    pub(crate) accessed: bool,
    pub(crate) dirty: bool,
}

/// What a word means for one access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Meaning {
    /// Translates to a page.
    Page(u32),
    /// Translates to a page once hardware has made the word this one.
    Dirty { page: u32, left: u64 },
    /// Hardware sets the access flag, making the word this one, and looks again.
    Access { left: u64 },
    /// Faults.
    Fault(FaultClass),
}

/// Both stages under every management of flags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Words {
    one: [Stage1; 3],
    two: [Stage2; 3],
    one_dbm: u64,
    one_clean: u64,
    two_dbm: u64,
    two_clean: u64,
}

const MANAGEMENT: [HardwareUpdates; 3] =
    [HardwareUpdates::None, HardwareUpdates::Accessed, HardwareUpdates::AccessedAndDirty];

impl Words {
    /// Default geometries with 4K pages; says what is wrong if the formats refuse them.
    pub(crate) fn new() -> Result<Self, String> {
        let features = arch_arm64_s2::Features { updates: HardwareUpdates::AccessedAndDirty, ..Default::default() };
        let one = |updates| Stage1Config { updates, features, ..Default::default() }.build();
        let two = |updates| Stage2Config { updates, features, ..Default::default() }.build();
        let refused = |error: arch_arm64_s2::ConfigError| error.to_string();
        let [a, b, c] = MANAGEMENT;
        let mut words = Self {
            one: [one(a).map_err(refused)?, one(b).map_err(refused)?, one(c).map_err(refused)?],
            two: [two(a).map_err(refused)?, two(b).map_err(refused)?, two(c).map_err(refused)?],
            one_dbm: 0,
            one_clean: 0,
            two_dbm: 0,
            two_clean: 0,
        };
        // What the encoders make of one property tells where it stands.
        let perm = EntryPerm { write: true, user: true };
        let full = EntrySpec { page: 0, perm, valid: true, accessed: true, dirty: true, dbm: true };
        let differ =
            |a: EntrySpec, b: EntrySpec, stage| Ok::<u64, String>(words.encode(stage, &a)? ^ words.encode(stage, &b)?);
        let (no_dbm, clean) = (EntrySpec { dbm: false, ..full }, EntrySpec { dirty: false, ..full });
        let found = [
            differ(full, no_dbm, StageNumber::One)?,
            differ(full, clean, StageNumber::One)?,
            differ(full, no_dbm, StageNumber::Two)?,
            differ(full, clean, StageNumber::Two)?,
        ];
        [words.one_dbm, words.one_clean, words.two_dbm, words.two_clean] = found;
        Ok(words)
    }

    /// Both formats where hardware manages flags so.
    pub(crate) fn formats(&self, updates: HardwareUpdates) -> (Stage1, Stage2) {
        let level = match updates {
            HardwareUpdates::None => 0,
            HardwareUpdates::Accessed => 1,
            HardwareUpdates::AccessedAndDirty => 2,
        };
        (self.one[level], self.two[level])
    }

    /// The word of an entry.
    pub(crate) fn encode(&self, stage: StageNumber, entry: &EntrySpec) -> Result<u64, String> {
        let EntryPerm { write, user } = entry.perm;
        // Writable through DBM or at once; a read-only entry has neither.
        let (dirty, dbm) = (write && entry.dirty, write && entry.dbm);
        let writable = dirty || dbm;
        let pick = |on: bool, perms: Perms| if on { perms } else { Perms::NONE };
        let output = Hpa::new(u64::from(entry.page + 1) << PAGE_SHIFT);
        let word = match stage {
            StageNumber::One => {
                let perms = Perms::READ
                    | pick(user, Perms::USER_READ)
                    | pick(writable, Perms::WRITE)
                    | pick(writable && user, Perms::USER_WRITE)
                    | pick(dirty, Perms::DIRTY);
                let attrs = S1Attrs { dbm_inverted: dirty && !dbm, not_global: true, ..Default::default() };
                let leaf = Leaf { output, perms, accessed: entry.accessed, attrs };
                self.one[2].encode_leaf(Level::LAST, &leaf)
            }
            StageNumber::Two => {
                let perms = Perms::R | pick(writable, Perms::W) | pick(dirty, Perms::DIRTY);
                let attrs = S2Attrs { dbm_inverted: dirty && !dbm, ..Default::default() };
                let leaf = Leaf { output, perms, accessed: entry.accessed, attrs };
                self.two[2].encode_leaf(Level::LAST, &leaf)
            }
        };
        let word = word.map_err(|error| error.to_string())?;
        Ok(if entry.valid { word } else { word & !self.one[2].present_mask() })
    }

    /// The word of a pointer to the table numbered `table`.
    pub(crate) fn encode_table(&self, table: u32) -> Result<u64, String> {
        // Tables lie above every page of a test.
        let base = Hpa::new((1 << 32) + (u64::from(table) << PAGE_SHIFT));
        self.one[2].encode_table(Level::new(1), base).map_err(|error| error.to_string())
    }

    /// Which bits become clear and which set when software sets a bit by its name.
    pub(crate) fn set_bit(&self, stage: StageNumber, bit: EntryBit) -> (u64, u64) {
        let format = &self.one[2];
        match (bit, stage) {
            (EntryBit::Valid, _) => (0, format.present_mask()),
            (EntryBit::Accessed, _) => (0, format.accessed_mask()),
            (EntryBit::Dbm, StageNumber::One) => (0, self.one_dbm),
            (EntryBit::Dbm, StageNumber::Two) => (0, self.two_dbm),
            // A dirty entry of stage 1 has AP[2] clear, one of stage 2 has S2AP[1] set.
            (EntryBit::Dirty, StageNumber::One) => (self.one_clean, 0),
            (EntryBit::Dirty, StageNumber::Two) => (0, self.two_clean),
        }
    }

    /// The word as if hardware had marked it accessed.
    pub(crate) fn accessed(&self, word: u64) -> u64 {
        word | self.one[2].accessed_mask()
    }

    /// The word without its access flag.
    pub(crate) fn unaccessed(&self, word: u64) -> u64 {
        word & !self.one[2].accessed_mask()
    }

    /// The word as if its page were dirty.
    pub(crate) fn dirtied(&self, stage: StageNumber, word: u64) -> u64 {
        let (clear, set) = self.set_bit(stage, EntryBit::Dirty);
        word & !clear | set
    }

    /// Whether a table word or an entry is valid.
    pub(crate) fn present(&self, word: u64) -> bool {
        word & self.one[2].present_mask() != 0
    }

    pub(crate) fn is_accessed(&self, word: u64) -> bool {
        word & self.one[2].accessed_mask() != 0
    }

    /// The page that an entry maps, if it is a legal leaf.
    pub(crate) fn page(&self, stage: StageNumber, word: u64) -> Option<u32> {
        let output = match stage {
            StageNumber::One => match self.one[2].decode(Level::LAST, word) {
                Entry::Leaf(leaf) => leaf.output,
                _ => return None,
            },
            StageNumber::Two => match self.two[2].decode(Level::LAST, word) {
                Entry::Leaf(leaf) => leaf.output,
                _ => return None,
            },
        };
        u32::try_from(output.raw() >> PAGE_SHIFT).ok()?.checked_sub(1)
    }

    /// What `word` means for an access: the format's verdict.
    pub(crate) fn meaning(
        &self,
        stage: StageNumber,
        word: u64,
        kind: AccessKind,
        privilege: Privilege,
        managed: Managed,
    ) -> Meaning {
        // Dirty state is set only in accessed entries, so that management of it alone acts on those.
        let level = match managed {
            Managed { dirty: true, accessed } if accessed || self.is_accessed(word) => 2,
            Managed { accessed: true, .. } => 1,
            Managed { .. } => 0,
        };
        let walk = Walk { input: 0, access: Access { kind, privilege, ..Access::READ } };
        let mut acc = 0;
        let (verdict, left) = match stage {
            StageNumber::One => {
                let format = &self.one[level];
                let left = format.updated(&walk, Level::LAST, word, PathPlace::Leaf);
                (format.entry(&walk, Level::LAST, word, &mut acc), left)
            }
            StageNumber::Two => {
                let format = &self.two[level];
                let left = format.updated(&walk, Level::LAST, word, PathPlace::Leaf);
                (format.entry(&walk, Level::LAST, word, &mut acc), left)
            }
        };
        if !self.present(word) {
            return Meaning::Fault(FaultClass::NotPresent);
        }
        let access_only = left == self.accessed(word);
        match verdict {
            // The flag first: whether it is set before a permission fault is left to implementations (Arm ARM, AArch64.FaultAllowsSetAccessFlag).
            Verdict::Leaf(_) if left != word && access_only => Meaning::Access { left },
            Verdict::Fault(fault) if fault.class() == FaultClass::Permission && !self.is_accessed(word) => {
                Meaning::Access { left: self.accessed(word) }
            }
            Verdict::Fault(fault) => Meaning::Fault(fault.class()),
            Verdict::Table(_) => Meaning::Fault(FaultClass::Malformed),
            Verdict::Leaf(_) => match self.page(stage, word) {
                Some(page) if left == word => Meaning::Page(page),
                Some(page) => Meaning::Dirty { page, left },
                None => Meaning::Fault(FaultClass::AddressSize),
            },
        }
    }
}
