//! How messages with secrets are printed: as little as tells them apart.
//!
//! The generator leaves them to this module (`SECRETIVE` in `xtask`), so that a
//! message in a log line or an error never shows a key, token or passphrase.

use std::fmt;

use crate::v1;

/// By its name alone.
macro_rules! name_only {
    ($($message:ident)*) => {$(
        impl fmt::Debug for v1::$message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message)).finish_non_exhaustive()
            }
        }
    )*};
}

name_only! {
    Authority BackupRequest CreatedOperator JoinRequest JoinToken JoinTokenText UnlockKeyText
    UnlockRequest
}

impl fmt::Debug for v1::Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("id", &self.id)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_printed() {
        let token = v1::JoinToken { secret: vec![211; 16], expires: None };
        let cluster = v1::Cluster {
            authority: Some(v1::Authority { certificates: vec![], key: vec![211; 9] }),
            worker_token: Some(token),
            unlock_key: vec![211; 32],
            ..v1::Cluster::default()
        };
        let mutation = v1::Mutation { kind: Some(v1::mutation::Kind::SetCluster(cluster)) };
        let join = v1::JoinRequest { token: "wrn1-211".into(), ..v1::JoinRequest::default() };
        let backup = v1::BackupRequest { passphrase: "211".into(), ..v1::BackupRequest::default() };
        let text = format!("{mutation:?} {join:?} {backup:?}");
        assert!(!text.contains("211"), "{text}");
    }
}
