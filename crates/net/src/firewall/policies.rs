//! What policies count, and connections that they came after.

use std::collections::BTreeMap;

use super::{Both, Counts, Firewall};
use crate::Error;
use crate::rules::{self, Counted, Counter, Family, Judge, Rules};
use crate::table::Count;

impl Firewall {
    /// Remembers what was counted in some chains. A loss of counts is no reason to stop.
    pub(super) fn carry(&mut self, family: Family, held: &Rules, which: impl Fn(&str) -> bool) {
        match self.found(family) {
            Ok(mut found) => {
                found.retain(|chain, _| which(chain));
                add_counts(&mut self.carried, held.counted(&found));
            }
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "keep counts");
            }
        }
    }

    /// How often clauses decided, of both families.
    pub(super) fn counts(&mut self) -> Result<Vec<Count>, Error> {
        let mut counts = self.carried.clone();
        for family in Family::ALL {
            let found = match &self.held {
                Some(held) if held[family as usize].is_some() => self.found(family)?,
                Some(_) | None => continue,
            };
            let held = self.held.as_ref().and_then(|held| held[family as usize].as_ref());
            held.into_iter().for_each(|held| add_counts(&mut counts, held.counted(&found)));
        }
        let count = |((name, action), (packets, bytes))| Count { name, action, packets, bytes };
        Ok(counts.into_iter().map(count).collect())
    }

    /// The counters of each chain, in the order of its rules.
    fn found(&mut self, family: Family) -> Result<BTreeMap<String, Vec<Counter>>, Error> {
        let mut found: BTreeMap<String, Vec<Counter>> = BTreeMap::new();
        let request = rules::get_rules(&self.table, family);
        self.socket
            .query(&request, |kind, payload| {
                if let Some((chain, packets, bytes)) = rules::parse_counter(kind, payload) {
                    found.entry(chain).or_default().push((packets, bytes));
                }
            })
            .map_err(|source| Error::io("read counters", source))?;
        Ok(found)
    }

    /// Connections that go on are judged anew where policies have changed for them.
    pub(super) fn judge(&mut self, held: Option<&Both>, wanted: &Both) -> Result<(), Error> {
        for (at, family) in Family::ALL.into_iter().enumerate() {
            let Some(wanted) = &wanted[at] else { continue };
            let held = held.and_then(|held| held[at].as_ref());
            if held.is_some_and(|held| !held.judges_otherwise(wanted)) {
                continue;
            }
            let judge = Judge::new(wanted);
            let (denied, freed) = self.conntrack.judge(family, |passage| judge.denies(passage))?;
            tracing::debug!(denied, freed, "judged connections by policies");
        }
        Ok(())
    }
}

fn add_counts(all: &mut Counts, found: Vec<(Counted, Counter)>) {
    for (counted, (packets, bytes)) in found {
        let count = all.entry(counted).or_default();
        *count = (count.0.saturating_add(packets), count.1.saturating_add(bytes));
    }
}
