//! Requests put together from pieces, the likely and the odd: what one connection says, from one request to a few.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::Union;

use super::cases::MODEL;
use super::wire::Script;

/// What a connection says. Smaller ones have fewer requests, fewer fields and plainer pieces: that is how a difference
/// shrinks to what makes it.
pub fn conversation() -> impl Strategy<Value = Script> {
    let pipelined = vec(request(true), 1..4).prop_map(|requests| Script::pipelined(&requests));
    let in_turn = vec(request(true), 2..4).prop_map(|requests| Script::in_turn(&requests));
    // What closes the connection, or may, stands alone.
    let alone = request(false).prop_map(Script::one);
    prop_oneof![3 => alone, 2 => pipelined, 1 => in_turn]
}

/// The request line's version and what a connection is told about itself.
fn version(lives: bool) -> BoxedStrategy<(&'static str, &'static str)> {
    let kept = select(vec![
        ("HTTP/1.1", ""),
        ("HTTP/1.1", "Connection: keep-alive\r\n"),
        ("HTTP/1.1", "Connection: x-mine\r\n"),
    ]);
    if lives {
        return kept.boxed();
    }
    let closed = select(vec![
        ("HTTP/1.1", "Connection: close\r\n"),
        ("HTTP/1.0", ""),
        ("HTTP/1.0", "Connection: keep-alive\r\n"),
        ("HTTP/1.1", "Connection: Upgrade\r\nUpgrade: h2c\r\n"),
    ]);
    prop_oneof![kept, closed].boxed()
}

fn method() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        8 => select(vec!["POST", "GET"]),
        2 => select(vec!["HEAD", "DELETE", "PUT", "OPTIONS", "PATCH", "FROB"]),
    ]
}

fn target() -> impl Strategy<Value = String> {
    let routes = select(vec![
        "/api/version",
        "/api/chat",
        "/api/generate",
        "/api/show",
        "/api/embed",
        "/api/embeddings",
        "/api/tags",
        "/api/ps",
        "/",
        "/v1/models",
        "/v1/models/smollm2",
        "/v1/models/nope",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
        "/api/nope",
        "/nope",
    ]);
    let segment =
        select(vec!["api", "v1", "tags", "chat", "version", "models", ".", "..", "", "x", "%74ags", "a%20b", "API"]);
    let odd = vec(segment, 0..5).prop_map(|segments| format!("/{}", segments.join("/")));
    let path = prop_oneof![6 => routes.prop_map(str::to_owned), 1 => odd];
    let query = select(vec!["", "", "", "?", "?x=1", "?a=b&c=%20", "?%zz"]);
    let front = select(vec!["", "", "", "", "http://127.0.0.1", "http://127.0.0.1:1"]);
    (front, path, query).prop_map(|(front, path, query)| format!("{front}{path}{query}"))
}

fn host() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        6 => Just("127.0.0.1"),
        1 => select(vec!["localhost", "LOCALHOST:11434", "[::1]:1", "x.local", "", "evil.example", "8.8.8.8:80", "10.0.0.1"]),
    ]
}

fn field() -> impl Strategy<Value = String> {
    let known = select(vec![
        "Accept: */*",
        "Accept-Encoding: gzip",
        "User-Agent: ollama/0.24.0 (amd64 linux) Go/go1.26.8",
        "Authorization: Bearer ollama",
        "Origin: http://localhost:3000",
        "Origin: https://evil.example",
        "Origin: app://x",
        "Origin: null",
        "Cookie: a=b; c=d",
        "Referer: http://localhost/",
        "TE: trailers",
        "X-Forwarded-For: 1.2.3.4",
        "X-Stainless-Arch: x64",
        "Range: bytes=0-3",
        "If-None-Match: *",
        "X-Empty:",
        "x-mine: 1",
        "X-Twice: 1\r\nX-Twice: 2",
        "Content-Type: text/plain",
        "Content-Type: application/json; charset=utf-8",
        "Access-Control-Request-Method: POST",
        "Keep-Alive: timeout=5",
        "Priority: u=1",
    ]);
    let odd = ("[a-z][a-z0-9-]{0,8}", "[ -~é]{0,12}").prop_map(|(name, value)| format!("X-{name}: {value}"));
    prop_oneof![4 => known.prop_map(str::to_owned), 1 => odd]
}

/// A body as it is sent: the fields that announce it, and the bytes.
fn body() -> impl Strategy<Value = (String, Vec<u8>)> {
    let none = Just((String::new(), Vec::new()));
    let by_length = content().prop_map(|body| (format!("Content-Length: {}\r\n", body.len()), body));
    let in_chunks = (content(), 1usize..40, select(vec!["", ";x=y"]), select(vec!["", "X-Sum: 1\r\n"]));
    let in_chunks = in_chunks.prop_map(|(body, cut, extension, trailer)| {
        let mut sent = Vec::new();
        for chunk in body.chunks(cut) {
            sent.extend(format!("{:x}{extension}\r\n", chunk.len()).into_bytes());
            sent.extend(chunk);
            sent.extend(b"\r\n");
        }
        sent.extend(format!("0\r\n{trailer}\r\n").into_bytes());
        ("Transfer-Encoding: chunked\r\n".to_owned(), sent)
    });
    prop_oneof![2 => none, 5 => by_length, 2 => in_chunks]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let odd = select(vec![
        "",
        "  ",
        "{}",
        "null",
        "{",
        "nonsense",
        "{\"model\":\"smollm2\"",
        "{\"model\":\"smollm2\",}",
        "{\"model\":3}",
        "{\"model\":null}",
        "\u{feff}{}",
    ]);
    prop_oneof![1 => odd.prop_map(|text| text.as_bytes().to_vec()), 6 => object()]
}

