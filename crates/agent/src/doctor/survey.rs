//! Asks other nodes all that can be asked without their help.
//!
//! Blocks, for [`WINDOW`] and once more for those whose large packets are lost; less if all answer.
//!
//! Not here: what is to be said of it (`path`).

use std::net::IpAddr;
use std::time::Duration;

use warren_net::{Carrier, Member, Probe, Question, Round, link_mtu, probe};

use super::path::{About, Family, Seen};

/// A round trip around the world, three times.
const WINDOW: Duration = Duration::from_millis(1200);
const SIZES_WINDOW: Duration = Duration::from_millis(900);
/// Of one search for what still passes.
const SIZES: u16 = 12;
/// Every path carries these (RFC 791, RFC 8200).
const SMALLEST: u16 = 576;
const SMALLEST6: u16 = 1280;

/// Whom to ask, and where it is on the overlay.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) about: About,
    pub(super) member: Option<Member>,
}

/// What an answer is for: the place of the target, and what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Underlay,
    Whole {
        bytes: u16,
    },
    Clock,
    Across,
    /// Of the family at this place.
    Small {
        family: usize,
    },
    Sized {
        family: usize,
        bytes: u16,
    },
}

type Asked = Vec<(usize, Of, Probe)>;

/// What each of `targets` answers.
///
/// # Errors
/// This host has no raw sockets.
pub(super) fn survey(targets: &[Target]) -> Result<Vec<Seen>, warren_net::Error> {
    let mut seen: Vec<Seen> = targets.iter().map(blank).collect();
    let asked: Asked = targets
        .iter()
        .enumerate()
        .flat_map(|(place, target)| {
            let questions = questions(target, &seen[place]);
            questions.into_iter().map(move |(of, probe)| (place, of, probe))
        })
        .collect();
    if asked.is_empty() {
        return Ok(seen);
    }
    ask(&asked, WINDOW, targets, &mut seen)?;
    let sizes = sizes(&seen);
    if !sizes.is_empty() {
        ask(&sizes, SIZES_WINDOW, targets, &mut seen)?;
    }
    Ok(seen)
}

fn ask(
    asked: &Asked,
    window: Duration,
    targets: &[Target],
    seen: &mut [Seen],
) -> Result<(), warren_net::Error> {
    let probes: Vec<Probe> = asked.iter().map(|(.., probe)| *probe).collect();
    let round = probe(&probes, window)?;
    for (target, seen) in targets.iter().zip(seen.iter_mut()) {
        seen.heard |= target.about.underlay.is_some_and(|at| round.heard.contains(&at));
    }
    take(asked, &round, seen);
    Ok(())
}

/// Nothing came back yet.
fn blank(target: &Target) -> Seen {
    let Some(member) = &target.member else { return Seen::default() };
    let inner = [Some(IpAddr::V4(member.inner)), member.inner6.map(IpAddr::V6)];
    let family = |address: IpAddr| Family {
        address,
        round_trip_us: None,
        bytes: link_mtu(address),
        largest: None,
    };
    Seen { families: inner.into_iter().flatten().map(family).collect(), ..Seen::default() }
}

fn questions(target: &Target, seen: &Seen) -> Vec<(Of, Probe)> {
    let mut all = Vec::new();
    let mut push = |of, to, what| all.push((of, Probe { to, what }));
    let small = Question::Echo { bytes: 0 };
    if let Some(underlay) = target.about.underlay {
        push(Of::Underlay, underlay, small);
        push(Of::Clock, underlay, Question::Clock);
        let largest = seen.families.iter().filter_map(|family| family.bytes).max();
        let overhead = target.about.carrier.map_or(0, |carrier| carrier.overhead(underlay));
        if let Some(bytes) = largest.and_then(|bytes| bytes.checked_add(overhead))
            && overhead > 0
        {
            push(Of::Whole { bytes }, underlay, Question::Echo { bytes });
        }
    }
    for (family, at) in seen.families.iter().enumerate() {
        push(Of::Small { family }, at.address, small);
        if let Some(bytes) = at.bytes {
            push(Of::Sized { family, bytes }, at.address, Question::Echo { bytes });
        }
    }
    if let Some(member) = &target.member {
        push(Of::Clock, member.inner.into(), Question::Clock);
        // With VXLAN as carrier it is the same way.
        if target.about.carrier != Some(Carrier::Vxlan) {
            let number = member.number;
            push(Of::Across, member.inner.into(), Question::Across { number });
        }
    }
    // Nobody answers those.
    all.retain(|(of, probe)| *of != Of::Clock || probe.to.is_ipv4());
    all
}

/// Smaller packets, for those whose largest are lost.
fn sizes(seen: &[Seen]) -> Asked {
    let mut asked = Vec::new();
    for (place, seen) in seen.iter().enumerate() {
        for (family, at) in seen.families.iter().enumerate() {
            let Some(bytes) = at.bytes.filter(|_| at.round_trip_us.is_some()) else { continue };
            if at.largest == Some(bytes) {
                continue;
            }
            let least = if at.address.is_ipv4() { SMALLEST } else { SMALLEST6 };
            let room = bytes.saturating_sub(least);
            let steps = (1..=SIZES).map(|step| bytes - room / SIZES * step);
            for bytes in steps.filter(|_| room > SIZES) {
                let probe = Probe { to: at.address, what: Question::Echo { bytes } };
                asked.push((place, Of::Sized { family, bytes }, probe));
            }
        }
    }
    asked
}

