//! A machine becomes a node of a cluster: key, token, certificate.
//!
//! Any of the managers that are named will do; those that do not answer are
//! passed over, an answer that refuses is the end. The same id and key are used
//! until it worked, however often it is tried (`files`).

use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Request, Status};
use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_model::cluster::Subnet;
use warren_model::node::Description;
use warren_model::{ClusterId, NodeId, Time};
use warren_proto::v1;
use warren_proto::v1::join_client::JoinClient;
use warren_trust::{JoinRole, KeyFile, NodeKey};

use super::dial::{self, DialError};
use super::failed;
use super::files::{Files, assemble};
use crate::cli::failure::{Exit, Failure};
use crate::identity::{Identity, Role};
use crate::settings::{JoinSettings, Told};

/// For a manager to answer. It may have to wait for its leader, and write to disks.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Rounds over the managers that are named: one may be electing its leader just now.
const ROUNDS_MAX: u32 = 3;
const ROUND_PAUSE: Duration = Duration::from_millis(300);
/// What a manager wants the person to know, without refusing.
const WARNING_KEY: &str = warren_manager::WARNING_KEY;

/// What came of it.
pub(crate) struct Joined {
    pub(crate) identity: Identity,
    /// Where managers are.
    pub(crate) managers: Vec<String>,
    /// The cluster's clock.
    pub(crate) time: Time,
    /// Of containers, if that manager said it.
    pub(crate) pool: Option<Subnet>,
}

/// Joins, and writes down what the node is now. Says what happens through `say`.
///
/// # Errors
/// Nobody answered ([`Exit::Unreachable`]), or somebody refused.
pub(crate) async fn join(
    settings: &JoinSettings,
    files: &Files,
    description: Description,
    clock: Arc<dyn Clock>,
    rng: &dyn Rng,
    told: Told,
    say: impl Fn(&str),
) -> Result<Joined, Failure> {
    let key_file = KeyFile::read_or_create(&files.key(), rng).map_err(|e| failed(&e))?;
    let (node, key) = files.joining(&key_file, rng, Time(clock.now_ms()))?;
    let request = v1::JoinRequest {
        token: settings.token.to_text().to_string(),
        node_id: node.as_bytes().to_vec(),
        signing_request: key.signing_request(&node.to_string()).map_err(|e| failed(&e))?,
        description: Some(v1::NodeDescription::from(&description)),
        manager_only: settings.manager_only,
        time: clock.now_ms(),
        routes: super::routes::read().iter().map(Into::into).collect(),
    };
    let answer = ask_all(settings, &request, &clock, &say).await?;
    finish(&answer, node, &key, &key_file, files, settings.token.role, told)
}

/// Writes down what came, the identity last.
fn finish(
    answer: &v1::Joined,
    node: NodeId,
    key: &NodeKey,
    key_file: &KeyFile,
    files: &Files,
    role: JoinRole,
    told: Told,
) -> Result<Joined, Failure> {
    let kept = assemble(key, &answer.certificates, &answer.authorities)?;
    let cluster = <[u8; 10]>::try_from(answer.cluster_id.as_slice()).map(ClusterId::from_bytes);
    let cluster = cluster.map_err(|_| Failure::failed("the answer names no cluster"))?;
    if kept.peer().node != Some(node) || kept.peer().cluster != cluster {
        return Err(Failure::failed("the certificate that came is for somebody else"));
    }
    if role == JoinRole::Manager && answer.number.is_none() {
        return Err(Failure::failed("the manager gave no number among the managers"));
    }
    let pool = answer.pool.map(Subnet::try_from).transpose().map_err(|e| failed(&e))?;
    files.keep(&kept, key_file).map_err(|e| failed(&e))?;
    let manager = answer.number.filter(|_| answer.manager);
    let role = Role { manager, worker: answer.worker };
    let identity = Identity { node, cluster, role, stored: false, told };
    identity.write(files.data_dir())?;
    files.joined();
    let (managers, time) = (answer.managers.clone(), Time(answer.time));
    Ok(Joined { identity, managers, time, pool })
}

async fn ask_all(
    settings: &JoinSettings,
    request: &v1::JoinRequest,
    clock: &Arc<dyn Clock>,
    say: &impl Fn(&str),
) -> Result<v1::Joined, Failure> {
    let mut trouble = Vec::new();
    for round in 0..ROUNDS_MAX {
        if round > 0 {
            tokio::time::sleep(ROUND_PAUSE).await;
        }
        trouble.clear();
        for address in &settings.addresses {
            say(&format!("joining through {address}"));
            let channel = match dial::joining(address, &settings.token, Arc::clone(clock)).await {
                Ok(channel) => channel,
                Err(error) => {
                    trouble.push(error);
                    continue;
                }
            };
            let mut client = JoinClient::new(channel);
            let asked = client.join(Request::new(request.clone()));
            match tokio::time::timeout(ANSWER_MAX, asked).await {
                Ok(Ok(answer)) => {
                    let warning = answer.metadata().get(WARNING_KEY);
                    if let Some(text) = warning.and_then(|text| text.to_str().ok()) {
                        say(&format!("warning: {text}"));
                    }
                    return Ok(answer.into_inner());
                }
                // Another manager may have a leader.
                Ok(Err(status)) if is_passing(&status) => {
                    let (address, why) = (address.to_string(), status.message().to_owned());
                    trouble.push(DialError::Busy { address, why });
                }
                Ok(Err(status)) => return Err(status.into()),
                Err(_) => trouble.push(DialError::Silent { address: address.to_string() }),
            }
        }
        // Who is not trusted now is not later.
        if trouble.iter().all(|error| matches!(error, DialError::Untrusted { .. })) {
            break;
        }
    }
    Err(nobody(&trouble))
}

fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded)
        || std::error::Error::source(status).is_some()
}

fn nobody(trouble: &[DialError]) -> Failure {
    let told: Vec<String> = trouble.iter().map(ToString::to_string).collect();
    let text = format!("no manager lets this node join: {}", told.join("; "));
    if trouble.iter().all(|error| matches!(error, DialError::Untrusted { .. })) {
        return Failure::failed(text)
            .hint("is the token of this cluster? `warren cluster token` on a manager shows it");
    }
    Failure::new(Exit::Unreachable, text)
        .hint("name the address and port that a manager shows in `warren node ls`")
}
