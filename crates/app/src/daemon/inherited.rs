//! Descriptors that whoever started this process left open in it.
//!
//! A daemon lives for long: a lock or a pipe that it holds without knowing would
//! be held for as long.

#![allow(unsafe_code)]

/// The first that is none of the three standard ones.
const FIRST: libc::c_uint = 3;

/// Closes all of them. Before this process opens any itself.
pub(crate) fn close() {
    // SAFETY: nothing in this process owns a descriptor yet, so none is closed under its owner;
    // the call takes numbers alone.
    let closed = unsafe { libc::close_range(FIRST, libc::c_uint::MAX, 0) };
    if closed != 0 {
        // Nobody listens yet, and nothing depends on it.
        tracing::debug!("descriptors of the parent stay open");
    }
}
