//! The container's mounts, seen from its first process before `pivot_root`.
//!
//! Runs in a mount namespace of its own, still on the host's root. File systems are made detached
//! and attached to descriptors; targets inside the image are found by `openat2` with
//! RESOLVE_IN_ROOT, so that no symbolic link of an image leads out; masked and read-only paths are
//! reached from the descriptors of the proc and sysfs mounted here, never by path. All mounts
//! vanish with the namespace: nothing is ever unmounted.
//!
//! Not here: which paths, layers and mounts (the daemon decides).

use core::ffi::CStr;

use warren_shim::message::{Device, File, Message, Mount, MountKind, Step, Tag, flags};
use warren_shim::protection::{Protection, kept};

use crate::failure::{At, Outcome};
use crate::sys::{self, Fd, Sys};
use crate::text::Text;

/// linux/mount.h, for `fsmount` and `mount_setattr`.
const READ_ONLY: u64 = 0x1;
const NO_SUID: u64 = 0x2;
const NO_DEVICES: u64 = 0x4;
const NO_EXEC: u64 = 0x8;
const STRICT_ATIME: u64 = 0x20;

/// Of /dev/shm, as Docker has it.
const SHARED_MEMORY: u64 = 64 << 20;

/// linux/openat2.h.
const RESOLVE_NO_MAGICLINKS: u64 = 0x2;
const RESOLVE_NO_SYMLINKS: u64 = 0x4;
const RESOLVE_IN_ROOT: u64 = 0x10;

/// linux/magic.h.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

const FOLDER: i32 = libc::O_PATH | libc::O_DIRECTORY;

/// Roots of what was mounted, to find paths in.
struct Roots {
    root: Fd,
    proc: Fd,
    sys: Fd,
    /// The null device below whatever is mounted on it later.
    null: Fd,
    /// tmpfs of the injected files.
    files: Option<Fd>,
}

/// Everything up to and including `pivot_root`. The caller has joined the container's cgroups.
pub(crate) fn build(message: &Message<'_>, trees: &[Fd]) -> Outcome<()> {
    if kept(Protection::Propagation) {
        sys::mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE, c"")
            .at(Step::Propagation)?;
    }
    let state = message.text(Tag::StateDir).unwrap_or_default();
    let files = message.files().next().map(|_| file_store(state)).transpose()?;
    overlay(message, state)?;
    let root = sys::open(state, FOLDER).at(Step::Overlay)?;
    let proc = kernel_file_system(root, c"proc", c"proc", 0).at(Step::Proc)?;
    for (index, setting) in message.pairs(Tag::Sysctl).enumerate() {
        set(proc, setting.first, setting.second).at_index(Step::Sysctl, index)?;
    }
    let locked = if kept(Protection::ReadOnlySys) { locked(message) } else { 0 };
    let sysfs = kernel_file_system(root, c"sys", c"sysfs", locked).at(Step::Sys)?;
    let dev = devices(root, message.shared_memory()).at(Step::Dev)?;
    let null = sys::open_at(dev, c"null", libc::O_PATH | libc::O_NOFOLLOW, 0).at(Step::Dev)?;
    let roots = Roots { root, proc, sys: sysfs, null, files };
    cgroup_view(message, &roots).at(Step::CgroupView)?;
    for (index, mount) in message.mounts().enumerate() {
        attach(&roots, &mount, trees, index)?;
    }
    for (index, device) in message.devices().enumerate() {
        make_device(root, &device).at_index(Step::Device, index)?;
    }
    let read_only = message.settings().has(flags::READ_ONLY);
    if let Some(cwd) = message.text(Tag::Cwd).filter(|cwd| read_only && !cwd.is_empty()) {
        // Made while that is possible. What cannot be made is told when it is entered.
        if let Ok(folder) = target(root, cwd, true) {
            sys::close(folder);
        }
    }
    for (index, file) in message.files().enumerate() {
        inject(&roots, &file, index, read_only).at_index(Step::File, index)?;
    }
    if kept(Protection::MaskedPaths) {
        mask(message, &roots)?;
    }
    let locked = message.texts(Tag::ReadOnlyPath).filter(|_| kept(Protection::ReadOnlyPaths));
    for (index, path) in locked.enumerate() {
        lock(&roots, path).at_index(Step::ReadOnlyPath, index)?;
    }
    sys::change_folder_fd(root).and_then(|()| sys::pivot_here()).at(Step::PivotRoot)?;
    if read_only && kept(Protection::ReadOnlyRoot) {
        sys::open(c"/", libc::O_PATH)
            .and_then(|root| sys::change_mount(root, READ_ONLY, false))
            .at(Step::PivotRoot)?;
    }
    Ok(())
}

