//! What of a lodger's body reaches Ollama, by property: everything but `keep_alive`.

use bytes::Bytes;
use futures_util::{FutureExt as _, stream};
use http_body_util::StreamBody;
use proptest::prelude::*;
use serde_json::{Map, Value};

use super::*;
use crate::id::{Id, NodeName, Scope};
use crate::route::{Peeked, peek};

/// What comes out of the gate for a body that comes in these pieces, or what is objected to.
fn passed(path: &'static str, pieces: &[&[u8]], lodger: bool) -> Result<Vec<u8>, Refusal> {
    passed_within(None, path, pieces, lodger)
}

/// The same where this is the longest context that is lent.
fn passed_within(
    max_context: Option<u64>,
    path: &'static str,
    pieces: &[&[u8]],
    lodger: bool,
) -> Result<Vec<u8>, Refusal> {
    let frames: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
    let whole: usize = pieces.iter().map(|piece| piece.len()).sum();
    let body = StreamBody::new(stream::iter(frames)).boxed_unsync();
    let run = async {
        let Peeked { reader, body, seen } = peek(Reader::Json(Box::default()), body, None).await.unwrap();
        let inspector = Inspector {
            reader,
            ahead: seen as u64,
            json: true,
            uri: Uri::from_static(path),
            state: Arc::default(),
            lodger: lodger.then(|| Caller::Peer {
                id: Id::from_bytes([7; 32]),
                name: NodeName::lossy("laptop"),
                scope: Scope::Infer,
                trusted: false,
            }),
            max_context,
            ignored: Ignored::default(),
            progress: exchange::Progress::default(),
        };
        if let Some(refusal) = inspector.objection() {
            return Err(refusal);
        }
        let (mut body, mut objection) = inspect(body, inspector);
        let mut out = Vec::new();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => out.extend_from_slice(frame.data_ref().unwrap()),
                Err(_) => return Err(objection.try_recv().unwrap()),
            }
        }
        assert_eq!(out.len(), whole);
        Ok(out)
    };
    run.now_or_never().expect("nothing is waited for")
}

fn all_at_once(path: &'static str, text: &str) -> Result<String, Refusal> {
    passed(path, &[text.as_bytes()], true).map(|out| String::from_utf8(out).unwrap())
}

