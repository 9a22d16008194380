//! Init containers and sidecars: flags of `service create` and `service update`, and how they are
//! shown.
//!
//! One flag describes one container in pairs of key and value, as `--mount` and long forms of
//! `--publish` do in Docker. Commas part pairs, but for those within quotes.

use clap::{Args, Command, FromArgMatches};
use serde_json::{Value, json};
use warren_model::service::{Companion, CompanionKind, CompanionName};
use warren_model::task::TaskStatus;
use warren_model::{ServiceSpec, TaskTemplate, Time};
use warren_proto::v1;

use super::env;
use super::failure::{Failure, nearest};
use super::health::HealthFlags;
use super::mounts;
use super::privileges;
use super::spec::{bytes, cores, count, duration, words};

const KEYS: [&str; 21] = [
    "name",
    "image",
    "cmd",
    "entrypoint",
    "env",
    "user",
    "workdir",
    "read-only",
    "cap-add",
    "cap-drop",
    "limit-cpu",
    "limit-memory",
    "limit-pids",
    "reserve-cpu",
    "reserve-memory",
    "stop-signal",
    "stop-grace-period",
    "mount",
    "volume",
    "tmpfs",
    "shm-size",
];
/// Those that may be given more than once.
const AGAIN: [&str; 7] =
    ["env", "cap-add", "cap-drop", "mount", "volume", "tmpfs", "health-header"];
/// Of sidecars: the service's own flags without the dashes.
const HEALTH: &str = "health-";

/// One container as it was given; what its variables come to is known later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    name: CompanionName,
    pairs: Vec<(String, String)>,
}

/// Flags of `create`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CompanionFlags {
    /// Run a container to its end before the service's own starts: name=,image=[,cmd=,env=K=V,
    /// user=,workdir=,limit-memory=,reserve-cpu=,…]; repeat for more, they run in this order
    #[arg(long, value_name = "CONTAINER", value_parser = given)]
    init_container: Vec<Given>,
    /// Run a container beside the service's own, in its network: keys as above, and health-cmd=,
    /// health-http=, health-tcp=,…
    #[arg(long, value_name = "CONTAINER", value_parser = given)]
    sidecar: Vec<Given>,
}

/// Flags of `update`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct CompanionEdits {
    /// Add an init container, or replace the one of that name
    #[arg(long, value_name = "CONTAINER", value_parser = given)]
    init_container_add: Vec<Given>,
    /// Remove an init container
    #[arg(long, value_name = "NAME")]
    init_container_rm: Vec<String>,
    /// Add a sidecar, or replace the one of that name
    #[arg(long, value_name = "CONTAINER", value_parser = given)]
    sidecar_add: Vec<Given>,
    /// Remove a sidecar
    #[arg(long, value_name = "NAME")]
    sidecar_rm: Vec<String>,
}

fn given(text: &str) -> Result<Given, String> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for pair in split(text)? {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let keys = || KEYS.into_iter().chain(privileges::KEYS);
        if !keys().any(|known| known == key) && !key.starts_with(HEALTH) {
            let meant = nearest(key, keys()).map(|k| format!("did you mean {k}?"));
            let known = meant.unwrap_or_else(|| {
                format!("keys are {} and health-…", keys().collect::<Vec<_>>().join(", "))
            });
            return Err(format!("there is no key {key:?}; {known}"));
        }
        let again = AGAIN.contains(&key) || privileges::AGAIN.contains(&key);
        if !again && pairs.iter().any(|(known, _)| known == key) {
            return Err(format!("{key} is given twice"));
        }
        pairs.push((key.to_owned(), value.to_owned()));
    }
    let of = |key: &str| pairs.iter().find(|(known, _)| known == key).map(|(_, value)| value);
    let name = of("name").ok_or("lacks name=NAME")?;
    let name = name.parse().map_err(|problem| format!("name: {name:?} {problem}"))?;
    if of("image").is_none_or(String::is_empty) {
        return Err(format!("{name} lacks image=REF"));
    }
    Ok(Given { name, pairs })
}

