//! The command line: what can be typed, and who carries it out.
//!
//! Commands talk to a node over its socket and know the wire and the model,
//! nothing else. Verbs that run a node are handed to the caller as [`Role`].

mod attach;
mod backup;
mod client;
mod cluster;
mod companion;
mod completion;
mod context;
mod dataplane;
mod defaults;
mod dispatch;
mod doctor;
mod edit;
mod env;
mod exec;
mod explain;
pub(crate) mod failure;
mod health;
mod hooks;
mod image;
mod inspect;
mod interrupt;
mod job;
mod leave;
mod listing;
mod logs;
mod members;
mod moment;
mod mounts;
mod moving;
mod network;
mod node;
mod operator;
mod pace;
mod placing;
mod policy;
mod ports;
pub(crate) mod printer;
mod privileges;
pub(crate) mod probe;
mod remote;
mod revisions;
mod rows;
pub(crate) mod secret;
mod service;
mod settle;
mod simulate;
mod spec;
mod task;
mod template;
mod terminal;
#[cfg(test)]
mod tests;
mod token;
mod tuning;
mod tunnel_keys;
mod usage;
mod version;
mod volume;
mod wait;
mod yaml;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::settings::{
    Environment, InitFlags, JoinFlags, PlaceFlags, RecoverFlags, RestoreFlags, RunFlags,
};
pub(crate) use client::{FINAL_KEY, FORGET_KEY};
use context::Context;
pub(crate) use dataplane::DataPlaneArgs;
pub(crate) use doctor::{Check, Level};
use failure::{Exit, Failure};
use printer::Printer;

/// Containers on one machine or many.
#[derive(Debug, Parser)]
#[command(name = "warren", version, about, max_term_width = 100)]
#[command(
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    place: PlaceFlags,
    /// Call this cluster from afar, not the node of this machine [env: WARREN_CONTEXT]
    #[arg(long, global = true, value_name = "NAME", help_heading = "Where")]
    context: Option<String>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The cluster
    #[command(subcommand, arg_required_else_help = true)]
    Cluster(ClusterVerb),
    /// Nodes, this one first of all
    #[command(subcommand, arg_required_else_help = true)]
    Node(NodeVerb),
    /// Services: images that run in replicas
    #[command(subcommand, arg_required_else_help = true)]
    Service(service::ServiceVerb),
    /// Jobs: services whose tasks end, and their runs
    #[command(subcommand, arg_required_else_help = true)]
    Job(job::JobVerb),
    /// Tasks: single containers of services
    #[command(subcommand, arg_required_else_help = true)]
    Task(task::TaskVerb),
    /// List the tasks of all services
    Ps(service::AllPsArgs),
    /// Show why something is where it is, or nowhere, and what would help
    #[command(subcommand, arg_required_else_help = true)]
    Explain(explain::ExplainVerb),
    Simulate(simulate::SimulateArgs),
    /// Run a command in a container
    Exec(exec::ExecArgs),
    /// Images of this node
    #[command(subcommand, arg_required_else_help = true)]
    Image(image::ImageVerb),
    /// Volumes of nodes
    #[command(subcommand, arg_required_else_help = true)]
    Volume(volume::VolumeVerb),
    /// Registries that images are pulled from
    #[command(subcommand, arg_required_else_help = true)]
    Registry(image::RegistryVerb),
    /// Wait until something is as it should be
    #[command(subcommand, arg_required_else_help = true)]
    Wait(node::WaitVerb),
    /// Show what happens in the cluster
    Events(node::EventsArgs),
    /// Show who changed what
    Audit(operator::AuditArgs),
    /// Networks: which services reach each other, and by which names
    #[command(subcommand, arg_required_else_help = true)]
    Network(network::NetworkVerb),
    /// Policies: who may reach whom within networks, and what is outside
    #[command(subcommand, arg_required_else_help = true)]
    Policy(policy::PolicyVerb),
    /// People and programs that may call from afar
    #[command(subcommand, arg_required_else_help = true)]
    Operator(operator::OperatorVerb),
    /// Clusters that are called from afar
    #[command(subcommand, arg_required_else_help = true)]
    Context(context::ContextVerb),
    /// Look for what is wrong with this machine and its node
    Doctor(doctor::DoctorArgs),
    /// Show what this program is
    Version(version::VersionArgs),
    /// Print a completion script for a shell
    Completion(completion::CompletionArgs),
}

