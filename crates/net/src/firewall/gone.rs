//! Backends and containers that are gone: nothing of theirs is left, in connections and in sets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::owners::Owners;
use super::stale::parted;
use super::{Both, Firewall};
use crate::conntrack::Flow;
use crate::rules::{self, Family, Rules, Services, Vanished};
use crate::table::Subnet;
use crate::{Error, Protocol, Table};

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
    /// it at its next packet, and the next holder of the address gets none of them, also if it is
    /// there already.
    fn bury(&mut self, held: &Rules, wanted: &Rules, family: Family) -> Result<(), Error> {
        let Vanished { gone, inherited } = held.isolation.vanished(&wanted.isolation, family);
        let mut served = BTreeSet::new();
        let mut ops = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let of_protocol = self.served(family, protocol, &gone)?;
            ops.extend(of_protocol.iter().map(|address| rules::forget_served(protocol, *address)));
            served.extend(of_protocol);
            served.extend(self.served(family, protocol, &inherited)?);
        }
        if served.is_empty() {
            return Ok(());
        }
        let owners = (!inherited.is_empty()).then(|| Owners::new(wanted, family));
        let is_of_another = |flow: &Flow| owners.as_ref().is_none_or(|all| all.is_stale(flow));
        self.conntrack.remove(family, None, |flow| {
            served.contains(&flow.answered_by) && is_of_another(flow)
        })?;
        // A packet may have made it anew meanwhile: then it is there once more, which is right.
        if let Err(refusal) = self.commit(&[(family, ops)]) {
            tracing::debug!(operation = refusal.operation, source = %refusal.source, "forget containers that are gone");
        }
        Ok(())
    }

    /// Ends the connections that are answered from an address which another container has by now,
    /// or none: nobody looked while this process was not there.
    pub(super) fn disown(&mut self, table: &Table, wanted: &Both) -> Result<(), Error> {
        let v4 = (IpAddr::V4(self.config.pool.0), self.config.pool.1);
        let v6 = table.overlay.as_ref().and_then(|overlay| overlay.pool6);
        let pools = [Some(v4), v6.map(|(address, prefix)| (IpAddr::V6(address), prefix))];
        for ((family, wanted), pool) in Family::ALL.into_iter().zip(wanted).zip(pools) {
            let (Some(wanted), Some(pool)) = (wanted, pool) else { continue };
            let owners = Owners::new(wanted, family);
            let removed = self.conntrack.remove(family, None, |flow| {
                let is_translated = flow.answered_by != flow.destination;
                is_translated && is_within(flow.answered_by, pool) && owners.is_stale(flow)
            })?;
            tracing::debug!(removed, "ended connections to containers that went meanwhile");
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

fn is_within(address: IpAddr, (network, len): Subnet) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => crate::in_network(address, (network, len)),
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0);
            (address.to_bits() ^ network.to_bits()) & mask == 0
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}