/// Notes what came back.
fn take(asked: &Asked, round: &Round, seen: &mut [Seen]) {
    for ((place, of, _), answer) in asked.iter().zip(&round.answers) {
        let seen = &mut seen[*place];
        let us =
            answer.map(|answer| u64::try_from(answer.round_trip.as_micros()).unwrap_or(u64::MAX));
        match *of {
            Of::Underlay => seen.underlay_us = us,
            Of::Whole { bytes } => seen.whole = Some((bytes, answer.is_some())),
            Of::Clock => {
                seen.ahead_ms = seen.ahead_ms.or_else(|| answer.and_then(|answer| answer.ahead_ms));
            }
            Of::Across => seen.across = Some(answer.is_some()),
            Of::Small { family } => seen.families[family].round_trip_us = us,
            Of::Sized { family, bytes } if answer.is_some() => {
                let family = &mut seen.families[family];
                family.largest = family.largest.max(Some(bytes));
            }
            Of::Sized { .. } => {}
        }
    }
    for (at, error) in &round.unsent {
        if let Some((place, Of::Underlay, _)) = asked.get(*at) {
            seen[*place].unsent = Some(error.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use warren_model::NodeId;
    use warren_net::Answer;

    use super::*;

    fn target(carrier: Carrier) -> Target {
        let underlay = IpAddr::from([10, 0, 0, 2]);
        let about = About {
            node: NodeId::from_bytes([2; 10]),
            name: "w2".into(),
            place: underlay.to_string(),
            underlay: Some(underlay),
            via: None,
            carrier: Some(carrier),
        };
        let member = Member {
            number: 2,
            underlay,
            port: 8477,
            inner: [10, 128, 2, 0].into(),
            inner6: Some("fd00::2:0".parse().unwrap()),
            blocks: Vec::new(),
        };
        Target { about, member: Some(member) }
    }

    fn seen() -> Seen {
        let family = |address: &str, bytes| Family {
            address: address.parse().unwrap(),
            round_trip_us: None,
            bytes,
            largest: None,
        };
        let families = vec![family("10.128.2.0", Some(1420)), family("fd00::2:0", None)];
        Seen { families, ..Seen::default() }
    }

    /// What is asked of one node, as `to what`.
    #[track_caller]
    fn check(carrier: Carrier, expected: &[&str]) {
        let asked = questions(&target(carrier), &seen());
        let shown: Vec<String> = asked
            .iter()
            .map(|(_, probe)| match probe.what {
                Question::Echo { bytes } => format!("{} {bytes}", probe.to),
                Question::Across { number } => format!("{} across {number}", probe.to),
                Question::Clock => format!("{} clock", probe.to),
            })
            .collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn each_way_is_asked_for_what_it_carries() {
        check(
            Carrier::Device,
            &[
                "10.0.0.2 0",
                "10.0.0.2 clock",
                "10.0.0.2 1500",
                "10.128.2.0 0",
                "10.128.2.0 1420",
                "fd00::2:0 0",
                "10.128.2.0 clock",
                "10.128.2.0 across 2",
            ],
        );
        check(
            Carrier::Vxlan,
            &[
                "10.0.0.2 0",
                "10.0.0.2 clock",
                "10.0.0.2 1470",
                "10.128.2.0 0",
                "10.128.2.0 1420",
                "fd00::2:0 0",
                "10.128.2.0 clock",
            ],
        );
    }

    #[test]
    fn what_is_lost_is_asked_for_in_smaller_sizes() {
        let mut all = vec![seen()];
        let asked: Asked = questions(&target(Carrier::Device), &all[0])
            .into_iter()
            .map(|(of, probe)| (0, of, probe))
            .collect();
        let round_trip = Duration::from_micros(1500);
        let came = |ahead_ms| Some(Answer { round_trip, ahead_ms });
        let mut round = Round { answers: vec![None; asked.len()], ..Round::default() };
        round.answers[0] = came(None);
        round.answers[1] = came(Some(7));
        round.answers[3] = came(None);
        take(&asked, &round, &mut all);
        assert_eq!((all[0].underlay_us, all[0].ahead_ms), (Some(1500), Some(7)));
        assert_eq!((all[0].whole, all[0].across), (Some((1500, false)), Some(false)));
        let smaller = sizes(&all);
        assert_eq!(smaller.len(), usize::from(SIZES));
        assert_eq!(smaller[0].1, Of::Sized { family: 0, bytes: 1350 });
        assert_eq!(smaller[11].1, Of::Sized { family: 0, bytes: 580 });
        let answers = (0..12).map(|at| came(None).filter(|_| at >= 2)).collect();
        take(&smaller, &Round { answers, ..Round::default() }, &mut all);
        assert_eq!(all[0].families[0].largest, Some(1210));
        all[0].families[0].largest = Some(1420);
        assert!(sizes(&all).is_empty());
    }
}
