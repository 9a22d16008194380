//! Why a proposal failed, as it travels from the leader to the manager that forwarded it.

use std::net::Ipv4Addr;

use prost::Message;
use warren_model::id::ServiceId;
use warren_proto::v1;
use warren_state::change::{Expect, Key, Rejection};

use crate::codec::{CodecError, expect, expect_from};
use crate::propose::{OBJECT_BYTES_MAX, ProposeError, TRANSACTION_BYTES_MAX};

/// What the leader made of a proposal: a revision, or one of the others.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct WireProposed {
    #[prost(uint64, tag = "1")]
    revision: u64,
    #[prost(message, optional, tag = "2")]
    rejection: Option<WireRejection>,
    #[prost(message, optional, tag = "3")]
    failure: Option<WireFailure>,
}

#[derive(Clone, PartialEq, Message)]
struct WireRejection {
    #[prost(uint32, tag = "1")]
    kind: u32,
    /// The key, and the revision that was expected.
    #[prost(message, optional, tag = "2")]
    expect: Option<v1::Expect>,
    #[prost(uint64, tag = "3")]
    number: u64,
    #[prost(string, tag = "4")]
    text: String,
    #[prost(string, tag = "5")]
    holder: String,
    #[prost(bytes = "vec", tag = "6")]
    holder_id: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct WireFailure {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(uint64, optional, tag = "2")]
    leader: Option<u64>,
    #[prost(string, tag = "3")]
    text: String,
}

fn absent(what: &'static str) -> CodecError {
    CodecError::Field { what, problem: "it is empty, or of a newer version".to_owned() }
}

fn wire_key(key: Key, expected: u64) -> Option<v1::Expect> {
    Some(expect(&Expect { key, revision: expected }))
}

fn rejection(from: &Rejection) -> WireRejection {
    let empty = WireRejection::default();
    match from {
        Rejection::Stale { key, expected, found } => {
            WireRejection { kind: 1, expect: wire_key(*key, *expected), number: *found, ..empty }
        }
        Rejection::NameTaken { name, holder } => WireRejection {
            kind: 2,
            text: name.to_string(),
            holder_id: holder.as_bytes().to_vec(),
            ..empty
        },
        Rejection::PortTaken { port, holder } => {
            WireRejection { kind: 3, text: port.clone(), holder: holder.to_string(), ..empty }
        }
        Rejection::NetworkTaken { name } => {
            WireRejection { kind: 9, text: name.to_string(), ..empty }
        }
        Rejection::NoNetwork { name } => {
            WireRejection { kind: 10, text: name.to_string(), ..empty }
        }
        Rejection::NetworkInUse { name, users } => {
            WireRejection { kind: 11, text: name.to_string(), holder: users.clone(), ..empty }
        }
        Rejection::PolicyTaken { name } => {
            WireRejection { kind: 50, text: name.to_string(), ..empty }
        }
        Rejection::NoService { name } => {
            WireRejection { kind: 51, text: name.to_string(), ..empty }
        }
        Rejection::AddressTaken { address, why } => WireRejection {
            kind: 12,
            number: u64::from(address.to_bits()),
            text: why.clone(),
            ..empty
        },
        Rejection::NotFound { key } => {
            WireRejection { kind: 4, expect: wire_key(*key, 0), ..empty }
        }
        Rejection::Exists { key } => WireRejection { kind: 5, expect: wire_key(*key, 0), ..empty },
        Rejection::RequestReused => WireRejection { kind: 6, ..empty },
        Rejection::TooMany { mutations } => {
            WireRejection { kind: 7, number: *mutations as u64, ..empty }
        }
        Rejection::Invalid(text) => WireRejection { kind: 8, text: text.clone(), ..empty },
    }
}

fn rejection_from(wire: WireRejection) -> Result<Rejection, CodecError> {
    let key = |wire: Option<v1::Expect>| expect_from(wire.ok_or_else(|| absent("key"))?);
    let name = |text: &str| text.parse().map_err(|_| absent("name"));
    let network = |text: &str| text.parse().map_err(|_| absent("network"));
    Ok(match wire.kind {
        1 => {
            let Expect { key, revision: expected } = key(wire.expect)?;
            Rejection::Stale { key, expected, found: wire.number }
        }
        2 => {
            let id = <[u8; 10]>::try_from(wire.holder_id).map_err(|_| absent("service"))?;
            Rejection::NameTaken { name: name(&wire.text)?, holder: ServiceId::from_bytes(id) }
        }
        3 => Rejection::PortTaken { port: wire.text, holder: name(&wire.holder)? },
        4 => Rejection::NotFound { key: key(wire.expect)?.key },
        5 => Rejection::Exists { key: key(wire.expect)?.key },
        6 => Rejection::RequestReused,
        7 => Rejection::TooMany { mutations: usize::try_from(wire.number).unwrap_or(usize::MAX) },
        8 => Rejection::Invalid(wire.text),
        9 => Rejection::NetworkTaken { name: network(&wire.text)? },
        10 => Rejection::NoNetwork { name: network(&wire.text)? },
        11 => Rejection::NetworkInUse { name: network(&wire.text)?, users: wire.holder },
        12 => {
            let bits = u32::try_from(wire.number).map_err(|_| absent("address"))?;
            Rejection::AddressTaken { address: Ipv4Addr::from_bits(bits), why: wire.text }
        }
        50 => Rejection::PolicyTaken { name: wire.text.parse().map_err(|_| absent("policy"))? },
        51 => Rejection::NoService { name: name(&wire.text)? },
        _ => return Err(absent("rejection")),
    })
}

