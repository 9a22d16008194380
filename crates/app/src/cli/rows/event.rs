//! What `events` shows of an event.

use serde::Serialize;
use warren_model::Time;
use warren_proto::v1;

use crate::cli::listing::{Record, View};

#[derive(Debug, Serialize)]
pub(crate) struct EventRow {
    revision: u64,
    time: String,
    kind: String,
    action: String,
    id: String,
    name: String,
    message: String,
}

impl From<v1::Event> for EventRow {
    fn from(event: v1::Event) -> Self {
        Self {
            revision: event.revision,
            time: Time(event.time).to_string(),
            kind: event.kind,
            action: event.action,
            id: event.id,
            name: event.name,
            message: event.message,
        }
    }
}

impl Record for EventRow {
    const COLUMNS: &'static [&'static str] =
        &["REVISION", "TIME", "KIND", "ACTION", "ID", "NAME", "MESSAGE"];
    const KEYS: &'static [&'static str] =
        &["revision", "time", "kind", "action", "id", "name", "message"];

    fn cells(&self, _: View) -> Vec<String> {
        vec![
            self.revision.to_string(),
            self.time.clone(),
            self.kind.clone(),
            self.action.clone(),
            self.id.clone(),
            self.name.clone(),
            self.message.clone(),
        ]
    }

    fn key(&self) -> &str {
        &self.id
    }
}
