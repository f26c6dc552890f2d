//! The look, by example and by property. What Go makes of the same bodies is in `go_vectors`.

use super::kept::MAX_STRING;
use super::*;
use proptest::prelude::*;

fn look(text: impl AsRef<[u8]>) -> Look {
    let mut look = Look::new();
    look.feed(text.as_ref());
    look
}

fn model(text: impl AsRef<[u8]>) -> Option<String> {
    look(text).model().map(|model| model.as_written().to_owned())
}

#[test]
fn the_model_is_found_wherever_it_stands() {
    for text in [
        r#"{"model":"m"}"#,
        r#"  {"a":1,"model" : "m","b":2}"#,
        r#"{"messages":[{"model":"x","content":"\"model\":\"y\""}],"o":{"model":"z"},"model":"m"}"#,
        r#"{"n":-1.5e+10,"t":true,"f":false,"z":null,"e":{},"l":[],"model":"m"}"#,
        r#"{"model":"m"} trailing {"model":"x"}"#,
        r#"{"name":"n","model":"m"}"#,
        r#"{"model":"m","name":""}"#,
    ] {
        assert_eq!(model(text).as_deref(), Some("m"), "{text}");
    }
}

#[test]
fn name_counts_where_model_is_absent_or_empty() {
    assert_eq!(model(r#"{"model":"","verbose":false,"name":"m"}"#).as_deref(), Some("m"));
    assert_eq!(model(r#"{"name":"m","model":""}"#).as_deref(), Some("m"));
    assert_eq!(model(r#"{"name":"m"}"#).as_deref(), Some("m"));
    assert_eq!(model(r#"{"name":"","model":""}"#), None);
    assert_eq!(model(r#"{"model":3,"nam":"m"}"#), None);
}

#[test]
fn keys_match_as_in_go() {
    for key in ["MODEL", "mOdEl", r"\u006dodel", r"\u004DODEL"] {
        assert_eq!(model(format!(r#"{{"{key}":"m"}}"#)).as_deref(), Some("m"), "{key}");
    }
    for key in ["model ", "mode", "models", r"mod\u0000el", r"\ud83dmodel", "mødel"] {
        assert_eq!(model(format!(r#"{{"{key}":"m"}}"#)), None, "{key}");
    }
    // The long s and the kelvin sign, plain and escaped.
    for doubled in [
        "{\"options\":{},\"option\u{17f}\":{}}",
        r#"{"options":{},"option\u017f":{}}"#,
        "{\"keep_alive\":1,\"\u{212a}EEP_ALIVE\":2}",
        r#"{"tools":[],"TOOL\u017F":[]}"#,
    ] {
        assert!(look(doubled).doubled().is_some(), "{doubled}");
    }
}

#[test]
fn the_last_one_wins_and_two_are_told() {
    let twice = look(r#"{"model":"a","Model":"b"}"#);
    assert_eq!((twice.model().unwrap().as_written(), twice.doubled()), ("b", Some(Key::Model)));
    // null leaves a Go string as it is.
    assert_eq!(model(r#"{"model":"a","model":null}"#).as_deref(), Some("a"));
    assert_eq!(look(r#"{"model":"a","x":{"model":"b"}}"#).doubled(), None);
    let both = look(r#"{"model":"a","name":"b"}"#);
    assert_eq!(both.doubled(), None);
    assert_eq!(both.names().map(|name| name.as_written().to_owned()).collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn what_is_not_unicode_is_replaced_as_go_does() {
    assert_eq!(model(r#"{"model":"a\ud83db"}"#).as_deref().map(|m| m.contains('\u{fffd}')), Some(true));
    assert_eq!(model(r#"{"model":"\ud83d\ude00"}"#).as_deref(), Some("\u{1f600}"));
    assert!(model(b"{\"model\":\"a\xffb\"}").unwrap().contains('\u{fffd}'));
    // A lone surrogate elsewhere, as JavaScript writes a cut emoji, breaks nothing.
    assert_eq!(model(r#"{"prompt":"\ud83d","a":"\ud83d","model":"m"}"#).as_deref(), Some("m"));
}

#[test]
fn what_is_no_json_object_is_broken_where_go_breaks_too() {
    for (text, at) in [
        ("{\"a\":\"\n\"}", 6),
        (r#"{"a":"\x"}"#, 7),
        (r#"{"a":"\u12g4"}"#, 10),
        (r#"{"a":01}"#, 6),
        (r#"{"a":+1}"#, 5),
        (r#"{"a":1,}"#, 7),
        (r#"{"a" 1}"#, 5),
        ("{'a':1}", 1),
        ("{a:1}", 1),
        (r#"{"a":tru}"#, 8),
        (r#"{"a":[1}"#, 7),
        ("[1]", 0),
        ("\u{feff}{}", 0),
        ("\"model\"", 7 - 1),
        ("hello", 0),
        ("\0\0\0\0\u{5}", 0),
    ] {
        assert_eq!(look(text).progress(), Progress::Broken { at }, "{text}");
    }
    assert_eq!(look(r#"{"model":"m""#).progress(), Progress::Open);
    assert_eq!(look("").progress(), Progress::Open);
}

#[test]
fn nesting_ends_where_go_ends_it() {
    let deep = |n: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(n), "]".repeat(n));
    assert_eq!(look(deep(9_999)).progress(), Progress::Complete);
    assert!(matches!(look(deep(10_000)).progress(), Progress::Broken { .. }));
}

#[test]
fn server_run_web_search_is_seen() {
    for text in [
        r#"{"tools":[{"name":"a"},{"type":"web_search_20250305","name":"web_search"}]}"#,
        r#"{"Tool\u017f":[{"TYPE":" Web_Search"}]}"#,
    ] {
        assert!(look(text).web_search(), "{text}");
    }
    for text in [
        r#"{"tools":[{"type":"function","function":{"name":"web_search"}}]}"#,
        r#"{"tools":[{"type":"function","function":{"type":"web_search"}}]}"#,
        r#"{"messages":[{"type":"web_search"}],"x":[{"type":"web_search"}]}"#,
    ] {
        assert!(!look(text).web_search(), "{text}");
    }
}

#[test]
fn memory_is_bounded_whatever_the_body() {
    let held = |look: &Look| {
        look.kept.capacity()
            + look.model.as_ref().map_or(0, String::capacity)
            + look.name.as_ref().map_or(0, String::capacity)
    };
    let mut long = Look::new();
    long.feed(br#"{"prompt":""#);
    for _ in 0..1024 {
        long.feed(&[b'x'; 4096]);
        long.feed(br#"\n\u0041\\"#);
    }
    long.feed(br#"","n":"#);
    for _ in 0..1024 {
        long.feed(&[b'7'; 4096]);
    }
    long.feed(br#","model":"m"}"#);
    assert_eq!(long.progress(), Progress::Complete);
    assert_eq!(long.model().unwrap().as_written(), "m");
    assert!(held(&long) <= 3 * MAX_STRING, "{}", held(&long));
    // The parser was shown the strings empty and the numbers short.
    assert!(long.parser.parsed_bytes() < 64, "{}", long.parser.parsed_bytes());

    let hidden = look(format!(r#"{{"model":"{}m:cloud"}}"#, " ".repeat(MAX_STRING)));
    assert!(hidden.overlong());
}

/// JSON texts with the keys that matter in many spellings, at many depths, some of them broken.
fn json() -> impl Strategy<Value = String> {
    let string = prop_oneof![
        Just("m"),
        Just("model"),
        Just("name"),
        Just("MODEL"),
        Just("tools"),
        Just("type"),
        Just("web_search_1"),
        Just(r"\u006dodel"),
        Just(r#"a\"b\\"#),
        Just("ſ"),
        Just(r"\ud83d"),
        Just(""),
        Just(r"\u00"),
    ]
    .prop_map(|text| format!("\"{text}\""));
    let leaf = prop_oneof![
        4 => string.clone(),
        1 => Just("null".to_owned()), 1 => Just("true".to_owned()),
        1 => "-?[0-9]{1,6}(\\.[0-9]{1,4})?(e[0-9]{1,2})?",
    ];
    let value = leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(" , "))),
            prop::collection::vec((string.clone(), inner), 0..5).prop_map(|fields| {
                let fields: Vec<_> = fields.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
                format!("{{{}}}", fields.join(","))
            }),
        ]
    });
    (value, "[ x}]{0,2}").prop_map(|(value, rest)| value + &rest)
}

fn summary(look: &Look) -> (bool, bool, Option<String>, Option<Key>, bool, bool) {
    let complete = look.progress() == Progress::Complete;
    let broken = matches!(look.progress(), Progress::Broken { .. });
    let model = look.model().map(|model| model.as_written().to_owned());
    (complete, broken, model, look.doubled(), look.web_search(), look.overlong())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_into_pieces_gives_the_same(text in json(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let bytes = text.as_bytes();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).chain([0, bytes.len()]).collect();
        cuts.sort_unstable();
        let mut pieces = Look::new();
        for cut in cuts.windows(2) {
            pieces.feed(&bytes[cut[0]..cut[1]]);
        }
        prop_assert_eq!(summary(&pieces), summary(&look(bytes)));
        let mut single = Look::new();
        for byte in bytes {
            single.feed(&[*byte]);
        }
        prop_assert_eq!(summary(&single), summary(&look(bytes)));
    }

    #[test]
    fn it_is_complete_exactly_where_serde_json_reads_an_object(text in json()) {
        // serde_json as a second opinion on the grammar; what it will not have, lone surrogates, is left out.
        prop_assume!(!text.contains("\\ud83d"));
        let mut values = serde_json::Deserializer::from_str(&text).into_iter::<serde_json::Value>();
        let value = values.next();
        let seen = look(&text);
        match value {
            Some(Ok(serde_json::Value::Object(object))) => {
                prop_assert_eq!(seen.progress(), Progress::Complete);
                if seen.doubled().is_none() {
                    let text = |wanted: &str| object.iter()
                        .find(|(key, _)| folded(key) == wanted)
                        .and_then(|(_, value)| value.as_str())
                        .filter(|text| !text.is_empty());
                    let found = seen.model().map(|m| m.as_written().to_owned());
                    prop_assert_eq!(found.as_deref(), text("model").or(text("name")));
                }
            }
            _ => prop_assert_ne!(seen.progress(), Progress::Complete),
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let _ = summary(&look(&bytes));
    }

    #[test]
    fn arbitrary_punctuation_never_panics(text in "[{}\\[\\]\",:\\\\u0-9a-eE.+ntrf -]{0,64}") {
        let _ = summary(&look(&text));
        let _ = summary(&look(format!("{{\"model\":{text}")));
    }
}