#[derive(Debug, Subcommand)]
enum ClusterVerb {
    /// Make a new cluster of this one node, and run the node
    Init(InitFlags),
    /// Show what the cluster is
    Info(node::InfoArgs),
    /// Show the token that lets machines join
    Token(token::TokenArgs),
    /// Show the cluster's settings
    Settings(cluster::SettingsArgs),
    /// Change the cluster's settings
    Update(cluster::UpdateArgs),
    /// Write everything that the cluster agreed on into an encrypted file
    Backup(backup::BackupArgs),
    /// Make a key pair for backups
    BackupKey(backup::BackupKeyArgs),
    /// Make this machine the first manager of a cluster that is in a backup
    Restore(RestoreFlags),
    /// Make this manager the only one of its cluster, when most are lost for good
    Recover(RecoverFlags),
    /// Lock what managers keep on their disks: after a restart they wait for a key
    Lock(cluster::LockArgs),
    /// Open this node, with the key that `cluster lock` showed
    Unlock,
    /// The cluster's certificate authority
    #[command(subcommand, arg_required_else_help = true)]
    Ca(cluster::CaVerb),
    /// The keys of the managers' disks
    #[command(subcommand, arg_required_else_help = true)]
    Key(cluster::KeyVerb),
}

#[derive(Debug, Subcommand)]
enum NodeVerb {
    /// Join a cluster as what the token says, and run the node
    Join(JoinFlags),
    /// Run a node that was initialised or joined before
    Run(RunFlags),
    /// Stop this node's daemon; its containers go on unless told otherwise
    Stop(node::StopArgs),
    /// List nodes
    #[command(visible_alias = "list")]
    Ls(node::NodeLsArgs),
    /// Show everything about nodes
    Inspect(members::NodeInspectArgs),
    /// Change a node: availability, labels, whether it runs containers
    Update(members::NodeUpdateArgs),
    /// Move everything off nodes, at the pace that services allow
    Drain(moving::NodeDrainArgs),
    /// Let nodes take tasks again; ends a drain or a pause
    Activate(moving::NodeActivateArgs),
    /// Keep tasks off a node, except those of services that tolerate it
    Taint(members::NodeTaintArgs),
    /// Make nodes managers
    Promote(members::NodeNamesArgs),
    /// Make managers plain workers
    Demote(members::NodeNamesArgs),
    /// Remove nodes from the cluster; theirs is refused from then on
    #[command(visible_alias = "remove")]
    Rm(members::NodeRmArgs),
    Leave(leave::LeaveArgs),
    /// Change what this node's daemon logs, until it is started again
    LogLevel(members::LogLevelArgs),
}

/// What the program does for longer than a command.
pub(crate) enum Role {
    /// Make a cluster, then run its node.
    Init(PlaceFlags, InitFlags),
    /// Join a cluster, then run the node.
    Join(PlaceFlags, JoinFlags),
    Run(PlaceFlags, RunFlags),
    /// Make a node of a backup; it is run after.
    Restore(PlaceFlags, RestoreFlags),
    /// Make a survivor the only manager; it is run after.
    Recover(PlaceFlags, RecoverFlags),
}

/// What `args` ask for.
pub(crate) enum Asked {
    Role(Role),
    DataPlane(DataPlaneArgs),
    Command(Command),
}

/// A command of the CLI, parsed.
pub(crate) struct Command {
    place: PlaceFlags,
    context: Option<String>,
    verb: Verb,
    program: String,
}

/// Understands the command line; help and the version are answered at once.
///
/// # Errors
/// The input was wrong, or all has been said ([`Exit::Silent`]).
pub(crate) fn parse(args: Vec<OsString>, printer: &mut Printer) -> Result<Asked, Failure> {
    if args.get(1).is_some_and(|verb| verb == dataplane::VERB) {
        // Apart: a process that stays, and is small without the memory of all other commands.
        let parsed = DataPlaneArgs::try_parse_from(&args[1..]);
        return parsed.map(Asked::DataPlane).map_err(|error| usage::explain(error, printer));
    }
    let program = args.first().map(std::path::Path::new).and_then(|p| p.file_name());
    let program = program.map_or_else(|| "warren".into(), |n| n.to_string_lossy().into_owned());
    let matches = Cli::command().try_get_matches_from(args);
    let cli = matches.and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches));
    let Cli { place, context, verb } = cli.map_err(|error| usage::explain(error, printer))?;
    Ok(match verb {
        Verb::Cluster(ClusterVerb::Init(flags)) => Asked::Role(Role::Init(place, flags)),
        Verb::Cluster(ClusterVerb::Restore(flags)) => Asked::Role(Role::Restore(place, flags)),
        Verb::Cluster(ClusterVerb::Recover(flags)) => Asked::Role(Role::Recover(place, flags)),
        Verb::Node(NodeVerb::Join(flags)) => Asked::Role(Role::Join(place, flags)),
        Verb::Node(NodeVerb::Run(flags)) => Asked::Role(Role::Run(place, flags)),
        verb => Asked::Command(Command { place, context, verb, program }),
    })
}

