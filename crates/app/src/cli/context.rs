//! What every command that talks to a node needs.

use std::path::Path;

use warren_base::clock::{Clock, RealClock};
use warren_model::Time;

use super::client::Client;
use super::failure::Failure;
use super::listing::View;
use super::printer::Printer;

pub(crate) struct Context<'a> {
    pub(crate) client: Client,
    pub(crate) printer: &'a mut Printer,
}

impl<'a> Context<'a> {
    /// # Errors
    /// Nobody answers at `socket`.
    pub(crate) async fn connect(socket: &Path, printer: &'a mut Printer) -> Result<Self, Failure> {
        Ok(Self { client: Client::connect(socket).await?, printer })
    }

    /// Says so when what was read may not be the newest.
    pub(crate) fn stale(&mut self, stale_ms: u64) {
        if stale_ms > 0 {
            let seconds = stale_ms.div_ceil(1000);
            self.printer.warning(format!(
                "this manager has had no leader for {seconds} s: what it shows may be old"
            ));
        }
    }

    /// Rows seen from now.
    pub(crate) fn view(&self) -> View {
        View::at(now())
    }
}

pub(crate) fn now() -> Time {
    Time(RealClock::new().now_ms())
}
