//! Each recorded request is sent to the simulated Ollama, in the order of the recording.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::fake_ollama::FakeOllama;

const RECORDED: &str = include_str!("../data/ollama-0.24.0.jsonl");

/// Headers that a client acts on.
const HEADERS: [&str; 5] = ["content-type", "allow", "location", "access-control-allow-origin", "cache-control"];

#[tokio::test]
async fn the_simulated_ollama_answers_as_the_recorded_one() {
    let fake = FakeOllama::start(&["smollm2"]).await;
    let mut wrong = Vec::new();
    let mut count = 0;
    for line in RECORDED.lines() {
        let exchange: Value = serde_json::from_str(line).unwrap();
        let difference = difference(&fake, &exchange).await;
        wrong.extend(difference.map(|difference| format!("{}: {difference}", exchange["name"])));
        count += 1;
    }
    assert!(count > 70, "the recording is there: {count}");
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}

async fn difference(fake: &FakeOllama, exchange: &Value) -> Option<String> {
    let (answer, chunks) = ask(fake, &exchange["request"]).await;
    let recorded = &exchange["response"];
    let status: u16 = recorded["status_line"].as_str()?.split(' ').nth(1)?.parse().ok()?;
    if answer.status() != status {
        return Some(format!("{} instead of {status}", answer.status()));
    }
    for name in HEADERS {
        let got = answer.headers().get(name).map(|value| value.to_str().unwrap());
        let expected = header(recorded, name);
        if got != expected {
            return Some(format!("{name} is {got:?} instead of {expected:?}"));
        }
    }
    let chunked = answer.headers().contains_key("transfer-encoding");
    if chunked != (recorded["framing"] == "chunked") {
        return Some(format!("framing is not {}", recorded["framing"]));
    }
    let pieces: Vec<_> =
        recorded["pieces"].as_array()?.iter().map(|piece| piece[1].as_str().unwrap().to_owned()).collect();
    let (got, expected) = (chunks.concat(), pieces.concat());
    if status >= 400 && !expected.contains("request_id") {
        return (got != expected).then(|| format!("{got:?} instead of {expected:?}"));
    }
    if chunked && chunks.len() > 1 && (chunks.len() == 1) != (pieces.len() == 1) {
        return Some(format!("{} chunks instead of {}", chunks.len(), pieces.len()));
    }
    let (got, expected) = (shape(&got), shape(&expected));
    let (more, fewer): (Vec<_>, Vec<_>) = (got.difference(&expected).collect(), expected.difference(&got).collect());
    (!more.is_empty() || !fewer.is_empty()).then(|| format!("shape has {more:?} and lacks {fewer:?}"))
}

async fn ask(fake: &FakeOllama, request: &Value) -> (Response<()>, Vec<String>) {
    let head = request["head"].as_str().unwrap();
    let mut lines = head.split("\r\n").filter(|line| !line.is_empty());
    let first: Vec<_> = lines.next().unwrap().split(' ').collect();
    let mut builder = Request::builder().method(first[0]).uri(first[1]);
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        builder = builder.header(name, value.trim());
    }
    let body = request["body"].as_str().unwrap_or_default().to_owned();
    let stream = TcpStream::connect(fake.addr()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(builder.body(Full::new(Bytes::from(body))).unwrap()).await.unwrap();
    let (parts, mut body) = answer.into_parts();
    let mut chunks = Vec::new();
    while let Some(frame) = body.frame().await {
        chunks.push(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap());
    }
    connection.abort();
    (Response::from_parts(parts, ()), chunks)
}

fn header<'a>(recorded: &'a Value, name: &str) -> Option<&'a str> {
    let headers = recorded["headers"].as_array().unwrap();
    headers
        .iter()
        .find(|header| header[0].as_str().unwrap().eq_ignore_ascii_case(name))
        .map(|header| header[1].as_str().unwrap())
}

/// What is where in an answer: the paths and types of its JSON, line by line or event by event, whatever their number.
fn shape(text: &str) -> BTreeSet<String> {
    let mut shape = BTreeSet::new();
    for line in text.lines() {
        let (prefix, line) =
            line.split_once(": ").filter(|(name, _)| ["data", "event"].contains(name)).unwrap_or(("", line));
        match serde_json::from_str::<Value>(line) {
            Ok(value) => walk(&value, prefix.to_owned(), &mut shape),
            Err(_) => drop(shape.insert(format!("{prefix} text {line}"))),
        }
    }
    shape
}

fn walk(value: &Value, path: String, shape: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| walk(value, format!("{path}.{name}"), shape)),
        Value::Array(items) => {
            shape.insert(format!("{path}[]"));
            items.iter().for_each(|item| walk(item, format!("{path}[]"), shape));
        }
        Value::String(_) => drop(shape.insert(format!("{path} string"))),
        Value::Number(_) => drop(shape.insert(format!("{path} number"))),
        Value::Bool(_) => drop(shape.insert(format!("{path} bool"))),
        Value::Null => drop(shape.insert(format!("{path} null"))),
    }
}
