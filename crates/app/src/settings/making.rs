//! Flags of the commands that make a node, or make one again.

use std::path::PathBuf;

use clap::Args;
use warren_manager::{Pools, Terms};
use warren_model::OverlayKind;
use warren_model::cluster::Subnet;
use warren_trust::{JoinRole, JoinToken};
use zeroize::Zeroizing;

use super::{Environment, NodeFlags, NodeSettings, PORT, Place};
use crate::address::Address;
use crate::cli::failure::Failure;

/// Flags of `cluster init`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct InitFlags {
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    /// Run no containers on this node
    #[arg(long)]
    pub(crate) manager_only: bool,
    /// Addresses of containers: a range that no machine of the cluster reaches otherwise
    /// [default: 10.128.0.0/10]
    #[arg(long, value_name = "CIDR")]
    pool: Option<Subnet>,
    /// Virtual IPs of services, apart from those [default: 10.192.0.0/14]
    #[arg(long, value_name = "CIDR")]
    vip_pool: Option<Subnet>,
    /// How containers' packets travel between nodes: wireguard, vxlan (not encrypted) or none,
    /// for nodes that share a segment
    #[arg(long, value_name = "KIND", default_value_t = OVERLAY)]
    overlay: OverlayKind,
}

/// Of a new cluster that nobody chose one for.
const OVERLAY: OverlayKind = OverlayKind::Wireguard;
/// With a longer prefix there would be blocks for 16 nodes at most.
const POOL_PREFIX_MAX: u8 = 20;
/// With a longer prefix there would be less than 254 virtual IPs.
const VIP_POOL_PREFIX_MAX: u8 = 24;
/// A shorter prefix is more than all private addresses there are.
const PREFIX_MIN: u8 = 8;

impl InitFlags {
    /// What the new cluster is to be like.
    ///
    /// # Errors
    /// As of [`InitFlags::pools`].
    pub(crate) fn terms(&self) -> Result<Terms, Failure> {
        Ok(Terms { pools: self.pools()?, overlay: self.overlay })
    }

    /// Where the new cluster's addresses are from.
    ///
    /// # Errors
    /// Naming the flag, and what is wrong with its value.
    fn pools(&self) -> Result<Pools, Failure> {
        let default = Pools::default();
        let pools = Pools {
            containers: self.pool.unwrap_or(default.containers),
            vips: self.vip_pool.unwrap_or(default.vips),
        };
        let limits = [
            ("--pool", pools.containers, POOL_PREFIX_MAX),
            ("--vip-pool", pools.vips, VIP_POOL_PREFIX_MAX),
        ];
        for (flag, range, max) in limits {
            if !(PREFIX_MIN..=max).contains(&range.prefix) {
                let text = format!("{flag}: {range} is not between /{PREFIX_MIN} and /{max}");
                return Err(Failure::input(text));
            }
        }
        if pools.containers.overlaps(&pools.vips) {
            let Pools { containers, vips } = pools;
            let text = format!("--pool: {containers} overlaps {vips}, which virtual IPs are from");
            let flag = if self.vip_pool.is_some() { "--pool" } else { "--vip-pool" };
            return Err(Failure::input(text).hint(format!("choose another range with {flag}")));
        }
        Ok(pools)
    }
}

/// Flags of `node run`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct RunFlags {
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    /// Look for managers here first, e.g. after a restore at another address; remembered
    /// [env: WARREN_MANAGERS]
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub(super) managers: Vec<String>,
}

impl RunFlags {
    /// # Errors
    /// Naming the flag, variable or key, and what is wrong with its value.
    pub(crate) fn resolve(
        &self,
        place: &Place,
        env: Environment<'_>,
    ) -> Result<NodeSettings, Failure> {
        let settings = place.node(&self.node, env)?;
        let managers = super::list::managers(env, &place.file, &self.managers)?;
        Ok(NodeSettings { managers, ..settings })
    }
}

/// Flags of `node join`.
#[derive(Debug, Clone, Args)]
pub(crate) struct JoinFlags {
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    /// Run no containers on this node; for tokens that let a manager join
    #[arg(long)]
    pub(crate) manager_only: bool,
    /// What `warren cluster token` shows; - reads it from standard input [env: WARREN_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    token: Option<Shy>,
    /// Managers of the cluster
    #[arg(value_name = "HOST[:PORT]", required = true, value_delimiter = ',')]
    addresses: Vec<String>,
}