pub(crate) fn proposed(result: &Result<u64, ProposeError>) -> WireProposed {
    let failed = |kind, leader, text: &str| WireProposed {
        failure: Some(WireFailure { kind, leader, text: text.to_owned() }),
        ..WireProposed::default()
    };
    match result {
        Ok(revision) => WireProposed { revision: *revision, ..WireProposed::default() },
        Err(ProposeError::Rejected(rejected)) => {
            WireProposed { rejection: Some(rejection(rejected)), ..WireProposed::default() }
        }
        Err(ProposeError::NotLeader { leader }) => failed(1, *leader, ""),
        Err(ProposeError::NoQuorum) => failed(2, None, ""),
        Err(ProposeError::Unknown) => failed(3, None, ""),
        Err(ProposeError::DiskFull) => failed(4, None, ""),
        Err(ProposeError::Stopped { why }) => failed(5, None, why),
        Err(error @ ProposeError::TooLarge { .. }) => failed(6, None, &error.to_string()),
    }
}

pub(crate) fn proposed_from(wire: WireProposed) -> Result<Result<u64, ProposeError>, CodecError> {
    if let Some(rejected) = wire.rejection {
        return Ok(Err(rejection_from(rejected)?.into()));
    }
    let Some(WireFailure { kind, leader, text }) = wire.failure else {
        return Ok(Ok(wire.revision));
    };
    Ok(Err(match kind {
        1 => ProposeError::NotLeader { leader },
        2 => ProposeError::NoQuorum,
        3 => ProposeError::Unknown,
        4 => ProposeError::DiskFull,
        // It may have taken it before it stopped.
        5 => ProposeError::Unknown,
        // Checked before it was sent: only another version has other limits.
        6 => ProposeError::TooLarge {
            what: "bytes of a transaction for an older leader",
            size: TRANSACTION_BYTES_MAX,
            max: OBJECT_BYTES_MAX,
        },
        _ => {
            return Err(CodecError::Field { what: "answer of the leader", problem: text });
        }
    }))
}

#[cfg(test)]
mod tests {
    use warren_model::id::{NodeId, TaskId};

    use super::*;

    #[track_caller]
    fn check(result: Result<u64, ProposeError>) {
        let bytes = proposed(&result).encode_to_vec();
        let back = WireProposed::decode(bytes.as_slice()).unwrap();
        assert_eq!(proposed_from(back).unwrap(), result);
    }

    #[test]
    fn answers_come_back() {
        check(Ok(77));
        let node = Key::Node(NodeId::from_bytes([1; 10]));
        let task = Key::Task(TaskId::from_bytes([2; 10]));
        let rejections = [
            Rejection::Stale { key: node, expected: 4, found: 5 },
            Rejection::Stale { key: Key::Cluster, expected: 0, found: 5 },
            Rejection::NameTaken {
                name: "web".parse().unwrap(),
                holder: ServiceId::from_bytes([3; 10]),
            },
            Rejection::PortTaken { port: "80/tcp".to_owned(), holder: "web".parse().unwrap() },
            Rejection::NotFound { key: task },
            Rejection::Exists { key: node },
            Rejection::RequestReused,
            Rejection::TooMany { mutations: 3000 },
            Rejection::Invalid("no".to_owned()),
            Rejection::NetworkTaken { name: "back".parse().unwrap() },
            Rejection::NoNetwork { name: "back".parse().unwrap() },
            Rejection::NetworkInUse { name: "back".parse().unwrap(), users: "web".to_owned() },
            Rejection::PolicyTaken { name: "db-in".parse().unwrap() },
            Rejection::NoService { name: "web".parse().unwrap() },
            Rejection::AddressTaken { address: [10, 9, 0, 2].into(), why: "is taken".to_owned() },
        ];
        for rejection in rejections {
            check(Err(rejection.into()));
        }
        check(Err(ProposeError::NotLeader { leader: Some(3) }));
        check(Err(ProposeError::NotLeader { leader: None }));
        check(Err(ProposeError::NoQuorum));
        check(Err(ProposeError::Unknown));
        check(Err(ProposeError::DiskFull));
        let stopped = proposed(&Err(ProposeError::Stopped { why: "x".to_owned() }));
        assert_eq!(proposed_from(stopped).unwrap(), Err(ProposeError::Unknown));
        let failure = Some(WireFailure { kind: 99, ..WireFailure::default() });
        assert!(proposed_from(WireProposed { failure, ..WireProposed::default() }).is_err());
    }
}
