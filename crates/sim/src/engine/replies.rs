//! What actors were answered, so that they can be brought to where they stood.
//!
//! An actor is a future: what it remembers cannot be written down. But it is a function of the answers it got, and so is what
//! actors share among themselves, if they are polled in the same order. So a simulation that may be saved has a stage in front of
//! the timed one, which notes every answer in the order of time; after loading, fresh actors of the same experiment are polled as
//! they were then and get these answers, while nothing is performed. The log grows with what the host does (a byte for an
//! answer of nothing, some ten for a table word), not with what guests access. A simulation that is not to be saved has no such
//! stage and pays nothing, as with recording (`tap.rs`).

use std::cell::RefCell;
use std::rc::Rc;

use serde::{Deserialize, Serialize};

use super::counters::HostCounters;
use super::host::Stage;
use super::lock::ActorId;
use super::op::{Op, Reply, VcpuId};
use super::timed::Timed;
use super::vcpu::Exit;
use crate::arch::Arch;
use crate::workload::GuestWork;

/// Answers in the order they were given.
///
/// Bytes: `0..8` is a reply, each set bit standing for a number that is not zero and follows; `WAITS` says that the poll ended
/// there; `POLL` begins one, and the actor's number follows. Numbers are in groups of seven bits, lowest first.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct ReplyLog {
    bytes: Vec<u8>,
    exits: Vec<Exit>,
    counters: Vec<HostCounters>,
}

const WAITS: u8 = 8;
const POLL: u8 = 9;

impl ReplyLog {
    /// Bytes that it takes.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.bytes.push(number as u8);
    }

    fn reply(&mut self, Reply { a, b, c }: Reply) {
        let numbers = [a, b, c];
        let header = (0..3).map(|i| u8::from(numbers[i] != 0) << i).sum();
        self.bytes.push(header);
        for number in numbers.into_iter().filter(|&number| number != 0) {
            self.number(number);
        }
    }
}

/// One thing in a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Item {
    Reply(Reply),
    Waits,
    Poll(ActorId),
}

/// A log being read.
#[derive(Debug)]
struct Reader {
    log: ReplyLog,
    at: usize,
    exits: usize,
    counters: usize,
    /// The answer to the operation that the polled actor had waited for.
    answer: Reply,
    /// Actors ask for other things than they did.
    astray: bool,
}

impl Reader {
    fn number(&mut self) -> Option<u64> {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = *self.log.bytes.get(self.at)?;
            self.at += 1;
            number |= u64::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte < 0x80 {
                return Some(number);
            }
        }
    }

    fn item(&mut self) -> Option<Item> {
        let header = *self.log.bytes.get(self.at)?;
        self.at += 1;
        Some(match header {
            WAITS => Item::Waits,
            POLL => Item::Poll(self.number()? as ActorId),
            0..WAITS => {
                let mut numbers = [0; 3];
                for (i, number) in numbers.iter_mut().enumerate() {
                    if header & 1 << i != 0 {
                        *number = self.number()?;
                    }
                }
                let [a, b, c] = numbers;
                Item::Reply(Reply { a, b, c })
            }
            _ => return None,
        })
    }

    /// The answer to an operation; `None` where the actor waited.
    fn reply(&mut self) -> Option<Reply> {
        match self.item() {
            Some(Item::Reply(reply)) => Some(reply),
            Some(Item::Waits) => None,
            Some(Item::Poll(_)) | None => {
                self.astray = true;
                None
            }
        }
    }
}

#[derive(Debug)]
enum Mode {
    /// The experiment is being set up; that happens again when it is loaded.
    SettingUp,
    Writing(ReplyLog),
    Reading(Reader),
}

/// The stage that notes answers, or gives those that were noted.
pub(super) struct Noted<A: Arch> {
    timed: Rc<RefCell<Timed<A>>>,
    mode: RefCell<Mode>,
}

impl<A: Arch> Stage for Noted<A> {
    #[inline]
    fn perform(&self, op: Op) -> Option<Reply> {
        match &mut *self.mode.borrow_mut() {
            Mode::SettingUp => self.timed.borrow_mut().perform(op),
            Mode::Writing(log) => {
                let answer = self.timed.borrow_mut().perform(op);
                match answer {
                    Some(reply) => log.reply(reply),
                    None => log.bytes.push(WAITS),
                }
                answer
            }
            Mode::Reading(reader) => reader.reply(),
        }
    }

    fn resumed(&self) {
        match &mut *self.mode.borrow_mut() {
            Mode::SettingUp => {}
            Mode::Writing(log) => log.reply(self.timed.borrow().reply()),
            Mode::Reading(reader) => match reader.reply() {
                Some(answer) => reader.answer = answer,
                None => reader.astray = true,
            },
        }
    }

    fn reply(&self) -> Reply {
        match &*self.mode.borrow() {
            Mode::Reading(reader) => reader.answer,
            Mode::SettingUp | Mode::Writing(_) => self.timed.borrow().reply(),
        }
    }

