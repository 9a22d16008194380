//! Virtual IPs: services and slots that need one have one, and nobody else does.
//!
//! The lowest address that nobody has and nobody had lately comes first; who had
//! one lately gets the same again. Networks with a subnet of their own take from
//! that, all others from the rest of the pool.
//!
//! Not here: addresses that a spec asks for, which the state grants with the
//! spec; how long an address rests (`Vip::QUARANTINE_MS`).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use warren_model::Time;
use warren_model::cluster::{Cluster, Subnet};
use warren_model::id::NetworkId;
use warren_model::network::{NetworkSpec, Vip, VipHolder};
use warren_model::service::{EndpointMode, Service};
use warren_state::State;
use warren_state::change::Mutation;

use crate::draft::Draft;
use crate::service::Pass;

/// Makes the network of services that name none.
pub(crate) fn make_default(draft: &mut Draft<'_>) {
    let Ok(spec) = NetworkSpec::of_default() else { return };
    if draft.state.network_named(&spec.name).is_none() {
        let id = NetworkId::from_bytes(draft.id());
        draft.push(Mutation::CreateNetwork { id, spec });
        // Services on it get their addresses once it is there.
        draft.look_again();
    }
}

/// Who of a service needs a virtual IP.
fn wanted<'a>(state: &'a State, service: &'a Service) -> impl Iterator<Item = VipHolder> + 'a {
    let spec = &service.spec;
    let first = match spec.endpoint.mode {
        EndpointMode::Vip => 0,
        EndpointMode::Dnsrr => 1,
    };
    spec.attachments().iter().flat_map(move |attachment| {
        let network = state.network_named(&attachment.network).map(|network| network.id);
        let slots = first..=spec.addressed_slots();
        network.into_iter().flat_map(move |network| {
            slots.clone().map(move |slot| VipHolder { service: service.id, network, slot })
        })
    })
}

/// Whether a service has what it needs and nothing more.
pub(crate) fn is_settled(state: &State, service: &Service) -> bool {
    let mut count = 0;
    let all = wanted(state, service).all(|holder| {
        count += 1;
        state.vip_of(holder).is_some()
    });
    all && state.vips_of(service.id).count() == count
}

/// Why a service has not what it needs; `None` if it has.
pub(crate) fn missing(state: &State, service: &Service) -> Option<String> {
    let holder = wanted(state, service).find(|holder| state.vip_of(*holder).is_none())?;
    let cluster = state.cluster()?;
    let network = state.network(holder.network)?;
    if Pool::new(state, state.time()).take(state, cluster, holder).is_some() {
        return Some(format!("a virtual IP on {} to be chosen", network.spec.name));
    }
    let (what, range) = match network.spec.subnet {
        Some(subnet) => ("subnet", subnet),
        None => ("pool", cluster.vip_pool),
    };
    let name = &network.spec.name;
    Some(format!("no free virtual IP on {name}: the {what} {range} is used up"))
}

/// Gives and takes what a service needs, or needs no more.
pub(crate) fn assign(pass: &mut Pass<'_, '_>) {
    let (state, service) = (pass.draft.state, pass.service);
    if is_settled(state, service) {
        return;
    }
    let wanted: Vec<VipHolder> = wanted(state, service).collect();
    for (holder, address) in state.vips_of(service.id) {
        if wanted.contains(&holder) {
            continue;
        }
        if !pass.draft.room(1) {
            return;
        }
        pass.draft.push(Mutation::ReleaseVip { address });
    }
    for holder in wanted {
        if state.vip_of(holder).is_some() {
            continue;
        }
        if !pass.draft.room(1) {
            return;
        }
        match pass.draft.take_vip(holder) {
            Some(address) => pass.draft.push(Mutation::GrantVip { holder, address }),
            None => {
                // Whatever is given up, or ends its quarantine, may be what it needs.
                pass.depends_on_others = true;
                let now = pass.draft.now;
                if let Some((until, _)) = state.quarantined_vips().find(|(until, _)| *until > now) {
                    pass.wake(until);
                }
                return;
            }
        }
    }
}

/// What is left. Only ever goes forward, so what it gave is not given again.
pub(crate) struct Pool {
    /// Addresses that rest, by who had them.
    resting: BTreeMap<VipHolder, Ipv4Addr>,
    /// Where the search in a range goes on.
    next: BTreeMap<Ipv4Addr, u32>,
    /// Parts of the pool that belong to a network.
    owned: Vec<(Subnet, NetworkId)>,
    /// The state forgets what has rested long enough with its next entry, not before.
    now: Time,
}

impl Pool {
    pub(crate) fn new(state: &State, now: Time) -> Self {
        let still = state.quarantined_vips().filter(|(until, _)| *until > now);
        let resting = still.filter_map(|(_, address)| {
            let vip = state.vip(address)?;
            Some((vip.holder, address))
        });
        let owned = state.networks().filter_map(|network| Some((network.spec.subnet?, network.id)));
        let mut owned: Vec<(Subnet, NetworkId)> = owned.collect();
        owned.sort_unstable();
        Self { resting: resting.collect(), next: BTreeMap::new(), owned, now }
    }

    pub(crate) fn take(
        &mut self,
        state: &State,
        cluster: &Cluster,
        holder: VipHolder,
    ) -> Option<Ipv4Addr> {
        if let Some(address) = self.resting.remove(&holder) {
            return Some(address);
        }
        let own = self.owned.iter().find(|(_, network)| *network == holder.network);
        let range = own.map_or(cluster.vip_pool, |(subnet, _)| *subnet);
        let start = self.next.get(&range.address).copied();
        let address =
            self.search(state, range, start.unwrap_or_else(|| range.address.to_bits()), holder)?;
        self.next.insert(range.address, address.to_bits().saturating_add(1));
        Some(address)
    }

    /// The first address from `at` on that nobody has, had lately, or owns.
    fn search(
        &self,
        state: &State,
        range: Subnet,
        mut at: u32,
        holder: VipHolder,
    ) -> Option<Ipv4Addr> {
        let last = range.nth(range.size() - 1)?;
        let rests = |vip: &&Vip| vip.quarantined_until().is_none_or(|until| until > self.now);
        let taken = state.vips_between(Ipv4Addr::from_bits(at), last).filter(rests);
        let mut taken = taken.peekable();
        while at <= last.to_bits() {
            let address = Ipv4Addr::from_bits(at);
            while taken.next_if(|vip| vip.address < address).is_some() {}
            let of_another = self
                .owned
                .iter()
                .find(|(subnet, network)| *network != holder.network && subnet.contains(address));
            if let Some((subnet, _)) = of_another {
                at = subnet.nth(subnet.size() - 1)?.to_bits().checked_add(1)?;
                continue;
            }
            let free = taken.peek().is_none_or(|vip| vip.address != address);
            if free && Vip::is_usable(range, address) {
                return Some(address);
            }
            at = at.checked_add(1)?;
        }
        None
    }
}
