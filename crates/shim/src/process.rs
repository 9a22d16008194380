//! The last steps before `execve`, the same for a container's first process and for an exec:
//! streams, user, working directory, privileges, environment, program.
//!
//! Runs in the child after `clone`, inside the container's root. Nothing here allocates.
//! The order of privileges: without no_new_privs a seccomp program needs CAP_SYS_ADMIN, so it
//! loads first; with it, last, so that it sees as little of our own set-up as possible.

use core::ffi::CStr;
use core::ptr::null;

use warren_shim::message::{Message, STRINGS_MAX, Step, Tag, Ulimit, flags};
use warren_shim::protection::{Protection, kept};

use crate::failure::{At, Failure, Outcome};
use crate::identity::Identity;
use crate::init;
use crate::rootfs;
use crate::sys::{self, Fd};
use crate::text::Text;

/// As Docker's: soft limits stay low for programs that walk all descriptors, hard ones leave room.
const FILES_SOFT: u64 = 1024;
const FILES_HARD: u64 = 524_288;

/// The messages that describe a process: an exec adds its own to the container's.
#[derive(Clone, Copy)]
pub(crate) struct Description<'a> {
    pub(crate) container: &'a Message<'a>,
    pub(crate) exec: Option<&'a Message<'a>>,
}

impl<'a> Description<'a> {
    /// What the exec says, else what the container says.
    fn text(&self, tag: Tag) -> &'a CStr {
        let own = self.exec.and_then(|exec| exec.text(tag));
        own.or_else(|| self.container.text(tag)).unwrap_or_default()
    }

    fn args(&self) -> &'a Message<'a> {
        self.exec.unwrap_or(self.container)
    }
}

/// The socket to the parent, which closes by itself when the program is executed.
pub(crate) const SYNC: Fd = 3;

/// Whether to wait for the parent's word right before the program is executed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Wait,
    Open,
}

/// Puts the parent's socket where failures are reported, first of all.
///
/// Number 3 is the container's message in every shim, mapped by now and not needed as a file.
pub(crate) fn place_sync(sync: Fd) -> Outcome<()> {
    sys::dup_onto(sync, SYNC).at(Step::Pipe)
}

/// Puts three descriptors above [`SYNC`] at 0 to 2.
pub(crate) fn place_streams(streams: [Fd; 3]) -> Outcome<()> {
    for (stream, number) in streams.into_iter().zip(0..) {
        sys::dup_onto(stream, number).at(Step::Pipe)?;
    }
    Ok(())
}

/// Becomes the program. Returns only to say why not.
pub(crate) fn become_program(description: &Description<'_>, gate: Gate) -> Failure {
    let prepared = prepare(description, gate).and_then(|identity| {
        let settings = description.container.settings();
        if description.exec.is_none() && settings.has(flags::INIT) {
            init::stay_behind()?;
        }
        Ok(identity)
    });
    match prepared {
        Ok(identity) => execute(description, &identity),
        Err(failure) => failure,
    }
}