#[test]
fn one_byte_of_the_key_is_another_and_all_else_is_as_it_was() {
    for (written, sent) in [
        (r#"{"model":"m","keep_alive":-1,"prompt":"x"}"#, r#"{"model":"m","keep_aliv ":-1,"prompt":"x"}"#),
        (r#"{"KEEP_ALIVE" : "24h","model":"m"}"#, r#"{"KEEP_ALIV " : "24h","model":"m"}"#),
        (r#"{"model":"m","keep_aliv\u0065":0,"prompt":"x"}"#, r#"{"model":"m","keep_aliv\u0060":0,"prompt":"x"}"#),
        (r#"{"\u212aeep\u005fAlive":0,"input":"x"}"#, r#"{"\u212aeep\u005fAliv ":0,"input":"x"}"#),
        ("{\"\u{212a}eep_alive\":0,\"input\":\"x\"}", "{\"\u{212a}eep_aliv \":0,\"input\":\"x\"}"),
        // Not the one that counts.
        (
            r#"{"keep_alives":0,"x":{"keep_alive":0},"y":"keep_alive"}"#,
            r#"{"keep_alives":0,"x":{"keep_alive":0},"y":"keep_alive"}"#,
        ),
        (r#"{"prompt":"x"} {"keep_alive":0}"#, r#"{"prompt":"x"} {"keep_alive":0}"#),
    ] {
        assert_eq!(all_at_once("/api/embed", written).unwrap(), sent);
        // Whoever may say so says it.
        assert_eq!(passed("/api/embed", &[written.as_bytes()], false).unwrap(), written.as_bytes());
    }
}

#[test]
fn an_order_to_unload_is_refused_and_only_that() {
    let orders = [
        r#"{"model":"m","keep_alive":0}"#,
        r#"{"keep_alive":-0.0e7,"model":"m"}"#,
        r#"{"model":"m","keep_alive":"0"}"#,
        r#"{"model":"m","KEEP_ALIVE":"-0s","prompt":"","messages":[]}"#,
        r#"{"model":"m","keep_alive":"0h0.0m","messages":null,"prompt":"x","prompt":""}"#,
        r#"{"model":"m","\u212aeep_alive":"\u0030s"}"#,
    ];
    for order in orders {
        for path in ["/api/generate", "/api/chat"] {
            if path == "/api/chat" && order.contains(r#""prompt":"x""#) {
                continue;
            }
            let refusal = all_at_once(path, order).unwrap_err();
            assert_eq!(
                (refusal.code.status(), refusal.code),
                (http::StatusCode::FORBIDDEN, RefusalCode::Unload),
                "{path} {order}"
            );
            assert!(refusal.message.contains("ollana trust laptop --scope manage"), "{}", refusal.message);
            let single: Vec<_> = order.as_bytes().chunks(1).collect();
            assert_eq!(passed(path, &single, true).unwrap_err().code, RefusalCode::Unload);
            assert!(passed(path, &[order.as_bytes()], false).is_ok());
        }
    }
    for (path, other) in [
        ("/api/generate", r#"{"model":"m","keep_alive":0,"prompt":"x"}"#),
        ("/api/generate", r#"{"model":"m","keep_alive":0.5}"#),
        ("/api/generate", r#"{"model":"m","keep_alive":10}"#),
        ("/api/generate", r#"{"model":"m","keep_alive":-1}"#),
        ("/api/generate", r#"{"model":"m","keep_alive":"5m0s"}"#),
        ("/api/generate", r#"{"model":"m","keep_alive":""}"#),
        ("/api/generate", r#"{"model":"m","keep_alive":null}"#),
        ("/api/generate", r#"{"model":"m"}"#),
        ("/api/chat", r#"{"model":"m","keep_alive":0,"messages":[{"role":"user"}]}"#),
        ("/api/chat", r#"{"model":"m","messages":[[]],"keep_alive":0}"#),
        ("/api/embed", r#"{"model":"m","keep_alive":0}"#),
        ("/v1/completions", r#"{"model":"m","keep_alive":0}"#),
    ] {
        assert!(all_at_once(path, other).is_ok(), "{path} {other}");
    }
}

#[test]
fn how_a_model_is_loaded_is_not_for_a_lodger_to_say() {
    for (written, sent) in [
        (
            r#"{"model":"m","options":{"num_gpu":0,"seed":1,"num_thread":64,"num_ctx":4096},"prompt":"x"}"#,
            r#"{"model":"m","options":{"num_gp ":0,"seed":1,"num_threa ":64,"num_ctx":4096},"prompt":"x"}"#,
        ),
        (
            r#"{"OPTION\u017f":{"main_gp\u0075":1,"use_mmap" :false,"num_batc\u0068":1}}"#,
            r#"{"OPTION\u017f":{"main_gp\u007b":1,"use_mma " :false,"num_batc\u0060":1}}"#,
        ),
        // A key that is not known may count in another version; not one that is deeper or elsewhere, nor a value.
        (
            r#"{"options":{"NUM_GPU":1,"x":{"num_gpu":1},"stop":["num_gpu"],"seed":"num_gpu"},"num_gpu":1}"#,
            r#"{"options":{"NUM_GP ":1," ":{"num_gpu":1},"stop":["num_gpu"],"seed":"num_gpu"},"num_gpu":1}"#,
        ),
        (
            r#"{"options":{"draft_num_predict":8,"new_one6":1,"\u0041":1,"see\u0064":1,"a\"":1,"é":1,"":1},"prompt":"x"}"#,
            r#"{"options":{"draft_num_predic ":8,"new_one ":1,"\u0040":1,"see\u0064":1,"a\"":1,"é":1,"":1},"prompt":"x"}"#,
        ),
        // Of the top level, without case.
        (
            r#"{"shift":false,"model":"m","\u017fHIF\u0054":true,"Shift":1,"shifts":1,"x":{"shift":1},"think":true}"#,
            r#"{"shif ":false,"model":"m","\u017fHIF\u005b":true,"Shif ":1,"shifts":1,"x":{"shift":1},"think":true}"#,
        ),
        (r#"{"x":{"num_gpu":1},"options":[{"num_gpu":1}]}"#, r#"{"x":{"num_gpu":1},"options":[{"num_gpu":1}]}"#),
    ] {
        let written = written.as_bytes();
        let single: Vec<_> = written.chunks(1).collect();
        for pieces in [&[written][..], &single] {
            assert_eq!(String::from_utf8(passed("/api/embed", pieces, true).unwrap()).unwrap(), sent);
            assert_eq!(passed("/api/embed", pieces, false).unwrap(), written);
        }
    }
    let many = format!(r#"{{"options":{{{}"seed":1}},"prompt":"x"}}"#, r#""a":1,"#.repeat(257));
    assert_eq!(all_at_once("/api/embed", &many).unwrap_err().code, RefusalCode::Options);
    let twice = r#"{"options":{"num_gpu":1,"num_gp\u0075":2},"prompt":"x"}"#;
    assert_eq!(all_at_once("/api/embed", twice).unwrap_err().code, RefusalCode::DoubledKey);
}

#[test]
fn a_context_counts_as_far_as_it_is_lent() {
    let of = |number: &str| format!(r#"{{"model":"m","options":{{"num_ctx": {number} ,"seed":1}},"prompt":"x"}}"#);
    let within = |most, number: &str| passed_within(most, "/api/embed", &[of(number).as_bytes()], true);
    for number in ["1", "8192", "8192.0", "8.192e3", "-1", "null", "\"9999999\""] {
        assert_eq!(within(Some(8192), number).unwrap(), of(number).as_bytes(), "{number}");
    }
    let long = "1".repeat(100);
    for number in ["8193", "8192.5", "1e9", "8193e0", "00", &long] {
        match within(Some(8192), number) {
            Err(refusal) => assert_eq!(
                (refusal.code.status(), refusal.code),
                (http::StatusCode::FORBIDDEN, RefusalCode::Context),
                "{number}"
            ),
            // What is no JSON is for Ollama to say.
            Ok(_) => assert_eq!(number, "00"),
        }
        assert!(within(None, number).is_ok());
        // Whoever may change models may ask for what they like.
        assert!(passed_within(Some(1), "/api/embed", &[of(number).as_bytes()], false).is_ok());
    }
    let hidden = String::from_utf8(within(Some(0), "8192").unwrap()).unwrap();
    assert_eq!(hidden, of("8192").replace("num_ctx", "num_ct "));
}

/// A key of the top level in one of the spellings that Go takes for `keep_alive`.
fn keep_alive() -> impl Strategy<Value = String> {
    let spelled = |c: char| {
        let upper = c.to_ascii_uppercase();
        let mut spellings = vec![
            c.to_string(),
            upper.to_string(),
            format!("\\u{:04x}", u32::from(c)),
            format!("\\u{:04X}", u32::from(upper)),
        ];
        if c == 'k' {
            spellings.extend(["\u{212a}".to_owned(), "\\u212a".to_owned(), "\\u212A".to_owned()]);
        }
        prop::sample::select(spellings)
    };
    "keep_alive".chars().map(spelled).collect::<Vec<_>>().prop_map(|chars| chars.concat())
}

fn value() -> impl Strategy<Value = String> {
    let texts = [
        "0",
        "-1",
        "\"0s\"",
        "null",
        "\"keep_alive\"",
        "\"x\"",
        "{\"keep_alive\":0}",
        "[{\"keep_alive\":0},\"keep_alive\"]",
        "1.5e3",
        "\"\\u006b\\\"\"",
    ];
    prop::sample::select(texts.to_vec()).prop_map(str::to_owned)
}

/// An object with one such key or none, and the rest of the body.
fn body() -> impl Strategy<Value = String> {
    let keys = ["model", "prompt", "keep_alives", "keep_aliv", "eep_alive", "x", "keep_alive ", "\\u006beep"];
    let blank = || prop::sample::select(vec!["", "", " ", "\n\t"]);
    let field = (blank(), prop::sample::select(keys.to_vec()), blank(), value());
    let fields = prop::collection::btree_map("[a-z]", field, 0..5);
    let single = prop::option::of((any::<prop::sample::Index>(), keep_alive(), value()));
    (fields, single, prop::sample::select(vec!["", " ", "{\"keep_alive\":0}"])).prop_map(|(fields, single, rest)| {
        let mut seen = Vec::new();
        let mut texts: Vec<String> = Vec::new();
        for (before, key, after, value) in fields.into_values() {
            if !seen.contains(&key) {
                seen.push(key);
                texts.push(format!("{before}\"{key}\"{after}:{value}{after}"));
            }
        }
        if let Some((at, key, value)) = single {
            texts.insert(at.index(texts.len() + 1), format!("\"{key}\":{value}"));
        }
        format!("{{{}}}{rest}", texts.join(","))
    })
}

/// As Go compares keys.
fn folded(key: &str) -> String {
    key.replace('\u{212a}', "k").replace('\u{17f}', "s").to_ascii_lowercase()
}

fn object(text: &[u8]) -> Map<String, Value> {
    let value = serde_json::Deserializer::from_slice(text).into_iter().next().unwrap().unwrap();
    let Value::Object(object) = value else { panic!("an object") };
    object
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_spelling_and_no_split_lets_keep_alive_through(text in body(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8), singly in any::<bool>()) {
        let bytes = text.as_bytes();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
        if singly {
            cuts = (0..=bytes.len()).collect();
        }
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        let out = passed("/api/embed", &pieces, true).unwrap();

        let (before, after) = (object(bytes), object(&out));
        prop_assert!(after.keys().all(|key| folded(key) != "keep_alive"));
        let others = |object: &Map<String, Value>| -> Vec<(String, Value)> {
            object.iter().filter(|(key, _)| !["keep_alive", "keep_aliv ", "keep_aliv`", "keep_aliv@"].contains(&folded(key).as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        prop_assert_eq!(others(&before), others(&after));
        let changed: Vec<_> = bytes.iter().zip(&out).filter(|(a, b)| a != b).collect();
        prop_assert_eq!(changed.len(), before.keys().filter(|key| folded(key) == "keep_alive").count());
        prop_assert!(changed.iter().all(|(_, new)| matches!(**new, b' ' | b'0')));
    }

    #[test]
    fn no_body_is_longer_or_shorter_for_it(bytes in prop::collection::vec(any::<u8>(), 0..64), cut in any::<prop::sample::Index>()) {
        for text in [bytes.clone(), [b"{\"keep_alive", bytes.as_slice()].concat(), [b"{\"keep_alive\":", bytes.as_slice()].concat()] {
            let at = cut.index(text.len() + 1);
            let _ = passed("/api/generate", &[&text[..at], &text[at..]], true);
        }
    }
}
