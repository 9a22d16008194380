//! What every command that talks to a cluster needs: which cluster, and a
//! client; and `warren context …`, which says what there is to choose from.

use std::sync::Arc;

use clap::{Args, Subcommand};
use serde::Serialize;
use warren_base::clock::{Clock, RealClock};
use warren_model::Time;

use super::client::{Client, NOBODY_HERE, Target};
use super::failure::{Exit, Failure};
use super::listing::{ListFlags, Record, View};
use super::printer::Printer;
use super::remote::{Contexts, Remote};
use super::secret;
use crate::settings::{Environment, Place};

pub(crate) struct Context<'a> {
    pub(crate) client: Client,
    pub(crate) printer: &'a mut Printer,
}

impl<'a> Context<'a> {
    /// # Errors
    /// Nobody answers.
    pub(crate) async fn connect(target: Target, printer: &'a mut Printer) -> Result<Self, Failure> {
        Ok(Self { client: Client::connect(target).await?, printer })
    }

    /// Says so when what was read may not be the newest.
    pub(crate) fn stale(&mut self, stale_ms: u64) {
        if stale_ms > 0 {
            let seconds = stale_ms.div_ceil(1000);
            self.printer.warning(format!(
                "this manager has had no leader for {seconds} s: what it shows may be old"
            ));
        }
    }

    /// Rows seen from now.
    pub(crate) fn view(&self) -> View {
        View::at(now())
    }
}

pub(crate) fn now() -> Time {
    Time(RealClock::new().now_ms())
}

/// Which cluster is meant: the context that is named, else the node of this machine, else the
/// current context.
///
/// # Errors
/// A context that is named is not there.
pub(crate) fn target(
    named: Option<&str>,
    place: &Place,
    env: Environment<'_>,
) -> Result<Target, Failure> {
    let variable = env("WARREN_CONTEXT").filter(|text| !text.is_empty());
    if let Some(name) = named.map(str::to_owned).or(variable) {
        return Ok(Target::Remote(Arc::new(Contexts::of(env)?.get(&name)?)));
    }
    let chosen = env("WARREN_SOCKET").is_some_and(|text| !text.is_empty());
    if !chosen
        && !place.socket.exists()
        && let Ok(contexts) = Contexts::of(env)
        && let Some(current) = contexts.current()
    {
        return Ok(Target::Remote(Arc::new(contexts.get(&current)?)));
    }
    Ok(Target::Socket(place.socket.clone()))
}

