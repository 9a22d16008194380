//! Clients that ask again and again, and count what they miss.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use warren_net::Sandbox;

use crate::world::{GATEWAY, within};

/// What a client saw that asked again and again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) answered: u32,
    pub(crate) lost: u32,
    pub(crate) wrong: Vec<String>,
    /// The longest time without an answer.
    pub(crate) gap: Duration,
}

/// A client that asks until it is stopped.
pub(crate) struct Client {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Client {
    fn start(
        from: &Sandbox,
        mut ask: impl FnMut(&UdpSocket, u16, &mut Seen) -> bool + Send + 'static,
    ) -> Self {
        let address = from.address;
        let socket = within(&from.netns, || UdpSocket::bind((address, 0)).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut seen, mut last) = (Seen::default(), Instant::now());
            for number in (0..u16::MAX).cycle() {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                if ask(&socket, number, &mut seen) {
                    seen.answered += 1;
                    seen.gap = seen.gap.max(last.elapsed());
                    last = Instant::now();
                } else {
                    seen.lost += 1;
                }
                thread::sleep(Duration::from_millis(1));
            }
            seen
        });
        Self { stop, thread }
    }

    /// Sends datagrams to an echo; one that is not answered within `patience` is lost.
    pub(crate) fn of_echo(from: &Sandbox, echo: &Echo, patience: Duration) -> Self {
        let to = echo.address;
        Self::start(from, move |socket, number, _| {
            socket.set_read_timeout(Some(patience)).unwrap();
            // A refused send is as good as a lost datagram.
            let _ = socket.send_to(&number.to_be_bytes(), to);
            let mut buffer = [0; 64];
            while let Ok((len, _)) = socket.recv_from(&mut buffer) {
                if buffer[..len] == number.to_be_bytes() {
                    return true;
                }
            }
            false
        })
    }

    /// Asks for the address of a name. A question is lost that is not answered in seconds.
    pub(crate) fn of_names(from: &Sandbox, name: &'static str, expected: Ipv4Addr) -> Self {
        Self::start(from, move |socket, number, seen| {
            socket.set_read_timeout(Some(Duration::from_secs(4))).unwrap();
            let mut query = number.to_be_bytes().to_vec();
            query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, u8::try_from(name.len()).unwrap()]);
            query.extend(name.bytes());
            query.extend([0, 0, 1, 0, 1]);
            if let Err(error) = socket.send_to(&query, (GATEWAY, 53)) {
                seen.wrong.push(error.to_string());
                return false;
            }
            let mut buffer = [0; 512];
            match socket.recv_from(&mut buffer) {
                Ok((len, _)) => {
                    let answer = &buffer[..len];
                    let is_right = answer[..2] == number.to_be_bytes()
                        && answer[3] & 15 == 0
                        && answer.ends_with(&expected.octets());
                    if !is_right {
                        seen.wrong.push(format!("{answer:02x?}"));
                    }
                    is_right
                }
                Err(error) => {
                    seen.wrong.push(error.to_string());
                    false
                }
            }
        })
    }

    pub(crate) fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// Answers datagrams with themselves until dropped.
pub(crate) struct Echo {
    address: std::net::SocketAddr,
    socket: Arc<UdpSocket>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn in_container(sandbox: &Sandbox) -> Self {
        let address = IpAddr::V4(sandbox.address);
        let socket = within(&sandbox.netns, || UdpSocket::bind((address, 0)).unwrap());
        let socket = Arc::new(socket);
        let served = Arc::clone(&socket);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((len @ 1.., from)) = served.recv_from(&mut buffer) {
                let _ = served.send_to(&buffer[..len], from);
            }
        });
        Self { address: socket.local_addr().unwrap(), socket, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
        let _ = self.thread.take().unwrap().join();
    }
}
