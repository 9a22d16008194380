//! What tasks get that say nothing of it: flags of `cluster update` and `node update`.

use clap::Args;
use serde_json::{Value, json};
use warren_model::Defaults;
use warren_proto::v1;

use super::placing::exact_cores;
use super::spec::{bytes, cores, count};

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DefaultFlags {
    /// Cores kept free for each task whose service reserves none; 0 takes it back
    #[arg(long, value_name = "CORES", allow_hyphen_values = true, value_parser = cores)]
    default_reserve_cpu: Option<u32>,
    /// Memory kept free for each task whose service reserves none; 0 takes it back
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = bytes)]
    default_reserve_memory: Option<u64>,
    /// Cores that containers may use whose service sets no limit; 0 takes it back
    #[arg(long, value_name = "CORES", allow_hyphen_values = true, value_parser = cores)]
    default_limit_cpu: Option<u32>,
    /// Memory that containers may use whose service sets no limit; 0 takes it back
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = bytes)]
    default_limit_memory: Option<u64>,
    /// Processes that containers may have whose service sets no limit; 0 takes it back
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    default_limit_pids: Option<u32>,
}

impl DefaultFlags {
    /// The change; `None` if there is none.
    pub(crate) fn wire(&self) -> Option<v1::Defaults> {
        let limits = v1::Limits {
            memory_bytes: self.default_limit_memory,
            cpu_millis: self.default_limit_cpu,
            pids: self.default_limit_pids,
        };
        let change = v1::Defaults {
            reserve_cpu_millis: self.default_reserve_cpu.map(u64::from),
            reserve_memory_bytes: self.default_reserve_memory,
            limits: (limits != v1::Limits::default()).then_some(limits),
        };
        (change != v1::Defaults::default()).then_some(change)
    }
}

/// As `inspect` and `settings` show them; null is none.
pub(crate) fn defaults_json(wire: Option<v1::Defaults>) -> Value {
    let Defaults { reserve_cpu_millis, reserve_memory_bytes, limits } =
        wire.map(Into::into).unwrap_or_default();
    let some = |amount: u64| Some(amount).filter(|amount| *amount > 0);
    json!({
        "reserve_cpus": some(reserve_cpu_millis).map(exact_cores),
        "reserve_memory_bytes": some(reserve_memory_bytes),
        "limit_cpus": limits.cpu_millis.map(|cpu| exact_cores(cpu.into())),
        "limit_memory_bytes": limits.memory_bytes,
        "limit_pids": limits.pids,
    })
}
