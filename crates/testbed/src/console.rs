//! What a person may do to a running bed, one command a line.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::Cluster;
use crate::node::Node;
use crate::switch::Link;

/// What there is to type.
pub const HELP: &str = "\
cut A B          nothing passes between two machines
cut-way A B      nothing passes from A to B
isolate A        pull the cable of A
split A B …      these reach each other and nobody else
delay A B 50ms   each way takes that much longer
loss A B 10%     each way loses that many frames
rate A B 1000    each way carries that many kilobytes a second
heal             all lines are perfect again
kill A           kill -9 of the daemon        term A     ask it to stop
stop A           SIGSTOP of the daemon        cont A     SIGCONT
freeze A         SIGSTOP of all of A          thaw A     SIGCONT
off A            A loses its power            reboot A   and comes up again
start A          run the daemon again
nodes            what the cluster says        log A      the last lines of a daemon
quit";

/// A line, understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Both directions between two machines.
    Shape(String, String, Link),
    /// One direction.
    ShapeOneWay(String, String, Link),
    /// Machines apart from all others.
    Split(Vec<String>),
    /// Perfect lines.
    Heal,
    /// Something with one node.
    Node(Deed, String),
    /// The cluster's own list.
    Nodes,
    /// What can be typed.
    Help,
    /// The end.
    Quit,
    /// An empty line.
    Nothing,
}

/// What may be done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// kill -9 of the daemon.
    Kill,
    /// SIGTERM.
    Term,
    /// SIGSTOP.
    Stop,
    /// SIGCONT.
    Cont,
    /// SIGSTOP of everything on the machine.
    Freeze,
    /// SIGCONT of everything.
    Thaw,
    /// No power.
    Off,
    /// No power for a moment.
    Reboot,
    /// Run the daemon.
    Start,
    /// The end of its log.
    Log,
}

/// Understands a line.
pub fn parse(line: &str) -> Result<Command> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let pair = |one: &str, other: &str, link| Command::Shape(one.into(), other.into(), link);
    Ok(match words.as_slice() {
        [] => Command::Nothing,
        ["cut", one, other] => pair(one, other, Link::CUT),
        ["cut-way", from, to] => {
            Command::ShapeOneWay((*from).to_owned(), (*to).to_owned(), Link::CUT)
        }
        ["isolate", one] => Command::Split(vec![(*one).to_owned()]),
        ["split", side @ ..] if !side.is_empty() => {
            Command::Split(side.iter().map(|name| (*name).to_owned()).collect())
        }
        ["delay", one, other, time] => pair(one, other, Link::delayed(duration(time)?)),
        ["loss", one, other, part] => {
            pair(one, other, Link { loss: percent(part)?, ..Link::default() })
        }
        ["rate", one, other, rate] => {
            let rate: u64 = rate.parse().with_context(|| format!("{rate:?} is no number"))?;
            pair(one, other, Link { bandwidth: Some(rate * 1000), ..Link::default() })
        }
        ["heal"] => Command::Heal,
        ["nodes"] => Command::Nodes,
        ["help"] => Command::Help,
        ["quit" | "exit"] => Command::Quit,
        [verb, name] => Command::Node(deed(verb, line)?, (*name).to_owned()),
        _ => bail!("{line:?} is not understood; see `help`"),
    })
}

fn deed(verb: &str, line: &str) -> Result<Deed> {
    Ok(match verb {
        "kill" => Deed::Kill,
        "term" => Deed::Term,
        "stop" => Deed::Stop,
        "cont" => Deed::Cont,
        "freeze" => Deed::Freeze,
        "thaw" => Deed::Thaw,
        "off" => Deed::Off,
        "reboot" => Deed::Reboot,
        "start" => Deed::Start,
        "log" => Deed::Log,
        _ => bail!("{line:?} is not understood; see `help`"),
    })
}

