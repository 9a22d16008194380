//! The protections of a container that a test-only build can leave out, one at a time.
//!
//! Without the feature `mutants`, which nothing but `make test-hardening-mutants` turns on,
//! [`kept`] is the constant true and the compiler removes every trace of this. With it, the daemon
//! says in the settings of a start which one is to be missing, and a test that plays the attack must
//! notice.
//!
//! Not here: what a protection does. Each place asks by name.

macro_rules! protections {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Protection { $($(#[$doc])* $variant,)* }
        impl Protection {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            /// The test `host_<name>` plays the attack.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

protections! {
    BoundingSet = "bounding_set",
    InheritedCapabilities = "inherited_capabilities",
    NoNewPrivileges = "no_new_privileges",
    SupplementaryGroups = "supplementary_groups",
    SignalDispositions = "signal_dispositions",
    SignalMask = "signal_mask",
    Umask = "umask",
    ResourceLimits = "resource_limits",
    OutOfMemoryScore = "oom_score",
    Session = "session",
    Keyring = "keyring",
    DeathSignal = "death_signal",
    /// No filter at all: every test of the filter notices.
    Seccomp = "seccomp",
    SeccompCalls = "seccomp_calls",
    SeccompClone = "seccomp_clone_flags",
    SeccompClone3 = "seccomp_clone3",
    SeccompUnknown = "seccomp_unknown_calls",
    SeccompSockets = "seccomp_sockets",
    SeccompPersonality = "seccomp_personality",
    SeccompArchitecture = "seccomp_architecture",
    SeccompExec = "seccomp_of_execs",
    MaskedPaths = "masked_paths",
    ReadOnlyPaths = "read_only_paths",
    ReadOnlySys = "read_only_sys",
    ReadOnlyCgroups = "read_only_cgroups",
    KernelMountFlags = "kernel_mount_flags",
    RealProc = "real_proc",
    FreshDevices = "fresh_dev",
    TargetsInRoot = "targets_in_root",
    TargetsNotInProc = "targets_not_in_proc",
    VolumeFlags = "volume_flags",
    ReadOnlyRecursive = "read_only_recursive",
    Propagation = "propagation",
    ReadOnlyRoot = "read_only_root",
    PidNamespace = "pid_namespace",
    UtsNamespace = "uts_namespace",
    IpcNamespace = "ipc_namespace",
    CgroupNamespace = "cgroup_namespace",
    NetworkNamespace = "network_namespace",
    DeviceRules = "device_rules",
    ProcessLimit = "process_limit",
    ExecCgroup = "cgroup_of_execs",
    ExecCapabilities = "capabilities_of_execs",
    UserFilesBounded = "user_files_bounded",
    UserFilesRegular = "user_files_regular",
    Descriptors = "descriptors",
    Terminal = "terminal",
    NotDumpable = "not_dumpable",
    SealedProgram = "sealed_program",
    SealedMessages = "sealed_messages",
    PeerCheck = "peer_check",
    PrivateFolders = "private_folders",
    PrivateEnvironment = "private_environment",
    ShimGroup = "shim_group",
}

/// Where the settings' flags say which one is missing: its position in [`Protection::ALL`], from 1.
pub const FLAGS_SHIFT: u32 = 24;

/// Whether a protection is there. Always, but in a build for `make test-hardening-mutants`.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn kept(_protection: Protection) -> bool {
    true
}

#[cfg(feature = "mutants")]
pub use without::{kept, leave_out, left_out};

#[cfg(feature = "mutants")]
mod without {
    use core::sync::atomic::{AtomicU32, Ordering};

    use super::Protection;

    static LEFT_OUT: AtomicU32 = AtomicU32::new(0);

    pub fn kept(protection: Protection) -> bool {
        LEFT_OUT.load(Ordering::Relaxed) != protection as u32 + 1
    }

    /// From now on one is missing; 0 is none.
    pub fn leave_out(number: u32) {
        LEFT_OUT.store(number, Ordering::Relaxed);
    }

    pub fn left_out() -> u32 {
        LEFT_OUT.load(Ordering::Relaxed)
    }
}
