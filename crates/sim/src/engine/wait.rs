//! Wait queues: actors that sleep until somebody tells them that their condition may have come true.
//!
//! The kernel's order makes a wake-up impossible to miss: enter the queue, test the condition, then sleep; a wake-up between entering
//! and sleeping takes the actor out of the queue, and its sleep ends at once.

use super::lock::ActorId;
use super::op::{WaitQueue, Wake};

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
enum Waiting {
    /// In the queue, testing its condition.
    Prepared,
    /// Asleep.
    Asleep,
}

#[derive(Clone, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct WaitQueues(Vec<Vec<(ActorId, Waiting)>>);

impl WaitQueues {
    /// So many queues to begin with.
    pub(crate) fn new(queues: u32) -> Self {
        Self(vec![Vec::new(); queues as usize])
    }

    /// So many empty queues again.
    pub(crate) fn reset(&mut self, queues: u32) {
        self.0.resize(queues as usize, Vec::new());
        self.0.iter_mut().for_each(Vec::clear);
    }

    pub(crate) fn create(&mut self) -> WaitQueue {
        self.0.push(Vec::new());
        WaitQueue(self.0.len() as u32 - 1)
    }

    /// Enters a queue, unless the actor is in it.
    pub(crate) fn prepare(&mut self, queue: WaitQueue, actor: ActorId) {
        let queue = &mut self.0[queue.0 as usize];
        if !queue.iter().any(|&(waiter, _)| waiter == actor) {
            queue.push((actor, Waiting::Prepared));
        }
    }

    pub(crate) fn leave(&mut self, queue: WaitQueue, actor: ActorId) {
        self.0[queue.0 as usize].retain(|&(waiter, _)| waiter != actor);
    }

    /// Goes to sleep; false when the actor was woken since it entered the queue.
    pub(crate) fn sleep(&mut self, queue: WaitQueue, actor: ActorId) -> bool {
        let found = self.0[queue.0 as usize].iter_mut().find(|(waiter, _)| *waiter == actor);
        found.map(|(_, waiting)| *waiting = Waiting::Asleep).is_some()
    }

    /// Takes waiters out of a queue, the first come first; those who slept.
    pub(crate) fn wake(&mut self, queue: WaitQueue, whom: Wake) -> Vec<ActorId> {
        let queue = &mut self.0[queue.0 as usize];
        let count = match whom {
            Wake::One => queue.len().min(1),
            Wake::All => queue.len(),
        };
        let woken = queue.drain(..count);
        woken.filter(|&(_, waiting)| waiting == Waiting::Asleep).map(|(actor, _)| actor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_up_between_preparing_and_sleeping_is_not_missed() {
        let mut queues = WaitQueues::default();
        let queue = queues.create();
        queues.prepare(queue, 7);
        assert!(queues.wake(queue, Wake::All).is_empty(), "nobody sleeps yet");
        assert!(!queues.sleep(queue, 7), "so the sleep ends at once");
    }

    #[test]
    fn one_wakes_the_longest_waiter_and_all_the_rest() {
        let mut queues = WaitQueues::default();
        let queue = queues.create();
        for actor in [3, 1, 2] {
            queues.prepare(queue, actor);
            assert!(queues.sleep(queue, actor));
        }
        assert_eq!(queues.wake(queue, Wake::One), [3]);
        assert_eq!(queues.wake(queue, Wake::All), [1, 2]);
        assert!(queues.wake(queue, Wake::All).is_empty());
    }

    #[test]
    fn who_left_is_not_woken() {
        let mut queues = WaitQueues::default();
        let queue = queues.create();
        queues.prepare(queue, 1);
        queues.leave(queue, 1);
        assert!(!queues.sleep(queue, 1));
    }
}