/// Flags of `cluster restore`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RestoreFlags {
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    /// File with the passphrase; without it and --key-file standard input is asked
    #[arg(long, value_name = "FILE", conflicts_with = "key_file")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// File with the private key that `warren cluster backup-key` made
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// The backup; `warren node run` goes on from there
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
}

/// Flags of `cluster recover`.
#[derive(Debug, Clone, Args)]
pub(crate) struct RecoverFlags {
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    /// The others are lost for good: they are refused from now on
    #[arg(long, required = true)]
    pub(crate) yes: bool,
}

/// A value that `Debug` does not show.
#[derive(Clone)]
struct Shy(Zeroizing<String>);

impl std::fmt::Debug for Shy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

impl std::str::FromStr for Shy {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

/// How a node gets into a cluster.
pub(crate) struct JoinSettings {
    pub(crate) token: JoinToken,
    pub(crate) addresses: Vec<Address>,
    pub(crate) manager_only: bool,
}

impl JoinFlags {
    /// `stdin` is read when the token is to come from there.
    ///
    /// # Errors
    /// Naming the flag or variable and what is wrong with its value; the token itself is never
    /// shown.
    pub(crate) fn resolve(
        &self,
        env: Environment<'_>,
        stdin: impl FnOnce() -> std::io::Result<Zeroizing<String>>,
    ) -> Result<JoinSettings, Failure> {
        let variable = || env("WARREN_TOKEN").filter(|text| !text.is_empty()).map(Zeroizing::new);
        let (source, text) = match &self.token {
            Some(Shy(text)) if text.as_str() == "-" => {
                let read = stdin();
                ("standard input", read.map_err(|e| Failure::input(format!("--token -: {e}")))?)
            }
            Some(Shy(text)) => ("--token", text.clone()),
            None => ("WARREN_TOKEN", variable().unwrap_or_default()),
        };
        let hint = "on a manager, `warren cluster token worker` or `… manager` shows one";
        if text.is_empty() {
            let failure = Failure::input("--token: a token is needed to join a cluster");
            return Err(failure.hint(hint));
        }
        let token = text.parse::<JoinToken>();
        let token = token.map_err(|e| Failure::input(format!("{source}: {e}")).hint(hint))?;
        let address = |text: &String| {
            let parsed = Address::parse(text, PORT).and_then(Address::dialled);
            parsed.map_err(|problem| Failure::input(format!("HOST:PORT: {problem}")))
        };
        let addresses = self.addresses.iter().map(address).collect::<Result<Vec<_>, _>>()?;
        if self.manager_only && token.role == JoinRole::Worker {
            return Err(Failure::input("--manager-only: the token lets a worker join")
                .hint("`warren cluster token manager` shows one for managers"));
        }
        Ok(JoinSettings { token, addresses, manager_only: self.manager_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools() {
        let check = |pool: Option<&str>, vips: Option<&str>| {
            let subnet = |text: Option<&str>| text.map(|text| text.parse().unwrap());
            let flags =
                InitFlags { pool: subnet(pool), vip_pool: subnet(vips), ..InitFlags::default() };
            match flags.pools() {
                Ok(pools) => format!("{} {}", pools.containers, pools.vips),
                Err(failure) => failure.message,
            }
        };
        assert_eq!(check(None, None), "10.128.0.0/10 10.192.0.0/14");
        assert_eq!(check(Some("10.64.0.0/12"), None), "10.64.0.0/12 10.192.0.0/14");
        assert_eq!(
            check(Some("10.64.0.0/21"), None),
            "--pool: 10.64.0.0/21 is not between /8 and /20"
        );
        assert_eq!(
            check(None, Some("10.64.0.0/25")),
            "--vip-pool: 10.64.0.0/25 is not between /8 and /24"
        );
        assert_eq!(
            check(Some("10.0.0.0/8"), None),
            "--pool: 10.0.0.0/8 overlaps 10.192.0.0/14, which virtual IPs are from"
        );
    }
}
