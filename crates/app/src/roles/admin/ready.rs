//! Whether each part of a node works, by trying it.
//!
//! Questions that come together get one answer, and an answer is good for a
//! moment: a checker without patience must not become the load.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::Rooms;

/// How long an answer is good.
const KEPT: Duration = Duration::from_secs(1);
/// A part that takes longer does not work.
const PART_MAX: Duration = Duration::from_secs(3);
/// A disk that takes longer for a few bytes holds the node up.
const SYNC_MAX_MS: u128 = 2_000;
/// Written and removed again to see whether the disk takes it.
const PROBE: &str = "ready.probe";

#[derive(Default)]
pub(super) struct Checks {
    last: Mutex<Option<(Instant, bool, Value)>>,
}

/// What is to be known of a part, with the reason in `why` if it does not work; or that alone.
type Found = Result<Value, String>;

impl Checks {
    /// Whether all parts work, and what was found.
    pub(super) async fn look(&self, rooms: &Rooms) -> (bool, Value) {
        // Held while looking: those who come meanwhile wait for the same answer.
        let mut last = self.last.lock().await;
        if let Some((at, ready, value)) = &*last
            && at.elapsed() < KEPT
        {
            return (*ready, value.clone());
        }
        let (raft, store, runtime, network) = tokio::join!(
            within(async { raft(rooms) }),
            within(store(rooms)),
            within(runtime(rooms)),
            within(network(rooms)),
        );
        let parts = [("raft", raft), ("store", store), ("runtime", runtime), ("network", network)];
        let mut object = serde_json::Map::new();
        let mut ready = true;
        for (name, found) in parts {
            let mut part = found.unwrap_or_else(|why| json!({"why": why}));
            let ok = part.get("why").is_none();
            part["ok"] = ok.into();
            ready &= ok;
            object.insert(name.to_owned(), part);
        }
        object.insert("ready".to_owned(), ready.into());
        let value = Value::Object(object);
        *last = Some((Instant::now(), ready, value.clone()));
        (ready, value)
    }
}

async fn within(part: impl Future<Output = Found>) -> Found {
    let silent = || Err(format!("no answer within {} s", PART_MAX.as_secs()));
    tokio::time::timeout(PART_MAX, part).await.unwrap_or_else(|_| silent())
}

/// A manager has a leader and a majority; a worker has a manager. Without a leader the numbers
/// tell which of several managers knows most.
fn raft(rooms: &Rooms) -> Found {
    let Some(store) = rooms.shared.store.load_full() else {
        let manager = rooms.manager.borrow().clone();
        let manager = manager.ok_or("no manager answers this node")?;
        return Ok(json!({"role": "worker", "manager": manager.to_string()}));
    };
    let status = store.status();
    let leader = *store.leader_number().borrow();
    let mut about = json!({
        "role": "manager",
        "number": status.number,
        "leader": leader,
        "term": status.term,
        "voters": status.voters.len(),
        "applied": status.applied,
        "last": status.last,
        "last_contact_ms": status.last_contact_ms,
    });
    if leader.is_none() {
        about["why"] = "no leader is known, or no majority can be reached".into();
    }
    Ok(about)
}

/// The disk takes a few bytes, and says when they are safe.
async fn store(rooms: &Rooms) -> Found {
    let path = rooms.shared.settings.data_dir.join(PROBE);
    let tried = tokio::task::spawn_blocking(move || {
        let began = Instant::now();
        warren_base::file::write_atomic(&path, b"ready\n", 0o600)
            .and_then(|()| std::fs::remove_file(&path))
            .map(|()| began.elapsed().as_millis())
    });
    let took = tried.await.map_err(|_| "the attempt was interrupted".to_owned())?;
    let took = took.map_err(|error| format!("write to the data folder: {error}"))?;
    if took > SYNC_MAX_MS {
        return Err(format!("the disk took {took} ms for a few bytes"));
    }
    let mut about = json!({"sync_ms": u64::try_from(took).unwrap_or(u64::MAX)});
    if let Some(store) = rooms.shared.store.load_full() {
        if *store.ended().borrow() {
            return Err("the store has ended; the log tells why".to_owned());
        }
        about["log_bytes"] = store.status().log_bytes.into();
    }
    Ok(about)
}

async fn runtime(rooms: &Rooms) -> Found {
    let runtime = Arc::clone(&rooms.runtime);
    let listed = runtime.list().await.map_err(|error| crate::roles::failed(&error).message)?;
    Ok(json!({"containers": listed.len()}))
}

async fn network(rooms: &Rooms) -> Found {
    let pool = rooms.pool;
    let looked = tokio::task::spawn_blocking(move || warren_net::features(pool));
    let features = looked.await.map_err(|_| "the look was interrupted".to_owned())?;
    if !features.nf_tables {
        return Err("nf_tables does not answer".to_owned());
    }
    if !features.veth {
        return Err("veth links cannot be made".to_owned());
    }
    Ok(json!({}))
}
