//! The lists of the whole mesh.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Frame;
use ollana::NodeName;
use ollana::internals::exchange::{ExchangeError, full};

use crate::{FakeEndpoint, Node, request, soon};

// Recorded entries, with other names and times.
const OLD: &str = r#"{"name":"old:latest","model":"old:latest","modified_at":"2026-11-20T12:45:47.243547182Z","size":1,"digest":"a1"}"#;
const NEW: &str =
    r#"{"name":"new:7b","model":"new:7b","modified_at":"2026-11-22T13:45:47.2+01:00","size":2,"digest":"b2"}"#;
const OLD_NEWER: &str =
    r#"{"name":"Old","model":"old:latest","modified_at":"2026-11-21T12:45:47Z","size":3,"digest":"c3"}"#;

fn json(text: String) -> Result<Response<ollana::internals::exchange::Body>, ExchangeError> {
    let length = text.len();
    let response = Response::builder()
        .header("content-type", "application/json; charset=utf-8")
        .header("content-length", length)
        .header("x-own", "1");
    Ok(response.body(full(text)).unwrap())
}

fn models(entries: &[&str]) -> String {
    format!(r#"{{"models":[{}]}}"#, entries.join(","))
}

#[tokio::test]
async fn one_provider_answers_for_itself() {
    let (_a, mut a) = FakeEndpoint::new("a", &[]);
    let node = Node::over(&[&_a]).await;
    let odd = r#"{ "models" : [ {"name":"x"} ] , "more": 1 }"#;
    let mut client = node.client().await;
    client.send(&request("GET /api/tags\nX-Mine: 1", "")).await;
    let call = soon(a.next()).await;
    assert_eq!(call.request.headers()["x-mine"], "1");
    call.reply(json(odd.to_owned()));
    let reply = client.reply().await;
    assert_eq!((&*reply.body, reply.field("X-Own"), reply.field("Ollana-Peer")), (odd, Some("1"), Some("a")));
    client.send(&request("HEAD /api/tags", "")).await;
    let call = soon(a.next()).await;
    assert_eq!(call.request.method(), "HEAD");
    let response = Response::builder().header("content-length", "341").body(ollana::internals::exchange::empty());
    call.reply(Ok(response.unwrap()));
    assert_eq!(client.reply_to("HEAD").await.field("Content-Length"), Some("341"));
}

#[tokio::test]
async fn several_are_merged_with_one_entry_a_name_byte_for_byte() {
    let (_a, mut a) = FakeEndpoint::new("a", &[]);
    let (_b, mut b) = FakeEndpoint::new("b", &[]);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    for method in ["GET", "HEAD"] {
        client.send(&request(&format!("{method} /api/tags"), "")).await;
        let call = soon(a.next()).await;
        assert_eq!((call.request.method().as_str(), call.request.uri().path()), ("GET", "/api/tags"));
        call.reply(json(models(&[OLD])));
        soon(b.next()).await.reply(json(models(&[OLD_NEWER, NEW])));
        let reply = client.reply_to(method).await;
        let merged = models(&[NEW, OLD_NEWER]);
        assert_eq!(reply.status, 200);
        assert_eq!(reply.field("Content-Type"), Some("application/json; charset=utf-8"));
        assert_eq!(reply.field("Content-Length"), Some(&*merged.len().to_string()));
        assert_eq!(reply.field("Ollana-Peer"), Some("me"));
        assert_eq!(reply.body, if method == "GET" { merged } else { String::new() });
    }
}

#[tokio::test]
async fn the_own_ollamas_entry_comes_before_a_newer_one_elsewhere() {
    let (_a, mut a) = FakeEndpoint::new("a", &[]);
    let (_me, mut me) = FakeEndpoint::local("me", &[]);
    let node = Node::over(&[&_a, &_me]).await;
    let mut client = node.client().await;
    client.send(&request("GET /api/tags", "")).await;
    soon(a.next()).await.reply(json(models(&[OLD_NEWER])));
    soon(me.next()).await.reply(json(models(&[OLD])));
    assert_eq!(client.reply().await.body, models(&[OLD]));
}

#[tokio::test]
async fn what_runs_and_what_openai_lists_are_merged_too() {
    let (_a, mut a) = FakeEndpoint::new("a", &[]);
    let (_b, mut b) = FakeEndpoint::new("b", &[]);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    client.send(&request("GET /api/ps", "")).await;
    let (soon_out, stays) = (
        r#"{"name":"x:latest","expires_at":"2026-11-22T12:50:00Z","size_vram":0}"#,
        r#"{"name":"y:latest","expires_at":"2318-01-01T00:00:00Z","size_vram":9}"#,
    );
    soon(a.next()).await.reply(json(models(&[soon_out])));
    soon(b.next()).await.reply(json(models(&[stays])));
    assert_eq!(client.reply().await.body, models(&[stays, soon_out]));
    client.send(&request("GET /v1/models", "")).await;
    let (x, y) = (
        r#"{"id":"x","object":"model","created":5,"owned_by":"library"}"#,
        r#"{"id":"y","object":"model","created":6,"owned_by":"library"}"#,
    );
    soon(a.next()).await.reply(json(format!("{{\"object\":\"list\",\"data\":[{x}]}}\n")));
    soon(b.next()).await.reply(json(format!("{{\"object\":\"list\",\"data\":[{x},{y}]}}\n")));
    let reply = client.reply().await;
    assert_eq!(reply.body, format!("{{\"object\":\"list\",\"data\":[{y},{x}]}}\n"));
    assert_eq!(reply.field("Content-Type"), Some("application/json"));
}

#[tokio::test]
async fn who_fails_talks_nonsense_or_never_ends_is_left_out() {
    let (_a, mut a) = FakeEndpoint::new("a", &[]);
    let (_b, mut b) = FakeEndpoint::new("b", &[]);
    let (_c, mut c) = FakeEndpoint::new("c", &[]);
    let (_d, mut d) = FakeEndpoint::new("d", &[]);
    let node = Node::over(&[&_a, &_b, &_c, &_d]).await;
    let mut client = node.client().await;
    client.send(&request("GET /api/tags", "")).await;
    soon(a.next()).await.reply(json(models(&[OLD, r#"{"no":"name"}"#])));
    soon(b.next()).await.reply(Err(ExchangeError::Unreachable(NodeName::lossy("b"))));
    soon(c.next()).await.answer(StatusCode::OK, r#"{"models":[{"name":"#);
    let endless = soon(d.next()).await.stream();
    let megabyte = Bytes::from(vec![b' '; 1 << 20]);
    while endless.send(Ok(Frame::data(megabyte.clone()))).await.is_ok() {}
    assert_eq!(client.reply().await.body, models(&[OLD]));
}

#[tokio::test]
async fn a_slow_one_is_not_waited_for() {
    let (_a, mut a) = FakeEndpoint::new("a", &[]);
    let (_b, mut b) = FakeEndpoint::new("b", &[]);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    client.send(&request("GET /api/tags", "")).await;
    soon(a.next()).await.reply(json(models(&[OLD])));
    let mut slow = soon(b.next()).await;
    assert_eq!(client.reply().await.body, models(&[OLD]));
    soon(slow.cancelled()).await;
}

#[tokio::test]
async fn if_nobody_gives_a_list_it_is_502() {
    let (_a, a) = FakeEndpoint::new("a", &[]);
    let (_b, b) = FakeEndpoint::new("b", &[]);
    a.always(StatusCode::INTERNAL_SERVER_ERROR, "no");
    b.always(StatusCode::INTERNAL_SERVER_ERROR, "no");
    let node = Node::over(&[&_a, &_b]).await;
    assert_eq!(node.ask("GET /api/tags", "").await.status, 502);
}

#[tokio::test]
async fn where_weights_differ_the_list_shows_those_that_are_used() {
    let (_me, mut me) = FakeEndpoint::local("me", &["Old@one"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["old:latest@two"]);
    let holder = ollana::internals::digests::Holder {
        id: ollana::internals::exchange::Endpoint::id(&*_b),
        name: NodeName::lossy("b"),
    };
    let setup = crate::Setup::default();
    setup.digests.keep(&ollana::internals::route::ModelName::new("old"), "two", holder);
    let node = Node::set_up(setup, &[&_me, &_b]).await;
    let mut client = node.client().await;
    client.send(&request("GET /api/tags", "")).await;
    soon(me.next()).await.reply(json(models(&[OLD_NEWER])));
    soon(b.next()).await.reply(json(models(&[OLD])));
    assert_eq!(client.reply().await.body, models(&[OLD]));
}
