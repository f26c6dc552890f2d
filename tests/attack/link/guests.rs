//! A listener that is open to other machines.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::app::{App, MODEL, Ollama};
use crate::netns::{Host, Net};
use crate::node::{Home, Node};

const SOON: Duration = Duration::from_secs(5);

/// Sends these bytes from a host to a listener; the status of the answer.
fn ask(from: &Host, to: IpAddr, bytes: &[u8]) -> (u16, String) {
    from.inside(|| {
        let mut stream = TcpStream::connect((to, 11434)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default(), answer)
    })
}

fn post(to: IpAddr, path: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nHost: {to}:11434\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

pub fn other_machines_leave_an_open_listener_to_its_own() {
    let (net, lan) = Net::new();
    let [gpu, laptop, evil, other] = ["gpu", "laptop", "evil", "other"].map(|name| net.host(name, &lan));
    let _ollama = Ollama::start(&gpu);
    let homes = [Home::new("gpu"), Home::new("laptop")];
    let _gpu = Node::start(&gpu, &homes[0], &[]);
    let node = Node::start(&laptop, &homes[1], &["--mode", "client", "--listen", "0.0.0.0:11434", "--listen-open"]);
    node.until_used("gpu", SOON);
    let to = IpAddr::from(laptop.v4(&lan));
    // Connections: as many as one address may have, and not one more.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let files = maximum.map_or(8192, |maximum| maximum.min(8192));
    setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum }).unwrap();
    let held: Vec<TcpStream> = evil.inside(|| (0..1200).map_while(|_| TcpStream::connect((to, 11434)).ok()).collect());
    let own = App::on(&laptop);
    assert_eq!(own.is_answered("mine"), "gpu");
    let alive = held
        .iter()
        .filter(|stream| {
            stream.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
            // Nothing is said on those that stay; those that are too many are closed.
            !matches!((&**stream).read(&mut [0; 1]), Ok(0)) && stream.take_error().unwrap().is_none()
        })
        .count();
    assert!((1000..=1024).contains(&alive), "{alive} connections of one address are open");
    let body = format!(r#"{{"model":"{MODEL}","prompt":"x","stream":false}}"#);
    let (status, answer) = ask(&other, to, &post(to, "/api/generate", &body));
    assert_eq!(status, 200, "who comes from elsewhere is served: {answer}");
    drop(held);
    // Bodies that never name their model: after some of one address there is no room for more of it.
    let image = "x".repeat(12 << 20);
    let begun: Vec<TcpStream> = evil.inside(|| {
        let begin = |_| {
            let mut stream = TcpStream::connect((to, 11434)).unwrap();
            let head = format!("POST /api/generate HTTP/1.1\r\nHost: {to}:11434\r\nContent-Length: 30000000\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
            let _ = stream.write_all(format!(r#"{{"images":["{image}"#).as_bytes());
            stream
        };
        (0..6).map(begin).collect()
    });
    let mut refused = 0;
    for stream in &begun {
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut answer = [0; 64];
        let read = (&*stream).read(&mut answer).unwrap_or_default();
        refused += usize::from(answer[..read].starts_with(b"HTTP/1.1 503"));
    }
    assert!(refused >= 1, "one address may hold as much as it likes");
    let late = format!(r#"{{"images":["{image}"],"model":"{MODEL}","prompt":"x","stream":false}}"#);
    for from in [&laptop, &other] {
        let to = if std::ptr::eq(from, &laptop) { IpAddr::from([127, 0, 0, 1]) } else { to };
        let (status, answer) = ask(from, to, &post(to, "/api/generate", &late));
        assert_eq!(status, 200, "{}", &answer[..answer.len().min(300)]);
    }
}

pub fn behind_an_open_listener_a_node_that_may_manage_is_a_guest() {
    let (net, lan) = Net::new();
    let [gpu, laptop, evil] = ["gpu", "laptop", "evil"].map(|name| net.host(name, &lan));
    let ollama = Ollama::start(&gpu);
    let homes = [Home::new("gpu"), Home::new("laptop")];
    let provider = Node::start(&gpu, &homes[0], &[]);
    let node = Node::start(&laptop, &homes[1], &["--mode", "client", "--listen", "0.0.0.0:11434", "--listen-open"]);
    node.until_used("gpu", SOON);
    provider.until_peer("laptop", SOON, |_| true);
    provider.ollana(&["trust", &node.id(), "--scope", "manage", "--yes"]).unwrap();
    provider.until_peer("laptop", SOON, |peer| peer.scope == "manage");
    let to = IpAddr::from(laptop.v4(&lan));
    let load = format!(r#"{{"model":"{MODEL}","prompt":"x","stream":false}}"#);
    assert_eq!(ask(&evil, to, &post(to, "/api/generate", &load)).0, 200);
    // Neither unloaded, nor kept, nor changed, nor by claiming to be no guest.
    let stop = format!(r#"{{"model":"{MODEL}","keep_alive":0}}"#);
    let (status, answer) = ask(&evil, to, &post(to, "/api/generate", &stop));
    assert_eq!(status, 403, "{answer}");
    let dressed = String::from_utf8(post(to, "/api/generate", &stop)).unwrap();
    let dressed = dressed.replacen("\r\n", "\r\nollana-guest: 0\r\nConnection: ollana-guest\r\n", 1);
    assert_eq!(ask(&evil, to, dressed.as_bytes()).0, 403);
    for path in ["/api/delete", "/api/pull", "/@gpu/api/create"] {
        assert_eq!(ask(&evil, to, &post(to, path, &stop)).0, 403, "{path}");
    }
    let counts = ollama.counts();
    assert_eq!((counts.of("/api/generate"), counts.of("/api/delete")), (1, 0));
}
