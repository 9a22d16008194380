//! Who changed what, from the state's own records.

use warren_proto::v1;
use warren_state::State;

/// Rows of an answer that names no limit.
const ROWS: usize = 100;

/// The newest records after a revision, newest last.
pub(super) fn list(view: &State, wire: &v1::ListAuditRequest) -> v1::ListAuditResponse {
    let limit = match usize::try_from(wire.limit) {
        Ok(0) | Err(_) => ROWS,
        Ok(limit) => limit,
    };
    let records: Vec<v1::AuditRecord> = view
        .audit()
        .filter(|record| record.revision > wire.after)
        .map(v1::AuditRecord::from)
        .collect();
    let skip = records.len().saturating_sub(limit);
    v1::ListAuditResponse { records: records.into_iter().skip(skip).collect() }
}
