//! Policies.

use warren_model::PolicyName;
use warren_model::event::{Action, Kind};
use warren_model::id::PolicyId;
use warren_model::policy::{Policy, PolicyPeer, PolicySpec};

use super::{Step, invalid};
use crate::change::{Key, Rejection};

/// Each may be a rule around each container, and fits twelve bits beside others there.
const POLICIES_MAX: usize = 1000;

impl Step<'_> {
    pub(super) fn create_policy(
        &mut self,
        id: PolicyId,
        spec: &PolicySpec,
    ) -> Result<(), Rejection> {
        if self.state.policy(id).is_some() {
            return Err(Rejection::Exists { key: Key::Policy(id) });
        }
        if self.state.policy_named(&spec.name).is_some() {
            return Err(Rejection::PolicyTaken { name: spec.name.clone() });
        }
        if self.state.policies.len() >= POLICIES_MAX {
            return invalid(format!("there are {POLICIES_MAX} policies, which is the limit"));
        }
        spec.peers().try_for_each(|peer| self.check_peer(peer))?;
        let (created, revision) = (self.state.time, self.revision);
        let policy = Policy { id, spec: spec.clone(), created, revision };
        self.state.set_policy(self.journal, id, Some(policy));
        self.emit_policy(Action::Create, id, &spec.name);
        Ok(())
    }

    pub(super) fn remove_policy(&mut self, id: PolicyId) -> Result<(), Rejection> {
        let policy = self.state.policy(id);
        let policy = policy.ok_or(Rejection::NotFound { key: Key::Policy(id) })?;
        let name = policy.spec.name.clone();
        self.state.set_policy(self.journal, id, None);
        self.emit_policy(Action::Remove, id, &name);
        Ok(())
    }

    /// Whether what an end names is there, and can be told by rules.
    fn check_peer(&self, peer: &PolicyPeer) -> Result<(), Rejection> {
        match peer {
            PolicyPeer::Service(name) => match self.state.service_by_name(name.as_str()) {
                Some(_) => Ok(()),
                None => Err(Rejection::NoService { name: name.clone() }),
            },
            PolicyPeer::Network(name) => match self.state.network_named(name) {
                Some(_) => Ok(()),
                None => Err(Rejection::NoNetwork { name: name.clone() }),
            },
            PolicyPeer::Range(range) => {
                let vips = self.state.cluster().map(|cluster| cluster.vip_pool);
                match vips.filter(|vips| range.is_within(*vips)) {
                    Some(vips) => invalid(format!(
                        "{range} is of the pool {vips} of virtual IPs, which rules do not see: \
                         name the service instead"
                    )),
                    None => Ok(()),
                }
            }
            PolicyPeer::Outside => Ok(()),
        }
    }

    /// The policies that name a network, for people.
    pub(super) fn policies_naming(&self, network: &warren_model::NetworkName) -> Vec<String> {
        let names = |policy: &&Policy| {
            let is_it = |peer: &PolicyPeer| matches!(peer, PolicyPeer::Network(n) if n == network);
            policy.spec.peers().any(is_it)
        };
        let found = self.state.policies().filter(names);
        found.map(|policy| format!("policy {}", policy.spec.name)).collect()
    }

    fn emit_policy(&mut self, action: Action, id: PolicyId, name: &PolicyName) {
        self.emit(Kind::Policy, action, id.to_string(), name.to_string(), String::new());
    }
}
