//! Events: their kinds and actions travel as words, as people see them.

use warren_model::Time;
use warren_model::event::{Action, Event, Kind};

use super::Error;
use crate::v1;

impl From<&Event> for v1::Event {
    fn from(event: &Event) -> Self {
        Self {
            revision: event.revision,
            time: event.time.0,
            kind: event.kind.as_str().to_owned(),
            action: event.action.as_str().to_owned(),
            id: event.id.clone(),
            name: event.name.clone(),
            message: event.message.clone(),
        }
    }
}

impl TryFrom<v1::Event> for Event {
    type Error = Error;

    fn try_from(wire: v1::Event) -> Result<Self, Error> {
        let unknown = |field, word: &str| Error::new(field, format!("{word:?} is not known"));
        Ok(Self {
            revision: wire.revision,
            time: Time(wire.time),
            kind: Kind::ALL
                .into_iter()
                .find(|k| k.as_str() == wire.kind)
                .ok_or_else(|| unknown("kind", &wire.kind))?,
            action: Action::ALL
                .into_iter()
                .find(|a| a.as_str() == wire.action)
                .ok_or_else(|| unknown("action", &wire.action))?,
            id: wire.id,
            name: wire.name,
            message: wire.message,
        })
    }
}
