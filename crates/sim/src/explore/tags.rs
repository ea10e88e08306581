//! Tags of translations where several guests take turns on a processor: VMIDs and LPIDs.
//!
//! A vCPU of the explorer stands for a processor here. It keeps what it cached under each tag, by the root that was loaded with it; loading a tag
//! flushes nothing. A tag that comes back with another root, before what was cached under it was flushed, is T9; two processors that run
//! different roots under one tag are B6.

use mmu_core::{Flush, Hpa};

use super::invariant::Invariant;
use super::lab::Lab;
use super::waiting::{Request, What};
use super::words::Moment;
use crate::arch::Arch;
use crate::engine::{OwnCaches, Reply, Tagged, VcpuId};

/// What a processor has cached under a tag that is not loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kept {
    pub(crate) tag: u16,
    pub(crate) root: Hpa,
    pub(crate) floor: Moment,
}

impl<A: Arch> Lab<A> {
    /// `None`: the actor waits.
    pub(crate) fn tagged(&mut self, op: Tagged) -> Option<Reply> {
        match op {
            Tagged::Load(vcpu, root, tag) => self.load_tagged(vcpu, root, tag),
            Tagged::Own(vcpu, tag) => self.guests[vcpu.0].owner = Some(tag),
            Tagged::FlushOwn(vcpu, what) => {
                let now = self.words.tick();
                match what {
                    OwnCaches::All => self.guests[vcpu.0].invalidate(Flush::EVERYTHING, now),
                    OwnCaches::ButTheFirst => self.guests[vcpu.0].invalidate_tables(now),
                }
            }
            Tagged::Flush(tag) => return self.flush_tag(tag),
            // More than was asked for, and waited for: what is cached here has no address spaces.
            Tagged::Invalidate(..) => return self.flush(Flush::EVERYTHING),
        }
        Some(Reply::default())
    }

    fn load_tagged(&mut self, id: VcpuId, root: Hpa, tag: u16) {
        let now = self.words.tick();
        let me = self.me();
        self.hands[me].vcpu = Some(id);
        let elsewhere = self
            .guests
            .iter()
            .enumerate()
            .find(|(number, guest)| *number != id.0 && guest.tag == Some(tag) && guest.root != root);
        let elsewhere = elsewhere.map(|(number, _)| number);
        self.hold(Invariant::B6, elsewhere.is_none(), |_| {
            format!(
                "tag {tag} is loaded with root {root}, while processor {} has it for another one",
                elsewhere.unwrap_or(0)
            )
        });
        let guest = &mut self.guests[id.0];
        guest.put_aside();
        let stale = guest.kept.iter().find(|kept| kept.tag == tag && kept.root != root).map(|kept| kept.root);
        guest.take_up(root, tag, now);
        self.hold(Invariant::T9, stale.is_none(), |_| {
            let of = stale.unwrap_or_default();
            format!(
                "processor {} loads root {root} under tag {tag}, under which it still has translations of root {of}",
                id.0
            )
        });
    }

    fn flush_tag(&mut self, tag: u16) -> Option<Reply> {
        let (me, now, mut waiting) = (self.me(), self.words.tick(), 0);
        for guest in &mut self.guests {
            guest.kept.retain(|kept| kept.tag != tag);
            if guest.tag != Some(tag) {
                continue;
            }
            if guest.runs() {
                guest.requests.push(Request { what: What::Flush(Flush::EVERYTHING), asked_by: me });
                waiting += 1;
            } else {
                guest.invalidate_current(now);
            }
        }
        self.fly(waiting)
    }

    /// T9: the guest that enters is the one whose tag is loaded.
    pub(crate) fn check_tag(&mut self, vcpu: usize) {
        let guest = &self.guests[vcpu];
        let (Some(owner), tag) = (guest.owner, guest.tag) else { return };
        self.hold(Invariant::T9, tag == Some(owner), |_| {
            let loaded = tag.map_or_else(|| "none".to_owned(), |tag| tag.to_string());
            format!("the guest of tag {owner} enters on processor {vcpu}, where tag {loaded} is loaded")
        });
    }
}
