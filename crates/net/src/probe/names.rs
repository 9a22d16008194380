//! A question to a name server, asked as a container would.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::Error;
use crate::namespace::in_namespace;

/// The longest answer without EDNS (RFC 1035).
const ANSWER_LEN: usize = 512;
const HEADER_LEN: usize = 12;
const LABEL_LEN_MAX: usize = 63;
const RECURSION: u16 = 0x0100;
const CLASS_IN: u16 = 1;
/// How often it is asked in the time there is.
const TRIES: u32 = 2;

/// What a name server said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// 0: fine; 2: it could not; 3: there is no such name; 5: refused (RFC 1035).
    pub code: u8,
    /// Records that answer.
    pub records: u16,
}

/// Asks `server` for `name` (without a final dot; empty: the root) and a record type of
/// [`crate::dns::kind`], from within the network namespace of process `pid`, if there is one. `None`: nothing
/// came within `limit`. Blocks.
///
/// # Errors
/// The namespace cannot be entered, the name is none, or the question cannot be sent.
pub fn ask_names(
    pid: Option<u32>,
    server: SocketAddr,
    name: &str,
    kind: u16,
    limit: Duration,
) -> Result<Option<Said>, Error> {
    let id = u16::try_from(std::process::id() & 0xffff).unwrap_or_default();
    let question = question(id, name, kind).ok_or_else(|| {
        Error::io(format!("ask for {name:?}"), io::ErrorKind::InvalidInput.into())
    })?;
    let ask = || {
        asked(server, &question, limit)
            .map_err(|source| Error::io(format!("ask the name server at {server}"), source))
    };
    let Some(pid) = pid else { return ask() };
    let path = format!("/proc/{pid}/ns/net");
    let netns = File::open(&path).map_err(|source| Error::io(format!("open {path}"), source))?;
    in_namespace(&netns.into(), ask)
}

fn asked(server: SocketAddr, question: &[u8], limit: Duration) -> io::Result<Option<Said>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    let begun = Instant::now();
    let mut buffer = [0; ANSWER_LEN];
    for attempt in 1..=TRIES {
        // What an ICMP error left is no reason not to ask again.
        let _ = socket.send(question);
        loop {
            let left = (limit * attempt / TRIES).saturating_sub(begun.elapsed());
            if left.is_zero() {
                break;
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                Ok(len) => {
                    if let Some(said) = read(&buffer[..len], question) {
                        return Ok(Some(said));
                    }
                }
                Err(error) if is_silence(&error) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(None)
}

fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// `None` for what is no name.
fn question(id: u16, name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut message = Vec::with_capacity(HEADER_LEN + name.len() + 6);
    for word in [id, RECURSION, 1, 0, 0, 0] {
        message.extend(word.to_be_bytes());
    }
    for label in name.split('.').filter(|_| !name.is_empty()) {
        let len = u8::try_from(label.len()).ok()?;
        if !(1..=LABEL_LEN_MAX).contains(&label.len()) {
            return None;
        }
        message.push(len);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(kind.to_be_bytes());
    message.extend(CLASS_IN.to_be_bytes());
    Some(message)
}

/// What an answer to `question` says; nothing if it is none.
fn read(answer: &[u8], question: &[u8]) -> Option<Said> {
    let half = |at: usize| Some(u16::from_be_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let flags = half(2)?;
    let is_answer = flags & 0x8000 != 0 && answer.get(..2) == question.get(..2);
    is_answer.then_some(Said { code: u8::try_from(flags & 0xf).ok()?, records: half(6)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_written_and_answers_read() {
        let asked = question(7, "web.test", 1).unwrap();
        assert_eq!(&asked[..12], [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(&asked[12..], b"\x03web\x04test\x00\x00\x01\x00\x01");
        assert_eq!(&question(7, "", 2).unwrap()[12..], b"\x00\x00\x02\x00\x01");
        for name in ["a..b", ".", &"a".repeat(64)] {
            assert_eq!(question(7, name, 1), None, "{name}");
        }
        let mut answer = asked.clone();
        assert_eq!(read(&answer, &asked), None);
        (answer[2], answer[3], answer[7]) = (0x81, 0x83, 2);
        assert_eq!(read(&answer, &asked), Some(Said { code: 3, records: 2 }));
        answer[1] = 8;
        assert_eq!(read(&answer, &asked), None);
        for len in 0..12 {
            let _ = read(&answer[..len], &asked);
        }
    }

    #[test]
    fn nobody_answers_and_somebody_does() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = server.local_addr().unwrap();
        let limit = Duration::from_millis(50);
        assert_eq!(ask_names(None, at, "web", 1, limit).unwrap(), None);
        let answering = std::thread::spawn(move || {
            let mut buffer = [0; ANSWER_LEN];
            loop {
                let (len, from) = server.recv_from(&mut buffer).unwrap();
                buffer[2] |= 0x80;
                buffer[7] = 1;
                // Those of before have gone.
                let _ = server.send_to(&buffer[..len], from);
                if buffer[12] == 1 {
                    return;
                }
            }
        });
        let said = ask_names(None, at, "a", 1, Duration::from_secs(10)).unwrap();
        assert_eq!(said, Some(Said { code: 0, records: 1 }));
        answering.join().unwrap();
    }
}