/// At commas outside of quotes.
pub(crate) fn split(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut from, mut quote, mut escaped) = (Vec::new(), 0, None, false);
    for (at, c) in text.char_indices() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match (quote, c) {
            // As a shell has it: not within single quotes.
            (None | Some('"'), '\\') => escaped = true,
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), c) if open == c => quote = None,
            (None, ',') => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    if quote.is_some() {
        return Err(format!("{text:?} has a quote that is not closed"));
    }
    parts.push(&text[from..]);
    Ok(parts)
}

/// Without the quotes around it, if there are some.
pub(crate) fn bare(text: &str) -> &str {
    let within = |quote| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    within('"').or_else(|| within('\'')).unwrap_or(text)
}

impl Given {
    fn companion(
        &self,
        flag: &str,
        kind: CompanionKind,
        lookup: env::Lookup<'_>,
    ) -> Result<Companion, Failure> {
        let within = |problem: String| Failure::input(format!("{flag} {}: {problem}", self.name));
        let mut task = TaskTemplate::default();
        let (mut pairs, mut health) = (Vec::new(), Vec::new());
        for (key, value) in &self.pairs {
            if key.starts_with(HEALTH) {
                health.push(format!("--{key}={}", bare(value)));
            } else if key == "env" {
                let (name, text) = value.split_once('=').unwrap_or((value, ""));
                let whole = if value.contains('=') {
                    format!("{name}={}", bare(text))
                } else {
                    value.clone()
                };
                pairs.push(bare(&whole).to_owned());
            } else {
                set(&mut task, key, value).map_err(|why| within(format!("{key}: {why}")))?;
            }
        }
        task.env = env::gather::<&str>(&[], &pairs, lookup)?;
        if !health.is_empty() {
            task.health = check(&health, &task).map_err(within)?;
        }
        Ok(Companion { name: self.name.clone(), kind, task })
    }
}

fn set(task: &mut TaskTemplate, key: &str, value: &str) -> Result<(), String> {
    let plain = bare(value);
    match key {
        "image" => plain.clone_into(&mut task.image),
        "cmd" => task.command = line(value)?,
        "entrypoint" => task.entrypoint = Some(line(value)?),
        "user" => task.user = Some(plain.to_owned()),
        "workdir" => task.workdir = Some(plain.to_owned()),
        "read-only" => {
            task.read_only = match plain {
                "" | "true" => true,
                "false" => false,
                _ => return Err(format!("{plain:?} is neither true nor false")),
            }
        }
        "cap-add" => task.cap_add.push(plain.to_owned()),
        "cap-drop" => task.cap_drop.push(plain.to_owned()),
        "limit-cpu" => task.limits.cpu_millis = Some(cores(plain)?).filter(|n| *n > 0),
        "limit-memory" => task.limits.memory_bytes = Some(bytes(plain)?).filter(|n| *n > 0),
        "limit-pids" => task.limits.pids = Some(count(plain)?).filter(|n| *n > 0),
        "reserve-cpu" => task.reserve.cpu_millis = cores(plain)?.into(),
        "reserve-memory" => task.reserve.memory_bytes = bytes(plain)?,
        "stop-signal" => task.stop_signal = Some(plain.to_owned()),
        // The long form is known by its pairs, in quotes as it has commas.
        "mount" if plain.contains("target=") || plain.contains("dst=") => {
            mounts::put(task, mounts::long(plain)?);
        }
        "mount" => task.shared.push(mounts::shared(plain)?),
        "volume" => task.mounts.push(mounts::short(plain)?),
        "tmpfs" => task.mounts.push(mounts::tmpfs(plain)?),
        "shm-size" => task.shm_bytes = Some(bytes(plain)?),
        "stop-grace-period" => task.stop_grace_ms = Some(duration(plain)?),
        // The name, which was read already.
        "name" => {}
        _ => privileges::set(&mut task.privileges, key, plain)?,
    }
    Ok(())
}

