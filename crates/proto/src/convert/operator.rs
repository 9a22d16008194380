//! Operators, and the records of what they did.

use warren_model::operator::{Operator, OperatorRole};
use warren_model::{AuditRecord, Time};

use super::{Error, choice, enums, hash_if_any, operator_name};
use crate::v1;

enums! {
    OperatorRole, v1::OperatorRole { Admin Deploy Read }
}

impl From<&Operator> for v1::Operator {
    fn from(operator: &Operator) -> Self {
        let bytes = |hash: Option<[u8; 32]>| hash.map_or_else(Vec::new, |hash| hash.to_vec());
        Self {
            name: operator.name.as_str().to_owned(),
            role: v1::OperatorRole::from(operator.role).into(),
            token_hash: bytes(operator.token_hash),
            key_hash: bytes(operator.key_hash),
            expires: operator.expires.map(|time| time.0),
            created: operator.created.0,
            revision: operator.revision,
        }
    }
}

impl TryFrom<v1::Operator> for Operator {
    type Error = Error;

    fn try_from(wire: v1::Operator) -> Result<Self, Error> {
        Ok(Self {
            name: operator_name("name", &wire.name)?,
            role: choice::<v1::OperatorRole, _>("role", wire.role)?,
            token_hash: hash_if_any("token_hash", &wire.token_hash)?,
            key_hash: hash_if_any("key_hash", &wire.key_hash)?,
            expires: wire.expires.map(Time),
            created: Time(wire.created),
            revision: wire.revision,
        })
    }
}

impl From<&AuditRecord> for v1::AuditRecord {
    fn from(record: &AuditRecord) -> Self {
        let AuditRecord { revision, time, principal, action, object, detail } = record.clone();
        Self { revision, time: time.0, principal, action, object, detail }
    }
}

impl TryFrom<v1::AuditRecord> for AuditRecord {
    type Error = Error;

    fn try_from(wire: v1::AuditRecord) -> Result<Self, Error> {
        let v1::AuditRecord { revision, time, principal, action, object, detail } = wire;
        Ok(Self { revision, time: Time(time), principal, action, object, detail })
    }
}
