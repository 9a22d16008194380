//! Settings of the program: a flag wins over the environment, that over the
//! configuration file, that over the default.
//!
//! Every setting has one name: `--data-dir`, `WARREN_DATA_DIR`, `data_dir` in
//! the file. An unknown key in the file is an error, also for commands that
//! would not need it: a typo must not wait for the next start to be found.

mod level;
mod list;
mod making;
mod told;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use clap::Args;
use warren_base::telemetry::LogFormat;
use warren_image::{Mirror, Watermarks};

use crate::address::Address;
use crate::cli::failure::{Failure, nearest, plain};
pub(crate) use level::{Filter, HINT as LEVEL_HINT, shown as shown_level};
pub(crate) use making::{InitFlags, JoinFlags, JoinSettings, RecoverFlags, RestoreFlags, RunFlags};
pub(crate) use told::Told;

const CONFIG_DEFAULT: &str = "/etc/warren/warren.toml";
const RUN_DIR_DEFAULT: &str = "/run/warren";
const DATA_DIR_DEFAULT: &str = "/var/lib/warren";
const LOG_FORMAT_DEFAULT: &str = "text";
/// Of managers, unless told otherwise.
pub(crate) const PORT: u16 = 2377;
/// As WireGuard's own tools.
const OVERLAY_PORT: u16 = 51_820;
const LISTEN_DEFAULT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT));
const ADMIN_DEFAULT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9090));
const SOCKET_NAME: &str = "warren.sock";
const PID_NAME: &str = "warren.pid";
/// No sane configuration is larger; keeps a wrong path from filling memory.
const FILE_MAX: u64 = 1 << 20;

/// Keys that the file may have.
const KEYS: [&str; 15] = [
    "data_dir",
    "run_dir",
    "listen",
    "advertise",
    "admin",
    "overlay_port",
    "wireguard",
    "profile",
    list::REGISTRIES,
    list::MANAGERS,
    list::MIRRORS,
    "image_gc",
    list::DEVICES,
    "log_level",
    "log_format",
];

/// Where things are: flags of every command.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PlaceFlags {
    /// Configuration file [env: WARREN_CONFIG] [default: /etc/warren/warren.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Where")]
    config: Option<PathBuf>,
    /// Folder of the socket, pid file and shims [env: WARREN_RUN_DIR] [default: /run/warren]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Where")]
    run_dir: Option<PathBuf>,
}

/// Flags of commands that run a node.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NodeFlags {
    /// Folder of everything that must last [env: WARREN_DATA_DIR] [default: /var/lib/warren]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where other nodes and remote operators reach this node while it is a manager
    /// [env: WARREN_LISTEN] [default: 0.0.0.0:2377]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// What others are told to reach it at [env: WARREN_ADVERTISE] [default: the address that the
    /// way out starts at, and the port of --listen]
    #[arg(long, value_name = "HOST[:PORT]")]
    advertise: Option<String>,
    /// /health, /ready and /metrics over HTTP; off for none [env: WARREN_ADMIN]
    /// [default: 127.0.0.1:9090]
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<String>,
    /// UDP port of the tunnel between nodes, the same on all of them; off for no tunnel
    /// [env: WARREN_OVERLAY_PORT] [default: 51820]
    #[arg(long, value_name = "PORT")]
    overlay_port: Option<String>,
    /// Who encrypts between nodes: kernel, userspace, or auto for the kernel if it can
    /// [env: WARREN_WIREGUARD] [default: auto]
    #[arg(long, value_name = "WHO")]
    wireguard: Option<String>,
    /// How managers elect their leader: lan, or wan for slow links between them
    /// [env: WARREN_PROFILE] [default: lan]
    #[arg(long, value_name = "PROFILE")]
    profile: Option<String>,
    /// Registry that may be spoken to over plain HTTP; repeat for more, commas in the environment
    /// [env: WARREN_INSECURE_REGISTRY]
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    insecure_registry: Vec<String>,
    /// Registry that is asked for another one's images before it; repeat for more, commas in the
    /// environment [env: WARREN_REGISTRY_MIRROR]
    #[arg(long, value_name = "HOST=URL", value_delimiter = ',')]
    registry_mirror: Vec<String>,
    /// When images that nothing uses are removed: from how many percent of the disk, until how
    /// many; off for never [env: WARREN_IMAGE_GC] [default: 85:80]
    #[arg(long, value_name = "HIGH:LOW")]
    image_gc: Option<String>,
    /// Folder of files that say which devices this machine has (CDI); repeat for more, commas in
    /// the environment [env: WARREN_CDI_SPEC_DIR] [default: /etc/cdi and /var/run/cdi]
    #[arg(long, value_name = "DIR", value_delimiter = ',')]
    cdi_spec_dir: Vec<String>,
    /// error, warn, info, debug, or by module [env: WARREN_LOG_LEVEL] [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// text or json [env: WARREN_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Return when the node is ready, and leave it running
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Report readiness to standard input: what `--detach` gives its child
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub(crate) report_to_stdin: bool,
}

