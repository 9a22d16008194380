//! Makes the kernel hold an overlay's links, routes, neighbours and entries: `overlay` carried out.
//!
//! One thread. Each time the kernel's own state is read and brought to what is wanted:
//! the first table, a changed one, a repair and the cleaning up after a crash are one path.
//! What is ours is known by the device's name, by the routes' protocol number and by the
//! node's metric; nothing else is touched.
//!
//! Not here: messages (`kernel`), containers' own links and routes (`wire`).

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use crate::namespace::write_setting;
use crate::node::MTU_DEFAULT;
use crate::overlay::{self, Below, Item};
use crate::table::{Carrier, Overlay};
use crate::wire::Reply;
use crate::{Error, NetConfig};

mod abi;
mod kernel;
mod parse;

use kernel::Device;
pub(crate) use kernel::{Kernel, PROTOCOL};

pub(crate) enum Course {
    Apply {
        overlay: Option<Arc<Overlay>>,
        reply: Reply<()>,
    },
    /// Something that may be ours has changed.
    Check,
}

pub(crate) struct Routes {
    config: NetConfig,
    name: String,
    kernel: Kernel,
    /// Nothing is done before the first table, and what an earlier daemon set keeps working.
    wanted: Option<Option<Arc<Overlay>>>,
    /// Whether the kernel had all of it after the last attempt.
    complete: bool,
}

impl Routes {
    /// In the calling thread's network namespace.
    pub(crate) fn open(config: &NetConfig) -> Result<Self, Error> {
        let numbers = overlay::Numbers::of(&config.node_key);
        Ok(Self {
            config: config.clone(),
            name: overlay::device_name(&config.node_key),
            kernel: Kernel::open(numbers)?,
            wanted: None,
            complete: false,
        })
    }

    pub(crate) fn run(mut self, courses: &Receiver<Course>) {
        while let Ok(course) = courses.recv() {
            let mut replies = Vec::new();
            let mut checked = false;
            let mut changed = false;
            // Of several waiting the last is wanted, and one look answers all who doubt.
            for course in std::iter::once(course).chain(courses.try_iter()) {
                match course {
                    Course::Apply { overlay, reply } => {
                        changed |= self.wanted.as_ref() != Some(&overlay);
                        self.wanted = Some(overlay);
                        replies.push(reply);
                    }
                    Course::Check => checked = true,
                }
            }
            let mut result = Ok(());
            if changed || checked || !self.complete {
                result = self.settle(checked && !changed);
                self.complete = result.is_ok();
            }
            if let Err(error) = &result
                && replies.is_empty()
            {
                tracing::warn!(error = error as &dyn std::error::Error, "restore routes");
            }
            for reply in replies {
                // A caller that went away does not need the answer.
                let _ = reply.send(result.as_ref().map_err(Error::again).copied());
            }
        }
    }

    /// Brings the kernel to what is wanted.
    fn settle(&mut self, is_repair: bool) -> Result<(), Error> {
        let Some(wanted) = self.wanted.clone() else { return Ok(()) };
        let Some(overlay) = wanted else { return self.clear() };
        if overlay.pool6.is_some() {
            forward_ipv6()?;
        }
        let links = self.kernel.devices()?;
        let below = self.look_below(&overlay, &links)?;
        let vxlan = overlay::vxlan(&overlay, below);
        let index = self.kernel.ensure(&self.name, &vxlan, &links)?;
        let carrier = overlay.device.as_ref().and_then(|name| find(&links, name));
        let carrier = carrier.filter(|device| device.up).map(|device| device.index);
        let held = self.kernel.items(index, carrier, vxlan.port)?;
        let wanted = overlay::items(&self.config, &overlay, below);
        let (removed, added) = overlay::diff(&held, &wanted);
        if is_repair && !(removed.is_empty() && added.is_empty()) {
            tracing::warn!(
                missing = added.len(),
                foreign = removed.len(),
                first = added.first().or_else(|| removed.first()).map(tracing::field::display),
                "routes are not as they should be: setting them again"
            );
        }
        self.kernel.change(&removed, &added, index, carrier, vxlan.port)
    }

    /// Nothing of this node is left.
    fn clear(&mut self) -> Result<(), Error> {
        let links = self.kernel.devices()?;
        let index = find(&links, &self.name).map_or(0, |device| device.index);
        let held = self.kernel.items(index, None, 0)?;
        let routes: Vec<Item> = held
            .into_iter()
            .rev()
            .filter(|item| matches!(item, Item::Route(_) | Item::Rule(_)))
            .collect();
        self.kernel.change(&routes, &[], index, None, 0)?;
        if index > 0 { self.kernel.remove(index) } else { Ok(()) }
    }

    fn look_below(&mut self, overlay: &Overlay, links: &[Device]) -> Result<Below, Error> {
        let holder = self.kernel.holder(overlay.own.underlay)?;
        // A node behind address translation does not have the address that others know.
        let mtu = holder.and_then(|index| links.iter().find(|link| link.index == index));
        let device = overlay.carrier == Carrier::Device
            && overlay.device.as_ref().and_then(|name| find(links, name)).is_some_and(|d| d.up);
        Ok(Below { mtu: mtu.map_or(MTU_DEFAULT, |link| link.mtu), holds: holder.is_some(), device })
    }
}

/// Lets the host forward IPv6. One that forwards no longer takes routes from its routers'
/// advertisements unless told to (`accept_ra` 2): without that it would lose its own way out.
fn forward_ipv6() -> Result<(), Error> {
    const CONF: &str = "/proc/sys/net/ipv6/conf";
    let is = |path: String, expected: &str| {
        fs::read_to_string(path).is_ok_and(|value| value.trim() == expected)
    };
    if is(format!("{CONF}/all/forwarding"), "1") {
        return Ok(());
    }
    let links = fs::read_dir(CONF).map_err(|e| Error::io(format!("list {CONF}"), e))?;
    for link in links.filter_map(|link| link.ok()?.file_name().into_string().ok()) {
        let is_template = ["all", "default", "lo"].contains(&link.as_str());
        if !is_template && is(format!("{CONF}/{link}/accept_ra"), "1") {
            write_setting(&format!("ipv6/conf/{link}/accept_ra"), "2")?;
        }
    }
    write_setting("ipv6/conf/all/forwarding", "1")
}

/// Reads a message as each kind that it may be.
#[cfg(test)]
pub(crate) fn read_all(payload: &[u8]) {
    let numbers = overlay::Numbers::of("node");
    let _ = parse::parse_device(payload);
    let _ = parse::parse_address(payload);
    let _ = parse::parse_neighbour(payload, 4789);
    let _ = parse::parse_route(payload, 1, Some(2), numbers);
    let _ = parse::parse_rule(payload, numbers);
}

fn find<'a>(links: &'a [Device], name: &str) -> Option<&'a Device> {
    links.iter().find(|link| link.name == name)
}

/// What the kernel holds, as far as it is this node's.
type Held = BTreeSet<Item>;
