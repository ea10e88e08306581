//! Permissions as one byte, so that "may this access go" is one mask and one compare.

use std::fmt;
use std::ops::{BitAnd, BitOr};

use serde::{Deserialize, Serialize};

use crate::access::{Access, AccessKind, Privilege};

/// What a translation allows. `DIRTY` says that a store may go without first updating the table entry.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Perms(u8);

impl Perms {
    /// Nothing is allowed.
    pub const NONE: Perms = Perms(0);
    /// Privileged loads.
    pub const READ: Perms = Perms(1);
    /// Privileged stores.
    pub const WRITE: Perms = Perms(1 << 1);
    /// Privileged instruction fetches.
    pub const EXEC: Perms = Perms(1 << 2);
    /// Unprivileged loads.
    pub const USER_READ: Perms = Perms(1 << 3);
    /// Unprivileged stores.
    pub const USER_WRITE: Perms = Perms(1 << 4);
    /// Unprivileged instruction fetches.
    pub const USER_EXEC: Perms = Perms(1 << 5);
    /// A store needs no dirty update first.
    pub const DIRTY: Perms = Perms(1 << 6);
    /// Loads by anybody.
    pub const R: Perms = Perms(Self::READ.0 | Self::USER_READ.0);
    /// Stores by anybody.
    pub const W: Perms = Perms(Self::WRITE.0 | Self::USER_WRITE.0);
    /// Fetches by anybody.
    pub const X: Perms = Perms(Self::EXEC.0 | Self::USER_EXEC.0);
    /// Loads and stores by anybody.
    pub const RW: Perms = Perms(Self::R.0 | Self::W.0);
    /// Everything by anybody.
    pub const RWX: Perms = Perms(Self::RW.0 | Self::X.0);

    /// The set with this bit pattern; bit 7 is dropped.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 0x7f)
    }
    /// The bit pattern.
    pub const fn bits(self) -> u8 {
        self.0
    }
    /// Whether every bit of `need` is there.
    #[inline]
    pub const fn contains(self, need: Perms) -> bool {
        self.0 & need.0 == need.0
    }
    /// Whether any bit of `other` is there.
    #[inline]
    pub const fn intersects(self, other: Perms) -> bool {
        self.0 & other.0 != 0
    }
    /// The union.
    pub const fn with(self, other: Perms) -> Self {
        Self(self.0 | other.0)
    }
    /// This set less the bits of `other`.
    pub const fn without(self, other: Perms) -> Self {
        Self(self.0 & !other.0)
    }
    /// The bits that `access` needs. A store needs `DIRTY` besides `WRITE`: without it the walker must update the
    /// entry first.
    #[inline]
    pub const fn needed_by(access: &Access) -> Self {
        let user = match access.privilege {
            Privilege::User => 3,
            Privilege::Supervisor => 0,
        };
        match access.kind {
            AccessKind::Read => Self(Self::READ.0 << user),
            AccessKind::Write => Self(Self::WRITE.0 << user | Self::DIRTY.0),
            AccessKind::ReadWrite => Self((Self::READ.0 | Self::WRITE.0) << user | Self::DIRTY.0),
            AccessKind::Execute => Self(Self::EXEC.0 << user),
        }
    }
}

impl BitAnd for Perms {
    type Output = Perms;
    fn bitand(self, other: Perms) -> Perms {
        Perms(self.0 & other.0)
    }
}
impl BitOr for Perms {
    type Output = Perms;
    fn bitor(self, other: Perms) -> Perms {
        Perms(self.0 | other.0)
    }
}

impl fmt::Display for Perms {
    /// `rwx` for privileged and unprivileged accesses, then `d` when stores need no update: `rw-/r--d`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |bit: Perms, c| if self.contains(bit) { c } else { '-' };
        write!(f, "{}{}{}", letter(Self::READ, 'r'), letter(Self::WRITE, 'w'), letter(Self::EXEC, 'x'))?;
        write!(
            f,
            "/{}{}{}",
            letter(Self::USER_READ, 'r'),
            letter(Self::USER_WRITE, 'w'),
            letter(Self::USER_EXEC, 'x')
        )?;
        write!(f, "{}", letter(Self::DIRTY, 'd'))
    }
}
impl fmt::Debug for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Perms({self})")
    }
}