/// A command: the whole may be in quotes, as may its words.
fn line(value: &str) -> Result<Vec<String>, String> {
    let once = words(value)?.0;
    match once.as_slice() {
        [whole] if value.starts_with(['"', '\'']) => words(whole).map(|words| words.0),
        _ => Ok(once),
    }
}

/// As the service's own flags are read.
fn check(
    flags: &[String],
    task: &TaskTemplate,
) -> Result<warren_model::health::Healthcheck, String> {
    let command = HealthFlags::augment_args(Command::new("health").no_binary_name(true));
    let matches = command.try_get_matches_from(flags).map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        first.trim_start_matches("error: ").replace("'--", "'")
    })?;
    let read = HealthFlags::from_arg_matches(&matches).map_err(|error| error.to_string())?;
    let name = "sidecar".parse().map_err(|_| "is no name".to_owned())?;
    let mut spec = ServiceSpec::new(name, task.clone());
    read.apply(&mut spec).map_err(|failure| failure.message)?;
    Ok(spec.task.health)
}

impl CompanionFlags {
    pub(crate) fn companions(&self, lookup: env::Lookup<'_>) -> Result<Vec<Companion>, Failure> {
        let kinds = [
            ("--init-container", CompanionKind::Init, &self.init_container),
            ("--sidecar", CompanionKind::Sidecar, &self.sidecar),
        ];
        let mut all = Vec::new();
        for (flag, kind, given) in kinds {
            for one in given {
                all.push(one.companion(flag, kind, lookup)?);
            }
        }
        Ok(all)
    }
}

impl CompanionEdits {
    pub(crate) fn apply(
        &self,
        task: &mut TaskTemplate,
        lookup: env::Lookup<'_>,
        remarks: &mut Vec<String>,
    ) -> Result<(), Failure> {
        let removals = [
            ("--init-container-rm", CompanionKind::Init, &self.init_container_rm),
            ("--sidecar-rm", CompanionKind::Sidecar, &self.sidecar_rm),
        ];
        for (flag, kind, names) in removals {
            for name in names {
                let before = task.companions.len();
                task.companions.retain(|known| known.kind != kind || known.name.as_str() != name);
                if task.companions.len() == before {
                    let known = task.of_kind(kind).map(|known| known.name.as_str());
                    let meant = nearest(name, known).map(|k| format!("; did you mean {k}?"));
                    let meant = meant.unwrap_or_default();
                    let what = kind.words();
                    remarks.push(format!("{flag}: the service has no {what} {name}{meant}"));
                }
            }
        }
        let additions = [
            ("--init-container-add", CompanionKind::Init, &self.init_container_add),
            ("--sidecar-add", CompanionKind::Sidecar, &self.sidecar_add),
        ];
        for (flag, kind, given) in additions {
            for one in given {
                let made = one.companion(flag, kind, lookup)?;
                let same = |known: &&mut Companion| known.kind == kind && known.name == made.name;
                match task.companions.iter_mut().find(same) {
                    Some(known) => *known = made,
                    None => task.companions.push(made),
                }
            }
        }
        Ok(())
    }
}

