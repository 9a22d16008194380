//! Ctrl-C of whoever waits: heard whenever it comes, also between two looks.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// From its making on the signal does not end the program any more.
pub(crate) struct Interrupt(Option<Signal>);

impl Interrupt {
    /// Needs a tokio runtime around it.
    pub(crate) fn new() -> Self {
        // Without a handler the signal ends the program, which is what it is for.
        Self(signal(SignalKind::interrupt()).ok())
    }

    /// Resolves when the signal has come.
    pub(crate) async fn pressed(&mut self) {
        match &mut self.0 {
            // The end of the stream would be the end of the runtime.
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    #[tokio::test]
    async fn what_came_while_nobody_looked_is_heard() {
        let mut interrupt = Interrupt::new();
        kill_process(getpid(), Signal::INT).unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(5), interrupt.pressed()).await.unwrap();
    }
}
