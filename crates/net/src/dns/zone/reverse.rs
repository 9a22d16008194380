//! Reverse names: an address as a name below `in-addr.arpa` or `ip6.arpa`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address that `name` is the reverse name of; only whole addresses are one.
pub(super) fn address(name: &str) -> Option<IpAddr> {
    if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0; 4];
        let mut labels = labels.split('.');
        for octet in octets.iter_mut().rev() {
            let label = labels.next()?;
            let plain = label == "0" || !label.starts_with(['0', '+']);
            *octet = label.parse().ok().filter(|_| plain)?;
        }
        return labels.next().is_none().then(|| Ipv4Addr::from(octets).into());
    }
    let labels = name.strip_suffix(".ip6.arpa")?;
    let mut bits = 0u128;
    let mut labels = labels.split('.');
    for at in 0..32 {
        let label = labels.next()?;
        let digit = u128::from_str_radix(label, 16).ok().filter(|_| label.len() == 1)?;
        bits |= digit << (4 * at);
    }
    labels.next().is_none().then(|| Ipv6Addr::from(bits).into())
}