/// Gives files to the container's user; within its root, with nothing else open.
pub(crate) fn give_files(message: &Message<'_>, user: u32, group: u32) -> Outcome<()> {
    let read_only = message.settings().has(flags::READ_ONLY);
    for (index, file) in message.files().enumerate().filter(|(_, file)| file.is_of_user()) {
        give_file(file.target, user, group, read_only).at_index(Step::File, index)?;
    }
    Ok(())
}

fn give_file(target: &CStr, user: u32, group: u32, read_only: bool) -> Sys<()> {
    let fd = sys::open(target, libc::O_RDONLY | libc::O_NONBLOCK)?;
    sys::give(fd, user, group)?;
    if read_only {
        sys::change_mount(fd, NO_SUID | NO_DEVICES | READ_ONLY, false)?;
    }
    sys::close(fd);
    Ok(())
}

/// A tmpfs under the overlay's mount point, so that it is in our namespace and in no path.
fn file_store(state: &CStr) -> Outcome<Fd> {
    let options = [(c"mode", c"0755"), (c"size", c"16m")];
    let store = sys::new_file_system(c"tmpfs", &options, NO_SUID | NO_DEVICES).at(Step::File)?;
    sys::attach_mount(store, libc::AT_FDCWD, state).at(Step::File)?;
    Ok(store)
}

/// Mounted over the state folder: any folder will do, and this one is ours alone.
///
/// Layers are named by descriptor: options fit one page however long their paths are, and host
/// paths do not show in the container's mount table. `volatile`, since what a container writes
/// dies with it: without, each exit would sync the whole file system of the host.
fn overlay(message: &Message<'_>, state: &CStr) -> Outcome<()> {
    let mut options = Text::<4096>::new();
    let fixed = b"redirect_dir=nofollow,metacopy=off,index=off,volatile";
    options.push(fixed).at(Step::Overlay)?;
    let mut key: &[u8] = b",lowerdir=";
    for (index, layer) in message.texts(Tag::Layer).enumerate() {
        push_folder(&mut options, key, layer).at_index(Step::Layer, index)?;
        key = b":";
    }
    for (key, tag) in [(&b",upperdir="[..], Tag::UpperDir), (b",workdir=", Tag::WorkDir)] {
        let folder = message.text(tag).unwrap_or_default();
        push_folder(&mut options, key, folder).at(Step::Overlay)?;
    }
    sys::mount(c"overlay", state, c"overlay", 0, options.c_str()).at(Step::Overlay)
}

fn push_folder(options: &mut Text<4096>, key: &[u8], path: &CStr) -> Sys<()> {
    let fd = sys::open(path, FOLDER)?;
    options.push(key)?;
    options.push(b"/proc/self/fd/")?;
    options.push_decimal(u64::from(fd.cast_unsigned()))
}

/// What keeps containers from changing the machine below /sys.
fn locked(message: &Message<'_>) -> u64 {
    if message.settings().has(flags::PRIVILEGED) { 0 } else { READ_ONLY }
}

/// Writes a setting of our namespaces, through the descriptor of our own proc and no link.
fn set(proc: Fd, file: &CStr, value: &CStr) -> Sys<()> {
    let name = file.to_bytes();
    let (name, optional) = match name.strip_prefix(b"-") {
        Some(name) => (name, true),
        None => (name, false),
    };
    let mut path = Text::<512>::new();
    path.push(b"sys/")?;
    path.push(name)?;
    let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
    let file = match sys::open_in_root(proc, path.c_str(), libc::O_WRONLY, resolve) {
        Err(libc::ENOENT) if optional => return Ok(()),
        opened => opened?,
    };
    let written = sys::write_all(file, value.to_bytes());
    sys::close(file);
    written
}

/// proc and sysfs go to real folders of the image only: a link there would move everything that
/// is masked below.
fn kernel_file_system(root: Fd, name: &CStr, kind: &CStr, attributes: u64) -> Sys<Fd> {
    let fixed = if kept(Protection::KernelMountFlags) { NO_SUID | NO_DEVICES | NO_EXEC } else { 0 };
    let mount = sys::new_file_system(kind, &[], fixed | attributes)?;
    sys::attach_mount(mount, real_folder(root, name)?, c"")?;
    Ok(mount)
}

fn real_folder(root: Fd, name: &CStr) -> Sys<Fd> {
    match sys::make_folder(root, name, 0o755) {
        Ok(()) | Err(libc::EEXIST) => {}
        Err(error) => return Err(error),
    }
    let own = if kept(Protection::RealProc) { libc::O_NOFOLLOW } else { 0 };
    sys::open_at(root, name, FOLDER | own, 0)
}

