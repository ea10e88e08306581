//! One memory access as a translation sees it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessKind {
    /// A load.
    Read,
    /// A store.
    Write,
    /// An instruction fetch.
    Execute,
    /// A locked read-modify-write (x86 XCHG): one access that needs both rights.
    ReadWrite,
}

impl AccessKind {
    /// Whether the access stores.
    pub const fn writes(self) -> bool {
        matches!(self, AccessKind::Write | AccessKind::ReadWrite)
    }
}

/// Who makes an access.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Privilege {
    /// Ring 3, EL0, problem state.
    User,
    /// Ring 0, EL1, privileged state.
    Supervisor,
}

/// Why an access is made: fault reports tell a table walk's own references from the program's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The program's load, store or fetch.
    Data,
    /// A first-stage walk reading (or, with `AccessKind::Write`, updating) a table entry of the guest.
    GuestTable,
}

/// One access.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Access {
    /// Load, store, fetch or both.
    pub kind: AccessKind,
    /// The privilege it is made with.
    pub privilege: Privilege,
    /// The program's own, or a walk's.
    pub purpose: Purpose,
}

impl Access {
    /// A privileged load.
    pub const READ: Access =
        Access { kind: AccessKind::Read, privilege: Privilege::Supervisor, purpose: Purpose::Data };
    /// A privileged store.
    pub const WRITE: Access = Access { kind: AccessKind::Write, ..Self::READ };
    /// A privileged instruction fetch.
    pub const EXECUTE: Access = Access { kind: AccessKind::Execute, ..Self::READ };
    /// A walk's read of a guest table entry.
    pub const GUEST_TABLE: Access = Access { purpose: Purpose::GuestTable, ..Self::READ };

    /// The same access made unprivileged.
    pub const fn user(self) -> Self {
        Self { privilege: Privilege::User, ..self }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            AccessKind::Read => "read",
            AccessKind::Write => "write",
            AccessKind::Execute => "fetch",
            AccessKind::ReadWrite => "exchange",
        };
        let who = match self.privilege {
            Privilege::User => "user",
            Privilege::Supervisor => "supervisor",
        };
        let purpose = match self.purpose {
            Purpose::Data => "",
            Purpose::GuestTable => " of a guest table",
        };
        write!(f, "{who} {kind}{purpose}")
    }
}