/// States of a task's containers beside its own, for `task inspect`.
pub(crate) fn statuses_json(status: Option<&v1::TaskStatus>) -> Vec<Value> {
    let status = status.cloned().and_then(|status| TaskStatus::try_from(status).ok());
    let all = status.as_ref().map(TaskStatus::companions).unwrap_or_default();
    let row = |companion: &warren_model::task::CompanionStatus| {
        json!({
            "name": companion.name.as_str(),
            "kind": companion.kind.as_str(),
            "state": companion.state.as_str(),
            "since": Some(companion.since).filter(|at| *at != Time(0)).map(|at| at.to_string()),
            "pid": companion.pid,
            "restarts": companion.restarts,
            "exit_code": companion.exit.map(|exit| exit.code),
            "oom_killed": companion.exit.is_some_and(|exit| exit.oom_killed),
        })
    };
    all.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(key: &str) -> Option<String> {
        (key == "TOKEN").then(|| "secret".to_owned())
    }

    fn made(text: &str) -> Result<Companion, String> {
        let given = given(text)?;
        given
            .companion("--sidecar", CompanionKind::Sidecar, &caller)
            .map_err(|failure| failure.message)
    }

    #[test]
    fn one_flag_is_one_container() {
        let text = "name=proxy,image=envoy:1,cmd=\"run -c 'a, b'\",env=A=1,env=B=\"x,y\",env=TOKEN,\
                    user=1000,workdir=/srv,limit-cpu=0.5,limit-memory=64MiB,reserve-memory=32MiB,\
                    read-only,cap-drop=ALL,cap-add=NET_ADMIN,stop-grace-period=3s";
        let Companion { name, kind, task } = made(text).unwrap();
        assert_eq!((name.as_str(), kind), ("proxy", CompanionKind::Sidecar));
        assert_eq!(task.command, ["run", "-c", "a, b"]);
        assert_eq!(task.env, ["A=1", "B=x,y", "TOKEN=secret"]);
        assert_eq!(task.limits.cpu_millis, Some(500));
        assert_eq!(
            (task.limits.memory_bytes, task.reserve.memory_bytes),
            (Some(64 << 20), 32 << 20)
        );
        assert_eq!((task.read_only, task.stop_grace_ms), (true, Some(3000)));
        assert_eq!((task.cap_add.len(), task.cap_drop.len()), (1, 1));
        let escaped = made(r#"name=a,image=b,cmd="sh -c \"exit, 4\"""#).unwrap();
        assert_eq!(escaped.task.command, ["sh", "-c", "exit, 4"]);
        assert_eq!(made("name=a,image=b,cmd=sh -c 'exit 3'").unwrap().task.command[2], "exit 3");
        let health = made("name=a,image=b,health-tcp=8080,health-interval=1s").unwrap().task.health;
        let warren_model::health::Healthcheck::Explicit(check) = health else { panic!("none") };
        assert_eq!((check.probe.to_string().as_str(), check.interval_ms), ("tcp 8080", 1000));
    }

    #[test]
    fn mounts_of_one_container() {
        let task = made(
            "name=a,image=b,mount=s:/x,mount=t:/y:ro,volume=data:/z:ro,tmpfs=/run,shm-size=1g,\
             mount=\"type=bind,source=/srv,target=/w\"",
        );
        let task = task.unwrap().task;
        assert_eq!((task.shared[0].to_string().as_str(), task.shared[1].read_only), ("s:/x", true));
        let mounts: Vec<String> = task.mounts.iter().map(ToString::to_string).collect();
        assert_eq!(mounts, ["data:/z:ro", "tmpfs:/run", "/srv:/w"]);
        assert_eq!(task.shm_bytes, Some(1 << 30));
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let error = made(text).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn what_is_refused() {
        refused("image=b", "lacks name=NAME");
        refused("name=a", "a lacks image=REF");
        refused("name=a,imge=b", "there is no key \"imge\"; did you mean image?");
        refused("name=a,image=b,zzz=1", "there is no key \"zzz\"; keys are name, image, cmd");
        refused("name=main,image=b", "name: \"main\" is the name of the service's own container");
        refused("name=A,image=b", "name: \"A\" is not a name of a container");
        refused("name=a,image=b,image=c", "image is given twice");
        refused("name=a,image=b,cmd='x", "\"name=a,image=b,cmd='x\" has a quote");
        refused("name=a,image=b,limit-cpu=x", "--sidecar a: limit-cpu: ");
        refused("name=a,image=b,mount=/x", "--sidecar a: mount: \"/x\" is not of the form");
        refused("name=a,image=b,health-tcp=0", "--sidecar a: invalid value '0' for 'health-tcp");
        refused("name=a,image=b,health-foo=0", "--sidecar a: unexpected argument 'health-foo'");
        refused("name=a,image=b,health-interval=1s", "--sidecar a: --health-interval is of no use");
    }
}