/// Where a node's socket is, and the rest of the file.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) socket: PathBuf,
    pub(crate) run_dir: PathBuf,
    file: File,
}

/// Who encrypts what goes between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// The kernel where it has WireGuard, else the data plane.
    Auto,
    Kernel,
    Userspace,
}

/// Settings of a node.
#[derive(Debug, Clone)]
pub(crate) struct NodeSettings {
    pub(crate) data_dir: PathBuf,
    pub(crate) run_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    /// As given; without it the way out is asked when the node starts.
    pub(crate) advertise: Option<Address>,
    pub(crate) admin: Option<SocketAddr>,
    /// Where all nodes of the cluster listen for each other's containers' packets.
    pub(crate) overlay_port: Option<u16>,
    /// Who encrypts them.
    pub(crate) wireguard: Encryption,
    pub(crate) profile: Profile,
    /// `host` or `host:port`.
    pub(crate) insecure_registries: Vec<String>,
    pub(crate) registry_mirrors: Vec<Mirror>,
    /// When images that nothing uses go.
    pub(crate) image_gc: Option<Watermarks>,
    /// Of files that say which devices there are.
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
    /// Where to look for managers before anywhere else, for a node that is one.
    pub(crate) managers: Vec<Address>,
    /// Flags of this run that the node's later ones are to know.
    pub(crate) told: Told,
    pub(crate) log_level: String,
    pub(crate) log_format: LogFormat,
}

/// How patient managers are with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Lan,
    Wan,
}

/// The environment, as a function so that tests need none.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The environment of this process.
pub(crate) fn environment(key: &str) -> Option<String> {
    std::env::var(key).ok()
}

#[derive(Debug, Default)]
struct File {
    path: PathBuf,
    values: toml::Table,
}

/// A value and where it came from, for messages.
struct Given {
    text: String,
    source: String,
}

impl PlaceFlags {
    pub(crate) fn resolve(&self, env: Environment<'_>) -> Result<Place, Failure> {
        let file = self.file(env)?;
        let run_dir = path(pick(env, &file, self.run_dir.as_deref(), "run_dir"), RUN_DIR_DEFAULT)?;
        let socket = match env("WARREN_SOCKET").filter(|text| !text.is_empty()) {
            Some(socket) => PathBuf::from(socket),
            None => run_dir.join(SOCKET_NAME),
        };
        Ok(Place { socket, run_dir, file })
    }

    fn file(&self, env: Environment<'_>) -> Result<File, Failure> {
        let named = self.config.clone();
        let named =
            named.or_else(|| env("WARREN_CONFIG").filter(|t| !t.is_empty()).map(Into::into));
        let path = named.clone().unwrap_or_else(|| CONFIG_DEFAULT.into());
        match File::read(&path) {
            Ok(file) => Ok(file),
            Err(ReadError::Io(_)) if named.is_none() => Ok(File::default()),
            Err(ReadError::Io(error)) => {
                Err(Failure::input(format!("--config: {}: {}", path.display(), plain(&error))))
            }
            Err(ReadError::Content(failure)) => Err(failure),
        }
    }
}

impl Place {
    /// Beside the socket, so that a socket elsewhere leads to its own daemon.
    pub(crate) fn pid_file(&self) -> PathBuf {
        self.socket.with_file_name(PID_NAME)
    }

