//! A web server of somebody else's, and a wire between a browser and a node that can be listened to.
//!
//! What is asked for below `/page` the site answers; everything else goes to the server behind it, bytes as they are.
//! With a name that the browser resolves to the site this is DNS rebinding as browser and node see it: the page came from
//! `http://name:port`, and what it asks of `http://name:port` afterwards reaches the node. (A browser looks a name up
//! anew for a new connection; here it is not the name that changes its address but the address its server.)

use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

const PAGES: &str = include_str!("pages.js");
const PAGE: &str =
    r#"<!doctype html><link rel="icon" href="data:,"><body><script type="module" src="/page.js"></script>"#;
/// A browser that starts on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(90);

/// It runs until the process ends.
pub struct Site {
    pub address: SocketAddr,
    /// Where its pages report: not where a connection may have been handed to the server behind.
    pub reports: SocketAddr,
    results: Mutex<Receiver<Value>>,
    wire: Arc<Wire>,
}

/// What went to the server behind, and what came back.
#[derive(Default)]
struct Wire {
    behind: Option<SocketAddr>,
    asked: Mutex<Vec<u8>>,
    answered: Mutex<Vec<u8>>,
}

// === impl Site ===

impl Site {
    /// A site of its own.
    pub fn start() -> Self {
        Self::at([127, 0, 0, 1].into(), None)
    }

    /// One with a server behind it.
    pub fn before(address: impl Into<IpAddr>, server: SocketAddr) -> Self {
        Self::at(address.into(), Some(server))
    }

    fn at(address: IpAddr, behind: Option<SocketAddr>) -> Self {
        let (sender, results) = channel();
        let wire = Arc::new(Wire { behind, ..Wire::default() });
        let reports = listen(address, sender.clone(), Arc::default());
        let address = listen(address, sender, wire.clone());
        Self { address, reports, results: Mutex::new(results), wire }
    }

    /// What a page of this site reports.
    pub fn result(&self) -> Value {
        self.results.lock().unwrap().recv_timeout(PATIENCE).expect("the page reports")
    }

    /// The first lines of what was asked of the server behind.
    pub fn asked(&self) -> Vec<String> {
        lines(&self.wire.asked, |line| line.ends_with(" HTTP/1.1"))
    }

    /// The values of a header in what was asked of it.
    pub fn asked_with(&self, header: &str) -> Vec<String> {
        let prefix = format!("{header}: ");
        lines(&self.wire.asked, |line| line.starts_with(&prefix))
            .iter()
            .map(|line| line.trim_start_matches(&prefix).to_owned())
            .collect()
    }

    /// The statuses that it answered.
    pub fn answered(&self) -> Vec<u16> {
        let statuses = lines(&self.wire.answered, |line| line.starts_with("HTTP/1.1 "));
        statuses.iter().map(|line| line[9..12].parse().unwrap()).collect()
    }
}

fn lines(bytes: &Mutex<Vec<u8>>, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let text = String::from_utf8_lossy(&bytes.lock().unwrap()).into_owned();
    // What follows a body has no line of its own.
    let text = text.replace("HTTP/1.1 ", "\r\nHTTP/1.1 ").replace("}POST ", "}\r\nPOST ").replace("}GET ", "}\r\nGET ");
    text.split("\r\n").filter(|line| wanted(line)).map(str::to_owned).collect()
}

fn listen(address: IpAddr, results: Sender<Value>, wire: Arc<Wire>) -> SocketAddr {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (results, wire) = (results.clone(), wire.clone());
            std::thread::spawn(move || serve(stream, &results, &wire));
        }
    });
    address
}

fn serve(stream: TcpStream, results: &Sender<Value>, wire: &Wire) {
    let mut start = [0; 10];
    // The first bytes say whose it is; a connection that a browser opened to have it says nothing.
    while stream.peek(&mut start).is_ok_and(|length| (1..start.len()).contains(&length)) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let path = start.splitn(2, |byte| *byte == b' ').nth(1).unwrap_or_default();
    match wire.behind {
        Some(behind) if !path.starts_with(b"/page") => pass(stream, behind, wire),
        _ => drop(answer(stream, results)),
    }
}

/// Answers as the site itself.
fn answer(mut stream: TcpStream, results: &Sender<Value>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? <= 2 {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let path = first.split(' ').nth(1).unwrap_or_default();
    let (status, kind, body) = match path.split('?').next().unwrap_or_default() {
        "/page" => ("200 OK", "text/html", PAGE),
        "/page.js" => ("200 OK", "text/javascript", PAGES),
        "/page/result" => {
            let _ = results.send(serde_json::from_slice(&body).unwrap());
            ("200 OK", "text/plain", "")
        }
        _ => ("404 Not Found", "text/plain", ""),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// Passes bytes both ways, and keeps them.
fn pass(browser: TcpStream, behind: SocketAddr, wire: &Wire) {
    let Ok(server) = TcpStream::connect(behind) else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| copy(&browser, &server, &wire.asked));
        copy(&server, &browser, &wire.answered);
    });
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, kept: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 65_536];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        kept.lock().unwrap().extend_from_slice(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // An end on one side is an end on the other.
    let _ = to.shutdown(std::net::Shutdown::Both);
    let _ = from.shutdown(std::net::Shutdown::Both);
}