fn prepare(description: &Description<'_>, gate: Gate) -> Outcome<Identity> {
    // Before anything is looked up inside the container: paths of the image may lead through
    // `/proc/self/fd` to whatever is open here (CVE-2024-21626).
    if kept(Protection::Descriptors) {
        sys::close_range(SYNC.cast_unsigned() + 1, 0).at(Step::Exec)?;
    }
    let settings = description.container.settings();
    let mut identity = Identity::find(description.text(Tag::User))?;
    identity.join(description.container.texts(Tag::Group))?;
    for stream in 0..SYNC {
        sys::give_stream(stream, identity.user, identity.group);
    }
    if description.exec.is_none() {
        rootfs::give_files(description.container, identity.user, identity.group)?;
    }
    // A folder that an exec names is somebody's input: a typo must not make one.
    let named = description.exec.is_some_and(|exec| exec.text(Tag::Cwd).is_some());
    enter_folder(description.text(Tag::Cwd), if named { Missing::Refuse } else { Missing::Make })?;
    limits(description.container).at(Step::Limits)?;
    for (index, limit) in description.container.ulimits().enumerate() {
        let Ulimit { resource, soft: rlim_cur, hard: rlim_max } = limit;
        sys::set_limit(resource, libc::rlimit { rlim_cur, rlim_max })
            .at_index(Step::Ulimit, index)?;
    }
    let is_exec = description.exec.is_some();
    let seccomp = description.container.bytes(Tag::Seccomp);
    let seccomp = seccomp.filter(|_| kept(Protection::Seccomp));
    let seccomp = seccomp.filter(|_| !is_exec || kept(Protection::SeccompExec));
    let no_new_privileges =
        settings.has(flags::NO_NEW_PRIVILEGES) && kept(Protection::NoNewPrivileges);
    if let Some(program) = seccomp.filter(|_| !no_new_privileges) {
        sys::load_seccomp(program).at(Step::Seccomp)?;
    }
    let protection = if is_exec { Protection::ExecCapabilities } else { Protection::BoundingSet };
    let bounding = if kept(protection) { settings.capabilities } else { u64::MAX };
    drop_privileges(&identity, bounding, settings.capabilities)?;
    if kept(Protection::Umask) {
        sys::set_umask(0o022);
    }
    if no_new_privileges {
        sys::process_control(libc::PR_SET_NO_NEW_PRIVS, 1).at(Step::NoNewPrivileges)?;
        if let Some(program) = seccomp {
            sys::load_seccomp(program).at(Step::Seccomp)?;
        }
    }
    // After the user change, which clears it. Then make sure that the parent still lives.
    let kill = u64::from(libc::SIGKILL.cast_unsigned());
    if kept(Protection::DeathSignal) {
        sys::process_control(libc::PR_SET_PDEATHSIG, kill).at(Step::Identity)?;
    }
    if gate == Gate::Wait {
        let mut byte = [0];
        if sys::read(SYNC, &mut byte).at(Step::DaemonGone)? == 0 {
            return Err(Failure::new(Step::DaemonGone, 0));
        }
    }
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    sys::close_range(SYNC.cast_unsigned(), CLOSE_RANGE_CLOEXEC).at(Step::Exec)?;
    if kept(Protection::SignalMask) {
        sys::block_signals(false);
    }
    Ok(identity)
}

/// What to do about a working directory that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Owned by root, as Docker does.
    Make,
    Refuse,
}

fn enter_folder(path: &CStr, missing: Missing) -> Outcome<()> {
    if path.is_empty() {
        return sys::change_folder(c"/").at(Step::Cwd);
    }
    match sys::change_folder(path) {
        Err(libc::ENOENT) if missing == Missing::Make => {}
        Err(libc::ENOTDIR) => return Err(Failure::new(Step::CwdNotFolder, libc::ENOTDIR)),
        other => return other.at(Step::Cwd),
    }
    let mut walked = Text::<4096>::new();
    sys::set_umask(0o022);
    for name in path.to_bytes().split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        walked.push(b"/").and_then(|()| walked.push(name)).at(Step::Cwd)?;
        match sys::make_folder(libc::AT_FDCWD, walked.c_str(), 0o755) {
            Ok(()) | Err(libc::EEXIST) => {}
            Err(libc::ENOTDIR) => return Err(Failure::new(Step::CwdNotFolder, libc::ENOTDIR)),
            Err(error) => return Err(Failure::new(Step::Cwd, error)),
        }
    }
    match sys::change_folder(path) {
        Err(libc::ENOTDIR) => Err(Failure::new(Step::CwdNotFolder, libc::ENOTDIR)),
        other => other.at(Step::Cwd),
    }
}

/// Puts back what the daemon may have raised for itself. Never raises a hard limit, which would
/// need CAP_SYS_RESOURCE. What the container is given limits of its own for is left as it is.
fn limits(container: &Message<'_>) -> Result<(), i32> {
    if !kept(Protection::ResourceLimits) {
        return Ok(());
    }
    let is_given = |resource| container.ulimits().any(|limit| limit.resource == resource);
    if !is_given(libc::RLIMIT_NOFILE) {
        let mut files = sys::limit(libc::RLIMIT_NOFILE)?;
        files.rlim_max = files.rlim_max.min(FILES_HARD);
        files.rlim_cur = files.rlim_max.min(FILES_SOFT);
        sys::set_limit(libc::RLIMIT_NOFILE, files)?;
    }
    if is_given(libc::RLIMIT_CORE) {
        return Ok(());
    }
    let mut core = sys::limit(libc::RLIMIT_CORE)?;
    core.rlim_cur = 0;
    sys::set_limit(libc::RLIMIT_CORE, core)
}

