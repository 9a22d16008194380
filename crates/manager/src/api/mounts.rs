//! Paths of nodes in containers: what a cluster allows, as far as it shows in the text.
//!
//! Where links lead only a node knows: it judges again, by where a path really is.

use warren_model::bind::{self, BindRule, Verdict};
use warren_model::service::{Mount, MountKind, TaskTemplate};
use warren_model::{Cluster, ServiceSpec};
use warren_proto::v1;
use warren_state::State;

use crate::refusal::Refusal;

/// Refuses what the cluster does not allow; what `before` had already is left to nodes.
pub(super) fn check(
    view: &State,
    spec: &ServiceSpec,
    before: Option<&TaskTemplate>,
) -> Result<(), Refusal> {
    let rules = view.cluster().map(|cluster| cluster.allow_bind.as_slice()).unwrap_or_default();
    let own = spec.task.mounts.iter();
    let companions = spec.task.companions.iter().flat_map(|companion| &companion.task.mounts);
    let old: Vec<&Mount> = before.into_iter().flat_map(|before| &before.mounts).collect();
    own.filter(|mount| !old.contains(mount)).chain(companions).try_for_each(|m| judge(rules, m))
}

fn judge(rules: &[BindRule], mount: &Mount) -> Result<(), Refusal> {
    let MountKind::Bind(bind) = &mount.kind else { return Ok(()) };
    let source = &bind.source;
    match bind::verdict(rules, source) {
        Verdict::Allowed | Verdict::Unknown => Ok(()),
        Verdict::ReadOnly if mount.read_only => Ok(()),
        Verdict::ReadOnly => Err(Refusal::bad_input(format!(
            "mount: {source:?} may be mounted in this cluster to be read alone"
        ))
        .hint("add readonly to the mount")),
        Verdict::Denied => {
            let folder = source.split("{{").next().unwrap_or_default();
            let folder = match folder.rsplit_once('/') {
                Some((folder, _)) if folder.len() > 1 && source.contains("{{") => folder,
                _ => source,
            };
            Err(Refusal::bad_input(format!(
                "mount: {source:?} is no path of nodes that this cluster lets containers mount"
            ))
            .hint(format!(
                "an administrator allows it: warren cluster update --allow-bind {folder}"
            )))
        }
    }
}

/// Changes the list of paths: removals first.
pub(super) fn change(
    cluster: &mut Cluster,
    wire: &v1::UpdateClusterRequest,
) -> Result<(), Refusal> {
    for text in &wire.allow_bind_rm {
        let path = text.parse::<BindRule>().map_err(|error| bad("allow_bind_rm", &error))?;
        let before = cluster.allow_bind.len();
        cluster.allow_bind.retain(|rule| rule.path() != path.path());
        if cluster.allow_bind.len() == before {
            let path = path.path();
            return Err(Refusal::not_found(format!("allow_bind_rm: {path:?} is not in the list"))
                .hint("warren cluster settings shows it"));
        }
    }
    for text in &wire.allow_bind {
        let rule = text.parse::<BindRule>().map_err(|error| bad("allow_bind", &error))?;
        cluster.allow_bind.retain(|known| known.path() != rule.path());
        cluster.allow_bind.push(rule);
    }
    cluster.allow_bind.sort();
    let (count, max) = (cluster.allow_bind.len(), BindRule::RULES_MAX);
    match count > max {
        true => Err(Refusal::bad_input(format!("allow_bind: {count} paths are more than {max}"))),
        false => Ok(()),
    }
}

fn bad(field: &str, error: &bind::BindRuleError) -> Refusal {
    Refusal::bad_input(format!("{field}: {error}"))
}

#[cfg(test)]
mod tests {
    use warren_model::ClusterId;
    use warren_model::service::Bind;

    use super::*;

    #[test]
    fn sources() {
        let rules: Vec<BindRule> =
            ["/srv", "/etc/ssl:ro"].map(|rule| rule.parse().unwrap()).to_vec();
        let check = |source: &str, read_only| {
            let bind = Bind { source: source.to_owned(), recursive: true, follows: false };
            let kind = MountKind::Bind(bind);
            let mount = Mount { target: "/a".to_owned(), read_only, kind };
            judge(&rules, &mount).map_err(|refusal| refusal.to_string()).err().unwrap_or_default()
        };
        assert_eq!(check("/srv/a", false), "");
        assert_eq!(check("/etc/ssl/certs", true), "");
        let error = check("/etc/ssl/certs", false);
        assert_eq!(
            error,
            "mount: \"/etc/ssl/certs\" may be mounted in this cluster to be read alone"
        );
        assert!(check("/var/run/docker.sock", true).contains("is no path of nodes"));
        assert_eq!(check("/srv/{{.Node.Hostname}}", true), "");
    }

    #[test]
    fn changes() {
        let mut cluster = Cluster::new(ClusterId::from_bytes([1; 10]));
        let mut edit = |add: &[&str], remove: &[&str]| {
            let list = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect();
            let wire = v1::UpdateClusterRequest {
                allow_bind: list(add),
                allow_bind_rm: list(remove),
                ..Default::default()
            };
            match change(&mut cluster, &wire) {
                Ok(()) => {
                    let rules = cluster.allow_bind.iter().map(ToString::to_string);
                    rules.collect::<Vec<_>>().join(" ")
                }
                Err(refusal) => refusal.to_string(),
            }
        };
        assert_eq!(edit(&["/srv", "/etc/ssl:ro"], &[]), "/etc/ssl:ro /srv");
        assert_eq!(edit(&["/srv:ro"], &[]), "/etc/ssl:ro /srv:ro");
        assert_eq!(edit(&[], &["/srv"]), "/etc/ssl:ro");
        assert_eq!(edit(&[], &["/srv"]), "allow_bind_rm: \"/srv\" is not in the list");
        assert!(edit(&["srv"], &[]).contains("allow_bind: \"srv\" is not an absolute path"));
    }
}
