//! Being asked to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::CliError;

/// Set by SIGTERM, SIGINT and SIGUSR1: begin nothing new.
pub(crate) struct Signals(Arc<AtomicBool>);

impl Signals {
    /// Watches from now on. A second SIGTERM or SIGINT ends the process at once.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn watch() -> Result<Self, CliError> {
        use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGTERM, SIGUSR1, SIGINT] {
            // A second one of a kind that means "now" is obeyed at once.
            let now = if signal == SIGUSR1 { None } else { Some(flag.clone()) };
            let registered = now
                .map_or(Ok(()), |now| signal_hook::flag::register_conditional_shutdown(signal, 75, now).map(drop))
                .and_then(|()| signal_hook::flag::register(signal, flag.clone()).map(drop));
            registered.map_err(|why| CliError::input(format!("cannot watch signal {signal}: {why}")))?;
        }
        Ok(Self(flag))
    }

    /// Whether one has come.
    pub(crate) fn stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
