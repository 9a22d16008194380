//! Networks, and the virtual IPs of services on them.

use std::net::Ipv4Addr;

use warren_model::cluster::Cluster;
use warren_model::event::{Action, Kind};
use warren_model::id::{NetworkId, ServiceId};
use warren_model::ipv6;
use warren_model::network::{Network, NetworkSpec, Vip, VipHolder};
use warren_model::service::{EndpointMode, Mode, ServiceSpec};
use warren_model::{NetworkName, Time};

use super::{Step, invalid};
use crate::change::{Key, Rejection};

/// One for each of a thousand stacks, several times over.
const NETWORKS_MAX: usize = 4096;
/// Services that are named when a network is in use; more are counted.
const USERS_NAMED: usize = 5;

impl Step<'_> {
    pub(super) fn create_network(
        &mut self,
        id: NetworkId,
        spec: &NetworkSpec,
    ) -> Result<(), Rejection> {
        if self.state.network(id).is_some() {
            return Err(Rejection::Exists { key: Key::Network(id) });
        }
        if self.state.network_named(&spec.name).is_some() {
            return Err(Rejection::NetworkTaken { name: spec.name.clone() });
        }
        if self.state.networks.len() >= NETWORKS_MAX {
            return invalid(format!("there are {NETWORKS_MAX} networks, which is the limit"));
        }
        self.check_subnets(spec)?;
        let (created, revision) = (self.state.time, self.revision);
        let network = Network { id, spec: spec.clone(), created, revision };
        self.state.set_network(self.journal, id, Some(network));
        self.emit_network(Action::Create, id, &spec.name);
        Ok(())
    }

    pub(super) fn remove_network(&mut self, id: NetworkId) -> Result<(), Rejection> {
        let network = self.state.network(id);
        let network = network.ok_or(Rejection::NotFound { key: Key::Network(id) })?;
        let name = network.spec.name.clone();
        if name.as_str() == NetworkName::DEFAULT {
            return invalid(format!("network {name} is that of services that name none"));
        }
        if let Some(users) = self.users(&name) {
            return Err(Rejection::NetworkInUse { name, users });
        }
        // Of services that have left it a moment ago.
        let left = self.state.holders.iter().filter(|(holder, _)| holder.network == id);
        let left: Vec<Ipv4Addr> = left.map(|(_, address)| *address).collect();
        left.into_iter().for_each(|address| self.release(address));
        self.state.set_network(self.journal, id, None);
        self.emit_network(Action::Remove, id, &name);
        Ok(())
    }

    /// The services on a network and the policies that name it, for people.
    fn users(&self, name: &NetworkName) -> Option<String> {
        let users = self.state.users_of(name).filter_map(|id| self.state.service(id));
        let users = users.map(|service| service.spec.name.to_string());
        let mut users = users.chain(self.policies_naming(name));
        let named: Vec<String> = users.by_ref().take(USERS_NAMED).collect();
        match (named.is_empty(), users.count()) {
            (true, _) => None,
            (false, 0) => Some(named.join(", ")),
            (false, more) => Some(format!("{} and {more} more", named.join(", "))),
        }
    }

    fn check_subnets(&self, spec: &NetworkSpec) -> Result<(), Rejection> {
        let others = || self.state.networks();
        if let Some(subnet) = spec.subnet {
            let pool = self.settings()?.vip_pool;
            let inside = subnet.prefix >= pool.prefix && pool.contains(subnet.address);
            if !inside {
                return invalid(format!(
                    "subnet {subnet} is not of the pool {pool} of virtual IPs"
                ));
            }
            let overlaps =
                |other: &&Network| other.spec.subnet.is_some_and(|s| s.overlaps(&subnet));
            if let Some(other) = others().find(overlaps) {
                return invalid(format!("subnet {subnet} overlaps that of {}", other.spec.name));
            }
            let (first, last) = (subnet.address, subnet.nth(subnet.size() - 1));
            let mut inside = self.state.vips_between(first, last.unwrap_or(first));
            if let Some(vip) = inside.next() {
                return invalid(format!(
                    "subnet {subnet} has {} in it, {}",
                    vip.address,
                    self.whose(vip)
                ));
            }
        }
        if let Some(own) = spec.subnet_v6 {
            ipv6::check_own(self.settings()?.id, own)
                .or_else(|why| invalid(format!("subnet {own} {why}")))?;
            if let Some(other) = others().find(|other| other.spec.subnet_v6 == Some(own)) {
                return invalid(format!("subnet {own} is that of {}", other.spec.name));
            }
        }
        Ok(())
    }

    fn settings(&self) -> Result<&Cluster, Rejection> {
        self.state.cluster().ok_or(Rejection::NotFound { key: Key::Cluster })
    }

    /// The networks of a service must be there. The default one is made by the planner.
    pub(super) fn check_attachments(&self, spec: &ServiceSpec) -> Result<(), Rejection> {
        let missing = spec.networks.iter().map(|on| &on.network).find(|name| {
            self.state.network_named(name).is_none() && name.as_str() != NetworkName::DEFAULT
        });
        missing.map_or(Ok(()), |name| Err(Rejection::NoNetwork { name: name.clone() }))
    }

    /// Grants the addresses that a spec asks for.
    pub(super) fn grant_asked(
        &mut self,
        service: ServiceId,
        spec: &ServiceSpec,
    ) -> Result<(), Rejection> {
        for attachment in &spec.networks {
            let Some(first) = attachment.address else { continue };
            let name = &attachment.network;
            let network = self.state.network_named(name);
            let network = network.ok_or_else(|| Rejection::NoNetwork { name: name.clone() })?.id;
            let itself = u32::from(spec.endpoint.mode == EndpointMode::Dnsrr);
            for slot in itself..=spec.addressed_slots() {
                let holder = VipHolder { service, network, slot };
                // Whether there is room, the spec's rules have said.
                let address = Ipv4Addr::from_bits(first.to_bits().saturating_add(slot));
                self.grant_vip(holder, address)?;
            }
        }
        Ok(())
    }

    pub(super) fn grant_vip(
        &mut self,
        holder: VipHolder,
        address: Ipv4Addr,
    ) -> Result<(), Rejection> {
        let before = self.state.vip_of(holder);
        if before == Some(address) {
            return Ok(());
        }
        let name = self.check_holder(holder)?;
        self.check_free(holder, address)?;
        if let Some(before) = before {
            self.release(before);
        }
        self.state.set_vip(self.journal, Vip { address, holder, released: None });
        let whose = whose(&name, holder.slot);
        self.emit_address(holder.service, format!("virtual ip {address} {whose}"));
        Ok(())
    }

    /// Whether a service has such an endpoint; the network's name.
    fn check_holder(&self, holder: VipHolder) -> Result<NetworkName, Rejection> {
        let service = self.service(holder.service)?;
        let network = self.state.network(holder.network);
        let network = network.ok_or(Rejection::NotFound { key: Key::Network(holder.network) })?;
        let (spec, name) = (&service.spec, &network.spec.name);
        if service.removing || !spec.attachments().iter().any(|on| on.network == *name) {
            return invalid(format!("service {} is not on network {name}", spec.name));
        }
        let wanted = match (holder.slot, spec.mode) {
            (0, _) => spec.endpoint.mode == EndpointMode::Vip,
            (slot, Mode::Replicated { .. }) => slot <= spec.addressed_slots(),
            (_, Mode::Global | Mode::ReplicatedJob { .. } | Mode::GlobalJob) => false,
        };
        if !wanted {
            let whose = whose(name, holder.slot);
            return invalid(format!("service {} has no virtual IP {whose}", spec.name));
        }
        Ok(name.clone())
    }

    /// Whether nobody else has an address, nor had it lately, and it is of the right part of the
    /// pool.
    fn check_free(&self, holder: VipHolder, address: Ipv4Addr) -> Result<(), Rejection> {
        let taken = |why: String| Err(Rejection::AddressTaken { address, why });
        let pool = self.settings()?.vip_pool;
        if !Vip::is_usable(pool, address) {
            return taken(format!("is not of the pool {pool}, or is its first or last"));
        }
        let own = self.state.network(holder.network).and_then(|network| network.spec.subnet);
        if let Some(subnet) = own.filter(|subnet| !Vip::is_usable(*subnet, address)) {
            return taken(format!(
                "is not of the network's subnet {subnet}, or is its first or last"
            ));
        }
        let mut others = self.state.networks().filter(|network| network.id != holder.network);
        let other = others.find(|other| other.spec.subnet.is_some_and(|s| s.contains(address)));
        if let Some(Network { spec, .. }) = other {
            return taken(format!("is of the subnet of network {}", spec.name));
        }
        match self.state.vip(address) {
            Some(vip) if vip.released.is_none() || vip.holder != holder => taken(self.whose(vip)),
            Some(_) | None => Ok(()),
        }
    }

    /// What stands in the way of having an address.
    fn whose(&self, vip: &Vip) -> String {
        if let Some(until) = vip.quarantined_until() {
            return format!("was given up lately, it is nobody's until {until}");
        }
        let VipHolder { service, network, slot } = vip.holder;
        let name = |service: &warren_model::service::Service| service.spec.name.to_string();
        let service = self.state.service(service).map_or_else(|| service.to_string(), name);
        let network = self.state.network(network).map(|network| &network.spec.name);
        let whose = network.map_or_else(String::new, |name| format!(" {}", whose(name, slot)));
        format!("is that of service {service}{whose}")
    }

    pub(super) fn release_vip(&mut self, address: Ipv4Addr) -> Result<(), Rejection> {
        let Some(vip) = self.state.vip(address).copied() else {
            return invalid(format!("nobody has virtual IP {address}"));
        };
        if vip.released.is_none() {
            self.release(address);
            self.emit_address(vip.holder.service, format!("without virtual ip {address}"));
        }
        Ok(())
    }

    /// Everything that a service has.
    pub(super) fn release_all(&mut self, service: ServiceId) {
        let all: Vec<Ipv4Addr> = self.state.vips_of(service).map(|(_, address)| address).collect();
        all.into_iter().for_each(|address| self.release(address));
    }

    fn release(&mut self, address: Ipv4Addr) {
        let now: Time = self.state.time;
        if let Some(vip) = self.state.vip(address).copied() {
            self.state.set_vip(self.journal, Vip { released: Some(now), ..vip });
        }
    }

    fn emit_network(&mut self, action: Action, id: NetworkId, name: &NetworkName) {
        self.emit(Kind::Network, action, id.to_string(), name.to_string(), String::new());
    }

    fn emit_address(&mut self, service: ServiceId, message: String) {
        let name = self.state.service(service).map(|service| service.spec.name.to_string());
        let (id, name) = (service.to_string(), name.unwrap_or_default());
        self.emit(Kind::Service, Action::Update, id, name, message);
    }
}

/// `on back`, `of slot 2 on back`.
fn whose(network: &NetworkName, slot: u32) -> String {
    match slot {
        0 => format!("on {network}"),
        slot => format!("of slot {slot} on {network}"),
    }
}
