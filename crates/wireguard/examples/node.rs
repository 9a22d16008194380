//! One engine with one peer, for benchmarks: prints `ready`, ends with its standard input.
//!
//! `node NAME MTU QUEUES LISTEN PRIVATE PEER ENDPOINT PREFIX`: keys in hexadecimal (the peer's is
//! its private one: its public key is made from it), an endpoint of `-` for none.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::io::Read;
use std::sync::Arc;

use warren_base::clock::RealClock;
use warren_wireguard::{
    Engine, Options, PeerConfig, Prefix, PrivateKey, Table, Tun, TunOptions, Udp,
};

fn key(hex: &str) -> Result<PrivateKey, Box<dyn Error>> {
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(hex.get(2 * at..2 * at + 2).ok_or("a short key")?, 16)?;
    }
    Ok(PrivateKey::from_bytes(bytes))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, mtu, queues, listen, private, peer, endpoint, prefix] = &arguments[..] else {
        return Err("node NAME MTU QUEUES LISTEN PRIVATE PEER ENDPOINT PREFIX".into());
    };
    let queues: usize = queues.parse()?;
    let (address, len) = prefix.split_once('/').ok_or("a prefix without length")?;
    let table = Table {
        own: vec![key(private)?],
        peers: vec![PeerConfig {
            keys: vec![key(peer)?.public()],
            via: None,
            preshared_key: None,
            endpoint: if endpoint == "-" { None } else { Some(endpoint.parse()?) },
            allowed: vec![Prefix::new(address.parse()?, len.parse()?)?],
            keepalive: None,
        }],
    };
    let options = Options {
        tun: Tun::open(&TunOptions {
            name: name.clone(),
            mtu: mtu.parse()?,
            queues,
            persist: false,
        })?,
        udp: Udp::bind(listen.parse()?, queues)?,
        clock: Arc::new(RealClock::new()),
        seed: std::process::id(),
        not_before_ms: 0,
        peers: Vec::new(),
        on_reach: None,
    };
    let engine = Engine::start(options, &table)?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    println!("{:#?}\n{:?}", engine.peers(), engine.drops());
    Ok(())
}
