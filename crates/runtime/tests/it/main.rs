//! Real containers from a root file system of busybox.
//!
//! Need root, and `/bin/busybox` linked statically. Each test has folders, a node key and so
//! control groups of its own, removed at its end whatever happened; a test fails when its
//! containers left anything behind. Waits are for events, bounded by [`host::LONGEST`].
#![allow(clippy::unwrap_used)]

mod host;

mod exec;
#[cfg(target_arch = "x86_64")]
mod hardening;
mod hostile;
mod isolation;
mod lifecycle;
mod logs;
mod privileges;
mod recovery;
mod refusals;
mod storage;
