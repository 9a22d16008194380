//! Answers of servers, good, bad and broken.

use tokio::io::duplex;

use super::*;

fn asked(path: &str) -> HttpProbe {
    HttpProbe::new(80, path)
}

/// What a check makes of a server that says `answer` and closes; and what was asked.
async fn ask_one(asked: &HttpProbe, answer: &[u8]) -> (Result<(), String>, String) {
    let (ours, mut theirs) = duplex(64 << 10);
    let answer = answer.to_vec();
    let server = tokio::spawn(async move {
        let mut heard = vec![0; 4096];
        let read = theirs.read(&mut heard).await.unwrap();
        theirs.write_all(&answer).await.unwrap();
        String::from_utf8(heard[..read].to_vec()).unwrap()
    });
    let found = ask(ours, asked, "10.0.0.1:80".parse().unwrap()).await;
    (found, server.await.unwrap())
}

#[track_caller]
fn check(answer: &[u8], expected: Result<(), &str>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (found, _) = runtime.block_on(ask_one(&asked("/ok"), answer));
    assert_eq!(found, expected.map_err(str::to_owned));
}

#[test]
fn statuses() {
    check(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Ok(()));
    check(b"HTTP/1.0 204 No Content\r\n\r\n", Ok(()));
    check(b"HTTP/1.1 399 \r\n\r\n", Ok(()));
    check(b"HTTP/1.1 400 Bad\r\n\r\n", Err("GET /ok: status 400"));
    let sick = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 11\r\n\r\ndb is down\n";
    check(sick, Err("GET /ok: status 503 db is down"));
}

#[test]
fn what_is_no_answer() {
    check(b"", Err("GET /ok: the answer ends before its status"));
    check(b"HTTP/1.1 2", Err("GET /ok: the answer ends before its status"));
    check(b"SSH-2.0-x\r\n", Err("GET /ok: the answer is not HTTP: invalid HTTP version"));
    // Nothing is read for ever.
    let endless = [b"HTTP/1.1 200 OK\r\n".as_slice(), &b"X: y\r\n".repeat(2000)].concat();
    check(&endless, Ok(()));
}

#[tokio::test]
async fn what_is_asked() {
    let good = b"HTTP/1.1 200 OK\r\n\r\n";
    let (found, heard) = ask_one(&asked("/ok?x=1"), good).await;
    assert_eq!(found, Ok(()));
    let plain = "GET /ok?x=1 HTTP/1.1\r\nHost: 10.0.0.1:80\r\nUser-Agent: warren-health\r\n\
                 Connection: close\r\n\r\n";
    assert_eq!(heard, plain);
    let headers = vec![
        ("host".to_owned(), "shop.example".to_owned()),
        ("Authorization".to_owned(), "Bearer x".to_owned()),
    ];
    let (_, heard) = ask_one(&HttpProbe { headers, ..asked("/") }, good).await;
    let own = "GET / HTTP/1.1\r\nUser-Agent: warren-health\r\nConnection: close\r\n\
               host: shop.example\r\nAuthorization: Bearer x\r\n\r\n";
    assert_eq!(heard, own);
}

#[tokio::test]
async fn other_statuses_may_be_good() {
    let moved = HttpProbe { status: (401, 401), ..asked("/") };
    let (found, _) = ask_one(&moved, b"HTTP/1.1 401 Who are you\r\n\r\n").await;
    assert_eq!(found, Ok(()));
    let (found, _) = ask_one(&moved, b"HTTP/1.1 200 OK\r\n\r\n").await;
    assert_eq!(found, Err("GET /: status 200".to_owned()));
}