fn devices(root: Fd, shared_memory: Option<u64>) -> Sys<Fd> {
    let options = [(c"mode", c"755"), (c"size", c"65536k")];
    let folder = real_folder(root, c"dev")?;
    let dev = if kept(Protection::FreshDevices) {
        let dev = sys::new_file_system(c"tmpfs", &options, NO_SUID | STRICT_ATIME)?;
        sys::attach_mount(dev, folder, c"")?;
        dev
    } else {
        folder
    };
    for (name, major, minor) in [
        (c"null", 1, 3),
        (c"zero", 1, 5),
        (c"full", 1, 7),
        (c"random", 1, 8),
        (c"urandom", 1, 9),
        (c"tty", 5, 0),
    ] {
        sys::make_device(dev, name, 0o666, major, minor)?;
    }
    for (name, target) in [
        (c"fd", c"/proc/self/fd"),
        (c"stdin", c"/proc/self/fd/0"),
        (c"stdout", c"/proc/self/fd/1"),
        (c"stderr", c"/proc/self/fd/2"),
        (c"core", c"/proc/kcore"),
        (c"ptmx", c"pts/ptmx"),
    ] {
        sys::make_link(target, dev, name)?;
    }
    // Group 5 is tty in every distribution; each mount of devpts is an instance of its own.
    let terminals = [(c"ptmxmode", c"0666"), (c"mode", c"0620"), (c"gid", c"5")];
    below(dev, c"pts", c"devpts", &terminals, NO_SUID | NO_EXEC)?;
    let mut size = Text::<32>::new();
    size.push_decimal(shared_memory.unwrap_or(SHARED_MEMORY))?;
    let shared = [(c"mode", c"1777"), (c"size", size.c_str())];
    below(dev, c"shm", c"tmpfs", &shared, NO_SUID | NO_DEVICES | NO_EXEC)?;
    match below(dev, c"mqueue", c"mqueue", &[], NO_SUID | NO_DEVICES | NO_EXEC) {
        // A kernel without POSIX message queues.
        Ok(()) | Err(libc::ENODEV) => Ok(dev),
        Err(error) => Err(error),
    }
}

fn below(
    dev: Fd,
    name: &CStr,
    kind: &CStr,
    options: &[(&CStr, &CStr)],
    attributes: u64,
) -> Sys<()> {
    sys::make_folder(dev, name, 0o755)?;
    let mount = sys::new_file_system(kind, options, attributes)?;
    sys::attach_mount(mount, dev, name)?;
    sys::close(mount);
    Ok(())
}

/// The container's own cgroups, read-only: language runtimes find their limits there, and nobody
/// writes a release agent.
fn cgroup_view(message: &Message<'_>, roots: &Roots) -> Sys<()> {
    let locked = if kept(Protection::ReadOnlyCgroups) { locked(message) } else { 0 };
    let attributes = locked | NO_SUID | NO_DEVICES | NO_EXEC;
    let mut store = None;
    for view in message.pairs(Tag::CgroupView) {
        let copy = sys::copy_mount(libc::AT_FDCWD, view.second, false)?;
        sys::change_mount(copy, attributes, false)?;
        if view.first.is_empty() {
            sys::attach_mount(copy, roots.sys, c"fs/cgroup")?;
        } else {
            let store = match store {
                Some(store) => store,
                None => *store.insert(cgroup_store(roots.sys)?),
            };
            sys::make_folder(store, view.first, 0o755)?;
            sys::attach_mount(copy, store, view.first)?;
        }
        sys::close(copy);
    }
    let Some(store) = store else { return Ok(()) };
    for link in message.pairs(Tag::CgroupLink) {
        sys::make_link(link.second, store, link.first)?;
    }
    match locked {
        0 => Ok(()),
        locked => sys::change_mount(store, locked, false),
    }
}

fn cgroup_store(sysfs: Fd) -> Sys<Fd> {
    let options = [(c"mode", c"755"), (c"size", c"64k")];
    let store = sys::new_file_system(c"tmpfs", &options, NO_SUID | NO_DEVICES | NO_EXEC)?;
    sys::attach_mount(store, sysfs, c"fs/cgroup")?;
    Ok(store)
}

