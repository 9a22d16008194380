//! Taking images away: names first, content when no name is left.

use std::collections::BTreeSet;

use super::Store;
use super::index::Index;
use crate::error::Error;
use crate::reference::Reference;

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
            removed.untagged = names.iter().map(|name| familiar(name)).collect();
            index.remove_image(&id);
            removed.deleted.push(id);
            Ok(removed)
        })
        .await
    }

    /// Removes the images that have no name and that no container runs on.
    pub async fn prune(&self, in_use: &BTreeSet<String>) -> Result<Removed, Error> {
        let in_use = in_use.clone();
        self.change("removing images", move |index| {
            let mut removed = Removed::default();
            for id in index.ids() {
                if !in_use.contains(&id) && index.names_of(&id).is_empty() {
                    index.remove_image(&id);
                    removed.deleted.push(id);
                }
            }
            Ok(removed)
        })
        .await
    }

    async fn change(
        &self,
        what: &'static str,
        edit: impl FnOnce(&mut Index) -> Result<Removed, Error> + Send + 'static,
    ) -> Result<Removed, Error> {
        self.blocking(what, move |inner| {
            let writer = inner.writer();
            let mut index = Index::clone(&inner.index());
            let before = index.bytes();
            let mut removed = edit(&mut index)?;
            removed.freed_bytes = before - index.bytes();
            inner.replace_index(index)?;
            let rubbish = inner.set_aside()?;
            // What takes long needs no lock: it is out of everybody's sight.
            drop(writer);
            inner.discard(rubbish)?;
            Ok(removed)
        })
        .await
    }
}

fn familiar(name: &str) -> String {
    name.parse().map_or_else(|_| name.to_owned(), |name: Reference| name.familiar())
}
