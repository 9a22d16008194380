//! One GET of HTTP/1.1 (RFC 9112), of which only the status matters.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use warren_model::health::HttpProbe;

use super::probes::say;

/// Read of an answer at most; a status line is far shorter, its reason and the beginning of the
/// body are shown to people.
const ANSWER_BYTES: usize = 4096;
/// Headers that are looked past.
const HEADERS_MAX: usize = 64;
/// For so long a server may take to close after a good answer: whoever closes first is left with
/// the connection for a minute.
const CLOSE_MS: u64 = 100;
/// What is read and thrown away for that.
const REST_BYTES: usize = 64 << 10;

/// The host that is asked for, if the check names one.
pub(super) fn host(asked: &HttpProbe) -> Option<&str> {
    asked.headers.iter().find(|(name, _)| is(name, "host")).map(|(_, value)| value.trim())
}

fn is(name: &str, known: &str) -> bool {
    name.eq_ignore_ascii_case(known)
}

pub(super) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    asked: &HttpProbe,
    at: SocketAddr,
) -> Result<(), String> {
    let cause = |error: std::io::Error| format!("GET {} of {at}: {}", asked.path, say(&error));
    stream.write_all(request(asked, at).as_bytes()).await.map_err(cause)?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES / 4);
    let status = loop {
        let read = (&mut stream).take(room(&answer)).read_buf(&mut answer).await.map_err(cause)?;
        if let Some(status) = status(&answer).map_err(|e| format!("GET {}: {e}", asked.path))? {
            break status;
        }
        if read == 0 {
            return Err(format!("GET {}: the answer ends before its status", asked.path));
        }
    };
    let (first, last) = asked.status;
    if (first..=last).contains(&status) {
        finish(&mut stream).await;
        return Ok(());
    }
    // What else has come says more than the number.
    Err(format!("GET {}: status {status} {}", asked.path, body(&answer)).trim_end().to_owned())
}

fn request(asked: &HttpProbe, at: SocketAddr) -> String {
    let given = |known: &str| asked.headers.iter().any(|(name, _)| is(name, known));
    let mut text = String::with_capacity(256);
    // Writing to a string does not fail.
    let _ = write!(text, "GET {} HTTP/1.1\r\n", asked.path);
    if !given("host") {
        let _ = write!(text, "Host: {at}\r\n");
    }
    for (name, value) in [("User-Agent", "warren-health"), ("Connection", "close")] {
        if !given(name) {
            let _ = write!(text, "{name}: {value}\r\n");
        }
    }
    for (name, value) in &asked.headers {
        let _ = write!(text, "{name}: {}\r\n", value.trim());
    }
    text.push_str("\r\n");
    text
}

fn room(answer: &[u8]) -> u64 {
    ANSWER_BYTES.saturating_sub(answer.len()) as u64
}

/// The status, as soon as it is there.
fn status(answer: &[u8]) -> Result<Option<u16>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(answer) {
        Ok(_) => Ok(response.code),
        // With more headers than are looked past, the status is known all the same.
        Err(_) if response.code.is_some() => Ok(response.code),
        Err(error) => Err(format!("the answer is not HTTP: {error}")),
    }
}

/// The beginning of the body, if it has come.
fn body(answer: &[u8]) -> String {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let rest = end.map_or(&[][..], |at| &answer[at + 4..]);
    String::from_utf8_lossy(&rest[..rest.len().min(super::OUTPUT_BYTES)]).into_owned()
}

/// Waits a moment for the server to close.
async fn finish<S: AsyncRead + Unpin>(stream: &mut S) {
    let rest = async {
        let mut buffer = [0; 2048];
        let mut left = REST_BYTES;
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            left = left.saturating_sub(read);
            if left == 0 {
                return;
            }
        }
    };
    // Nothing depends on it.
    let _ = tokio::time::timeout(Duration::from_millis(CLOSE_MS), rest).await;
}

#[cfg(test)]
mod tests;
