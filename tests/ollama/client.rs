//! The client of the local Ollama: what goes there and comes back, and what happens when either side stops.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Method, Request, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use ollana::internals::exchange::{Body, ExchangeError, empty, full};
use ollana::internals::ollama::Ollama;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::fake_ollama::{FakeOllama, Settings, expected};

fn request(method: Method, path: &str, body: Body) -> Request<Body> {
    Request::builder().method(method).uri(path).body(body).unwrap()
}

fn post(path: &str, body: &Value) -> Request<Body> {
    request(Method::POST, path, full(body.to_string()))
}

fn get(path: &str) -> Request<Body> {
    request(Method::GET, path, empty())
}

async fn text(body: Body) -> String {
    String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A body of `megabytes`, as fast as it is taken.
fn megabytes(count: usize) -> Body {
    let chunk = Bytes::from(vec![b'u'; 1 << 20]);
    let frames = stream::repeat_with(move || Ok::<_, ExchangeError>(Frame::data(chunk.clone()))).take(count);
    StreamBody::new(frames).boxed_unsync()
}

/// A body whose frames the test gives one by one.
fn by_hand() -> (mpsc::Sender<Result<Bytes, ExchangeError>>, Body) {
    let (frames, receiver) = mpsc::channel(16);
    let frames_in = stream::unfold(receiver, |mut receiver| async {
        let frame: Result<Bytes, ExchangeError> = receiver.recv().await?;
        Some((frame.map(Frame::data), receiver))
    });
    (frames, StreamBody::new(Box::pin(frames_in)).boxed_unsync())
}

/// A client of something that is no Ollama.
fn client(addr: std::net::SocketAddr) -> (Ollama, impl Drop + use<>) {
    Ollama::spawn(&format!("http://{addr}").parse().unwrap())
}

/// A server that does one thing with every connection which brings a `POST`, and lets the watch's questions hang.
async fn raw<F, R>(serve: F) -> std::net::SocketAddr
where
    F: Fn(tokio::net::TcpStream) -> R + Send + Sync + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let serve = Arc::new(serve);
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let serve = serve.clone();
            tokio::spawn(async move {
                let mut first = [0; 1];
                if stream.peek(&mut first).await.is_ok_and(|n| n == 1) && first == *b"P" {
                    serve(stream).await;
                } else {
                    let _ = stream.read(&mut [0; 4096]).await;
                    std::future::pending::<Infallible>().await;
                }
            });
        }
    });
    addr
}

#[tokio::test]
async fn a_streamed_answer_comes_in_the_chunks_it_was_sent_in() {
    let fake = FakeOllama::start(&["smollm2"]).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    let chat = json!({"model":"smollm2","messages":[{"role":"user","content":"Hi"}]});
    let mut answer = ollama.send(post("/api/chat", &chat)).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let (mut lines, mut said) = (0, String::new());
    while let Some(frame) = answer.body_mut().frame().await {
        let line: Value = serde_json::from_slice(&frame.unwrap().into_data().unwrap()).unwrap();
        said.push_str(line["message"]["content"].as_str().unwrap());
        lines += 1;
    }
    assert_eq!((lines, said), (9, expected("smollm2:latest", "Hi", 8)));
}

