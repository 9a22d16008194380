//! Starting a container, and finding those that an earlier process started.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::SystemTime;

use warren_shim::message::{Operation, Reply, Request};
use warren_shim::record::Run;

use super::binary::sealed_bytes;
use super::channel::Channel;
use super::container::{Container, ended};
use super::explain::Subject;
use super::spec::{self, Surroundings};
use super::state::{Found, State};
use super::{Shared, Slot, capability, device, tree};
use crate::watched::{Watched, watch};
use crate::{ContainerSpec, Error, MountKind, Seccomp};

/// A shim that has its orders.
struct Launched {
    channel: Channel,
    pidfd: Watched,
    state: State,
}

impl Shared {
    /// Starts a checked specification in its slot, which is locked by the caller.
    pub(crate) async fn start(
        self: &Arc<Self>,
        spec: Arc<ContainerSpec>,
        slot: &mut Slot,
    ) -> Result<Arc<Container>, Error> {
        let id = spec.id.clone();
        let prepared = Arc::clone(&spec);
        let launched = self.blocking(&id, move |shared, _| shared.launch(&prepared)).await;
        let launched = match launched {
            Ok(launched) => launched,
            Err(error) => {
                self.clean(&id).await?;
                return Err(error);
            }
        };
        match launched.channel.reply().await {
            Ok((Reply::Started { pid, at_ns }, _)) => {
                let run = Run { shim_pid: 0, pid, at_ns };
                let pidfd = Arc::new(launched.pidfd);
                let container = Arc::new(Container::running(self, &id, launched.state, run, pidfd));
                *slot = Some(Arc::clone(&container));
                Ok(container)
            }
            other => {
                drop(launched.channel);
                ended(&launched.pidfd).await;
                self.clean(&id).await?;
                Err(match other {
                    Ok((reply, _)) => Subject::container(&spec).error(reply),
                    Err(source) => {
                        Error::Io { action: format!("hear from the shim of {id}"), source }
                    }
                })
            }
        }
    }

    /// Everything up to the shim's orders. What it leaves on error, [`Shared::clean`] removes.
    fn launch(&self, spec: &ContainerSpec) -> Result<Launched, Error> {
        let id = &spec.id;
        let at = |action: &str| {
            let action = format!("{action} of container {id}");
            move |source: io::Error| Error::Io { action, source }
        };
        let privileged = spec.privileges.privileged;
        let capabilities =
            capability::effective(&spec.cap_add, &spec.cap_drop, privileged, self.capabilities)?;
        let seccomp = match &spec.seccomp {
            Seccomp::Default if privileged => None,
            Seccomp::Default => Some(self.seccomp.default_profile(capabilities)),
            Seccomp::Unconfined => None,
            Seccomp::Custom(profile) => Some(self.seccomp.custom(profile, capabilities)?),
        };
        // Its program loads while the rest is prepared.
        let (channel, theirs) = Channel::pair().map_err(at("make the socket"))?;
        let pidfd = self.binary.spawn(id, theirs).map_err(at("start the shim"))?;
        let pidfd = watch(pidfd).map_err(at("watch the shim"))?;

        let state = State::new(spec, &self.boot_id);
        self.folders.create(id, &state, &spec.layers[0]).map_err(at("make the folders"))?;
        make_log_folder(&spec.log.dir).map_err(at("make the log folder"))?;
        let devices = device::find(&spec.devices)?;
        let usable = (!privileged).then_some(&devices[..]);
        self.cgroups.create(id, &spec.limits, usable)?;
        let message = spec::message(
            spec,
            &Surroundings {
                state_dir: &self.folders.state(id),
                upper: &self.folders.upper(id),
                work: &self.folders.work(id),
                membership: &self.cgroups.membership(id),
                capabilities,
                seccomp,
                reset_oom_score: self.reset_oom_score,
                masked: &self.masked,
                devices: &devices,
            },
        )?;
        let trees = trees(spec)?;
        let message = sealed_bytes(&message).map_err(at("write the message"))?;
        let request = Request { operation: Operation::Start, argument: 0 };
        channel
            .request_now(&request, &descriptors(&message, spec, &trees))
            .map_err(at("send the message to the shim"))?;
        Ok(Launched { channel, pidfd, state })
    }

