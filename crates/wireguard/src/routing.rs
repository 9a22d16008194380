//! A table made ready for packets: who owns an address, a key, an endpoint.
//!
//! Compiled from a [`Table`] and what was there before: peers that share a key with a former one
//! are that one. Immutable then; threads that carry packets load the newest.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::allowed::Allowed;
use crate::key::PublicKey;
use crate::link::{OwnKey, Pair};
use crate::peer::Peer;
use crate::table::{PeerConfig, Table, TableError};

#[derive(Default)]
pub(crate) struct Routing {
    /// The first is offered.
    pub(crate) own: Vec<Arc<OwnKey>>,
    pub(crate) entries: Vec<Entry>,
    allowed: Allowed,
    by_key: HashMap<PublicKey, usize>,
    by_endpoint: HashMap<SocketAddr, usize>,
    /// By where the peer is in memory.
    by_peer: HashMap<usize, usize>,
}

pub(crate) struct Entry {
    pub(crate) peer: Arc<Peer>,
    pub(crate) config: PeerConfig,
}

impl Entry {
    pub(crate) fn preshared(&self) -> Option<[u8; 32]> {
        self.config.preshared_key.as_ref().map(crate::key::PresharedKey::bytes)
    }
}

impl Routing {
    /// Checks the table; nothing of `old` is changed.
    pub(crate) fn compile(table: &Table, old: &Self) -> Result<Self, TableError> {
        table.check()?;
        let own = table.own.iter().map(|private| {
            let public = private.public();
            let known = old.own.iter().find(|own| own.public == public);
            known.map_or_else(|| Arc::new(OwnKey::new(private)), Arc::clone)
        });
        let mut entries: Vec<Entry> = Vec::with_capacity(table.peers.len());
        let mut taken = vec![false; old.entries.len()];
        for config in &table.peers {
            let former = config.keys.iter().find_map(|key| old.by_key.get(key));
            // Two peers with the keys of one former: the first of them is it.
            let former = former.filter(|&&place| !std::mem::replace(&mut taken[place], true));
            let peer = former.map_or_else(
                || Arc::new(Peer::new(config.endpoint, config.via)),
                |&place| Arc::clone(&old.entries[place].peer),
            );
            entries.push(Entry { peer, config: config.clone() });
        }
        let each = || entries.iter().enumerate();
        let allowed = each().flat_map(|(place, entry)| {
            entry.config.allowed.iter().map(move |&prefix| (prefix, place))
        });
        let by_key =
            each().flat_map(|(place, entry)| entry.config.keys.iter().map(move |&k| (k, place)));
        let by_endpoint = each().flat_map(|(place, entry)| {
            let known = [entry.config.endpoint, entry.config.via];
            known.into_iter().flatten().map(move |at| (at, place))
        });
        Ok(Self {
            own: own.collect(),
            allowed: Allowed::compile(allowed),
            by_key: by_key.collect(),
            by_endpoint: by_endpoint.collect(),
            by_peer: each().map(|(at, entry)| (Arc::as_ptr(&entry.peer).addr(), at)).collect(),
            entries,
        })
    }

    pub(crate) fn owner(&self, address: IpAddr) -> Option<&Entry> {
        self.entries.get(self.allowed.owner(address)?)
    }

    pub(crate) fn by_key(&self, key: PublicKey) -> Option<&Entry> {
        self.entries.get(*self.by_key.get(&key)?)
    }

    pub(crate) fn by_endpoint(&self, endpoint: SocketAddr) -> Option<&Entry> {
        self.entries.get(*self.by_endpoint.get(&endpoint)?)
    }

    /// The entry of a peer, by its identity.
    pub(crate) fn of(&self, peer: &Arc<Peer>) -> Option<&Entry> {
        self.entries.get(*self.by_peer.get(&Arc::as_ptr(peer).addr())?)
    }

    pub(crate) fn own(&self, key: PublicKey) -> Option<&Arc<OwnKey>> {
        self.own.iter().find(|own| own.public == key)
    }

    /// The keys of a new handshake.
    pub(crate) fn offered(&self, entry: &Entry) -> Option<Pair> {
        Some(Pair { own: self.own.first()?.public, remote: *entry.config.keys.first()? })
    }

    /// Whether a session has the own key that is to be used. Which of its keys a peer uses is its
    /// choice: were both sides to choose, they might never agree.
    pub(crate) fn offers(&self, pair: Pair) -> bool {
        self.own.first().is_some_and(|own| own.public == pair.own)
    }

    /// Whether these keys may have sessions.
    pub(crate) fn accepts(&self, entry: &Entry, pair: Pair) -> bool {
        self.own(pair.own).is_some() && entry.config.keys.contains(&pair.remote)
    }
}