fn drop_privileges(identity: &Identity, bounding: u64, capabilities: u64) -> Outcome<()> {
    for bit in 0..64_u64 {
        if bounding >> bit & 1 != 0 {
            continue;
        }
        match sys::process_control(libc::PR_CAPBSET_DROP, bit) {
            Ok(()) => {}
            // The first bit that this kernel does not know.
            Err(libc::EINVAL) => break,
            Err(error) => return Err(Failure::new(Step::Capabilities, error)),
        }
    }
    let clear_all = u64::from(libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned());
    if kept(Protection::InheritedCapabilities) {
        sys::process_control(libc::PR_CAP_AMBIENT, clear_all).at(Step::Capabilities)?;
    }
    if kept(Protection::SupplementaryGroups) {
        sys::set_groups(identity.others()).at(Step::Identity)?;
    }
    sys::set_ids(identity.user, identity.group).at(Step::Identity)?;
    if !kept(Protection::InheritedCapabilities) {
        return Ok(());
    }
    // Leaving root has dropped them already; what is inheritable goes in both cases.
    let kept = if identity.user == 0 { capabilities } else { 0 };
    sys::set_capabilities(kept).at(Step::Capabilities)
}

/// Pointers to strings, null last.
type Strings = [*const u8; STRINGS_MAX + 2];

fn execute(description: &Description<'_>, identity: &Identity) -> Failure {
    let mut args: Strings = [null(); STRINGS_MAX + 2];
    let mut count = 0;
    for arg in description.args().texts(Tag::Arg).take(STRINGS_MAX) {
        args[count] = arg.as_ptr().cast();
        count += 1;
    }
    let mut home = Text::<1100>::new();
    let mut env: Strings = [null(); STRINGS_MAX + 2];
    let mut env_len = 0;
    let mut path: &CStr = c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut has_home = false;
    let own = description.container.texts(Tag::Env);
    let own = own.filter(|entry| description.exec.is_none_or(|exec| !overrides(exec, entry)));
    let added = description.exec.into_iter().flat_map(|exec| exec.texts(Tag::Env));
    for entry in own.chain(added).take(STRINGS_MAX) {
        env[env_len] = entry.as_ptr().cast();
        env_len += 1;
        has_home |= key(entry) == b"HOME";
        if key(entry) == b"PATH" {
            path = entry;
        }
    }
    if !has_home && home.push(b"HOME=").and_then(|()| home.push(identity.home())).is_ok() {
        env[env_len] = home.c_str().as_ptr().cast();
        env_len += 1;
    }
    let Some(program) = description.args().text(Tag::Arg) else {
        return Failure::new(Step::Exec, libc::ENOENT);
    };
    let search = path.to_bytes().strip_prefix(b"PATH=").unwrap_or_default();
    run(program, search, &args[..=count], &env[..=env_len])
}

fn key(entry: &CStr) -> &[u8] {
    entry.to_bytes().split(|byte| *byte == b'=').next().unwrap_or_default()
}

fn overrides(exec: &Message<'_>, entry: &CStr) -> bool {
    exec.texts(Tag::Env).any(|other| key(other) == key(entry))
}

/// Tries the program as it is, or in each folder of PATH as a shell does.
fn run(program: &CStr, search: &[u8], args: &[*const u8], env: &[*const u8]) -> Failure {
    let name = program.to_bytes();
    if name.contains(&b'/') {
        return explain(program, sys::execute(program, args, env));
    }
    let mut denied = false;
    for folder in search.split(|byte| *byte == b':') {
        let mut path = Text::<4096>::new();
        let folder = if folder.is_empty() { b"." } else { folder };
        let built = path.push(folder).and_then(|()| path.push(b"/"));
        if built.and_then(|()| path.push(name)).is_err() || name.is_empty() {
            continue;
        }
        match explain(path.c_str(), sys::execute(path.c_str(), args, env)) {
            failure if failure.is(Step::Exec, libc::ENOENT) => {}
            failure if failure.is(Step::Exec, libc::ENOTDIR) => {}
            failure if failure.is(Step::Exec, libc::EACCES) => denied = true,
            failure => return failure,
        }
    }
    Failure::new(Step::Exec, if denied { libc::EACCES } else { libc::ENOENT })
}

/// ENOENT of a file that is there means the interpreter or loader that it names.
fn explain(path: &CStr, errno: i32) -> Failure {
    let step =
        if errno == libc::ENOENT && sys::exists(path) { Step::Interpreter } else { Step::Exec };
    Failure::new(step, errno)
}
