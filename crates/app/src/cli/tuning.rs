//! How the kernel shares a node among containers: flags of `service create` and `update`.

use clap::Args;
use serde_json::{Value, json};
use warren_model::service::{IoKind, IoLimit, Tuning};

use super::spec::{bytes, count};

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TuningFlags {
    /// Processors that may be used, e.g. 0-3,7; '' for all
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes that may be used, e.g. 0; '' for all
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Weight against others while processors are busy; 1024 is what all have, 0 takes it back
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    cpu_shares: Option<u32>,
    /// Swap beside --limit-memory; without it there is none
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = bytes)]
    limit_swap: Option<u64>,
    /// Weight against others while disks are busy: 10 to 1000; 0 takes it back
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    blkio_weight: Option<u32>,
    /// Bytes that are read from a device of the node in a second; a rate of 0 takes it back
    #[arg(long, value_name = "DEVICE:RATE", value_parser = rate)]
    device_read_bps: Vec<(String, u64)>,
    /// Bytes that are written to a device of the node in a second
    #[arg(long, value_name = "DEVICE:RATE", value_parser = rate)]
    device_write_bps: Vec<(String, u64)>,
    /// Operations that read from a device of the node in a second
    #[arg(long, value_name = "DEVICE:N", value_parser = operations)]
    device_read_iops: Vec<(String, u64)>,
    /// Operations that write to a device of the node in a second
    #[arg(long, value_name = "DEVICE:N", value_parser = operations)]
    device_write_iops: Vec<(String, u64)>,
}

fn parts(text: &str) -> Result<(&str, &str), String> {
    let found = text.rsplit_once(':').filter(|(device, _)| device.starts_with('/'));
    found.ok_or_else(|| format!("{text:?} is not of the form DEVICE:RATE, e.g. /dev/sda:10MiB"))
}

fn rate(text: &str) -> Result<(String, u64), String> {
    let (device, rate) = parts(text)?;
    Ok((device.to_owned(), bytes(rate)?))
}

fn operations(text: &str) -> Result<(String, u64), String> {
    let (device, rate) = parts(text)?;
    Ok((device.to_owned(), count(rate)?.into()))
}

impl TuningFlags {
    pub(crate) fn apply(&self, tuning: &mut Tuning) {
        let set = |known: &mut Option<String>, given: &Option<String>| {
            if let Some(text) = given {
                *known = Some(text.clone()).filter(|text| !text.is_empty());
            }
        };
        set(&mut tuning.cpuset_cpus, &self.cpuset_cpus);
        set(&mut tuning.cpuset_mems, &self.cpuset_mems);
        if let Some(shares) = self.cpu_shares {
            tuning.cpu_shares = (shares > 0).then_some(shares);
        }
        if let Some(swap) = self.limit_swap {
            tuning.swap_bytes = (swap > 0).then_some(swap);
        }
        if let Some(weight) = self.blkio_weight {
            // What does not fit is refused with all others that are too large.
            let weight = u16::try_from(weight).unwrap_or(u16::MAX);
            tuning.io_weight = (weight > 0).then_some(weight);
        }
        for (kind, limits) in [
            (IoKind::ReadBps, &self.device_read_bps),
            (IoKind::WriteBps, &self.device_write_bps),
            (IoKind::ReadIops, &self.device_read_iops),
            (IoKind::WriteIops, &self.device_write_iops),
        ] {
            for (device, rate) in limits {
                tuning.io_limits.retain(|known| known.kind != kind || known.device != *device);
                if *rate > 0 {
                    tuning.io_limits.push(IoLimit { kind, device: device.clone(), rate: *rate });
                }
            }
        }
    }
}

/// As `inspect` shows it.
pub(crate) fn tuning_json(tuning: &Tuning) -> Value {
    let Tuning { cpuset_cpus, cpuset_mems, cpu_shares, swap_bytes, io_weight, io_limits } = tuning;
    let limits = io_limits.iter().map(
        |limit| json!({"kind": limit.kind.as_str(), "device": limit.device, "rate": limit.rate}),
    );
    json!({
        "cpuset_cpus": cpuset_cpus,
        "cpuset_mems": cpuset_mems,
        "cpu_shares": cpu_shares,
        "swap_bytes": swap_bytes,
        "blkio_weight": io_weight,
        "device_limits": limits.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_come_and_go() {
        let mut tuning = Tuning::default();
        let flags = TuningFlags {
            cpuset_cpus: Some("0-1".into()),
            cpu_shares: Some(512),
            device_read_bps: vec![rate("/dev/sda:1MiB").unwrap()],
            ..TuningFlags::default()
        };
        flags.apply(&mut tuning);
        assert_eq!(tuning.io_limits[0].to_string(), "read_bps /dev/sda 1048576");
        assert_eq!((tuning.cpuset_cpus.as_deref(), tuning.cpu_shares), (Some("0-1"), Some(512)));
        let back = TuningFlags {
            cpuset_cpus: Some(String::new()),
            cpu_shares: Some(0),
            device_read_bps: vec![rate("/dev/sda:0").unwrap()],
            ..TuningFlags::default()
        };
        back.apply(&mut tuning);
        assert!(tuning.is_empty(), "{tuning:?}");
        for bad in ["sda:1MiB", "/dev/sda", "/dev/sda:much"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }
}
