//! What this binary is.

/// Version of the workspace, e.g. `0.1.0`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
