//! Providers and a node that only uses them, each a process of its own, and an application that asks it.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::fake_ollama::{FakeOllama, Settings};
use super::home::{Foreground, Home};

/// Bounds every wait, so that what fails does not hang. Others may be building on the same machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// All of them. Their processes end with their homes.
pub struct Lab {
    providers: Vec<(&'static str, FakeOllama, Home, Foreground)>,
    laptop: Home,
    _laptop: Foreground,
}

/// An answer as it stood on the wire.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Lab {
    /// Each of these shares an Ollama with the model `m`, and `laptop` uses them.
    pub async fn start(providers: &[(&'static str, Settings)]) -> Self {
        Self::start_with(providers, &[], &[]).await
    }

    /// The same with these variables for the providers and for `laptop`.
    pub async fn start_with(
        providers: &[(&'static str, Settings)],
        lends: &[(&str, &str)],
        uses: &[(&str, &str)],
    ) -> Self {
        let mut started = Vec::new();
        for (name, settings) in providers {
            let ollama = FakeOllama::start_with(&["m"], settings.clone()).await;
            let mut home = Home::new();
            home.set("OLLANA_OLLAMA", &ollama.url().to_string());
            lends.iter().for_each(|(name, value)| home.set(name, value));
            let node = home.foreground(&["serve", "--name", name]);
            started.push((*name, ollama, home, node));
        }
        let mesh: Vec<String> = started.iter().map(|(.., home, _)| address(home, "mesh").to_string()).collect();
        let mut laptop = Home::new();
        laptop.set("OLLANA_MODE", "client");
        laptop.set("OLLANA_PEER", &mesh.join(","));
        uses.iter().for_each(|(name, value)| laptop.set(name, value));
        let node = laptop.foreground(&["serve", "--name", "laptop"]);
        let lab = Self { providers: started, laptop, _laptop: node };
        lab.until(|peers| {
            peers.iter().filter(|peer| peer["provider"] == true && peer["models"][0] == "m:latest").count()
                == providers.len()
        })
        .await;
        lab
    }

    /// Waits until this is so of the peers of `laptop`.
    pub async fn until(&self, so: impl Fn(&[Value]) -> bool) {
        let looking = async {
            while !so(self.laptop.json(&["peers", "--json"]).as_array().unwrap()) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.expect("the providers are not connected");
    }

    /// Where applications find laptop.
    pub fn laptop(&self) -> SocketAddr {
        address(&self.laptop, "listen")
    }

    /// The command line of `laptop`.
    pub fn home(&self) -> &Home {
        &self.laptop
    }

    /// Where a provider's own applications find its node.
    pub fn listener(&self, provider: &str) -> SocketAddr {
        address(&self.provider(provider).2, "listen")
    }

    pub fn ollama(&self, provider: &str) -> &FakeOllama {
        &self.provider(provider).1
    }

    pub fn id(&self, provider: &str) -> String {
        self.provider(provider).2.json(&["id", "--json"])["id"].as_str().unwrap().to_owned()
    }

    fn provider(&self, name: &str) -> &(&'static str, FakeOllama, Home, Foreground) {
        self.providers.iter().find(|(other, ..)| *other == name).unwrap()
    }
}

/// An address that `status` shows.
pub fn address(home: &Home, which: &str) -> SocketAddr {
    home.json(&["status", "--json"])[which].as_str().unwrap().parse().unwrap()
}

/// One request on a connection of its own, as a program sends it.
pub async fn ask(at: SocketAddr, method: &str, target: &str, body: &str) -> Reply {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let length = body.len();
    let head =
        format!("{method} {target} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    let said = String::from_utf8_lossy(&said).into_owned();
    let (head, body) = said.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {said:?}"));
    Reply { status: head.split(' ').nth(1).unwrap().parse().unwrap(), head: head.to_owned(), body: body.to_owned() }
}

impl Reply {
    pub fn field(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(": "));
        fields.filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }
}
