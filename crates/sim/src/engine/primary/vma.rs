//! Mappings of the process that owns the guest: what backs which of its addresses, and what may be done there.

use mmu_core::{Cycles, Hva, PageSize};

use super::spans::Along;

/// What a mapping allows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub enum Protection {
    /// Nothing.
    None,
    /// Reading.
    Read,
    /// Reading and writing.
    #[default]
    ReadWrite,
}

/// An access of the host to one of its own addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum HostAccess {
    /// Load.
    Read,
    /// Store.
    Write,
}

impl Protection {
    /// Whether the access is allowed.
    pub const fn allows(self, access: HostAccess) -> bool {
        match access {
            HostAccess::Read => !matches!(self, Protection::None),
            HostAccess::Write => matches!(self, Protection::ReadWrite),
        }
    }
}

/// Which pages a mapping gets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub enum BackingKind {
    /// Base pages.
    #[default]
    Small,
    /// A transparent huge page of this size where one fits, else base pages; may be split.
    Thp(PageSize),
    /// Huge pages of this size, never split.
    Hugetlb(PageSize),
}

/// Whether faults go to a handler in user space, which answers after so long.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub enum Userfault {
    /// No.
    #[default]
    Off,
    /// Faults on pages that do not exist (`UFFDIO_COPY`).
    Missing(Cycles),
    /// Faults on pages that exist and are not mapped (`UFFDIO_CONTINUE`): nothing is zeroed or copied.
    Minor(Cycles),
}

impl Userfault {
    /// How long the handler takes, if there is one.
    pub const fn delay(self) -> Option<Cycles> {
        match self {
            Userfault::Off => None,
            Userfault::Missing(delay) | Userfault::Minor(delay) => Some(delay),
        }
    }
}

/// What holds for all of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Vma {
    /// What it allows.
    pub protection: Protection,
    /// What backs it.
    pub backing: BackingKind,
    /// Who handles its faults.
    pub userfault: Userfault,
}

impl Along for Vma {
    fn at(self, _: u64) -> Self {
        self
    }
}

/// An entry of the process's own page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) enum Pte {
    /// Maps a page.
    Present {
        /// Host-physical address of this very byte.
        host: u64,
        /// Size of the entry.
        size: PageSize,
        /// Whether stores go through.
        protection: Protection,
    },
    /// A migration entry: the page is on its way elsewhere, whoever needs it waits.
    Moving {
        /// Where the page still is.
        host: u64,
        /// Size of the entry that was here.
        size: PageSize,
    },
    /// The page is in swap.
    Swapped,
}

impl Along for Pte {
    fn at(self, offset: u64) -> Self {
        match self {
            Pte::Present { host, size, protection } => Pte::Present { host: host + offset, size, protection },
            Pte::Moving { host, size } => Pte::Moving { host: host + offset, size },
            Pte::Swapped => Pte::Swapped,
        }
    }
}

/// Why the primary MMU cannot give a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HvaError {
    /// Nothing is mapped there.
    NoVma(Hva),
    /// What is mapped there forbids the access.
    Protection(Hva),
}

impl std::fmt::Display for HvaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            HvaError::NoVma(hva) => {
                write!(f, "host address {hva} is not mapped (EFAULT); map it before the guest uses it")
            }
            HvaError::Protection(hva) => {
                write!(f, "the mapping at host address {hva} forbids the access (EFAULT); give it back with mprotect")
            }
        }
    }
}
impl std::error::Error for HvaError {}
