//! Taking images away: names first, content when no name is left; and making room
//! when the disk gets full.

use std::collections::BTreeSet;
use std::time::Duration;

use super::index::Index;
use super::{Inner, Store, now_ms};
use crate::error::Error;
use crate::reference::Reference;

/// An image that was fetched or used within this time stays, however full the disk is: whoever
/// fetched it is about to use it.
const YOUNG_MS: u64 = 60_000;

/// What went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Familiar names.
    pub untagged: Vec<String>,
    /// Ids.
    pub deleted: Vec<String>,
    /// Of the images deleted, as far as no other image has the same layers.
    pub freed_bytes: u64,
}

/// Which images go, of those that are not in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prune {
    /// Those with a name too.
    pub all: bool,
    /// Only those that were not fetched or used for so long.
    pub unused_for: Duration,
    /// None: only say which.
    pub dry_run: bool,
}

/// How full the disk may be, in percent of what it has for others than root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermarks {
    /// From here on images go that nothing uses, the longest unused first,
    high: u8,
    /// until it is not fuller than this.
    low: u8,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self { high: 85, low: 80 }
    }
}

impl Watermarks {
    /// `85:80`; `off` is nothing.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        if text == "off" {
            return Ok(None);
        }
        let wrong = || {
            format!(
                "{text:?} is not HIGH:LOW in percent, 1 to 99 each and the low one not above the high one, or off"
            )
        };
        let (high, low) = text.split_once(':').ok_or_else(wrong)?;
        let percent = |text: &str| text.parse::<u8>().ok().filter(|n| (1..=99).contains(n));
        let (high, low) = percent(high).zip(percent(low)).ok_or_else(wrong)?;
        if low > high { Err(wrong()) } else { Ok(Some(Self { high, low })) }
    }
}

impl Store {
    /// Removes a name, and the image with its last name; or an image by id, if it
    /// has at most one name. `in_use` are ids of images that containers run on:
    /// those are refused.
    pub async fn remove(&self, text: &str, in_use: &BTreeSet<String>) -> Result<Removed, Error> {
        let (text, in_use) = (text.to_owned(), in_use.clone());
        self.change("removing an image", move |index| {
            let id = index.find(&text)?;
            let names = index.names_of(&id);
            let mut removed = Removed::default();
            if let Some(name) = index.name(&text)
                && names.len() > 1
            {
                index.remove_name(&name);
                removed.untagged.push(familiar(&name));
                return Ok(removed);
            }
            if in_use.contains(&id) {
                return Err(Error::InUse { name: text });
            }
            if index.name(&text).is_none() && names.len() > 1 {
                let names = names.iter().map(|name| familiar(name)).collect();
                return Err(Error::ManyNames { id, names });
            }
            take(index, id, &mut removed);
            Ok(removed)
        })
        .await
    }

    /// Removes images that are not among `in_use`; those without a name, or all.
    pub async fn prune(&self, which: Prune, in_use: &BTreeSet<String>) -> Result<Removed, Error> {
        let in_use = in_use.clone();
        self.blocking("removing images", move |inner| {
            let age = u64::try_from(which.unused_for.as_millis()).unwrap_or(u64::MAX);
            let before = now_ms().saturating_sub(age);
            let unused = inner.unused(&in_use, before);
            inner.change(which.dry_run, |index| {
                let mut removed = Removed::default();
                for id in unused {
                    if which.all || index.names_of(&id).is_empty() {
                        take(index, id, &mut removed);
                    }
                }
                Ok(removed)
            })
        })
        .await
    }

    /// If the disk is fuller than it should be, removes images that are not among `in_use`, the
    /// longest unused first, until it is not or none is left. `now`: also if it is not that full.
    pub async fn make_room(&self, in_use: &BTreeSet<String>, now: bool) -> Result<Removed, Error> {
        let in_use = in_use.clone();
        self.blocking("making room for images", move |inner| {
            let mut all = Removed::default();
            let Some(Watermarks { high, low }) = inner.watermarks else { return Ok(all) };
            if !now && inner.percent_full()? < u64::from(high) {
                return Ok(all);
            }
            for id in inner.unused(&in_use, now_ms().saturating_sub(YOUNG_MS)) {
                if inner.percent_full()? <= u64::from(low) && (!now || !all.deleted.is_empty()) {
                    break;
                }
                let one = inner.change(false, |index| {
                    let mut removed = Removed::default();
                    take(index, id, &mut removed);
                    Ok(removed)
                })?;
                all.untagged.extend(one.untagged);
                all.deleted.extend(one.deleted);
                all.freed_bytes += one.freed_bytes;
            }
            Ok(all)
        })
        .await
    }

    async fn change(
        &self,
        what: &'static str,
        edit: impl FnOnce(&mut Index) -> Result<Removed, Error> + Send + 'static,
    ) -> Result<Removed, Error> {
        self.blocking(what, move |inner| inner.change(false, edit)).await
    }
}

impl Inner {
    fn change(
        &self,
        dry_run: bool,
        edit: impl FnOnce(&mut Index) -> Result<Removed, Error>,
    ) -> Result<Removed, Error> {
        let writer = self.writer();
        let mut index = Index::clone(&self.index());
        let before = index.bytes();
        let mut removed = edit(&mut index)?;
        removed.freed_bytes = before - index.bytes();
        if dry_run || (removed.untagged.is_empty() && removed.deleted.is_empty()) {
            return Ok(removed);
        }
        self.replace_index(index)?;
        let rubbish = self.set_aside()?;
        // What takes long needs no lock: it is out of everybody's sight.
        drop(writer);
        self.discard(rubbish)?;
        Ok(removed)
    }

    /// Ids of images not among `in_use` and not fetched or used since, the longest unused first.
    fn unused(&self, in_use: &BTreeSet<String>, since: u64) -> Vec<String> {
        let index = self.index();
        let used = self.used();
        let last = |id: &str| used.get(id).copied().unwrap_or(0).max(index.fetched(id));
        let ids = index.ids().into_iter().filter(|id| !in_use.contains(id));
        let mut ids: Vec<(u64, String)> = ids.map(|id| (last(&id), id)).collect();
        ids.retain(|(last, _)| *last <= since);
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// As `df` counts it: of what is there for others than root.
    fn percent_full(&self) -> Result<u64, Error> {
        let stat = rustix::fs::statvfs(&self.dir)
            .map_err(|error| Error::at("look how full the disk is, at", &self.dir, error.into()))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        let whole = used.saturating_add(stat.f_bavail).max(1);
        Ok(used.saturating_mul(100).div_ceil(whole))
    }
}

fn take(index: &mut Index, id: String, removed: &mut Removed) {
    removed.untagged.extend(index.names_of(&id).iter().map(|name| familiar(name)));
    index.remove_image(&id);
    removed.deleted.push(id);
}

pub(super) fn familiar(name: &str) -> String {
    name.parse().map_or_else(|_| name.to_owned(), |name: Reference| name.familiar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watermarks() {
        assert_eq!(Watermarks::parse("85:80"), Ok(Some(Watermarks::default())));
        assert_eq!(Watermarks::parse("90:90"), Ok(Some(Watermarks { high: 90, low: 90 })));
        assert_eq!(Watermarks::parse("off"), Ok(None));
        for bad in ["", "85", "80:85", "0:0", "100:80", "a:b", "85:80:1", "-1:5"] {
            let problem = Watermarks::parse(bad).unwrap_err();
            assert!(problem.starts_with(&format!("{bad:?} is not HIGH:LOW")), "{problem}");
        }
    }
}
