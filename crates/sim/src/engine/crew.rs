//! The other threads of the pool between two windows.
//!
//! A window is often shorter than what it takes to wake a thread, so threads that have done their part of one wait awake for the next, as
//! long as the host phase usually lasts; then they sleep. What they do while they wait changes nothing but time.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How often a waiting thread looks: some tens of microseconds.
const PATIENCE: u32 = 1000;

/// Threads that wait for the next window.
#[derive(Debug, Default)]
pub(super) struct Crew(Arc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// Counts windows.
    window: AtomicUsize,
    /// Threads that wait, or have been asked to and have not come yet.
    asked: AtomicUsize,
}

impl Crew {
    /// There is work: whoever waits looks for it.
    pub(super) fn call(&self) {
        // What is to be done reaches the threads through the pool's queues; this only ends their waiting.
        self.0.window.fetch_add(1, Ordering::Relaxed);
    }

    /// Asks the other threads of the pool that this one belongs to, if any, to wait awake.
    pub(super) fn wait(&self) {
        if rayon::current_thread_index().is_none() {
            return;
        }
        let others = rayon::current_num_threads() - 1;
        // Never more than there are: a thread that is busy elsewhere comes late or never.
        while self.0.asked.load(Ordering::Relaxed) < others {
            self.0.asked.fetch_add(1, Ordering::Relaxed);
            let (waiting, window) = (self.0.clone(), self.0.window.load(Ordering::Relaxed));
            rayon::spawn(move || {
                let mut looks = 0;
                while looks < PATIENCE && waiting.window.load(Ordering::Relaxed) == window {
                    spin_loop();
                    looks += 1;
                }
                waiting.asked.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}
