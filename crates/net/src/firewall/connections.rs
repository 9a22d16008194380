//! How many connections were led to each service.

use std::collections::BTreeMap;

use super::{Firewall, Led};
use crate::Error;
use crate::rules::{self, Family, Rules, Set};
use crate::table::Connections;

impl Firewall {
    /// Remembers what a table has that is about to go. A loss of figures is no reason to stop.
    pub(super) fn carry_led(&mut self, family: Family, held: &Rules) {
        match self.led(family) {
            Ok(found) => add(&mut self.carried_led, held, &found),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "keep figures");
            }
        }
    }

    /// Of both families.
    pub(super) fn connections(&mut self) -> Result<Vec<Connections>, Error> {
        let mut all = self.carried_led.clone();
        for family in Family::ALL {
            if self.held.as_ref().is_none_or(|held| held[family as usize].is_none()) {
                continue;
            }
            let found = self.led(family)?;
            let held = self.held.as_ref().and_then(|held| held[family as usize].as_ref());
            held.into_iter().for_each(|held| add(&mut all, held, &found));
        }
        Ok(all.into_iter().map(|(key, led)| Connections { key, led }).collect())
    }

    /// By the services' numbers.
    fn led(&mut self, family: Family) -> Result<BTreeMap<u32, u64>, Error> {
        let request = rules::get_elements(&self.table, family, Set::Counted);
        let mut found = BTreeMap::new();
        self.socket
            .query(&request, |kind, payload| found.extend(rules::parse_counted(kind, payload)))
            .map_err(|source| Error::io("read how often services were reached", source))?;
        Ok(found)
    }
}

fn add(all: &mut Led, held: &Rules, found: &BTreeMap<u32, u64>) {
    for (key, led) in held.connections(found) {
        let sum = all.entry(key.into()).or_default();
        *sum = sum.saturating_add(led);
    }
}