    /// Removes everything but logs.
    pub(crate) async fn clean(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let cleaned = self.blocking(id, |shared, id| {
            shared.cgroups.remove(id)?;
            shared.folders.remove(id)
        });
        cleaned
            .await
            .map_err(|source| Error::Io { action: format!("remove container {id}"), source })
    }

    /// The container of a slot that the caller has locked, from disk when it is not known yet.
    pub(crate) async fn attached(
        self: &Arc<Self>,
        id: &str,
        slot: &mut Slot,
    ) -> Result<Option<Arc<Container>>, Error> {
        if slot.is_none() {
            *slot = self.attach(id).await?.map(Arc::new);
        }
        Ok(slot.clone())
    }

    async fn attach(self: &Arc<Self>, id: &str) -> Result<Option<Container>, Error> {
        // Small files on a tmpfs, quicker read here than on another thread.
        let found = self.folders.load(id);
        let action = || format!("read the state of container {id}");
        let (state, run) = match found.map_err(|source| Error::Io { action: action(), source })? {
            None => return Ok(None),
            Some(Found::Rubbish) => {
                tracing::info!(container = id, "removing what an unfinished start left");
                self.clean(id).await?;
                return Ok(None);
            }
            Some(Found::Container { state, run, exit: Some(exit) }) => {
                return Ok(Some(Container::exited(id, state, run, exit)));
            }
            Some(Found::Container { state, run, exit: None }) => (state, run),
        };
        if state.boot_id != self.boot_id {
            let now = SystemTime::now();
            let exit =
                self.blocking(id, move |shared, id| shared.folders.leave_exit(id, now)).await;
            let exit = exit.map_err(|source| Error::Io { action: action(), source })?;
            return Ok(Some(Container::exited(id, state, run, exit)));
        }
        match self.shim_of(id) {
            Some(pidfd) => {
                let pidfd = Arc::new(pidfd);
                Ok(Some(Container::running(self, id, state, run, pidfd)))
            }
            // Gone, with its exit written just now or lost.
            None => {
                let exit = self.read_exit(id).await;
                Ok(Some(Container::exited(id, state, run, exit)))
            }
        }
    }

    /// The shim that listens in a state folder. A number on disk could be somebody else's by now,
    /// a listening socket cannot.
    fn shim_of(&self, id: &str) -> Option<Watched> {
        let channel = Channel::connect(&self.folders.state(id)).ok()?;
        let pidfd = channel.peer().ok().flatten()?;
        watch(pidfd).ok()
    }
}

/// A copy of each mount that is given by a descriptor, in order.
fn trees(spec: &ContainerSpec) -> Result<Vec<OwnedFd>, Error> {
    let mut trees = Vec::new();
    for mount in &spec.mounts {
        let MountKind::Open(opened) = &mount.kind else { continue };
        let tree = tree::copy(opened, mount.read_only).map_err(|source| Error::Io {
            action: format!("mount {} at {}", opened.name, mount.target),
            source,
        })?;
        trees.push(tree);
    }
    Ok(trees)
}

fn descriptors<'a>(
    message: &'a OwnedFd,
    spec: &'a ContainerSpec,
    trees: &'a [OwnedFd],
) -> Vec<BorrowedFd<'a>> {
    let network = spec.netns.iter().map(|fd| fd.as_fd());
    let kept = spec.keep.iter().map(|(_, fd)| fd.as_fd());
    let trees = trees.iter().map(AsFd::as_fd);
    std::iter::once(message.as_fd()).chain(network).chain(kept).chain(trees).collect()
}

fn make_log_folder(folder: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}
