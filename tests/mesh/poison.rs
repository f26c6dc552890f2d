//! A request that does its server harm is not taken to every other server too.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::node::{Node, node, read, until, within};
use super::victim::{Poison, Victim};

/// Three nodes that share such a server each, and one that uses them.
struct Lab {
    victims: Vec<Victim>,
    providers: Vec<Node>,
    user: Node,
}

impl Lab {
    async fn start(poison: Poison) -> Self {
        let (mut victims, mut providers, mut user) = (Vec::new(), Vec::new(), node("laptop"));
        for name in ["gpu1", "gpu2", "gpu3"] {
            let victim = Victim::start(poison).await;
            let provider = node(name).lends_at(victim.url()).runs(8).start().await;
            user = user.dials(provider.mesh);
            victims.push(victim);
            providers.push(provider);
        }
        let user = user.start().await;
        for provider in &providers {
            user.until_lent(provider.id(), "m").await;
        }
        Self { victims, providers, user }
    }

    fn hits(&self) -> usize {
        self.victims.iter().map(|victim| victim.hits("POISON")).sum()
    }

    fn alive(&self) -> usize {
        self.victims.iter().filter(|victim| victim.is_alive()).count()
    }
}

fn says(prompt: &str) -> Value {
    json!({"model": "m", "prompt": prompt, "stream": false})
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_ends_one_server_and_no_other() {
    let lab = Lab::start(Poison::Ends).await;
    let (status, text) = read(within(lab.user.post("/api/generate", &says("POISON"))).await).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{text}");
    assert!(text.contains("ended while it had the request") && text.contains("not tried elsewhere"), "{text}");
    assert_eq!((lab.hits(), lab.alive()), (1, 2));
    // The others go on, also for requests that are sent before the nodes have heard of the end.
    for _ in 0..20 {
        let (status, text) = read(within(lab.user.post("/api/generate", &says("hello"))).await).await;
        assert_eq!(status, StatusCode::OK, "{text}");
    }
    assert_eq!((lab.hits(), lab.alive()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_end_ends_no_more_servers_than_another() {
    for length in ["transfer-encoding: chunked\r\n\r\n400\r\n", "content-length: 4096\r\n\r\n"] {
        let lab = Lab::start(Poison::Ends).await;
        let mut application = TcpStream::connect(lab.user.listen).await.unwrap();
        // A server acts on the value, and does not wait for what follows.
        let request = format!("POST /api/generate HTTP/1.1\r\nhost: localhost\r\n{length}{}  ", says("POISON"));
        application.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = async {
            while !answer.contains("not tried elsewhere") {
                let mut piece = [0; 1024];
                let length = application.read(&mut piece).await.unwrap();
                assert!(length > 0, "{answer}");
                answer += &String::from_utf8_lossy(&piece[..length]);
            }
        };
        within(read).await;
        assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
        assert_eq!((lab.hits(), lab.alive()), (1, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_restarted_at_once_has_ended_all_the_same() {
    let lab = Lab::start(Poison::Restarts).await;
    for round in 1..=2 {
        let (status, text) = read(within(lab.user.post("/api/generate", &says("POISON"))).await).await;
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{text}");
        assert!(text.contains("ended while it had the request"), "{text}");
        assert_eq!(lab.hits(), round);
        for provider in &lab.providers {
            lab.user.until_lent(provider.id(), "m").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_a_server_that_lives_is_tried_once_more() {
    for poison in [Poison::Fails, Poison::BreaksOff] {
        let lab = Lab::start(poison).await;
        for path in ["/api/generate", "/api/chat", "/v1/chat/completions", "/api/embed"] {
            let before = lab.hits();
            let body = json!({"model": "m", "prompt": "POISON", "input": "x", "stream": false,
                "messages": [{"role": "user", "content": "x"}]});
            let (status, text) = read(within(lab.user.post(path, &body)).await).await;
            assert!(status.is_server_error(), "{path}: {text}");
            assert_eq!(lab.hits() - before, 2, "{poison:?} {path}");
            // Past the reserve of the retry budget.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(lab.alive(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn this_machines_own_server_counts_as_one_of_them() {
    let (own, other) = (Victim::start(Poison::Ends).await, Victim::start(Poison::Ends).await);
    let provider = node("gpu1").lends_at(other.url()).start().await;
    let user = node("laptop").lends_at(own.url()).dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "m").await;
    until("its own server", || user.view().ollama().healthy.then_some(())).await;
    let (status, text) = read(within(user.post("/api/generate", &says("POISON"))).await).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{text}");
    assert_eq!(own.hits("POISON") + other.hits("POISON"), 1);
    assert!(own.is_alive() != other.is_alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_had_no_slot_yet_runs_elsewhere_when_a_server_ends() {
    let (one, two) = (Victim::start(Poison::Ends).await, Victim::start(Poison::Ends).await);
    let first = node("gpu1").lends_at(one.url()).runs(1).start().await;
    let user = node("laptop").dials(first.mesh);
    let second = node("gpu2").lends_at(two.url()).runs(4).start().await;
    let user = user.dials(second.mesh).start().await;
    for provider in [&first, &second] {
        user.until_lent(provider.id(), "m").await;
    }
    // One runs at the first, and its queue is the place for more.
    one.waits(true);
    let at_first = |body: Value| {
        let body = body.to_string();
        let request = http::Request::post(format!("http://{}/@gpu1/api/generate", user.listen)).body(body.into());
        user.ask(request.unwrap())
    };
    let running = at_first(says("slow"));
    let poison = async {
        one.until_hit("slow", 1).await;
        at_first(says("POISON")).await
    };
    let hello = says("hello");
    let good = async {
        one.until_hit("slow", 1).await;
        futures_util::future::join_all((0..8).map(|_| user.post("/api/generate", &hello))).await
    };
    let ends = async {
        one.until_hit("slow", 1).await;
        // Until the others have come; a request that waits then has not been sent to the server.
        tokio::time::sleep(Duration::from_millis(300)).await;
        one.waits(false);
    };
    let (_, poisoned, good, ()) = within(async { tokio::join!(running, poison, good, ends) }).await;
    assert_eq!(read(poisoned).await.0, StatusCode::BAD_GATEWAY);
    for answer in good {
        let (status, text) = read(answer).await;
        assert_eq!(status, StatusCode::OK, "{text}");
    }
    assert_eq!(two.hits("POISON"), 0);
    assert!(!one.is_alive() && two.is_alive());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_whose_server_had_the_request_is_replaced_once_at_most() {
    let lab = Lab::start(Poison::Hangs).await;
    let poison = says("POISON");
    let asked = lab.user.post("/api/generate", &poison);
    let ends = async {
        let mut lost = Vec::new();
        for round in 1..=2 {
            until("a server to have it", || (lab.hits() == round).then_some(())).await;
            // Until the node has said so.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let at = lab.victims.iter().position(|victim| victim.hits("POISON") > 0 && !lost.contains(&victim.url()));
            let at = at.unwrap();
            lost.push(lab.victims[at].url());
            lab.providers[at].running.abort();
        }
    };
    let (answer, ()) = within(async { tokio::join!(asked, ends) }).await;
    let (status, text) = read(answer).await;
    assert_eq!(status, StatusCode::BAD_GATEWAY, "{text}");
    assert_eq!(lab.hits(), 2);
}
