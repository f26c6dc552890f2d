//! What runs in the hosts, and how the tests talk to it.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use ollana::internals::discovery::{Discovery, DiscoverySettings, GROUP_PORT, Sighting};
use ollana::internals::id::{Id, Instance, NodeName};
use ollana::internals::wire::beacon::{Beacon, BeaconKind};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::ROLE;
use crate::netns::{Host, Running};

/// The environment variable with what a role needs to know.
const WITH: &str = "OLLANA_TEST_WITH";
/// Longer than any node takes to start.
const START: Duration = Duration::from_secs(10);

/// A node in a host. Killed when dropped.
pub struct Node {
    pub id: u8,
    pub instance: u64,
    child: Running,
    lines: Receiver<Line>,
    /// What was read and not yet taken by a `sees`.
    unread: Vec<Seen>,
    /// All that was ever read.
    seen: Vec<Seen>,
    log: Vec<String>,
}

/// What a node prints, a line each.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum Line {
    Ready { instance: u64 },
    Failed(String),
    Seen(Seen),
    Log(String),
}

/// A sighting as a node prints it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Seen {
    pub kind: String,
    pub address: String,
    /// The first byte of the ID.
    pub id: u8,
    pub name: String,
    pub instance: u64,
    /// Since the node's discovery was started.
    pub after: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct With {
    id: u8,
    quic_port: u16,
}

/// Beacons of a stranger's choosing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Send {
    pub source: IpAddr,
    pub to: IpAddr,
    pub interface: String,
    pub ttl: u32,
    pub id: u8,
    #[serde(with = "kind")]
    pub kind: BeaconKind,
    pub count: u32,
}

// === impl Node ===

impl Node {
    pub fn start(host: &Host, id: u8, quic_port: u16) -> Self {
        let mut node = Self::spawn(host, "node", id, quic_port);
        loop {
            match node.lines.recv_timeout(START) {
                Ok(Line::Ready { instance }) => {
                    node.instance = instance;
                    return node;
                }
                Ok(Line::Log(line)) => node.log.push(line),
                other => panic!("node {id} did not start: {other:?}"),
            }
        }
    }

    /// The reason why a node cannot start.
    pub fn fails(host: &Host, id: u8, quic_port: u16) -> String {
        let node = Self::spawn(host, "node", id, quic_port);
        loop {
            match node.lines.recv_timeout(START) {
                Ok(Line::Failed(error)) => return error,
                Ok(Line::Log(_)) => {}
                other => panic!("node {id} should have failed: {other:?}"),
            }
        }
    }

    /// A program that holds the discovery port and does not share it.
    pub fn hog(host: &Host) -> Running {
        let mut command = host.command(std::env::current_exe().unwrap());
        let mut child = Running::spawn(command.env(ROLE, "send").stdin(Stdio::piped()).stdout(Stdio::piped()));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        child
    }

    fn spawn(host: &Host, role: &str, id: u8, quic_port: u16) -> Self {
        let mut command = host.command(std::env::current_exe().unwrap());
        let with = serde_json::to_string(&With { id, quic_port }).unwrap();
        command.env(ROLE, role).env(WITH, with).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Running::spawn(&mut command);
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or(Line::Log(line));
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { id, instance: 0, child, lines, unread: Vec::new(), seen: Vec::new(), log: Vec::new() }
    }

    /// Waits for a sighting and takes it (a second call waits for a second one).
    pub fn sees(&mut self, limit: Duration, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.unread.iter().position(&wanted) {
                return self.unread.remove(at);
            }
            if !self.read_until(end) {
                panic!("node {} did not see it within {limit:?}; it saw {:#?}", self.id, self.seen);
            }
        }
    }

    /// What came so far is no longer waited for.
    pub fn forget(&mut self) {
        while self.read_until(Instant::now()) {}
        self.unread.clear();
        self.log.clear();
    }

    pub fn sees_v4(&mut self, id: u8, limit: Duration) -> Seen {
        self.sees(limit, |seen| seen.kind == "Present" && seen.id == id && seen.is_v4())
    }

    pub fn sees_v6(&mut self, id: u8, limit: Duration) -> Seen {
        self.sees(limit, |seen| seen.kind == "Present" && seen.id == id && !seen.is_v4())
    }

    /// To be called after an event that came later than what must not have been seen.
    pub fn never_saw(&mut self, unwanted: impl Fn(&Seen) -> bool) {
        while self.read_until(Instant::now()) {}
        let found: Vec<_> = self.seen.iter().filter(|seen| unwanted(seen)).collect();
        assert!(found.is_empty(), "node {} saw {found:#?}", self.id);
    }

    /// Waits for a log line and takes it and all before it.
    pub fn logs(&mut self, text: &str, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.log.iter().position(|line| line.contains(text)) {
                self.log.drain(..=at);
                return;
            }
            if !self.read_until(end) {
                panic!("node {} did not log {text:?} within {limit:?}, but {:#?}", self.id, self.log);
            }
        }
    }

    pub fn say(&mut self, what: &str) {
        writeln!(self.child.stdin.as_ref().unwrap(), "{what}").unwrap();
    }

    pub fn is_running(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none());
    }

    pub fn ends(&mut self, limit: Duration) {
        assert!(self.child.wait_for_end(limit).is_some_and(|status| status.success()));
    }

    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// One more line, unless none comes until `end`.
    fn read_until(&mut self, end: Instant) -> bool {
        match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(Line::Seen(seen)) => {
                self.unread.push(seen.clone());
                self.seen.push(seen);
            }
            Ok(Line::Log(line)) => self.log.push(line),
            Ok(other) => panic!("unexpected {other:?}"),
            Err(RecvTimeoutError::Timeout) => return false,
            Err(RecvTimeoutError::Disconnected) => panic!("node {} ended; it logged {:#?}", self.id, self.log),
        }
        true
    }
}

