//! The wire: generated messages and services, and their way to and from the model.
//!
//! Messages never travel further than the door they came in by: `TryFrom`
//! checks everything that arrives, `From` writes what leaves.

#[allow(clippy::all, unused_qualifications, unreachable_pub, missing_docs)]
#[path = "generated/warren.v1.rs"]
pub mod v1;