/// Carries a command out. `local` looks at this machine, for `doctor`.
pub(crate) async fn run(
    command: Command,
    printer: &mut Printer,
    environment: Environment<'_>,
    local: impl FnOnce() -> Vec<Check>,
) -> Result<(), Failure> {
    let Command { place, context: named, verb, program } = command;
    // Those that need no node.
    let verb = match verb {
        Verb::Version(args) => return version::run(printer, &args),
        Verb::Completion(args) => return completion::run(printer, &args, Cli::command(), &program),
        Verb::Context(verb) => return context::run(printer, verb, environment),
        Verb::Cluster(ClusterVerb::BackupKey(args)) => return backup::key(printer, &args),
        verb => verb,
    };
    let place = place.resolve(environment)?;
    let verb = match verb {
        Verb::Doctor(args) => return doctor::run(printer, &args, &place, local).await,
        verb => verb,
    };
    let target = context::target(named.as_deref(), &place, environment)?;
    let connected = Context::connect(target, printer).await;
    let mut context = connected.map_err(|failure| context::or_afar(failure, environment))?;
    match verb {
        Verb::Cluster(ClusterVerb::Info(args)) => node::info(&mut context, &args).await,
        Verb::Cluster(ClusterVerb::Token(args)) => token::run(&mut context, &args).await,
        Verb::Cluster(ClusterVerb::Settings(args)) => cluster::settings(&mut context, &args).await,
        Verb::Cluster(ClusterVerb::Update(args)) => cluster::update(&mut context, args).await,
        Verb::Cluster(ClusterVerb::Backup(args)) => backup::run(&mut context, args).await,
        Verb::Cluster(ClusterVerb::Lock(args)) => cluster::lock(&mut context, &args).await,
        Verb::Cluster(ClusterVerb::Unlock) => cluster::unlock(&mut context).await,
        Verb::Cluster(ClusterVerb::Ca(verb)) => cluster::ca(&mut context, &verb).await,
        Verb::Cluster(ClusterVerb::Key(verb)) => cluster::key(&mut context, &verb).await,
        Verb::Audit(args) => operator::audit(&mut context, &args).await,
        Verb::Operator(verb) => operator::run(&mut context, verb).await,
        Verb::Network(verb) => network::run(&mut context, verb).await,
        Verb::Policy(verb) => policy::run(&mut context, verb).await,
        Verb::Node(NodeVerb::Ls(args)) => node::ls(&mut context, &args).await,
        Verb::Node(NodeVerb::Inspect(args)) => members::inspect(&mut context, &args).await,
        Verb::Node(NodeVerb::Update(args)) => members::update(&mut context, args).await,
        Verb::Node(NodeVerb::Drain(args)) => moving::drain(&mut context, args).await,
        Verb::Node(NodeVerb::Activate(args)) => moving::activate(&mut context, args).await,
        Verb::Node(NodeVerb::Taint(args)) => members::taint(&mut context, args).await,
        Verb::Node(NodeVerb::Promote(args)) => members::set_manager(&mut context, args, true).await,
        Verb::Node(NodeVerb::Demote(args)) => members::set_manager(&mut context, args, false).await,
        Verb::Node(NodeVerb::Rm(args)) => members::remove(&mut context, args).await,
        Verb::Node(NodeVerb::Leave(args)) => {
            leave::run(&mut context, &args, &place.pid_file()).await
        }
        Verb::Node(NodeVerb::LogLevel(args)) => members::log_level(&mut context, &args).await,
        Verb::Node(NodeVerb::Stop(args)) => {
            node::stop(&mut context, &args, &place.pid_file()).await
        }
        // Its flags are many: on the heap.
        Verb::Service(verb) => Box::pin(service::run(&mut context, verb)).await,
        Verb::Job(verb) => job::run(&mut context, verb).await,
        Verb::Task(verb) => task::run(&mut context, verb).await,
        Verb::Ps(args) => service::ps(&mut context, args).await,
        Verb::Explain(verb) => explain::run(&mut context, verb).await,
        Verb::Simulate(args) => simulate::run(&mut context, args).await,
        Verb::Exec(args) => exec::run(&mut context, args).await,
        Verb::Image(verb) => image::run(&mut context, verb).await,
        Verb::Volume(verb) => volume::run(&mut context, verb).await,
        Verb::Registry(verb) => image::registry(&mut context, verb).await,
        Verb::Wait(verb) => node::wait(&mut context, verb).await,
        Verb::Events(args) => node::events(&mut context, &args).await,
        Verb::Cluster(
            ClusterVerb::Init(_)
            | ClusterVerb::Restore(_)
            | ClusterVerb::Recover(_)
            | ClusterVerb::BackupKey(_),
        )
        | Verb::Context(_)
        | Verb::Node(NodeVerb::Join(_) | NodeVerb::Run(_))
        | Verb::Doctor(_)
        | Verb::Version(_)
        | Verb::Completion(_) => {
            Err(Failure::new(Exit::Failed, "this command has been carried out already"))
        }
    }
}
