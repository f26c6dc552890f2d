//! Who answers what: Ollama's own routes. Others are in [`extra`](super::extra).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, Stream};
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::{HeaderValue, Method, Request, StatusCode, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::answers::{Answer, chunked, empty, fault, json_answer, plain, streamed, v1_answer};
use super::content::{self, Content};
use super::go_json::{Fault, Object};
use super::job::{Job, read};
use super::runner::{Slot, pause, set_loaded, slot};
use super::shapes::{self, Dialect, Finish, Took};
use super::{Model, Shared, extra, json_text, names, router};

/// Before a break, so that what came before it is on its way: a break takes what was not yet written with it.
pub(super) const FLUSH: Duration = Duration::from_millis(50);

/// Answers one request.
pub(crate) async fn answer(shared: Arc<Shared>, mut request: Request<Incoming>) -> Answer {
    let path = router::path(&request);
    let job = Job::begin(shared.clone(), &path);
    let _ = shared.frozen.subscribe().wait_for(|frozen| !frozen).await;
    let cors = match router::pass(&request, &path) {
        Ok(cors) => cors,
        Err(answer) => {
            let expected = request.headers().contains_key(EXPECT);
            return job.full(after_rest(*answer, request.body_mut(), expected).await);
        }
    };
    let version = request.version();
    if request.method().is_safe() {
        // Read after the answer was made, as far as Go is concerned; nobody sees a difference.
        after_rest(empty(200), request.body_mut(), false).await;
    }
    let mut answer = route(shared, job, path, request).await;
    answer.headers_mut().extend(cors);
    if version == Version::HTTP_10 && !answer.headers().contains_key(CONTENT_LENGTH) {
        // Its close is its end, whatever the client asked for.
        *answer.version_mut() = version;
    }
    answer
}

/// Go reads 256 kB of a body that nobody wanted before it answers, and gives the connection up beyond that, or if it
/// would have to say "continue" first.
async fn after_rest(mut answer: Answer, body: &mut Incoming, expected: bool) -> Answer {
    let (mut read, mut over) = (0, body.is_end_stream());
    while !expected && !over && read <= 256 << 10 {
        match body.frame().await {
            Some(Ok(frame)) => read += frame.data_ref().map_or(0, Bytes::len),
            _ => over = true,
        }
    }
    if !over {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

async fn route(shared: Arc<Shared>, job: Job, path: String, request: Request<Incoming>) -> Answer {
    let models = || shared.models.lock().unwrap().clone();
    match path.as_str() {
        "/" => {
            let mut answer = plain(200, "Ollama is running");
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            job.seen(&request, None, b"", true).full(answer)
        }
        "/api/version" => {
            let version = shared.settings.lock().unwrap().version.clone();
            job.seen(&request, None, b"", true).full(json_answer(200, json!({ "version": version }).to_string()))
        }
        "/api/status" => job.full(json_answer(200, json!({"cloud":{"disabled":false,"source":"none"}}).to_string())),
        "/api/tags" => job.seen(&request, None, b"", true).full(json_answer(200, shapes::tags(&models()).to_string())),
        "/api/ps" => job.full(json_answer(200, shapes::ps(&models()).to_string())),
        "/api/me" | "/api/experimental/web_search" | "/api/experimental/web_fetch" => {
            let unauthorized =
                json!({"error":"unauthorized","signin_url":"https://ollama.com/connect?name=x&key=owners-key"});
            job.full(json_answer(401, unauthorized.to_string()))
        }
        "/api/signout" => job.full(empty(200)),
        "/v1/models" => job.full(v1_answer(200, shapes::line(&shapes::v1_models(&models())))),
        _ if path.starts_with("/v1/models/") => {
            let name = path.trim_start_matches("/v1/models/");
            if let Some(objection) = names::objection(&path, name) {
                return job.full(objection);
            }
            match find(&models(), name) {
                Some(_) => job.full(v1_answer(200, shapes::line(&shapes::v1_model(name)))),
                None => job.full(fault(&path, 404, &format!("model '{name}' not found"))),
            }
        }
        _ if path.starts_with("/api/blobs/") => blob(shared, job, &path, request).await,
        "/v1/audio/transcriptions" => transcription(shared, job, &path, request).await,
        _ if path.starts_with("/fake/") => extra::fake(job, &path, request).await,
        _ => asked(shared, job, path, request).await,
    }
}

/// The routes that read JSON.
async fn asked(shared: Arc<Shared>, job: Job, path: String, mut request: Request<Incoming>) -> Answer {
    let mut body = Vec::new();
    let read = loop {
        if let Some(read) = Object::read(&body, true) {
            break read;
        }
        match request.body_mut().frame().await {
            Some(Ok(frame)) => body.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
            None => break Object::read(&body, false).unwrap(),
            Some(Err(_)) => {
                // The client went away in the middle of its request: nothing may act on what came.
                let _aborted = job.seen(&request, None, &body, false);
                return fault(&path, 400, "unexpected EOF");
            }
        }
    };
    let rest = after_rest(empty(200), request.body_mut(), false).await;
    let mut answer = with_object(shared, job, path, request, read, body).await;
    if let Some(close) = rest.headers().get(CONNECTION) {
        answer.headers_mut().insert(CONNECTION, close.clone());
    }
    answer
}

async fn with_object(
    shared: Arc<Shared>,
    job: Job,
    path: String,
    request: Request<Incoming>,
    read: Result<Object, Fault>,
    body: Vec<u8>,
) -> Answer {
    let complete = read.is_ok();
    let object = read.and_then(|object| Ok((object.text("model")?, object.text("name")?, object)));
    let (model, name, object) = match object {
        Ok(object) => object,
        Err(fault_) => {
            let message = match fault_ {
                Fault::Empty => "missing request body".to_owned(),
                Fault::Text(text) => text,
            };
            let mut answer = fault(&path, 400, &message);
            // Gin's own binding says so before Ollama's middleware sets another type.
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
            return job.seen(&request, None, &body, complete).full(answer);
        }
    };
    let by_name = matches!(path.as_str(), "/api/show" | "/api/pull" | "/api/push" | "/api/delete" | "/api/create");
    let model = if model.is_empty() && by_name { name } else { model };
    let job = job.seen(&request, Some(model.clone()), &body, true);
    if let Some(refusal) = refused_before(&path, &object) {
        return job.full(refusal);
    }
    if path != "/api/copy"
        && let Some(objection) = names::objection(&path, &model)
    {
        return job.full(objection);
    }
    let known = find(&shared.models.lock().unwrap(), &model);
    let unknown = |quote: char| fault(&path, 404, &format!("model {quote}{model}{quote} not found"));
    match path.as_str() {
        "/api/show" => match known {
            Some(known) => job.full(chunked("application/json; charset=utf-8", shapes::show(&known).to_string())),
            None => job.full(unknown('\'')),
        },
        "/api/delete" => match known {
            Some(known) => {
                shared.models.lock().unwrap().retain(|model| model.name != known.name);
                job.full(empty(200))
            }
            None => job.full(unknown('\'')),
        },
        "/api/copy" => {
            let (source, destination) =
                (object.text("source").unwrap_or_default(), object.text("destination").unwrap_or_default());
            for (which, name) in [("source", &source), ("destination", &destination)] {
                if !names::is_name(name) {
                    return job.full(fault(&path, 400, &format!("{which} {} is invalid", json_text(name))));
                }
            }
            let Some(known) = find(&shared.models.lock().unwrap(), &source) else {
                return job.full(fault(&path, 404, &format!("model \"{source}\" not found")));
            };
            shared.models.lock().unwrap().push(Model { name: canonical(&destination), loaded: false, ..known });
            job.full(empty(200))
        }
        "/api/create" => create(&shared, job, &model, &object),
        "/api/pull" => pull(shared, job, &model, object.get("stream") != Some(&json!(false))),
        "/api/push" => {
            lines(job, Duration::ZERO, vec![json!({"status":"retrieving manifest"}), json!({"status":"success"})])
        }
        "/api/embed" | "/api/embeddings" | "/v1/embeddings" => match known {
            Some(known) => embed(&shared, job, &path, &model, &known, &object).await,
            None => job.full(fault(&path, 404, &format!("model \"{model}\" not found, try pulling it first"))),
        },
        _ => {
            let dialect = Dialect::of(&path).expect("every other route is in the table");
            match known {
                Some(known) => say(shared, job, dialect, model, known, &object).await,
                None => job.full(unknown('\'')),
            }
        }
    }
}

/// What the middleware of `/v1` misses in a request, before anybody looks for the model.
fn refused_before(path: &str, object: &Object) -> Option<Answer> {
    let missing = |key| object.get(key).is_none_or(|value| *value == json!([]));
    let message = match path {
        "/v1/messages" if object.text("model").unwrap_or_default().is_empty() => "model is required",
        "/v1/chat/completions" | "/v1/messages" if missing("messages") => "[] is too short - 'messages'",
        "/v1/embeddings" if missing("input") => "invalid input",
        _ => return None,
    };
    Some(fault(path, 400, message))
}

/// What says words.
async fn say(
    shared: Arc<Shared>,
    mut job: Job,
    dialect: Dialect,
    model: String,
    known: Model,
    object: &Object,
) -> Answer {
    let settings = shared.settings.lock().unwrap().clone();
    let prompt = prompt(object);
    if prompt.is_empty() && !dialect.is_v1() {
        let unload = matches!(object.get("keep_alive"), Some(value) if *value == json!(0) || *value == json!("0s") || *value == json!("0"));
        if !unload {
            drop(slot(&shared, &known.name).await);
        }
        set_loaded(&shared, &known.name, !unload);
        let reason = if unload { "unload" } else { "load" };
        return job.full(json_answer(200, dialect.nothing(&model, reason)));
    }
    let content = Content::of(dialect, &known.name, &prompt, object);
    // What has an end of its own is said to that end.
    let (count, reason) = match (content.length(), asked_tokens(object)) {
        (Some(count), _) => (count, "stop"),
        (None, Some(count)) => (count, "length"),
        (None, None) => (settings.tokens, "stop"),
    };
    if settings.failing {
        return job.full(json_answer(
            500,
            json!({"error": "llama runner process has terminated: exit status 2"}).to_string(),
        ));
    }
    let asked = Instant::now();
    let slot = slot(&shared, &known.name).await;
    let load_ns = u64::try_from(slot.load.as_nanos()).unwrap_or(u64::MAX);
    let begun = Instant::now();
    pause(settings.prompt).await;
    // The first token comes with the prompt.
    let took = settings.measured.then(|| Took {
        asked,
        begun,
        prompt: begun.elapsed() + settings.pace,
        prompt_tokens: prompt.split_whitespace().count(),
    });
    let (durations, usage) = (settings.durations, wants_usage(object));
    let mut finish = Finish { reason, tokens: count, text: String::new(), load_ns, usage, took, durations };
    let streams = object.get("stream").and_then(Value::as_bool).unwrap_or(dialect.streams());
    if let Content::Call { name, arguments } = &content {
        return content::call(job, dialect, &model, name, arguments, finish, !streams);
    }
    if !streams {
        for _ in 0..count {
            pause(settings.pace).await;
            shared.counts.send_modify(|counts| counts.tokens += 1);
        }
        job.finish();
        finish.text = content.text(count);
        let body = dialect.whole(&model, &finish);
        return if dialect.is_v1() { v1_answer(200, body) } else { json_answer(200, body) };
    }
    // Nothing is sent before the first token is there: not even the head.
    pause(settings.pace).await;
    let stream = Words {
        shared,
        job,
        _slot: slot,
        dialect,
        model,
        content,
        finish,
        said: 0,
        break_after: settings.break_after,
        error_after: settings.error_after,
        pace: settings.pace,
    }
    .stream();
    let mut answer = streamed(dialect.stream_type(), stream);
    if dialect.has_event_headers() {
        answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    }
    answer
}

/// An answer that is being said.
struct Words {
    shared: Arc<Shared>,
    job: Job,
    _slot: Slot,
    dialect: Dialect,
    model: String,
    content: Content,
    finish: Finish,
    said: usize,
    break_after: Option<usize>,
    error_after: Option<usize>,
    pace: Duration,
}

impl Words {
    fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        let opening = self.dialect.opening(&self.model);
        let opening = stream::iter(opening.into_iter().map(|chunk| Ok(Bytes::from(chunk))));
        opening.chain(
            stream::unfold(Some(self), |words| async move {
                let mut words = words?;
                if words.break_after == Some(words.said) {
                    pause(FLUSH).await;
                    return Some((vec![Err(io::Error::other("a crash was asked for"))], None));
                }
                if words.error_after == Some(words.said) {
                    words.job.finish();
                    let line = shapes::line(&json!({"error":"an error was asked for"}));
                    return Some((vec![Ok(Bytes::from(line))], None));
                }
                if words.said == words.finish.tokens {
                    words.job.finish();
                    words.finish.text = words.content.text(words.said);
                    let closing = words.dialect.closing(&words.model, &words.finish);
                    return Some((closing.into_iter().map(|chunk| Ok(Bytes::from(chunk))).collect(), None));
                }
                if words.said > 0 {
                    pause(words.pace).await;
                }
                let said = words.content.token(words.said);
                let chunk = words.dialect.delta(&words.model, words.said, &said);
                words.said += 1;
                words.shared.counts.send_modify(|counts| counts.tokens += 1);
                Some((vec![Ok(Bytes::from(chunk))], Some(words)))
            })
            .flat_map(stream::iter),
        )
    }
}

async fn embed(shared: &Shared, mut job: Job, path: &str, model: &str, known: &Model, object: &Object) -> Answer {
    let texts: Vec<String> = match object.get("input").or(object.get("prompt")) {
        Some(Value::Array(texts)) => texts.iter().map(|text| text.as_str().unwrap_or_default().to_owned()).collect(),
        Some(Value::String(text)) if !text.is_empty() => vec![text.clone()],
        _ => Vec::new(),
    };
    drop(slot(shared, &known.name).await);
    job.finish();
    let vectors: Vec<_> = texts.iter().map(|text| shapes::embedding(&known.name, text)).collect();
    match path {
        "/api/embeddings" => {
            json_answer(200, json!({"embedding": vectors.first().cloned().unwrap_or_default()}).to_string())
        }
        "/api/embed" if vectors.is_empty() => json_answer(200, json!({"model":model,"embeddings":[]}).to_string()),
        "/api/embed" => {
            let body = json!({"model":model,"embeddings":vectors,"total_duration":51_044_807,"load_duration":16_738_409,"prompt_eval_count":texts.len()});
            chunked("application/json; charset=utf-8", body.to_string())
        }
        _ if vectors.is_empty() => fault(path, 500, "Failed to create new sequence: no input provided"),
        _ => {
            let base64 = object.get("encoding_format") == Some(&json!("base64"));
            let data: Vec<_> = vectors
                .iter()
                .enumerate()
                .map(|(i, vector)| {
                    let vector = if base64 { json!(content::base64(vector)) } else { json!(vector) };
                    json!({"object":"embedding","embedding":vector,"index":i})
                })
                .collect();
            v1_answer(
                200,
                shapes::line(
                    &json!({"object":"list","data":data,"model":model,"usage":{"prompt_tokens":1,"total_tokens":1}}),
                ),
            )
        }
    }
}

fn create(shared: &Shared, job: Job, model: &str, object: &Object) -> Answer {
    let from = object.text("from").unwrap_or_default();
    let files = object.get("files").and_then(Value::as_object).cloned().unwrap_or_default();
    if from.is_empty() && files.is_empty() {
        let mut answer =
            chunked("application/json", json!({"error":"neither 'from' or 'files' was specified"}).to_string());
        *answer.status_mut() = StatusCode::BAD_REQUEST;
        return job.full(answer);
    }
    let blobs = shared.blobs.lock().unwrap().clone();
    if let Some(absent) = files.values().filter_map(Value::as_str).find(|digest| !blobs.contains(*digest)) {
        return job.full(fault("/api/create", 400, &format!("blob {absent} not found")));
    }
    let mut models = shared.models.lock().unwrap();
    let name = canonical(model);
    models.retain(|model| model.name != name);
    models.push(Model::new(&name));
    let layer = format!("using existing layer sha256:{}", shapes::sha256(from.as_bytes()));
    lines(
        job,
        Duration::ZERO,
        vec![json!({"status":layer}), json!({"status":"writing manifest"}), json!({"status":"success"})],
    )
}

fn pull(shared: Arc<Shared>, job: Job, model: &str, streams: bool) -> Answer {
    let pace = shared.settings.lock().unwrap().pull_pace;
    let name = canonical(model);
    let pulled = Model::new(&name);
    let (digest, total) = (format!("sha256:{}", pulled.digest), pulled.size);
    let mut steps = vec![json!({"status":"pulling manifest"})];
    let status = format!("pulling {}", &pulled.digest[..12]);
    steps.extend((1..=8).map(|i| json!({"status":status,"digest":digest,"total":total,"completed":total * i / 8})));
    steps.extend(["verifying sha256 digest", "writing manifest", "success"].map(|status| json!({ "status": status })));
    let mut models = shared.models.lock().unwrap();
    if !models.iter().any(|model| model.name == name) {
        models.push(pulled);
    }
    drop(models);
    if streams { lines(job, pace, steps) } else { job.full(json_answer(200, json!({"status":"success"}).to_string())) }
}

async fn blob(shared: Arc<Shared>, job: Job, path: &str, mut request: Request<Incoming>) -> Answer {
    let digest = path.trim_start_matches("/api/blobs/").to_owned();
    let there = shared.blobs.lock().unwrap().contains(&digest);
    if request.method() == Method::HEAD {
        let absent = || fault(path, 404, &format!("blob \"{digest}\" not found"));
        return job.full(if there { empty(200) } else { absent() });
    }
    if there {
        discard(request.body_mut()).await;
        return job.seen(&request, None, b"", false).full(empty(200));
    }
    let Some((length, got)) = read(&job, request.body_mut(), true).await else {
        let _aborted = job;
        return empty(400);
    };
    let got = format!("sha256:{got}");
    let job = job.seen_as(&request, length, &got, true);
    if got != digest {
        return job.full(fault(path, 400, &format!("digest mismatch, expected \"{digest}\", got \"{got}\"")));
    }
    shared.blobs.lock().unwrap().insert(digest);
    job.full(empty(201))
}

/// What Go's server does with a body that its handler left unread before it answers: reads what is short, and does not
/// wait for what is long (`maxPostHandlerReadBytes` in net/http).
async fn discard(body: &mut Incoming) {
    const MOST: u64 = 256 << 10;
    let mut left = MOST;
    if body.size_hint().exact().is_some_and(|length| length >= MOST) {
        return;
    }
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        if length > left {
            return;
        }
        left -= length;
    }
}

/// The route that reads a form. What is in it is not looked at: it hears one word in everything.
async fn transcription(shared: Arc<Shared>, job: Job, path: &str, mut request: Request<Incoming>) -> Answer {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.starts_with("multipart/form-data") {
        let message = "failed to parse multipart form: request Content-Type isn't multipart/form-data";
        return job.full(fault(path, 400, message));
    }
    let Some((length, sum)) = read(&job, request.body_mut(), true).await else {
        let _aborted = job.seen(&request, None, b"", false);
        return empty(400);
    };
    shared.counts.send_modify(|counts| counts.tokens += 1);
    let heard = v1_answer(200, shapes::line(&json!({"text": "hello"})));
    job.seen_as(&request, length, &sum, true).full(heard)
}

/// A line of JSON now and then.
fn lines(job: Job, pace: Duration, lines: Vec<Value>) -> Answer {
    let stream = stream::unfold((lines.into_iter(), job), move |(mut lines, mut job)| async move {
        let Some(line) = lines.next() else {
            job.finish();
            return None;
        };
        pause(pace).await;
        Some((Ok(Bytes::from(shapes::line(&line))), (lines, job)))
    });
    streamed("application/x-ndjson", stream)
}

// What a request asks for.

fn canonical(name: &str) -> String {
    let name = name.trim().trim_start_matches("registry.ollama.ai/").trim_start_matches("library/");
    let tagged = name.rfind(':') > name.rfind('/');
    if tagged { name.to_owned() } else { format!("{name}:latest") }
}

fn find(models: &[Model], name: &str) -> Option<Model> {
    let wanted = canonical(name);
    models.iter().find(|model| model.name.eq_ignore_ascii_case(&wanted)).cloned()
}

/// What is asked: the prompt, the input, or the last message, and the images in it.
fn prompt(object: &Object) -> String {
    fn text(value: &Value) -> String {
        match value {
            Value::String(text) => text.clone(),
            Value::Array(parts) => parts.iter().map(|part| text(part.get("text").unwrap_or(&Value::Null))).collect(),
            _ => String::new(),
        }
    }
    let last = object.get("messages").and_then(Value::as_array).and_then(|messages| messages.last());
    let asked = object.get("prompt").or(object.get("input")).or(last.and_then(|message| message.get("content")));
    let images = last.or(object.get("input")).map(content::images).unwrap_or_default();
    let alone = object.get("images").map(|images| content::images(&json!({ "images": images }))).unwrap_or_default();
    asked.map(text).unwrap_or_default() + &images + &alone
}

fn asked_tokens(object: &Object) -> Option<usize> {
    let options = object.get("options").and_then(|options| options.get("num_predict"));
    let asked = options.or(object.get("max_tokens")).or(object.get("max_output_tokens"))?.as_u64()?;
    usize::try_from(asked).ok()
}

fn wants_usage(object: &Object) -> bool {
    object.get("stream_options").and_then(|options| options.get("include_usage")) == Some(&json!(true))
}