    fn exit(&self, vcpu: VcpuId) -> Exit {
        let exit = self.timed.exit(vcpu);
        match &mut *self.mode.borrow_mut() {
            Mode::SettingUp => exit,
            Mode::Writing(log) => {
                log.exits.push(exit);
                exit
            }
            Mode::Reading(reader) => {
                reader.exits += 1;
                let noted = reader.log.exits.get(reader.exits - 1).copied();
                reader.astray |= noted.is_none();
                noted.unwrap_or(exit)
            }
        }
    }

    fn counters(&self) -> HostCounters {
        let counters = self.timed.counters();
        match &mut *self.mode.borrow_mut() {
            Mode::SettingUp => counters,
            Mode::Writing(log) => {
                log.counters.push(counters);
                counters
            }
            Mode::Reading(reader) => {
                reader.counters += 1;
                let noted = reader.log.counters.get(reader.counters - 1).copied();
                reader.astray |= noted.is_none();
                noted.unwrap_or(counters)
            }
        }
    }

    fn assign(&self, vcpu: VcpuId, work: GuestWork) {
        // While answers are read the vCPUs are not touched: what they do comes with them.
        if !matches!(*self.mode.borrow(), Mode::Reading(_)) {
            self.timed.assign(vcpu, work);
        }
    }
}

impl<A: Arch> Noted<A> {
    pub(super) fn new(timed: Rc<RefCell<Timed<A>>>) -> Self {
        Self { timed, mode: RefCell::new(Mode::SettingUp) }
    }

    /// The experiment is set up: notes from now on, if it does not yet.
    pub(super) fn begin(&self) {
        let mut mode = self.mode.borrow_mut();
        if let Mode::SettingUp = *mode {
            *mode = Mode::Writing(ReplyLog::default());
        }
    }

    /// An actor is polled.
    pub(super) fn poll(&self, id: ActorId) {
        if let Mode::Writing(log) = &mut *self.mode.borrow_mut() {
            log.bytes.push(POLL);
            log.number(id as u64);
        }
    }

    /// What was noted, if anything was.
    pub(super) fn with_log<T>(&self, look: impl FnOnce(&ReplyLog) -> T) -> Option<T> {
        match &*self.mode.borrow() {
            Mode::Writing(log) => Some(look(log)),
            Mode::SettingUp | Mode::Reading(_) => None,
        }
    }

    /// Answers from a log from now on.
    pub(super) fn read(&self, log: ReplyLog) {
        let reader = Reader { log, at: 0, exits: 0, counters: 0, answer: Reply::default(), astray: false };
        *self.mode.borrow_mut() = Mode::Reading(reader);
    }

    /// The actor that was polled next; `None` at the end of the log, and when something is wrong.
    pub(super) fn next_poll(&self) -> Option<ActorId> {
        let Mode::Reading(reader) = &mut *self.mode.borrow_mut() else { return None };
        if reader.astray || reader.at == reader.log.bytes.len() {
            return None;
        }
        if let Some(Item::Poll(id)) = reader.item() {
            Some(id)
        } else {
            reader.astray = true;
            None
        }
    }

    /// Goes on noting behind what was read. False when actors asked for other things than the log has answers to.
    pub(super) fn finish_reading(&self) -> bool {
        let mode = self.mode.replace(Mode::SettingUp);
        let Mode::Reading(reader) = mode else { return false };
        let Reader { log, at, exits, counters, astray, .. } = reader;
        let whole = at == log.bytes.len() && exits == log.exits.len() && counters == log.counters.len();
        self.mode.replace(Mode::Writing(log));
        whole && !astray
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reader(log: ReplyLog) -> Reader {
        Reader { log, at: 0, exits: 0, counters: 0, answer: Reply::default(), astray: false }
    }

    proptest! {
        #[test]
        fn replies_come_back(replies in prop::collection::vec((any::<u64>(), any::<u64>(), 0u64..2), 0..20)) {
            let mut log = ReplyLog::default();
            for &(a, b, c) in &replies {
                log.reply(Reply { a: a >> (b % 64), b, c });
            }
            log.bytes.push(WAITS);
            let mut reader = reader(log);
            for &(a, b, c) in &replies {
                prop_assert_eq!(reader.item(), Some(Item::Reply(Reply { a: a >> (b % 64), b, c })));
            }
            prop_assert_eq!((reader.item(), reader.item()), (Some(Item::Waits), None));
        }

        #[test]
        fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut reader = reader(ReplyLog { bytes, ..ReplyLog::default() });
            while reader.item().is_some() {}
            prop_assert!(reader.at <= reader.log.bytes.len());
        }
    }

    #[test]
    fn nothing_takes_a_byte() {
        let mut log = ReplyLog::default();
        log.reply(Reply::default());
        log.reply(Reply::one(0x7f));
        assert_eq!(log.bytes, [0, 1, 0x7f]);
    }
}
