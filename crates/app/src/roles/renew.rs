//! When a node's certificate is to be replaced, and how.
//!
//! [`due`] is pure: the certificate as it is, what it should be, now. The key
//! stays, so connections that are open stay good; new ones show the new
//! certificate from the next handshake on.

use warren_base::rng::Rng;
use warren_model::Time;
use warren_proto::v1;
use warren_proto::v1::join_client::JoinClient;
use warren_trust::{Identity, KeyFile, Peer, PeerRole};

use super::dial::{Dialer, Whom};
use super::failed;
use super::files::{Files, assemble};
use super::wire::Pipe;
use crate::cli::failure::Failure;

/// Of the time between two thirds of a certificate's life and its end: nodes that joined together
/// do not all come at once.
const JITTER_PART: u64 = 4;
/// A certificate may outlive what the cluster's setting is by so much: clocks, and the time that
/// issuing takes.
const LONGER_MS: u64 = 120_000;
/// Between tries; doubled up to the second.
pub(crate) const RETRY_FIRST_MS: u64 = 500;
pub(crate) const RETRY_MAX_MS: u64 = 30_000;

/// What a node's certificate should say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) manager: bool,
    /// Zeros: it is not known yet.
    pub(crate) issuer_hash: [u8; 32],
    /// 0: it is not known yet.
    pub(crate) lifetime_ms: u64,
}

/// Why a certificate is to be replaced now, or when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// It says another role.
    Role,
    /// Another authority issues.
    Issuer,
    /// It would last longer than certificates are to last.
    Lifetime,
    /// It comes to its end.
    Age,
    At(Time),
}

/// `draw` is random and the same for one certificate.
pub(crate) fn due(own: &Peer, wanted: &Wanted, draw: u64, now: Time) -> Due {
    if (own.role == PeerRole::Manager) != wanted.manager {
        return Due::Role;
    }
    if wanted.issuer_hash != [0; 32] && own.issuer_hash != wanted.issuer_hash {
        return Due::Issuer;
    }
    let left_ms = own.not_after.since_ms(now);
    if wanted.lifetime_ms != 0 && left_ms > wanted.lifetime_ms.saturating_add(LONGER_MS) {
        return Due::Lifetime;
    }
    let at = own.renew_at();
    let spread_ms = own.not_after.since_ms(at) / JITTER_PART;
    let at = at.plus_ms(draw.checked_rem(spread_ms).unwrap_or(0));
    if now >= at { Due::Age } else { Due::At(at) }
}

/// The pause before try number `failures`.
pub(crate) fn pause_ms(failures: u32, rng: &dyn Rng) -> u64 {
    let most = (RETRY_FIRST_MS << failures.min(16)).min(RETRY_MAX_MS);
    most / 2 + rng.below(most / 2 + 1)
}

/// Everything that a renewal needs.
pub(crate) struct Renewal<'a> {
    pub(crate) files: &'a Files,
    pub(crate) key: &'a KeyFile,
    pub(crate) dialer: &'a Dialer,
    /// To the manager in this process, while it has a leader.
    pub(crate) pipe: Option<Pipe>,
    pub(crate) managers: &'a [String],
}

impl Renewal<'_> {
    /// A new certificate, kept and shown from now on.
    ///
    /// # Errors
    /// No manager gave one; the first that refused says why.
    pub(crate) async fn carry_out(&self) -> Result<Peer, Failure> {
        let identity = self.files.certificate(self.key).map_err(|e| failed(&e))?;
        let name = identity.peer().node.map(|node| node.to_string()).unwrap_or_default();
        let signing_request = identity.key().signing_request(&name).map_err(|e| failed(&e))?;
        let renewed = self.ask(v1::RenewRequest { signing_request }).await?;
        let fresh: Identity =
            assemble(identity.key(), &renewed.certificates, &renewed.authorities)?;
        self.files.keep(&fresh, self.key).map_err(|e| failed(&e))?;
        self.dialer.credentials().set(&fresh).map_err(|e| failed(&e))?;
        Ok(fresh.peer().clone())
    }

    async fn ask(&self, request: v1::RenewRequest) -> Result<v1::Renewed, Failure> {
        let mut trouble = None;
        if let Some(pipe) = &self.pipe {
            match pipe.connect().await {
                Ok(channel) => match JoinClient::new(channel).renew(request.clone()).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    Err(status) => trouble = Some(Failure::from(status)),
                },
                Err(error) => trouble = Some(failed(error.as_ref())),
            }
        }
        for address in self.managers {
            let asked = match self.dialer.channel(address, Whom::Any).await {
                Ok(channel) => JoinClient::new(channel).renew(request.clone()).await,
                Err(error) => {
                    trouble.get_or_insert_with(|| failed(&error));
                    continue;
                }
            };
            match asked {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => trouble = Some(Failure::from(status)),
            }
        }
        Err(trouble.unwrap_or_else(|| Failure::failed("no manager is known")))
    }
}

#[cfg(test)]
mod tests {
    use warren_base::rng::SeededRng;
    use warren_model::ClusterId;

    use super::*;

    const DAY: u64 = 86_400_000;

    /// A worker's certificate of 90 days, issued at day 0 by authority 1; `day` and what is wanted.
    #[track_caller]
    fn check(day: u64, manager: bool, issuer: u8, lifetime_days: u64, expected: &str) {
        let start = Time(1_800_000_000_000);
        let own = Peer {
            node: None,
            operator: None,
            role: PeerRole::Worker,
            cluster: ClusterId::MIN,
            key_hash: [0; 32],
            not_before: Time(start.0 - 3_600_000),
            not_after: start.plus_ms(90 * DAY),
            expired: false,
            issuer_hash: [1; 32],
        };
        let wanted =
            Wanted { manager, issuer_hash: [issuer; 32], lifetime_ms: lifetime_days * DAY };
        let got = match due(&own, &wanted, 3 * DAY, start.plus_ms(day * DAY)) {
            Due::At(at) => format!("at {}", at.since_ms(start) / DAY),
            other => format!("{other:?}"),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn certificates_are_due() {
        check(0, false, 1, 90, "at 63");
        check(62, false, 1, 90, "at 63");
        check(63, false, 1, 90, "Age");
        check(500, false, 1, 90, "Age");
        check(1, true, 1, 90, "Role");
        check(1, false, 2, 90, "Issuer");
        check(1, false, 0, 0, "at 63");
        check(1, false, 1, 1, "Lifetime");
        check(1, false, 1, 400, "at 63");
    }

    #[test]
    fn tries_have_pauses_between_them() {
        let rng = SeededRng::new(1);
        for failures in 0..100 {
            let pause = pause_ms(failures, &rng);
            assert!((RETRY_FIRST_MS / 2..=RETRY_MAX_MS).contains(&pause), "{failures}: {pause}");
        }
    }
}
