//! Questions about policies, and what differs between two states.

use warren_model::PolicyName;
use warren_model::id::PolicyId;
use warren_model::policy::Policy;

use crate::{State, prefix_range};

impl State {
    /// In order of id.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Policy> {
        self.policies.values().map(|policy| &**policy)
    }

    pub fn policy(&self, id: PolicyId) -> Option<&Policy> {
        self.policies.get(&id).map(|policy| &**policy)
    }

    pub fn policy_named(&self, name: &PolicyName) -> Option<&Policy> {
        self.policy(*self.policy_names.get(name)?)
    }

    /// A policy by its name, its id, or the beginning of its id if only one begins so. A name wins
    /// over an id: names are what people choose.
    pub fn resolve_policy(&self, text: &str) -> Option<&Policy> {
        if let Some(policy) = text.parse().ok().and_then(|name| self.policy_named(&name)) {
            return Some(policy);
        }
        let (first, last) = prefix_range::<PolicyId>(text)?.into_inner();
        let mut found = self.policies.range(first..=last).map(|(_, policy)| &**policy);
        match (found.next(), found.next()) {
            (Some(policy), None) => Some(policy),
            (Some(_) | None, _) => None,
        }
    }

    /// Whether policies were made or removed since `before`. Costs what differs, if one state grew
    /// out of the other.
    pub fn policies_differ(&self, before: &Self) -> bool {
        before.policies.diff(&self.policies).next().is_some()
    }
}
