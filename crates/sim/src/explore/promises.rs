//! What protocols announce, and what everybody is held to from then on: permissions that were taken away, roots that were given up.

use mmu_core::{Access, Format, Gpa, GpaRange, Hpa, Level};

use super::digest::Mix;
use super::guest::Cached;
use super::invariant::Invariant;
use super::lab::Lab;
use crate::arch::Arch;
use crate::engine::Announced;

/// What has been announced in this execution.
#[derive(Clone, Debug, Default)]
pub(crate) struct Promises {
    /// Nobody writes these.
    tracked: Vec<GpaRange>,
    /// Nobody installs anything below these roots.
    given_up: Vec<Hpa>,
}

impl Promises {
    pub(crate) fn reset(&mut self) {
        self.tracked.clear();
        self.given_up.clear();
    }

    /// Adds what is promised.
    pub(crate) fn mix(&self, mix: &mut Mix) {
        mix.add_unordered(&self.tracked);
        mix.add_unordered(&self.given_up);
    }

    fn is_tracked(&self, gpa: u64) -> bool {
        self.tracked.iter().any(|range| range.contains(Gpa::new(gpa)))
    }
}

/// Which translations break a promise that nobody writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Writers {
    /// Those that are cached and not in the tables any more.
    Stale,
    /// Those in the tables too.
    Any,
}

impl<A: Arch> Lab<A> {
    pub(crate) fn announce(&mut self, what: Announced) {
        match what {
            Announced::WriteProtected(range) => self.check_protected(range, Writers::Stale),
            Announced::WriteTracked(range) => {
                self.promises.tracked.push(range);
                self.check_protected(range, Writers::Any);
            }
            Announced::RootInvalid(root) => self.promises.given_up.push(root),
        }
    }

    /// The VM has another root.
    pub(crate) fn root_replaced(&mut self, old: Hpa, new: Hpa) {
        self.promises.given_up.push(old);
        self.promises.given_up.retain(|root| *root != new);
    }

    /// T2: nobody can write what was protected, but by a fault: where the tables allow it again, one without the lock was faster than the announcement.
    fn check_protected(&mut self, range: GpaRange, which: Writers) {
        let format = self.format;
        let mut found: Option<(usize, Cached)> = None;
        for vcpu in self.exposed() {
            for &gpa in self.ghost.pages.iter().filter(|&&gpa| range.contains(Gpa::new(gpa))) {
                let (mut writer, mut restored) = (None, false);
                self.reach(
                    vcpu,
                    gpa,
                    Access::WRITE,
                    |_| {},
                    |cached| {
                        let writes = cached.denied.is_none() && format.is_writable(cached.word);
                        let now = self.words.peek(cached.at);
                        let allowed = self.maps_same(cached.level, now, cached.word) && format.is_writable(now);
                        restored |= writes && allowed && which == Writers::Stale;
                        if writes && (which == Writers::Any || !cached.current) {
                            writer = writer.or(Some((vcpu, cached)));
                        }
                    },
                );
                found = found.or(writer.filter(|_| !restored));
            }
        }
        self.hold(Invariant::T2, found.is_none(), |_| match found {
            Some((vcpu, cached)) => format!(
                "writing {} is said to be forbidden, but vCPU {vcpu} may write it through {:#x} of {}, which is {}",
                cached.gpa,
                cached.word,
                cached.at,
                if cached.current { "in the tables" } else { "cached" }
            ),
            None => String::new(),
        });
    }

    /// T2: nobody makes writable what is tracked.
    pub(crate) fn check_tracked(&mut self, at: Hpa, level: Level, new: u64) {
        if self.promises.tracked.is_empty() || !self.format.is_writable(new) {
            return;
        }
        let Some(frame) = self.words.frame(at).copied() else { return };
        let gpa = frame.gpa + (((at.raw() - frame.first.raw()) / 8) << self.format.geometry().shift(level));
        self.hold(Invariant::T2, !self.promises.is_tracked(gpa), |_| {
            format!("{gpa:#x} becomes writable by {new:#x} at {at}, and its writes are tracked")
        });
    }

    /// T2: a store to a page whose writes are tracked.
    pub(crate) fn check_tracked_store(&mut self, vcpu: usize, gpa: u64) {
        if self.promises.tracked.is_empty() {
            return;
        }
        self.hold(Invariant::T2, !self.promises.is_tracked(gpa), |_| {
            format!("vCPU {vcpu} has written {gpa:#x} without a fault, and its writes are tracked")
        });
    }

    /// R5: nothing is installed below a root that was given up.
    pub(crate) fn check_root(&mut self, at: Hpa, new: u64) {
        if self.promises.given_up.is_empty() {
            return;
        }
        let given_up = self.root_above(at).filter(|root| self.promises.given_up.contains(root));
        self.hold(Invariant::R5, given_up.is_none(), |_| {
            format!(
                "{new:#x} is installed at {at}, below the root {}, which was given up",
                given_up.unwrap_or_default()
            )
        });
    }
}