impl Seen {
    pub fn is_v4(&self) -> bool {
        !self.address.starts_with('[')
    }
}

/// A node until its standard input ends.
pub fn run() -> ExitCode {
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false);
    subscriber.with_writer(std::io::stdout).init();
    let With { id, quic_port } = with();
    let settings = DiscoverySettings {
        id: Id::from_bytes([id; 32]),
        instance: Instance::random(),
        name: NodeName::lossy(&format!("node{id}")),
        quic_port,
        group_port: GROUP_PORT,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async move {
        let (sender, mut sightings) = tokio::sync::mpsc::channel(64);
        let start = Instant::now();
        let instance = settings.instance.0;
        let discovery = match Discovery::spawn(settings, sender) {
            Ok(discovery) => discovery,
            Err(error) => {
                print(&Line::Failed(error.to_string()));
                return ExitCode::FAILURE;
            }
        };
        print(&Line::Ready { instance });
        let (commands, mut orders) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || std::io::stdin().lines().map_while(Result::ok).all(|l| commands.send(l).is_ok()));
        loop {
            tokio::select! {
                Some(sighting) = sightings.recv() => print(&Line::Seen(Seen::of(&sighting, start.elapsed()))),
                order = orders.recv() => match order.as_deref() {
                    Some("goodbye") => {
                        discovery.goodbye().await;
                        return ExitCode::SUCCESS;
                    }
                    _ => return ExitCode::FAILURE,
                },
            }
        }
    })
}

impl Seen {
    fn of(sighting: &Sighting, after: Duration) -> Self {
        let claim = sighting.claim.as_ref().unwrap();
        Self {
            kind: format!("{:?}", sighting.kind),
            address: sighting.address.to_string(),
            id: claim.id.as_bytes()[0],
            name: claim.name.to_string(),
            instance: claim.instance.0,
            after,
        }
    }
}

fn print(line: &Line) {
    println!("{}", serde_json::to_string(line).unwrap());
}

fn with<T: serde::de::DeserializeOwned>() -> T {
    serde_json::from_str(&std::env::var(WITH).unwrap()).unwrap()
}

// === impl Send ===

impl Send {
    /// Sends from `host`, and returns when all is sent.
    pub fn run(&self, host: &Host) {
        let with = serde_json::to_string(self).unwrap();
        let mut command = host.command(std::env::current_exe().unwrap());
        let output = command.env(ROLE, "send").env(WITH, with).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Sends what it is told; told nothing, holds the port until its standard input ends.
pub fn send() -> ExitCode {
    if std::env::var_os(WITH).is_none() {
        let _held = UdpSocket::bind(("0.0.0.0", GROUP_PORT)).unwrap();
        println!("held");
        let _ = std::io::stdin().lines().count();
        return ExitCode::SUCCESS;
    }
    let Send { source, to, interface, ttl, id, kind, count } = with();
    let index = nix::net::if_::if_nametoindex(interface.as_str()).unwrap();
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
    match source {
        IpAddr::V4(source) => {
            socket.set_multicast_if_v4(&source).unwrap();
            socket.set_multicast_ttl_v4(ttl).unwrap();
            socket.set_ttl_v4(ttl).unwrap();
        }
        IpAddr::V6(_) => {
            socket.set_multicast_if_v6(index).unwrap();
            socket.set_multicast_hops_v6(ttl).unwrap();
            socket.set_unicast_hops_v6(ttl).unwrap();
        }
    }
    socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
    let beacon = Beacon {
        kind,
        quic_port: 4000,
        id: Id::from_bytes([id; 32]),
        instance: Instance(u64::from(id)),
        name: NodeName::lossy("stranger"),
    };
    let payload = beacon.encode();
    for _ in 0..count {
        socket.send_to(&payload, &SocketAddr::new(to, GROUP_PORT).into()).unwrap();
    }
    ExitCode::SUCCESS
}

mod kind {
    //! `BeaconKind` in JSON.
    use super::BeaconKind;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(kind: &BeaconKind, serializer: S) -> Result<S::Ok, S::Error> {
        matches!(kind, BeaconKind::Query).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BeaconKind, D::Error> {
        let query = bool::deserialize(deserializer)?;
        Ok(if query { BeaconKind::Query } else { BeaconKind::Announce })
    }
}
