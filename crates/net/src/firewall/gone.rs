//! Backends and containers that are gone: nothing of theirs is left, in connections and in sets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::stale::parted;
use super::{Both, Firewall};
use crate::rules::{self, Family, Rules, Services};
use crate::{Error, Protocol};

impl Firewall {
    /// Ends datagram flows to backends that services have no more. Connections go on: what is
    /// drained still answers.
    pub(super) fn part(&mut self, held: Option<&Both>, wanted: &Both) -> Result<(), Error> {
        let none = [None, None];
        let held = held.unwrap_or(&none);
        for (family, (held, wanted)) in Family::ALL.into_iter().zip(held.iter().zip(wanted)) {
            let Some(wanted) = wanted else { continue };
            let empty = Services::default();
            let before = held.as_ref().map_or(&empty, |held| &held.services);
            let (_, new) = before.list.changes(&wanted.services.list);
            let backends = new.iter().flat_map(|service| &service.entry.backends);
            // Detaching them ends their connections.
            self.exposed.add(backends.filter(|b| b.local).map(|backend| backend.address));
            let Some(held) = held else { continue };
            self.bury(held, wanted, family)?;
            let mut parted = parted(held, wanted, family);
            for parted in &mut parted {
                let served = self.served(family, Protocol::Udp, &parted.removed)?;
                parted.removed = served;
            }
            parted.retain(|parted| !parted.removed.is_empty());
            if parted.is_empty() {
                continue;
            }
            let removed = self.conntrack.remove(family, None, |flow| {
                flow.protocol == Protocol::Udp.number() && parted.iter().any(|p| p.is_stale(flow))
            })?;
            tracing::debug!(removed, "ended datagram flows to backends that are gone");
        }
        Ok(())
    }

    /// Ends the connections to containers that are no more, wherever they were: a client learns
    /// it at its next packet, and the next holder of the address gets none of them.
    fn bury(&mut self, held: &Rules, wanted: &Rules, family: Family) -> Result<(), Error> {
        let vanished = held.isolation.vanished(&wanted.isolation, family);
        let mut served = BTreeSet::new();
        let mut ops = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let of_protocol = self.served(family, protocol, &vanished)?;
            ops.extend(of_protocol.iter().map(|address| rules::forget_served(protocol, *address)));
            served.extend(of_protocol);
        }
        if served.is_empty() {
            return Ok(());
        }
        self.conntrack.remove(family, None, |flow| served.contains(&flow.answered_by))?;
        // A packet may have made it anew meanwhile: then it is there once more, which is right.
        if let Err(refusal) = self.commit(&[(family, ops)]) {
            tracing::debug!(operation = refusal.operation, source = %refusal.source, "forget containers that are gone");
        }
        Ok(())
    }

    /// Forgets that containers which are gone were served; their connections ended with them.
    pub(super) fn forget_gone(&mut self) -> Result<(), Error> {
        let gone = self.exposed.take_gone();
        for family in Family::ALL {
            if self.held.as_ref().is_none_or(|held| held[family as usize].is_none()) {
                continue;
            }
            let fits = |address: &IpAddr| address.is_ipv4() == (family == Family::V4);
            let addresses: Vec<IpAddr> = gone.iter().copied().filter(fits).collect();
            let mut ops = Vec::new();
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let served = self.served(family, protocol, &addresses)?;
                ops.extend(served.iter().map(|address| rules::forget_served(protocol, *address)));
            }
            if !ops.is_empty()
                && let Err(refusal) = self.commit(&[(family, ops)])
            {
                return Err(Error::io("forget what was served", refusal.source));
            }
        }
        Ok(())
    }

    /// Those of `addresses` that some connection was translated to. Cheap, where looking through
    /// the kernel's connections takes milliseconds however few there are.
    fn served(
        &mut self,
        family: Family,
        protocol: Protocol,
        addresses: &[IpAddr],
    ) -> Result<Vec<IpAddr>, Error> {
        let mut served = Vec::new();
        for address in addresses {
            if self.holds(family, rules::served(protocol, *address))? {
                served.push(*address);
            }
        }
        Ok(served)
    }

    fn holds(
        &mut self,
        family: Family,
        element: (rules::Set, rules::Element),
    ) -> Result<bool, Error> {
        let request = rules::get_element(&self.table, family, element.0, &element.1);
        let mut found = false;
        match self.socket.query(&request, |_, _| found = true) {
            Err(source) if source.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            answer => answer.map(|()| found).map_err(|e| Error::io("look up a set's element", e)),
        }
    }
}
