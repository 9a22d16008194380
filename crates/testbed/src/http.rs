//! The little HTTP/1.0 that a test needs to ask a server whether it is there.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A page of a test is small; a server gone mad must not fill memory.
const ANSWER_MAX: u64 = 16 << 20;

/// What a server said.
#[derive(Debug, Clone)]
pub struct Answer {
    /// 200 and friends.
    pub status: u16,
    /// Lines before the body, the status line included.
    pub head: String,
    /// The rest.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text, without the space around it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim().to_owned()
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A request; each step of the exchange ends within `limit`.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: &'a [u8],
    pub(crate) limit: Duration,
}

/// Makes one exchange from the network of the calling thread.
pub(crate) fn exchange(to: SocketAddr, request: &Request<'_>) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&to, request.limit)?;
    stream.set_read_timeout(Some(request.limit))?;
    stream.set_write_timeout(Some(request.limit))?;
    let Request { method, path, headers, body, .. } = request;
    let mut head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n", body.len());
    let named = headers.iter().any(|(key, _)| key.eq_ignore_ascii_case("host"));
    if !named {
        head.push_str(&format!("Host: {to}\r\n"));
    }
    for (key, value) in *headers {
        head.push_str(&format!("{key}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_MAX).read_to_end(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::other(format!("{to} does not speak HTTP")))
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.strip_prefix("HTTP/1.")?.split_whitespace().nth(1)?.parse().ok()?;
    Some(Answer { status, head, body: answer[end + 4..].to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let answer = parse(b"HTTP/1.1 202 Accepted\r\nlocation: /x\r\n\r\nbody\n").unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (202, "body"));
        assert_eq!(answer.header("Location"), Some("/x"));
        for bad in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 abc\r\n\r\n"] {
            assert!(parse(bad.as_bytes()).is_none(), "{bad:?}");
        }
    }
}