/// For every route in its own words.
const SHORT: &str = r#""options":{"num_predict":2,"seed":1,"temperature":0},"max_tokens":2,"max_output_tokens":2,"seed":1,"temperature":0"#;

/// An object with a model in it, perhaps, and what may stand beside it.
fn object() -> impl Strategy<Value = Vec<u8>> {
    let name = prop_oneof![
        6 => Just(MODEL),
        2 => select(vec!["smollm2:latest", "SMOLLM2", "library/smollm2", "nope", "nope:x", "!", "", " "]),
    ];
    let key = select(vec!["model", "model", "model", "name", "Model", "m\\u006fdel"]);
    let model = (key, name).prop_map(|(key, name)| {
        // See `allowed`: a wrong name is the only fault, and stands where every route reads it.
        let key = if name == MODEL || key != "name" { key } else { "model" };
        let whole = if name == MODEL { "" } else { r#","messages":[{"role":"user","content":"x"}],"input":"x""# };
        format!("\"{key}\":\"{name}\"{whole}")
    });
    let other = select(vec![
        r#""messages":[{"role":"user","content":"x"}]"#,
        r#""messages":[]"#,
        r#""prompt":"x""#,
        r#""input":"x""#,
        r#""input":["x","y"]"#,
        r#""stream":false"#,
        r#""stream":true"#,
        r#""keep_alive":"5m""#,
        r#""unknown":{"model":"nope","x":[1,2,{"name":"nope"}]}"#,
        r#""system":"é\u00e9\n""#,
    ]);
    let more = proptest::collection::btree_set(other, 0..5);
    let blank = select(vec!["", " ", "\n"]);
    let behind = select(vec!["", "", "", "\n", " {\"model\":\"nope\"}", "}}"]);
    (proptest::option::weighted(0.9, model), more, any::<bool>(), blank, behind).prop_map(
        |(model, more, first, blank, behind)| {
            // Two values for one key are a 400 at a gate, whatever Ollama makes of them.
            let mut keys = std::collections::BTreeSet::new();
            if model.as_ref().is_some_and(|model| model.contains("messages")) {
                keys.extend(["\"messages\"", "\"input\""]);
            }
            let more = more.into_iter().filter(|pair| keys.insert(pair.split(':').next().unwrap_or_default()));
            let mut pairs: Vec<_> = more.map(str::to_owned).collect();
            let at = if first { 0 } else { pairs.len() };
            if let Some(model) = model {
                pairs.insert(at, model);
            }
            // Answers are short and the same each time.
            pairs.push(SHORT.to_owned());
            format!("{blank}{{{blank}{}}}{behind}", pairs.join(&format!(",{blank}"))).into_bytes()
        },
    )
}

fn request(lives: bool) -> impl Strategy<Value = Vec<u8>> {
    let fields = Union::new([vec(field(), 0..5)]);
    (method(), target(), host(), version(lives), fields, body()).prop_map(
        |(method, target, host, (version, connection), fields, (announced, body))| {
            // A type of its own only if none is there: two of them are another story, told in the table.
            let mut seen = false;
            let fields =
                fields.iter().filter(|field| !field.starts_with("Content-Type") || !std::mem::replace(&mut seen, true));
            let fields: String = fields.map(|field| format!("{field}\r\n")).collect();
            // What Go's mux redirects never comes to Ollama's guards. A node's stand before all paths, since behind them may
            // be another server than Ollama.
            let redirected = !is_clean(&target);
            let host = if redirected { "127.0.0.1" } else { host };
            let fields = if redirected {
                fields.split_inclusive('\n').filter(|field| !field.starts_with("Origin")).collect()
            } else {
                fields
            };
            // HTTP/1.0 knows no chunks.
            let (announced, body) = if version == "HTTP/1.0" && announced.contains("chunked") {
                (String::new(), Vec::new())
            } else {
                (announced, body)
            };
            let mut request =
                format!("{method} {target} {version}\r\nHost: {host}\r\n{connection}{fields}{announced}\r\n")
                    .into_bytes();
            request.extend(body);
            request
        },
    )
}

/// Whether Go's mux takes a target as it is.
fn is_clean(target: &str) -> bool {
    let path = target.split('?').next().unwrap_or_default();
    let path = path.strip_prefix("http://").map_or(path, |rest| rest.find('/').map_or("/", |slash| &rest[slash..]));
    let inner = path.trim_end_matches('/');
    !path.ends_with("//")
        && (inner.is_empty() || inner.split('/').skip(1).all(|segment| !["", ".", ".."].contains(&segment)))
}
