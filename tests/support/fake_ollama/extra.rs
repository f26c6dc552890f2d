//! The routes under `/fake`, which no Ollama has. A route in no table does not cross to other nodes: there they are
//! asked for by the query of another route, as in `GET /api/version?fake=download&bytes=N`.
//! - `GET /fake/download?bytes=N[&chunk=C][&chunked=1]`: N bytes, by length or chunked
//! - `POST /fake/sink[?hash=1]`: reads a body to its end and says how long it was
//! - `POST /fake/echo`: gives a body back while it comes
//! - `GET /fake/break?after=N`: breaks the connection off N bytes into an answer that has no length
//! - `GET /fake/headers`: the request's headers as JSON, lists of values
//! - `ANY /fake/never`: no answer
//! - `POST /fake/early`: 413 before anything of the body was read

use std::io;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderName, HeaderValue, Request};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::answers::{Answer, empty, json_answer, plain, streamed};
use super::job::{Job, read};
use super::routes::FLUSH;
use super::runner::pause;

pub(super) async fn fake(mut job: Job, path: &str, mut request: Request<Incoming>) -> Answer {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let number = |name: &str| -> Option<u64> {
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name)?.1.parse().ok()
    };
    match path {
        "/fake/download" => {
            let bytes = number("bytes").unwrap_or(0);
            let chunk = Bytes::from(vec![b'd'; usize::try_from(number("chunk").unwrap_or(65_536)).unwrap()]);
            let stream = stream::unfold((bytes, chunk, job), |(left, chunk, mut job)| async move {
                let take = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
                if take == 0 {
                    job.finish();
                    return None;
                }
                job.shared.counts.send_modify(|counts| counts.sent += take as u64);
                Some((Ok(chunk.slice(..take)), (left - take as u64, chunk, job)))
            });
            let mut answer = streamed("application/octet-stream", stream);
            if number("chunked").is_none() {
                answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(bytes));
            }
            answer
        }
        "/fake/sink" => match read(&job, request.body_mut(), number("hash").is_some()).await {
            Some((length, hash)) => job
                .seen_as(&request, length, &hash, true)
                .full(json_answer(200, json!({"bytes":length,"sha256":hash}).to_string())),
            None => {
                let _aborted = job.seen(&request, None, b"", false);
                empty(400)
            }
        },
        "/fake/echo" => {
            let stream = stream::unfold((request.into_body(), job), |(mut body, mut job)| async move {
                match body.frame().await {
                    Some(Ok(frame)) => Some((Ok(frame.into_data().unwrap_or_default()), (body, job))),
                    Some(Err(error)) => Some((Err(io::Error::other(error)), (body, job))),
                    None => {
                        job.finish();
                        None
                    }
                }
            });
            streamed("application/octet-stream", stream)
        }
        "/fake/break" => {
            let after = usize::try_from(number("after").unwrap_or(0)).unwrap();
            job.finish();
            let sent = stream::iter([Ok(Bytes::from(vec![b'b'; after]))]);
            let broken = stream::once(async {
                pause(FLUSH).await;
                Err(io::Error::other("a break was asked for"))
            });
            streamed("application/octet-stream", sent.chain(broken))
        }
        "/fake/headers" => {
            let mut fields = serde_json::Map::new();
            for name in request.headers().keys() {
                let values = request
                    .headers()
                    .get_all(name)
                    .iter()
                    .map(|value| json!(String::from_utf8_lossy(value.as_bytes())));
                fields.insert(name.to_string(), values.collect());
            }
            let mut answer = json_answer(200, Value::Object(fields).to_string());
            for (name, value) in [("x-twice", "one"), ("x-twice", "two"), ("keep-alive", "timeout=5"), ("x-hop", "1")] {
                answer.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("x-hop"));
            job.full(answer)
        }
        "/fake/never" => std::future::pending().await,
        "/fake/early" => {
            job.seen(&request, None, b"", false).full(json_answer(413, json!({"error":"too much"}).to_string()))
        }
        _ => job.full(plain(404, "404 page not found")),
    }
}