fn attach(roots: &Roots, mount: &Mount<'_>, trees: &[Fd], index: usize) -> Outcome<()> {
    let locked = if mount.read_only { READ_ONLY } else { 0 };
    let (copy, is_folder) = match mount.kind {
        MountKind::Bind => {
            let copy = sys::copy_mount(libc::AT_FDCWD, mount.source, true)
                .at_index(Step::MountSource, index)?;
            let fixed = if kept(Protection::VolumeFlags) { NO_SUID | NO_DEVICES } else { 0 };
            sys::change_mount(copy, fixed | locked, kept(Protection::ReadOnlyRecursive))
                .at_index(Step::Mount, index)?;
            let stat = sys::status(copy).at_index(Step::MountSource, index)?;
            (copy, sys::is_folder(&stat))
        }
        MountKind::Tree { index: tree } => {
            let given = trees.get(tree as usize).ok_or(libc::EBADF);
            let tree = *given.at_index(Step::MountSource, index)?;
            let stat = sys::status(tree).at_index(Step::MountSource, index)?;
            (tree, sys::is_folder(&stat))
        }
        MountKind::Tmpfs { size_bytes, mode, exec } => {
            let locked = locked | if exec { 0 } else { NO_EXEC };
            let copy = memory(size_bytes, mode, locked).at_index(Step::Mount, index)?;
            (copy, true)
        }
    };
    let target = target(roots.root, mount.target, is_folder).at_index(Step::MountTarget, index)?;
    outside_proc(target).at_index(Step::MountTarget, index)?;
    let target_status = sys::status(target).at_index(Step::MountTarget, index)?;
    if sys::is_folder(&target_status) != is_folder {
        return Err(libc::ENOTDIR).at_index(Step::Mount, index);
    }
    sys::attach_mount(copy, target, c"").at_index(Step::Mount, index)?;
    sys::close(target);
    sys::close(copy);
    Ok(())
}

/// In place of whatever has its name.
fn make_device(root: Fd, device: &Device<'_>) -> Sys<()> {
    let path = device.path.to_bytes();
    let slash = path.iter().rposition(|byte| *byte == b'/').ok_or(libc::EINVAL)?;
    let (mut above, mut name) = (Text::<4096>::new(), Text::<256>::new());
    above.push(&path[..slash])?;
    name.push(&path[slash + 1..])?;
    let folder = target(root, above.c_str(), true)?;
    match sys::unlink_at(folder, name.c_str()) {
        Ok(()) | Err(libc::ENOENT) => {}
        Err(error) => return Err(error),
    }
    let kind = if device.is_block { libc::S_IFBLK } else { libc::S_IFCHR };
    let (mode, numbers) = (kind | device.mode, (device.major, device.minor));
    sys::make_node(folder, name.c_str(), mode, numbers, (device.user, device.group))?;
    sys::close(folder);
    Ok(())
}

fn memory(size_bytes: u64, mode: u32, more: u64) -> Sys<Fd> {
    let (mut size, mut mode_text) = (Text::<32>::new(), Text::<32>::new());
    mode_text.push_octal(u64::from(mode))?;
    size.push_decimal(size_bytes)?;
    let attributes = NO_SUID | NO_DEVICES | more;
    let options = [(c"mode", mode_text.c_str()), (c"size", size.c_str())];
    let options = if size_bytes == 0 { &options[..1] } else { &options[..] };
    sys::new_file_system(c"tmpfs", options, attributes)
}

fn inject(roots: &Roots, file: &File<'_>, index: usize, read_only: bool) -> Sys<()> {
    let store = roots.files.ok_or(libc::EINVAL)?;
    let mut name = Text::<32>::new();
    name.push_decimal(index as u64)?;
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    let fd = sys::open_at(store, name.c_str(), flags, file.mode & 0o7777)?;
    sys::write_all(fd, file.data)?;
    sys::close(fd);
    let copy = sys::copy_mount(store, name.c_str(), false)?;
    // What is to have another owner is locked once it has.
    let locked = if read_only && !file.is_of_user() { READ_ONLY } else { 0 };
    sys::change_mount(copy, NO_SUID | NO_DEVICES | locked, false)?;
    let target = target(roots.root, file.target, false)?;
    outside_proc(target)?;
    sys::attach_mount(copy, target, c"")?;
    sys::close(target);
    sys::close(copy);
    Ok(())
}