    pub(crate) fn node(
        &self,
        flags: &NodeFlags,
        env: Environment<'_>,
    ) -> Result<NodeSettings, Failure> {
        let file = &self.file;
        let data_dir =
            path(pick(env, file, flags.data_dir.as_deref(), "data_dir"), DATA_DIR_DEFAULT)?;
        let level = pick(env, file, flags.log_level.as_deref().map(Path::new), "log_level");
        let format = pick(env, file, flags.log_format.as_deref().map(Path::new), "log_format");
        let log_format = match format.as_ref().map_or(LOG_FORMAT_DEFAULT, |g| g.text.as_str()) {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                let source = format.as_ref().map_or("", |g| g.source.as_str());
                return Err(Failure::input(format!(
                    "{source}: {other:?} is not one of text, json"
                )));
            }
        };
        let told = Told::of(&data_dir);
        let pick_told = |flag: &Option<String>, key| {
            pick_text(env, file, flag.as_deref(), key).or_else(|| told.get(key))
        };
        let listen = pick_told(&flags.listen, "listen");
        let listen = socket_address(listen, LISTEN_DEFAULT)?;
        let admin = pick_text(env, file, flags.admin.as_deref(), "admin");
        let admin = match admin.as_ref().map(|given| given.text.as_str()) {
            Some("off") => None,
            _ => Some(socket_address(admin, ADMIN_DEFAULT)?),
        };
        let advertise = pick_told(&flags.advertise, "advertise");
        let advertise = advertise.map(|given| {
            Address::parse(&given.text, listen.port())
                .and_then(Address::dialled)
                .map_err(|problem| Failure::input(format!("{}: {problem}", given.source)))
        });
        let overlay_port = overlay_port(pick_told(&flags.overlay_port, "overlay_port"))?;
        let wireguard = encryption(pick_told(&flags.wireguard, "wireguard"))?;
        let profile = election(pick_told(&flags.profile, "profile"))?;
        Ok(NodeSettings {
            data_dir,
            run_dir: self.run_dir.clone(),
            listen,
            advertise: advertise.transpose()?,
            admin,
            overlay_port,
            wireguard,
            profile,
            insecure_registries: list::registries(env, file, &flags.insecure_registry)?,
            registry_mirrors: list::mirrors(env, file, &flags.registry_mirror)?,
            image_gc: image_gc(pick_text(env, file, flags.image_gc.as_deref(), "image_gc"))?,
            cdi_spec_dirs: list::devices(env, file, &flags.cdi_spec_dir)?,
            managers: Vec::new(),
            told: Told::by(flags),
            log_level: filter(level)?,
            log_format,
        })
    }
}

impl NodeSettings {
    pub(crate) fn socket(&self) -> PathBuf {
        self.run_dir.join(SOCKET_NAME)
    }

    pub(crate) fn pid_file(&self) -> PathBuf {
        self.run_dir.join(PID_NAME)
    }
}

/// The first of flag, environment and file that has `key`.
fn pick(env: Environment<'_>, file: &File, flag: Option<&Path>, key: &str) -> Option<Given> {
    let dashed = key.replace('_', "-");
    if let Some(value) = flag {
        let text = value.to_string_lossy().into_owned();
        return Some(Given { text, source: format!("--{dashed}") });
    }
    let variable = format!("WARREN_{}", key.to_ascii_uppercase());
    if let Some(text) = env(&variable).filter(|text| !text.is_empty()) {
        return Some(Given { text, source: variable });
    }
    let text = file.values.get(key)?.as_str()?.to_owned();
    Some(Given { text, source: format!("{}: {key}", file.path.display()) })
}

/// As [`pick`], for values that are no paths.
fn pick_text(env: Environment<'_>, file: &File, flag: Option<&str>, key: &str) -> Option<Given> {
    pick(env, file, flag.map(Path::new), key)
}

fn election(given: Option<Given>) -> Result<Profile, Failure> {
    match given.as_ref().map_or("lan", |given| given.text.as_str()) {
        "lan" => Ok(Profile::Lan),
        "wan" => Ok(Profile::Wan),
        other => {
            let source = given.as_ref().map_or("", |given| given.source.as_str());
            Err(Failure::input(format!("{source}: {other:?} is not one of lan, wan")))
        }
    }
}