fn duration(text: &str) -> Result<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..end].parse().with_context(|| format!("{text:?} is no time"))?;
    match &text[end..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        _ => bail!("{text:?} is no time such as 50ms or 2s"),
    }
}

fn percent(text: &str) -> Result<f64> {
    let number = text.strip_suffix('%').and_then(|number| number.parse::<f64>().ok());
    let number = number.filter(|number| (0.0..=100.0).contains(number));
    number.map(|number| number / 100.0).with_context(|| format!("{text:?} is no part such as 10%"))
}

/// Does what was typed; what is to be shown.
pub fn act(cluster: &Cluster, command: &Command) -> Result<String> {
    let bed = cluster.bed();
    match command {
        Command::Shape(one, other, link) => bed.shape(one, other, *link)?,
        Command::ShapeOneWay(from, to, link) => bed.shape_one_way(from, to, *link)?,
        Command::Split(side) => {
            bed.split(&side.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        Command::Heal => bed.heal(),
        Command::Node(deed, name) => return act_on(cluster.node(name)?, *deed),
        Command::Nodes => return cluster.asked()?.ok(&["node", "ls"]),
        Command::Help => return Ok(format!("{HELP}\n")),
        Command::Quit | Command::Nothing => {}
    }
    Ok(String::new())
}

fn act_on(node: &Node, deed: Deed) -> Result<String> {
    match deed {
        Deed::Kill => node.kill()?,
        Deed::Term => node.stop()?,
        Deed::Stop => node.pause(),
        Deed::Cont => node.resume(),
        Deed::Freeze => node.host().freeze()?,
        Deed::Thaw => node.host().thaw()?,
        Deed::Off => node.power_off()?,
        Deed::Reboot => node.reboot()?,
        Deed::Start => {
            node.host().up()?;
            node.run()?;
        }
        Deed::Log => return Ok(format!("{}\n", node.log_tail())),
    }
    Ok(String::new())
}

/// How to talk to each machine.
pub fn directions(cluster: &Cluster) -> String {
    let mut text = format!("folder {}\n", cluster.bed().folder().display());
    for host in cluster.bed().hosts() {
        let (name, address) = (host.name(), host.address());
        let pid = host.pid().map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        text.push_str(&format!("{name:<4} {address:<12} nsenter --target {pid} -n -u -i -p -m"));
        if let Ok(node) = cluster.node(name) {
            let socket = node.socket();
            text.push_str(&format!("   WARREN_SOCKET={} warren …", socket.display()));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let check = |line: &str, expected: Command| {
            assert_eq!(parse(line).unwrap(), expected, "{line}");
        };
        let (a, b) = (|| "m1".to_owned(), || "w1".to_owned());
        check("", Command::Nothing);
        check(" cut m1  w1 ", Command::Shape(a(), b(), Link::CUT));
        check("cut-way m1 w1", Command::ShapeOneWay(a(), b(), Link::CUT));
        check("isolate m1", Command::Split(vec![a()]));
        check("split m1 w1", Command::Split(vec![a(), b()]));
        let slow = Link::delayed(Duration::from_millis(50));
        check("delay m1 w1 50ms", Command::Shape(a(), b(), slow));
        let lossy = Link { loss: 0.1, ..Link::default() };
        check("loss m1 w1 10%", Command::Shape(a(), b(), lossy));
        let narrow = Link { bandwidth: Some(5000), ..Link::default() };
        check("rate m1 w1 5", Command::Shape(a(), b(), narrow));
        check("kill m1", Command::Node(Deed::Kill, a()));
        check("reboot m1", Command::Node(Deed::Reboot, a()));
        check("quit", Command::Quit);
    }

    #[test]
    fn what_is_not_understood() {
        for line in ["cut m1", "split", "delay m1 w1 50", "delay m1 w1 ms", "loss m1 w1 200%"] {
            assert!(parse(line).is_err(), "{line}");
        }
        let error = parse("explode m1").unwrap_err().to_string();
        assert!(error.contains("help"), "{error}");
    }
}