/// Finds a mount's place below `root`, making what is missing.
fn target(root: Fd, path: &CStr, is_folder: bool) -> Sys<Fd> {
    let inside =
        if kept(Protection::TargetsInRoot) { RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS } else { 0 };
    match sys::open_in_root(root, below_root(path), libc::O_PATH, inside) {
        Err(libc::ENOENT) => {}
        other => return other,
    }
    let mut walked = Text::<4096>::new();
    let mut parent = root;
    let mut names = path.to_bytes().split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    let mut name = names.next();
    while let Some(current) = name {
        name = names.next();
        let is_last = name.is_none();
        walked.push(b"/")?;
        walked.push(current)?;
        let found = sys::open_in_root(root, below_root(walked.c_str()), libc::O_PATH, inside);
        let next = match found {
            Err(libc::ENOENT) => make(parent, current, is_last && !is_folder),
            other => other,
        };
        if parent != root {
            sys::close(parent);
        }
        parent = next?;
    }
    Ok(parent)
}

/// As a name within the root, not from it.
fn below_root(path: &CStr) -> &CStr {
    match path.to_bytes_with_nul() {
        b"/\0" => c".",
        [b'/', rest @ ..] => CStr::from_bytes_with_nul(rest).unwrap_or(path),
        _ => path,
    }
}

/// The daemon has refused targets that are called so; links of the image may still lead there, and
/// what a container sees of the kernel would be somebody's files (CVE-2019-16884).
fn outside_proc(target: Fd) -> Sys<()> {
    if kept(Protection::TargetsNotInProc) && sys::file_system(target)? == PROC_SUPER_MAGIC {
        return Err(libc::EACCES);
    }
    Ok(())
}

/// A new folder or empty file; a dangling link in its place is an error, not followed.
fn make(parent: Fd, name: &[u8], is_file: bool) -> Sys<Fd> {
    let mut text = Text::<256>::new();
    text.push(name)?;
    if is_file {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
        sys::close(sys::open_at(parent, text.c_str(), flags, 0o644)?);
        return sys::open_at(parent, text.c_str(), libc::O_PATH | libc::O_NOFOLLOW, 0);
    }
    sys::make_folder(parent, text.c_str(), 0o755)?;
    sys::open_at(parent, text.c_str(), FOLDER | libc::O_NOFOLLOW, 0)
}

/// Covers paths that leak or change the host: folders by one empty tmpfs, files by /dev/null.
fn mask(message: &Message<'_>, roots: &Roots) -> Outcome<()> {
    let mut empty: Option<Fd> = None;
    for (index, path) in message.texts(Tag::MaskedPath).enumerate() {
        let target = match find(roots, path) {
            Err(libc::ENOENT | libc::ENOTDIR) => continue,
            other => other.at_index(Step::MaskedPath, index)?,
        };
        cover(roots, target, &mut empty).at_index(Step::MaskedPath, index)?;
        sys::close(target);
    }
    Ok(())
}

fn cover(roots: &Roots, target: Fd, empty: &mut Option<Fd>) -> Sys<()> {
    if !sys::is_folder(&sys::status(target)?) {
        let null = sys::copy_mount(roots.null, c"", false)?;
        sys::attach_mount(null, target, c"")?;
        sys::close(null);
        return Ok(());
    }
    if let Some(first) = *empty {
        let copy = sys::copy_mount(first, c"", false)?;
        sys::attach_mount(copy, target, c"")?;
        sys::close(copy);
        return Ok(());
    }
    let options = [(c"size", c"0"), (c"nr_inodes", c"1")];
    let attributes = READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC;
    let first = sys::new_file_system(c"tmpfs", &options, attributes)?;
    sys::attach_mount(first, target, c"")?;
    *empty = Some(first);
    Ok(())
}

/// Binds a path onto itself, read-only.
fn lock(roots: &Roots, path: &CStr) -> Sys<()> {
    let target = match find(roots, path) {
        Err(libc::ENOENT | libc::ENOTDIR) => return Ok(()),
        other => other?,
    };
    let copy = sys::copy_mount(target, c"", true)?;
    sys::change_mount(copy, READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC, true)?;
    sys::attach_mount(copy, target, c"")?;
    sys::close(target);
    sys::close(copy);
    Ok(())
}

/// A path below /proc or /sys, from our own mounts and without following a link.
fn find(roots: &Roots, path: &CStr) -> Sys<Fd> {
    let bytes = path.to_bytes_with_nul();
    let (folder, rest) = if let Some(rest) = bytes.strip_prefix(b"/proc/") {
        (roots.proc, rest)
    } else if let Some(rest) = bytes.strip_prefix(b"/sys/") {
        (roots.sys, rest)
    } else {
        (roots.root, bytes)
    };
    let rest = CStr::from_bytes_with_nul(rest).map_err(|_| libc::EINVAL)?;
    sys::open_in_root(folder, rest, libc::O_PATH, RESOLVE_IN_ROOT | RESOLVE_NO_SYMLINKS)
}