fn encryption(given: Option<Given>) -> Result<Encryption, Failure> {
    match given.as_ref().map_or("auto", |given| given.text.as_str()) {
        "auto" => Ok(Encryption::Auto),
        "kernel" => Ok(Encryption::Kernel),
        "userspace" => Ok(Encryption::Userspace),
        other => {
            let source = given.as_ref().map_or("", |given| given.source.as_str());
            Err(Failure::input(format!(
                "{source}: {other:?} is not one of auto, kernel, userspace"
            )))
        }
    }
}

fn image_gc(given: Option<Given>) -> Result<Option<Watermarks>, Failure> {
    let Some(Given { text, source }) = given else { return Ok(Some(Watermarks::default())) };
    Watermarks::parse(&text).map_err(|problem| Failure::input(format!("{source}: {problem}")))
}

fn overlay_port(given: Option<Given>) -> Result<Option<u16>, Failure> {
    let Some(Given { text, source }) = given else { return Ok(Some(OVERLAY_PORT)) };
    if text == "off" {
        return Ok(None);
    }
    let port = text.parse().ok().filter(|port| *port > 0);
    let wrong = || Failure::input(format!("{source}: {text:?} is not a port"));
    port.map(Some).ok_or_else(|| wrong().hint("write 1 to 65535, or off"))
}

fn socket_address(given: Option<Given>, default: SocketAddr) -> Result<SocketAddr, Failure> {
    let Some(Given { text, source }) = given else { return Ok(default) };
    let parsed = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
    parsed.ok_or_else(|| {
        Failure::input(format!("{source}: {text:?} is not an address and a port"))
            .hint(format!("write it like {default} or [::]:{}", default.port()))
    })
}

fn filter(given: Option<Given>) -> Result<String, Failure> {
    let Some(Given { text, source }) = given else { return Ok(Filter::default().to_string()) };
    let parsed = text.parse::<Filter>();
    let parsed = parsed.map_err(|e| Failure::input(format!("{source}: {e}")).hint(LEVEL_HINT));
    Ok(parsed?.to_string())
}

fn path(given: Option<Given>, default: &str) -> Result<PathBuf, Failure> {
    let Some(given) = given else { return Ok(default.into()) };
    if given.text.is_empty() {
        return Err(Failure::input(format!("{}: the path is empty", given.source)));
    }
    // Children and mounts must not depend on where the program was started.
    std::path::absolute(&given.text)
        .map_err(|e| Failure::input(format!("{}: {:?}: {e}", given.source, given.text)))
}

enum ReadError {
    /// Not there or not readable.
    Io(std::io::Error),
    /// Readable and wrong.
    Content(Failure),
}

impl File {
    fn read(path: &Path) -> Result<Self, ReadError> {
        let size = std::fs::metadata(path).map_err(ReadError::Io)?.len();
        if size > FILE_MAX {
            let message = format!("{}: {size} bytes are more than {FILE_MAX}", path.display());
            return Err(ReadError::Content(Failure::input(message)));
        }
        let text = std::fs::read_to_string(path).map_err(ReadError::Io)?;
        Self::parse(path, &text).map_err(ReadError::Content)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, Failure> {
        let shown = path.display();
        let values: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            Failure::input(format!("{shown}:{line}: {}", e.message()))
        })?;
        for (key, value) in &values {
            if !KEYS.contains(&key.as_str()) {
                let failure = Failure::input(format!("{shown}: there is no setting {key:?}"));
                return Err(match nearest(key, KEYS) {
                    Some(meant) => failure.hint(format!("did you mean {meant}?")),
                    None => failure.hint(format!("settings are {}", KEYS.join(", "))),
                });
            }
            let listed = list::is_list(key);
            let wanted = if listed { "a list of strings" } else { "a string" };
            let right = match value {
                toml::Value::String(_) => !listed,
                toml::Value::Array(items) => listed && items.iter().all(toml::Value::is_str),
                _ => false,
            };
            if !right {
                return Err(Failure::input(format!("{shown}: {key} is not {wanted}")));
            }
        }
        Ok(Self { path: path.to_owned(), values })
    }
}

#[cfg(test)]
mod tests;