#[tokio::test]
async fn end_to_end_headers_pass_and_the_others_end_here() {
    let fake = FakeOllama::start(&[]).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    let mut asked = get("/fake/headers");
    for (name, value) in [
        ("host", "gpu1.example"),
        ("x-many", "1"),
        ("x-many", "2"),
        ("accept-encoding", "gzip, zstd"),
        ("authorization", "Bearer t"),
        ("connection", "x-mine, close"),
        ("x-mine", "1"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
        ("origin", "http://evil.example"),
        ("cookie", "a=b"),
        ("access-control-request-method", "POST"),
        ("expect", "100-continue"),
        ("ollana-peer", "gpu1"),
    ] {
        asked.headers_mut().append(name, value.parse().unwrap());
    }
    let answer = ollama.send(asked).await.unwrap();
    let headers = answer.headers().clone();
    let got: Value = serde_json::from_str(&text(answer.into_body()).await).unwrap();
    let expected = json!({
        "host": [fake.addr().to_string()], "x-many": ["1", "2"], "accept-encoding": ["gzip, zstd"],
        "authorization": ["Bearer t"], "ollana-hop": ["1"],
    });
    assert_eq!(got, expected);
    assert_eq!(headers.get_all("x-twice").iter().collect::<Vec<_>>(), ["one", "two"]);
    for dropped in ["connection", "keep-alive", "x-hop", "transfer-encoding"] {
        assert!(!headers.contains_key(dropped), "{dropped}");
    }
}

#[tokio::test]
async fn an_ollama_behind_a_path_is_asked_behind_that_path() {
    let fake = FakeOllama::start(&[]).await;
    let (ollama, _watch) = Ollama::spawn(&format!("http://{}/fake/", fake.addr()).parse().unwrap());
    let answer = ollama.send(get("/download?bytes=3")).await.unwrap();
    assert_eq!(text(answer.into_body()).await, "ddd");
}

#[tokio::test]
async fn connections_are_used_again() {
    let fake = FakeOllama::start(&[]).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    for _ in 0..50 {
        let answer = ollama.send(get("/fake/download?bytes=100000&chunked=1")).await.unwrap();
        assert_eq!(text(answer.into_body()).await.len(), 100_000);
    }
    let connections = fake.counts().connections;
    // The watch has a canary and perhaps a connection of its own.
    assert!(connections <= 6, "{connections}");
}

#[tokio::test]
async fn an_answer_that_comes_before_the_body_was_sent_gets_through() {
    // Too long to be read with the head.
    const LONG: usize = 60_000;
    // Answers, and closes on whatever is still to come: the kernel resets the connection.
    let addr = raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 1000]).await;
        let head = format!("HTTP/1.1 413 Payload Too Large\r\ncontent-length: {LONG}\r\n\r\n");
        let _ = stream.write_all(head.as_bytes()).await;
        let _ = stream.write_all(&[b'x'; LONG]).await;
    })
    .await;
    let (ollama, _watch) = client(addr);
    for _ in 0..50 {
        let answer = ollama.send(request(Method::POST, "/api/blobs/sha256:0", megabytes(64))).await.unwrap();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        // Later than the reset.
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert_eq!(text(answer.into_body()).await.len(), LONG);
    }
}

#[tokio::test]
async fn a_blob_that_is_there_is_answered_at_once() {
    let fake = FakeOllama::start(&[]).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    let path = "/api/blobs/sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let answer = ollama.send(request(Method::POST, path, full("hello"))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    for _ in 0..10 {
        let answer = ollama.send(request(Method::POST, path, megabytes(4096))).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(text(answer.into_body()).await, "");
    }
    assert!(fake.counts().received < 64 << 20, "nobody reads on");
}

#[tokio::test]
async fn an_upload_is_let_go_when_the_answer_is_over() {
    // Answers, reads nothing more, and keeps the connection.
    let addr = raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 1000]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        std::future::pending::<()>().await;
    })
    .await;
    let (ollama, _watch) = client(addr);
    let (frames, body) = by_hand();
    let answer = ollama.send(request(Method::POST, "/x", body)).await.unwrap();
    assert!(!frames.is_closed(), "the answer is not over");
    assert_eq!(text(answer.into_body()).await, "ok");
    timeout(Duration::from_secs(1), frames.closed()).await.expect("the upload is let go");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_work_in_every_phase() {
    let slow = Settings {
        load: Duration::from_secs(3600),
        pace: Duration::from_millis(20),
        tokens: 100_000,
        parallel: 1,
        ..Settings::default()
    };
    let fake = FakeOllama::start_with(&["cold", "warm"], slow).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    let within_a_second = |aborted: u64| {
        let fake = &fake;
        async move {
            let since = Instant::now();
            fake.until(|counts| counts.aborted == aborted && counts.running == 0).await;
            assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
        }
    };
    let generate = |model: &str| ollama.clone().send_owned(post("/api/generate", &json!({"model":model,"prompt":"x"})));

    // While the model loads.
    let loading = tokio::spawn(generate("cold"));
    fake.until(|counts| counts.waiting == 1).await;
    loading.abort();
    within_a_second(1).await;

    // Between tokens.
    fake.set(|settings| settings.load = Duration::ZERO);
    let mut answer = generate("warm").await.unwrap();
    let _ = answer.body_mut().frame().await.unwrap().unwrap();
    drop(answer);
    within_a_second(2).await;

    // In the queue.
    let running = generate("warm").await.unwrap();
    let queued = tokio::spawn(generate("warm"));
    fake.until(|counts| counts.waiting == 1).await;
    queued.abort();
    fake.until(|counts| counts.aborted == 3).await;
    drop(running);
    within_a_second(4).await;

    // During an upload.
    let (frames, body) = by_hand();
    let uploading = tokio::spawn(ollama.clone().send_owned(request(Method::POST, "/fake/sink", body)));
    frames.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
    fake.until(|counts| counts.received > 0 && counts.running == 1).await;
    uploading.abort();
    within_a_second(5).await;
}