/// Nobody answers here: says so when there are clusters that could be called instead.
pub(crate) fn or_afar(failure: Failure, env: Environment<'_>) -> Failure {
    let nobody = failure.exit == Exit::Unreachable && failure.message.contains(NOBODY_HERE);
    let names = Contexts::of(env).map(|contexts| contexts.names()).unwrap_or_default();
    if !nobody || names.is_empty() {
        return failure;
    }
    let hint = failure.hint.clone().unwrap_or_default();
    let names = names.join(", ");
    failure.hint(format!("{hint}; or call a cluster from afar with --context: {names}"))
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextVerb {
    /// Keep how a cluster is called from afar
    Create(CreateArgs),
    /// Change whom a context calls, or replace it
    Update(UpdateArgs),
    /// Call this cluster from now on where no node runs
    Use(NameArgs),
    /// List contexts
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Forget contexts
    #[command(visible_alias = "remove")]
    Rm(NamesArgs),
    /// Print a context, its secrets included
    Export(NameArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Name of the context
    #[arg(value_name = "NAME")]
    name: String,
    /// What `warren operator create --context-file` or `context export` wrote; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["address", "fingerprint"])]
    from: Option<std::path::PathBuf>,
    /// Managers of the cluster; the token is read from standard input
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',', requires = "fingerprint")]
    address: Vec<String>,
    /// SHA-256 of the cluster's authority: `authority` of `warren cluster settings`
    #[arg(long, value_name = "HEX", requires = "address")]
    fingerprint: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Name of the context
    #[arg(value_name = "NAME")]
    name: String,
    /// What `warren operator create --context-file` wrote; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["address", "fingerprint"])]
    from: Option<std::path::PathBuf>,
    /// Managers of the cluster
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    address: Vec<String>,
    /// SHA-256 of the cluster's authority: `authority` of `warren cluster settings`
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// Name of the context
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct NamesArgs {
    /// Names of contexts
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Carries out what needs no cluster.
pub(crate) fn run(
    printer: &mut Printer,
    verb: ContextVerb,
    env: Environment<'_>,
) -> Result<(), Failure> {
    let contexts = Contexts::of(env)?;
    match verb {
        ContextVerb::Create(args) => {
            let remote = made(printer, &args)?;
            contexts.put(&args.name, &remote)?;
            printer.line(&args.name)
        }
        ContextVerb::Update(args) => {
            let before = contexts.get(&args.name)?;
            let remote = match &args.from {
                Some(path) => from(path)?,
                None if args.address.is_empty() && args.fingerprint.is_none() => {
                    return Err(Failure::input("context update: nothing is to be changed")
                        .hint("give --from, --address or --fingerprint"));
                }
                None => before.changed(args.address, args.fingerprint)?,
            };
            contexts.replace(&args.name, &remote)?;
            printer.line(&args.name)
        }
        ContextVerb::Use(args) => contexts.set_current(Some(&args.name)),
        ContextVerb::Rm(args) => args.names.iter().try_for_each(|name| {
            contexts.remove(name)?;
            printer.line(name)
        }),
        ContextVerb::Export(args) => printer.line(contexts.get(&args.name)?.to_text()?.as_str()),
        ContextVerb::Ls(flags) => {
            let current = contexts.current();
            let rows: Vec<ContextRow> = contexts
                .names()
                .into_iter()
                .map(|name| row(&contexts, current.as_deref(), name))
                .collect();
            printer.list(&rows, &flags, View::at(now()))
        }
    }
}

fn made(printer: &mut Printer, args: &CreateArgs) -> Result<Remote, Failure> {
    match (&args.from, &args.fingerprint) {
        (Some(path), _) => from(path),
        (None, Some(fingerprint)) => {
            let token = secret::read(printer, "token: ")?;
            Remote::by_token(args.address.clone(), fingerprint.clone(), token)
        }
        (None, None) => {
            Err(Failure::input("context create: --from, or --address and --fingerprint")
                .hint("`warren operator create NAME --context-file FILE` makes a file for --from"))
        }
    }
}

/// A context out of a file that `operator create` or `context export` wrote.
fn from(path: &std::path::Path) -> Result<Remote, Failure> {
    if path.as_os_str() == "-" {
        let text = std::io::read_to_string(std::io::stdin());
        let text = text.map_err(|e| Failure::input(format!("standard input: {e}")))?;
        return Remote::parse("standard input", &zeroize::Zeroizing::new(text));
    }
    let shown = format!("--from: {}", path.display());
    let text = std::fs::read_to_string(path).map(zeroize::Zeroizing::new);
    let text = text.map_err(|e| Failure::input(format!("{shown}: {e}")))?;
    Remote::parse(&shown, &text)
}

fn row(contexts: &Contexts, current: Option<&str>, name: String) -> ContextRow {
    let remote = contexts.get(&name);
    ContextRow {
        current: current == Some(name.as_str()),
        address: remote.as_ref().map(Remote::shown).unwrap_or_default(),
        access: remote.as_ref().map_or("damaged", Remote::access),
        name,
    }
}

#[derive(Debug, Serialize)]
struct ContextRow {
    name: String,
    current: bool,
    address: String,
    access: &'static str,
}

impl Record for ContextRow {
    const COLUMNS: &'static [&'static str] = &["NAME", "CURRENT", "ADDRESS", "ACCESS"];
    const KEYS: &'static [&'static str] = &["name", "current", "address", "access"];

    fn cells(&self, _: View) -> Vec<String> {
        vec![
            self.name.clone(),
            if self.current { "yes" } else { "" }.to_owned(),
            self.address.clone(),
            self.access.to_owned(),
        ]
    }

    fn key(&self) -> &str {
        &self.name
    }
}
