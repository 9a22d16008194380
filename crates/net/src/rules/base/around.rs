//! Constant rules around containers: what they may have of the node, who is parted from whom,
//! and what policies ended.

use super::{Base, DENIED, named};
use crate::Protocol;
use crate::rules::{Expression, Family, Set, Verdict};

impl Base {
    /// What containers may have of the node itself: those without a way out, and by policies.
    pub(super) fn confinement(&self) -> Vec<(&'static str, Vec<Expression>)> {
        use Expression::{
            Denied, DestinationIs, DestinationPort, FromLink, In, LookUp, NewState, Over,
            Verdict as Then,
        };
        if !self.isolated {
            return Vec::new();
        }
        let from = || vec![FromLink(self.ours()), NewState, In(Set::Confined)];
        let mut rules = Vec::new();
        if self.family == Family::V4 {
            let server = self.name_server;
            let dns = |protocol| {
                let at = [FromLink(self.ours()), Over(protocol)];
                let server = [DestinationIs((*server.ip()).into()), DestinationPort(server.port())];
                [&at[..], &server, &[Then(Verdict::Accept)]].concat()
            };
            rules.extend([dns(Protocol::Udp), dns(Protocol::Tcp)]);
        }
        rules.push(vec![Denied, Then(Verdict::Jump(DENIED.to_owned()))]);
        rules.push(vec![FromLink(self.ours()), NewState, LookUp(Set::Outbound)]);
        // A service's address that is pinged: the node answers for it.
        rules.push([from(), vec![Expression::EchoRequest, Then(Verdict::Accept)]].concat());
        rules.push([from(), vec![Then(Verdict::Drop)]].concat());
        named("input", rules)
    }

    /// The chain that new packets between containers go to: it always decides.
    pub(super) fn isolation(&self) -> Vec<(&'static str, Vec<Expression>)> {
        use Expression::{Count, In, OriginallyNotIn, Published, Together, Verdict as Then};
        let (drop, accept) = (|| Then(Verdict::Drop), || Then(Verdict::Accept));
        if !self.isolated {
            return vec![("isolate", vec![accept()])];
        }
        // By a port of the node, that is open to everybody who may reach the node.
        let vips = self.overlay.iter().flat_map(|overlay| &overlay.vips);
        let mut by_node = vec![Published];
        by_node.extend(vips.map(|vips| OriginallyNotIn(*vips)));
        let rules = vec![
            vec![In(Set::Nodes), accept()],
            vec![Together, accept()],
            [&by_node[..], &[In(Set::Confined), Count, drop()]].concat(),
            [&by_node[..], &[accept()]].concat(),
            vec![Count, drop()],
        ];
        named("isolate", rules)
    }

    /// Connections that policies came after: both ends learn that they are over. The mark may be
    /// somebody else's, of what is not ours.
    pub(super) fn denial(&self) -> Vec<(&'static str, Vec<Expression>)> {
        use Expression::{FromLink, Over, ResetTcp, ToLink, Verdict as Then};
        let mut rules = Vec::new();
        for ours in [FromLink(self.ours()), ToLink(self.ours())] {
            rules.push(vec![ours.clone(), Over(Protocol::Tcp), ResetTcp]);
            rules.push(vec![ours, Then(Verdict::Drop)]);
        }
        named(DENIED, rules)
    }
}