#[tokio::test]
async fn a_break_in_mid_answer_is_an_error_and_never_an_end() {
    let fake = FakeOllama::start_with(&["m"], Settings { break_after: Some(3), ..Settings::default() }).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    for request in [post("/api/generate", &json!({"model":"m","prompt":"x"})), get("/fake/break?after=100")] {
        let answer = ollama.send(request).await.unwrap();
        let error = answer.into_body().collect().await.unwrap_err();
        assert!(matches!(error, ExchangeError::Ollama(..)), "{error}");
    }
    // Fewer bytes than were announced.
    let addr = raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 1000]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nok").await;
    })
    .await;
    let (ollama, _watch) = client(addr);
    let answer = ollama.send(request(Method::POST, "/x", empty())).await.unwrap();
    assert!(answer.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_break_before_an_answer_is_an_error_of_ollama() {
    let addr = raw(|mut stream| async move {
        let _ = stream.read(&mut [0; 1000]).await;
    })
    .await;
    let (ollama, _watch) = client(addr);
    let error = ollama.send(request(Method::POST, "/x", empty())).await.unwrap_err();
    assert!(matches!(error, ExchangeError::Ended(..)), "nothing answers there any more: {error}");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (ollama, _watch) = client(closed);
    let error = ollama.send(get("/")).await.unwrap_err();
    assert!(matches!(error, ExchangeError::NotRun(..)) && error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_body_that_breaks_off_never_completes_at_ollama() {
    let fake = FakeOllama::start(&["m"]).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    let (frames, body) = by_hand();
    let sending = tokio::spawn(ollama.send_owned(request(Method::POST, "/api/generate", body)));
    // Nothing is missing but the last brace.
    frames.send(Ok(Bytes::from_static(br#"{"model":"m","prompt":"x""#))).await.unwrap();
    fake.until(|counts| counts.of("/api/generate") == 1).await;
    frames.send(Err(ExchangeError::Body("the application is gone".into()))).await.unwrap();
    let error = sending.await.unwrap().unwrap_err();
    assert!(matches!(error, ExchangeError::Body(_)), "{error}");
    let counts = fake.until(|counts| counts.aborted == 1).await;
    assert_eq!(counts.tokens, 0);
    assert!(!counts.last("/api/generate").unwrap().complete);
}

#[tokio::test]
async fn a_slow_reader_slows_the_server() {
    let fake = FakeOllama::start(&[]).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    let mut answer = ollama.send(get("/fake/download?bytes=10000000000")).await.unwrap();
    let mut read = 0;
    while read < 64 << 20 {
        read += answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap().len() as u64;
    }
    // Whatever was sent and not read stands in the sockets.
    let sent = fake.counts().sent;
    assert!(sent - read < 32 << 20, "{sent} were sent, {read} were read");
    drop(answer);
    fake.until(|counts| counts.aborted == 1).await;
}

trait SendOwned {
    fn send_owned(
        self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<http::Response<Body>, ExchangeError>> + Send + 'static;
}

impl SendOwned for Ollama {
    async fn send_owned(self, request: Request<Body>) -> Result<http::Response<Body>, ExchangeError> {
        self.send(request).await
    }
}
