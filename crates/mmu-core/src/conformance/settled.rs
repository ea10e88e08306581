//! The short answer of a walk agrees with the long one.

use super::Kit;
use crate::access::{Access, AccessKind, Privilege, Purpose};
use crate::addr::{Hpa, Level};
use crate::format::{Format, PathPlace, Settled, Verdict, Walk};

const KINDS: [AccessKind; 4] = [AccessKind::Read, AccessKind::Write, AccessKind::Execute, AccessKind::ReadWrite];

impl<F: Format> Kit<'_, F> {
    /// [`Format::settled`] says of a word what [`Format::entry`] and [`Format::updated`] say, or nothing.
    pub(super) fn settles(&mut self, level: Level, raw: u64) {
        let random = self.random();
        let privilege = if random & 4 == 0 { Privilege::User } else { Privilege::Supervisor };
        let purpose = if random & 8 == 0 { Purpose::GuestTable } else { Purpose::Data };
        let access = Access { kind: KINDS[random as usize & 3], privilege, purpose };
        let walk = Walk { input: random & (self.format.geometry().input_bytes() - 1) >> 1, access };
        let Ok(begin) = self.format.begin(Hpa::new(0), &walk) else { return };
        // Attributes as they are at the root, and as another word would have left them.
        let mut left = begin.acc;
        let other = self.random();
        self.format.entry(&walk, level, other | self.format.present_mask(), &mut left);
        for acc in [begin.acc, left] {
            let (mut short, mut long) = (acc, acc);
            let settled = self.format.settled(&walk, level, raw, &mut short);
            let again = short;
            let entry = self.format.entry(&walk, level, raw, &mut long);
            let stays = |place| self.format.updated(&walk, level, raw, place) == raw;
            let agrees = match (settled, entry) {
                (Settled::Table(short), Verdict::Table(long)) => short == long && stays(PathPlace::Table),
                (Settled::Leaf(short), Verdict::Leaf(long)) => short == long && stays(PathPlace::Leaf),
                (Settled::Unsettled, _) => {
                    // What it left of the attributes must do as well.
                    self.format.entry(&walk, level, raw, &mut short);
                    true
                }
                _ => false,
            };
            let same = short == long || matches!(settled, Settled::Leaf(_));
            self.expect(agrees && same, level, raw, || {
                format!("{access}: `settled` says {settled:?} with {again:#x}, `entry` {entry:?} with {long:#x}")
            });
        }
    }
}
