//! Who changed what: one record for each thing that a person's transaction did.

use crate::quantity::Time;

/// Never holds a secret: values of environments, keys and tokens stay out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRecord {
    /// Of the transaction.
    pub revision: u64,
    pub time: Time,
    /// E.g. `socket:0` or `operator:anna`.
    pub principal: String,
    /// E.g. `service.create`.
    pub action: String,
    /// Name of the object, e.g. `web`.
    pub object: String,
    /// What changed, e.g. `availability=drain`; may be empty.
    pub detail: String,
}
