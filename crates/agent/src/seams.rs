//! Network and images as the agent needs them, so that a simulation can bring its own.
//!
//! The real ones are `warren_net::Net` and `warren_image::Store`; the pretended
//! ones are in [`crate::fake`].

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use warren_image::{
    Checked, Error, Image, ImportOptions, Listed, Loaded, Progress, Prune, Pushed, Reference,
    Remote, Removed, Store,
};
use warren_net::{Addresses, Count, Net, Protocol, Sandbox, Table};

/// Bytes of an image on their way in.
pub type Archive = Box<dyn AsyncRead + Send + Unpin>;

/// The network of one node; see [`Net`] for what each does.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    async fn attach(&self, id: &str, addresses: Addresses) -> Result<Sandbox, warren_net::Error>;
    async fn adopt(
        &self,
        id: &str,
        addresses: Addresses,
        pid: u32,
    ) -> Result<(), warren_net::Error>;
    async fn detach(&self, id: &str) -> Result<(), warren_net::Error>;
    async fn apply(&self, table: Table) -> Result<(), warren_net::Error>;
    fn reserve(
        &self,
        protocol: Protocol,
        bind: Ipv4Addr,
        port: u16,
    ) -> Result<OwnedFd, warren_net::Error>;
    async fn sweep(&self, keep: &[String]) -> Result<(), warren_net::Error>;
    async fn counts(&self) -> Result<Vec<Count>, warren_net::Error>;
}

#[async_trait]
impl Network for Net {
    async fn attach(&self, id: &str, addresses: Addresses) -> Result<Sandbox, warren_net::Error> {
        self.attach(id, addresses).await
    }

    async fn adopt(
        &self,
        id: &str,
        addresses: Addresses,
        pid: u32,
    ) -> Result<(), warren_net::Error> {
        self.adopt(id, addresses, pid).await
    }

    async fn detach(&self, id: &str) -> Result<(), warren_net::Error> {
        self.detach(id).await
    }

    async fn apply(&self, table: Table) -> Result<(), warren_net::Error> {
        self.apply(table).await
    }

    fn reserve(
        &self,
        protocol: Protocol,
        bind: Ipv4Addr,
        port: u16,
    ) -> Result<OwnedFd, warren_net::Error> {
        self.reserve(protocol, bind, port)
    }

    async fn sweep(&self, keep: &[String]) -> Result<(), warren_net::Error> {
        self.sweep(keep).await
    }

    async fn counts(&self) -> Result<Vec<Count>, warren_net::Error> {
        self.counts().await
    }
}

/// The images of one node; see [`Store`] for what each does.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// From memory: asks nobody.
    fn get(&self, reference: &Reference) -> Option<Image>;
    /// By name or first digits of the id, from memory too.
    fn find(&self, text: &str) -> Result<Image, Error>;
    async fn pull(&self, reference: &Reference, progress: Progress) -> Result<Image, Error>;
    async fn look_up(&self, reference: &Reference) -> Result<Remote, Error>;
    async fn load(
        &self,
        archive: Archive,
        base: Option<&Reference>,
        progress: Progress,
    ) -> Result<Vec<Loaded>, Error>;
    async fn import(
        &self,
        archive: Archive,
        name: &Reference,
        options: ImportOptions,
        progress: Progress,
    ) -> Result<Image, Error>;
    async fn save(
        &self,
        images: &[String],
        out: mpsc::Sender<Bytes>,
        progress: Progress,
    ) -> Result<(), Error>;
    async fn push(
        &self,
        image: &str,
        to: Option<&Reference>,
        progress: Progress,
    ) -> Result<Pushed, Error>;
    async fn fsck(&self, repair: bool, in_use: &BTreeSet<String>) -> Result<Checked, Error>;
    fn list(&self) -> Vec<Listed>;
    async fn remove(&self, text: &str, in_use: &BTreeSet<String>) -> Result<Removed, Error>;
    async fn prune(&self, which: Prune, in_use: &BTreeSet<String>) -> Result<Removed, Error>;
    async fn make_room(&self, in_use: &BTreeSet<String>, now: bool) -> Result<Removed, Error>;
    async fn login(&self, registry: &str, user: &str, password: &str) -> Result<(), Error>;
    async fn logout(&self, registry: &str) -> Result<(), Error>;
}

#[async_trait]
impl Images for Store {
    fn get(&self, reference: &Reference) -> Option<Image> {
        self.get(reference)
    }

    fn find(&self, text: &str) -> Result<Image, Error> {
        self.find(text)
    }

    async fn pull(&self, reference: &Reference, progress: Progress) -> Result<Image, Error> {
        self.pull(reference, progress).await
    }

    async fn look_up(&self, reference: &Reference) -> Result<Remote, Error> {
        self.look_up(reference).await
    }

    async fn load(
        &self,
        archive: Archive,
        base: Option<&Reference>,
        progress: Progress,
    ) -> Result<Vec<Loaded>, Error> {
        self.load(archive, base, progress).await
    }

    async fn import(
        &self,
        archive: Archive,
        name: &Reference,
        options: ImportOptions,
        progress: Progress,
    ) -> Result<Image, Error> {
        self.import(archive, name, options, progress).await
    }

    async fn save(
        &self,
        images: &[String],
        out: mpsc::Sender<Bytes>,
        progress: Progress,
    ) -> Result<(), Error> {
        self.save(images, out, progress).await
    }

    async fn push(
        &self,
        image: &str,
        to: Option<&Reference>,
        progress: Progress,
    ) -> Result<Pushed, Error> {
        self.push(image, to, progress).await
    }

    async fn fsck(&self, repair: bool, in_use: &BTreeSet<String>) -> Result<Checked, Error> {
        self.fsck(repair, in_use).await
    }

    fn list(&self) -> Vec<Listed> {
        self.list()
    }

    async fn remove(&self, text: &str, in_use: &BTreeSet<String>) -> Result<Removed, Error> {
        self.remove(text, in_use).await
    }

    async fn prune(&self, which: Prune, in_use: &BTreeSet<String>) -> Result<Removed, Error> {
        self.prune(which, in_use).await
    }

    async fn make_room(&self, in_use: &BTreeSet<String>, now: bool) -> Result<Removed, Error> {
        self.make_room(in_use, now).await
    }

    async fn login(&self, registry: &str, user: &str, password: &str) -> Result<(), Error> {
        self.login(registry, user, password).await
    }

    async fn logout(&self, registry: &str) -> Result<(), Error> {
        self.logout(registry).await
    }
}
