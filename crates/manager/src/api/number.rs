//! The number that a caller gave a request, for log lines about it.
//!
//! Not here: what the number is good for (`request`).

use std::fmt;

use tonic::Streaming;
use warren_proto::v1;

/// Longer numbers are refused, and not worth a line.
const SHOWN_BYTES: usize = 16;

/// A request that may have a number.
pub(crate) trait Numbered {
    fn number(&self) -> &[u8] {
        &[]
    }
}

macro_rules! numbered {
    ($($message:ident)*) => { $(
        impl Numbered for v1::$message {
            fn number(&self) -> &[u8] {
                &self.request_id
            }
        }
    )* };
}

macro_rules! without {
    ($($message:ident)*) => { $( impl Numbered for v1::$message {} )* };
}

numbered! {
    CreateServiceRequest UpdateServiceRequest RemoveServicesRequest UpdateNodeRequest
    RemoveNodeRequest UpdateClusterRequest GetJoinTokenRequest RotateAuthorityRequest
    SetLockRequest CreateOperatorRequest RemoveOperatorRequest CreateNetworkRequest
    RemoveNetworksRequest CreatePolicyRequest RemovePoliciesRequest RollBackServiceRequest
    HoldUpdateRequest RunJobRequest StopJobRequest SuspendJobRequest ControlTaskRequest
}

without! {
    GetInfoRequest ListServicesRequest ListTasksRequest ListNodesRequest WatchRequest
    WaitServiceRequest StopNodeRequest LeaveClusterRequest GetClusterRequest
    RotateDataKeyRequest UnlockRequest BackupRequest ListOperatorsRequest ListAuditRequest
    SetLogLevelRequest JoinRequest RenewRequest ListNetworksRequest
    ListPoliciesRequest ListRevisionsRequest ExplainRequest SimulateRequest PartedRequest
}

impl<T> Numbered for Streaming<T> {}

/// As log lines show it: the digits that the command line makes of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Number {
    bytes: [u8; SHOWN_BYTES],
    len: usize,
}

impl Number {
    pub(crate) fn of(request: &impl Numbered) -> Self {
        let number = request.number();
        let len = number.len().min(SHOWN_BYTES);
        let mut bytes = [0; SHOWN_BYTES];
        bytes[..len].copy_from_slice(&number[..len]);
        Self { bytes, len }
    }

    pub(crate) fn is_given(self) -> bool {
        self.len > 0
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes[..self.len].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let of = |id: &[u8]| {
            Number::of(&v1::RotateAuthorityRequest { request_id: id.to_vec() }).to_string()
        };
        assert_eq!(of(&[]), "");
        assert_eq!(of(&[1, 0xab]), "01ab");
        assert_eq!(of(&[0xff; 40]), "ff".repeat(SHOWN_BYTES));
        assert!(!Number::of(&v1::ListNodesRequest::default()).is_given());
    }
}
