//! A client that goes away ends the work at the other node's Ollama within a second, in every phase, and nothing of it
//! is left at either node.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::fake_ollama::{Counts, FakeOllama, Settings};
use super::node::{Node, node, prompt, read, until, within};
use super::relay::Relay;
use super::stranger::{Stranger, lends};

/// How soon the work for a request that nobody waits for ends.
const AT_MOST: Duration = Duration::from_secs(1);

/// A node with an Ollama, a node that uses it, and how it is with them while nothing runs.
struct Mesh {
    ollama: FakeOllama,
    provider: Node,
    user: Node,
    relay: Relay,
    /// Tasks of all that is in this process: both nodes, the Ollama and the relay.
    tasks: usize,
}

/// An application's connection with one request on it.
struct Client(TcpStream);

// === impl Mesh ===

impl Mesh {
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        // More than any Ollama: what waits, waits there.
        Self::start_with(64, change).await
    }

    /// With so many requests of a model that the gate lets to the Ollama at a time.
    async fn start_with(slots: u32, change: impl FnOnce(&mut Settings)) -> Self {
        let ollama = FakeOllama::start(&["m"]).await;
        let provider = node("gpu1").lends(&ollama).runs(slots).start().await;
        let relay = Relay::to(provider.mesh).await;
        let user = node("laptop").dials(relay.address).start().await;
        user.until_lent(provider.id(), "m").await;
        // Connections that are kept are there from here on.
        assert!(read(user.post("/api/generate", &prompt("m", 1)).await).await.0.is_success());
        ollama.models(|models| models.iter_mut().for_each(|model| model.loaded = false));
        ollama.set(change);
        let mut mesh = Self { ollama, provider, user, relay, tasks: 0 };
        mesh.tasks = mesh.at_rest().await;
        mesh
    }

    /// How many tasks there are once that does not change any more.
    async fn at_rest(&self) -> usize {
        let mut before = (usize::MAX, Instant::now());
        until("rest", || {
            let now = tasks();
            if now != before.0 {
                before = (now, Instant::now());
            }
            // A look at the Ollama may need a connection of its own, and comes 300 ms after the last at the soonest.
            (before.1.elapsed() > Duration::from_millis(600)).then_some(now)
        })
        .await
    }

    async fn generate(&self) -> Client {
        let body = prompt("m", 100_000).to_string();
        let head = format!("POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        Client::says(&self.user, &(head + &body)).await
    }

    async fn until(&self, wanted: impl FnMut(&Counts) -> bool) {
        within(self.ollama.until(wanted)).await;
    }

    /// The client goes away; what it wanted is over and everything as it was before.
    async fn ends_without(self, client: Client) {
        drop(client);
        let left = Instant::now();
        self.until(|counts| counts.running == 0 && counts.waiting == 0).await;
        assert!(left.elapsed() < AT_MOST, "it ran on for {:?}", left.elapsed());
        self.is_as_before().await;
    }

    async fn is_as_before(&self) {
        until("what is left to end", || (tasks() <= self.tasks).then_some(())).await;
        self.user.until_peer(self.provider.id(), |peer| peer.inflight == 0).await;
        self.ollama.set(|settings| *settings = Settings::default());
        assert!(read(self.user.post("/api/generate", &prompt("m", 1)).await).await.0.is_success());
    }
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

// === impl Client ===

impl Client {
    async fn says(node: &Node, request: &str) -> Self {
        let mut stream = TcpStream::connect(node.listen).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Self(stream)
    }

    /// Begins to upload more than it will ever send.
    async fn uploads(node: &Node, path: &str, begin: &str) -> Self {
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40);
        Self::says(node, &(head + begin)).await
    }

    /// Reads until it has read this.
    async fn hears(&mut self, wanted: &str) {
        let mut heard = Vec::new();
        while !String::from_utf8_lossy(&heard).contains(wanted) {
            let more = within(self.0.read_buf(&mut heard)).await.unwrap();
            assert!(more > 0, "closed after {}", String::from_utf8_lossy(&heard));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_queue_of_the_ollama() {
    let mesh = Mesh::start(|settings| settings.pace = Duration::from_millis(20)).await;
    let mut running = Vec::new();
    for n in 1..=4 {
        running.push(mesh.generate().await);
        mesh.until(|counts| counts.running == n && counts.waiting == 0).await;
    }
    let client = mesh.generate().await;
    mesh.until(|counts| counts.waiting == 1).await;
    drop(client);
    let left = Instant::now();
    mesh.until(|counts| counts.waiting == 0 && counts.running == 4).await;
    assert!(left.elapsed() < AT_MOST, "it waited on for {:?}", left.elapsed());
    // And the others' answers go on.
    let said = mesh.ollama.counts().tokens;
    mesh.until(|counts| counts.tokens > said + 40).await;
    let last = running.pop().unwrap();
    drop(running);
    mesh.ends_without(last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_queue_of_the_gate() {
    let mesh = Mesh::start_with(1, |settings| settings.pace = Duration::from_millis(20)).await;
    let running = mesh.generate().await;
    mesh.until(|counts| counts.running == 1 && counts.waiting == 0).await;
    let asked = mesh.ollama.counts().of("/api/generate");
    let queued = |mesh: &Mesh| {
        let peer = mesh.user.peer(mesh.provider.id())?;
        peer.numbers.get("m:latest").map(|numbers| numbers.load.queued)
    };
    let client = mesh.generate().await;
    until("a place in the queue", || queued(&mesh).filter(|queued| *queued > 0.0)).await;
    drop(client);
    let left = Instant::now();
    until("a queue that is empty", || queued(&mesh).filter(|queued| *queued == 0.0)).await;
    assert!(left.elapsed() < AT_MOST, "it waited on for {:?}", left.elapsed());
    assert_eq!(mesh.ollama.counts().of("/api/generate"), asked, "what waited never ran");
    mesh.ends_without(running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_model_loads() {
    let mesh = Mesh::start(|settings| settings.load = Duration::from_secs(3600)).await;
    let client = mesh.generate().await;
    mesh.until(|counts| counts.waiting == 1).await;
    mesh.ends_without(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_prompt_is_read() {
    let mesh = Mesh::start(|settings| settings.prompt = Duration::from_secs(3600)).await;
    let client = mesh.generate().await;
    mesh.until(|counts| counts.running == 1 && counts.waiting == 0 && counts.loads == 2).await;
    mesh.ends_without(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn between_two_tokens() {
    let mesh = Mesh::start(|settings| settings.pace = Duration::from_millis(400)).await;
    let mut client = mesh.generate().await;
    client.hears("response").await;
    mesh.ends_without(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn between_two_tokens_that_nobody_reads() {
    let mesh = Mesh::start(|_| {}).await;
    let client = mesh.generate().await;
    // All buffers are full.
    let mut before = (0, Instant::now());
    until("the Ollama to be held up", || {
        let said = mesh.ollama.counts().tokens;
        if said != before.0 {
            before = (said, Instant::now());
        }
        (said > 1 && before.1.elapsed() > Duration::from_millis(500)).then_some(())
    })
    .await;
    mesh.ends_without(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn during_an_upload() {
    for (asked, path, begin) in
        [("/api/show?fake=sink", "/fake/sink", "abc"), ("/api/generate", "/api/generate", r#"{"model":"m","images":["#)]
    {
        let mesh = Mesh::start(|_| {}).await;
        let client = Client::uploads(&mesh.user, asked, begin).await;
        mesh.until(|counts| counts.of(path) > u64::from(path == "/api/generate") && counts.running == 1).await;
        mesh.ends_without(client).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn during_an_upload_that_the_ollama_does_not_read() {
    let mesh = Mesh::start(|_| {}).await;
    let mut client = Client::uploads(&mesh.user, "/api/show?fake=never", "abc").await;
    mesh.until(|counts| counts.running == 1).await;
    let block = vec![0; 64 * 1024];
    while tokio::time::timeout(Duration::from_millis(500), client.0.write_all(&block)).await.is_ok() {}
    // A close would stand behind what is unread, where nobody can see it.
    socket2::SockRef::from(&client.0).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    let left = Instant::now();
    // The Ollama does not look at its connection, so that is still there, and is all that is.
    until("the nodes to give up", || (tasks() <= mesh.tasks + 1).then_some(())).await;
    assert!(left.elapsed() < AT_MOST, "{:?}", left.elapsed());
    mesh.user.until_peer(mesh.provider.id(), |peer| peer.inflight == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn during_an_upload_while_the_answer_comes() {
    let mesh = Mesh::start(|_| {}).await;
    let mut client =
        Client::uploads(&mesh.user, "/api/show?fake=echo", r#"{"model":"m","prompt":"there and back"#).await;
    client.hears("there and back").await;
    mesh.ends_without(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_early_ends_the_upload_at_the_ollama_and_not_at_the_application() {
    let mesh = Mesh::start(|_| {}).await;
    let mut client = Client::uploads(&mesh.user, "/api/show?fake=early", "abc").await;
    client.hears("too much").await;
    let since = Instant::now();
    mesh.until(|counts| counts.running == 0).await;
    assert!(since.elapsed() < AT_MOST, "{:?}", since.elapsed());
    mesh.user.until_peer(mesh.provider.id(), |peer| peer.inflight == 0).await;
    // More than all buffers on the way would hold: nobody reads it but the listener, which drops it.
    let block = vec![0; 64 * 1024];
    for _ in 0..256 {
        within(client.0.write_all(&block)).await.unwrap();
    }
    mesh.ends_without(client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_acknowledgement() {
    let mesh = Mesh::start(|_| {}).await;
    let asked = mesh.ollama.counts().of("/api/generate");
    mesh.relay.cut(true);
    let client = mesh.generate().await;
    // Until the peer is suspect: it stays so no longer than anybody waits.
    tokio::time::sleep(Duration::from_millis(700)).await;
    drop(client);
    let left = Instant::now();
    until("the user's side to give up", || (tasks() <= mesh.tasks).then_some(())).await;
    assert!(left.elapsed() < AT_MOST, "{:?}", left.elapsed());
    mesh.relay.cut(false);
    mesh.is_as_before().await;
    assert_eq!(mesh.ollama.counts().of("/api/generate"), asked + 1, "what was given up never ran");
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_acknowledgement_of_a_gate_that_has_the_stream() {
    let stranger = Stranger::new("mute");
    let user = node("laptop").dials(stranger.address).start().await;
    let mut met = within(stranger.accept_politely()).await;
    met.control.send(&lends("m")).await.unwrap();
    user.until_lent(stranger.id, "m").await;
    let body = prompt("m", 1).to_string();
    // What needs no slot, and so no ticket.
    let head = format!("POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
    let client = Client::says(&user, &(head + &body)).await;
    let incoming = within(met.connection.accept_exchange()).await.unwrap();
    // The peer is suspect by now, and there is no other.
    tokio::time::sleep(Duration::from_millis(700)).await;
    drop(client);
    let left = Instant::now();
    // Had it been acknowledged, it would have been given up there and then.
    let (_request, responder) = incoming.open(&stranger.name).await.unwrap().request().unwrap();
    within(responder.answer(std::future::pending())).await.unwrap_err();
    assert!(left.elapsed() < AT_MOST, "{:?}", left.elapsed());
}
