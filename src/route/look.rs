//! An incremental look at a JSON body: what does it ask for, at the top level, as Go's `encoding/json` reads it.
//!
//! The grammar is [`actson`]'s, a push parser that takes a byte at a time. It would keep whole strings and numbers in
//! memory, so it is shown every string empty and every number short: [`Look`] follows the quotes and escapes itself,
//! keeps the raw bytes of the few strings that matter (bounded), and has `serde_json` undo their escapes. What is not
//! plainly part of a string or a run of digits goes to the parser, which is the only judge of the syntax.
//!
//! Memory: [`MAX_STRING`] for the string under way, as much for each of `model` and `name`, and a byte a level of
//! nesting up to [`MAX_DEPTH`]: some 24 KiB, whatever the body.

use std::borrow::Cow;
use std::fmt;

use actson::feeder::JsonFeeder;
use actson::options::JsonParserOptionsBuilder;
use actson::{JsonEvent, JsonParser};
use serde::Deserializer as _;
use serde::de::Visitor;

use super::ModelName;

/// Longest string that is kept, in bytes as written. A name has at most 350 + 3 · 80 characters to Ollama, and an
/// escape makes six bytes of one; what is longer is no name, unless blanks hide one, and so is an error at the gate.
const MAX_STRING: usize = 4096;

/// Deepest nesting: `encoding/json` gives up beyond 10,000; one more is the parser's own bottom.
const MAX_DEPTH: usize = 10_001;

/// Digits in a row after which the parser has seen enough of them to be in a state that more digits do not change.
const ENOUGH_DIGITS: u8 = 2;

/// The keys of the top level that decide what a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// `model`
    Model,
    /// `name`: the model, where `model` is absent or empty.
    Name,
    /// `keep_alive`
    KeepAlive,
    /// `options`
    Options,
    /// `tools`
    Tools,
}

/// How far a [`Look`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The value goes on.
    Open,
    /// The top-level value is over; Ollama ignores what follows, and so does the look.
    Complete,
    /// Not JSON, or not an object: Ollama does nothing with it but say so.
    Broken {
        /// Where the offending byte is, counted from the body's start.
        at: u64,
    },
}

/// The look itself. Feed it the body in any pieces.
pub struct Look {
    parser: JsonParser<Slot>,
    progress: Progress,
    /// Bytes fed, up to where it ended.
    fed: u64,
    text: Text,
    kept: Kept,
    digits: u8,
    depth: usize,
    began: bool,
    /// The key at depth 1 whose value is under way.
    key: Option<Key>,
    /// Whether the value under way is that of `type` in an element of `tools`.
    tool_type: bool,
    model: Option<String>,
    name: Option<String>,
    seen: [u8; 5],
    overlong: bool,
    web_search: bool,
}

/// Where in a string the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    /// In none.
    Outside,
    /// Among its characters.
    Plain,
    /// Behind a backslash.
    Escape,
    /// Behind `\u` and so many hexadecimal digits.
    Hex(u8),
}

/// The raw bytes of the string under way, if anybody may want it.
#[derive(Default)]
struct Kept {
    wanted: bool,
    overlong: bool,
    raw: Vec<u8>,
}

/// The parser's input: one byte at a time.
#[derive(Default)]
struct Slot(Option<u8>);

// === impl Look ===

impl Look {
    /// A look at a body of which nothing was read.
    pub fn new() -> Self {
        let options = JsonParserOptionsBuilder::default().with_max_depth(MAX_DEPTH).build();
        Self {
            parser: JsonParser::new_with_options(Slot::default(), options),
            progress: Progress::Open,
            fed: 0,
            text: Text::Outside,
            kept: Kept::default(),
            digits: 0,
            depth: 0,
            began: false,
            key: None,
            tool_type: false,
            model: None,
            name: None,
            seen: [0; 5],
            overlong: false,
            web_search: false,
        }
    }

    /// Reads on. Once it is [`Progress::Complete`] or [`Progress::Broken`] nothing changes any more.
    pub fn feed(&mut self, piece: &[u8]) -> Progress {
        if self.progress != Progress::Open {
            return self.progress;
        }
        let mut at = 0;
        while let Some(&byte) = piece.get(at) {
            if self.text == Text::Plain {
                let rest = piece.get(at..).unwrap_or_default();
                let plain = plain_run(rest);
                if plain > 0 {
                    self.kept.push(rest.get(..plain).unwrap_or_default());
                    at += plain;
                    continue;
                }
            }
            let fed = match self.text {
                Text::Outside => self.outside(byte),
                _ => self.inside(byte),
            };
            if fed.is_err() {
                self.progress = Progress::Broken { at: self.fed + at as u64 };
            }
            if self.progress != Progress::Open {
                return self.progress;
            }
            at += 1;
        }
        self.fed += piece.len() as u64;
        Progress::Open
    }

    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether this began as an object, or may yet: if not, it is no attempt at JSON that asks for anything.
    pub fn may_ask(&self) -> bool {
        self.began || self.progress == Progress::Open
    }

    /// The model Ollama would take if the body ended here: `model`, or `name` where that is absent or empty.
    pub fn model(&self) -> Option<ModelName> {
        self.named().map(ModelName::new)
    }

    /// Whether a `model` that is not empty has come, so that `name` no longer matters.
    pub fn has_model(&self) -> bool {
        self.model.as_deref().is_some_and(|model| !model.is_empty())
    }

    /// Both of `model` and `name`, whichever are there and not empty: who must forbid looks at either.
    pub fn names(&self) -> impl Iterator<Item = ModelName> + '_ {
        [&self.model, &self.name].into_iter().flatten().filter(|name| !name.is_empty()).map(|name| ModelName::new(name))
    }

    /// A key of the top level that came twice.
    pub fn doubled(&self) -> Option<Key> {
        Key::ALL.into_iter().find(|key| self.seen.get(*key as usize).is_some_and(|times| *times > 1))
    }

    /// Whether `model` or `name` was longer than any name may be.
    pub fn overlong(&self) -> bool {
        self.overlong
    }

    /// Whether an element of `tools` is a web search that the server would run.
    pub fn web_search(&self) -> bool {
        self.web_search
    }

    fn named(&self) -> Option<&str> {
        [&self.model, &self.name].into_iter().flatten().map(String::as_str).find(|name| !name.is_empty())
    }

    /// A byte between strings.
    fn outside(&mut self, byte: u8) -> Result<(), Broken> {
        if byte.is_ascii_digit() {
            // The parser has seen two digits running and would only go on where it is, keeping each.
            if self.digits >= ENOUGH_DIGITS {
                return Ok(());
            }
            self.digits += 1;
        } else {
            self.digits = 0;
        }
        self.parse(byte)?;
        if byte == b'"' {
            self.text = Text::Plain;
            self.kept.begin(self.depth == 1 || self.in_tool());
        }
        Ok(())
    }

    /// A byte in a string that is not a plain character.
    fn inside(&mut self, byte: u8) -> Result<(), Broken> {
        self.text = match (self.text, byte) {
            (Text::Plain, b'"') => {
                self.text = Text::Outside;
                return self.parse(byte);
            }
            (Text::Plain, b'\\') => Text::Escape,
            (Text::Escape, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Text::Plain,
            (Text::Escape, b'u') => Text::Hex(0),
            (Text::Hex(3), digit) if digit.is_ascii_hexdigit() => Text::Plain,
            (Text::Hex(n), digit) if digit.is_ascii_hexdigit() => Text::Hex(n + 1),
            // A control character, or an escape that is none.
            _ => return Err(Broken),
        };
        self.kept.push(&[byte]);
        Ok(())
    }

    fn parse(&mut self, byte: u8) -> Result<(), Broken> {
        self.parser.feeder.0 = Some(byte);
        loop {
            match self.parser.next_event() {
                Ok(Some(JsonEvent::NeedMoreInput)) => return Ok(()),
                Ok(Some(event)) => self.event(event)?,
                Ok(None) | Err(_) => return Err(Broken),
            }
            if self.progress != Progress::Open {
                return Ok(());
            }
        }
    }

    fn event(&mut self, event: JsonEvent) -> Result<(), Broken> {
        match event {
            JsonEvent::StartObject => {
                self.began = true;
                self.depth += 1;
            }
            // A list, a text or a number is no request.
            _ if self.depth == 0 => return Err(Broken),
            JsonEvent::StartArray => self.depth += 1,
            JsonEvent::EndObject | JsonEvent::EndArray => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.progress = Progress::Complete;
                }
            }
            JsonEvent::FieldName if self.depth == 1 => {
                self.key = self.kept.text().and_then(|key| Key::matching(&key));
                if let Some(times) = self.key.and_then(|key| self.seen.get_mut(key as usize)) {
                    *times = times.saturating_add(1);
                }
            }
            JsonEvent::FieldName if self.in_tool() => {
                self.tool_type = self.kept.text().is_some_and(|key| folded(&key) == "type");
            }
            JsonEvent::ValueString if self.depth == 1 => self.value(),
            JsonEvent::ValueString if self.in_tool() && self.tool_type => {
                // Blanks and case more generously than Ollama has it.
                let search = |text: Cow<'_, str>| text.trim().to_lowercase().starts_with("web_search");
                self.web_search |= self.kept.overlong || self.kept.text().is_some_and(search);
            }
            _ => {}
        }
        Ok(())
    }

    /// A text at the top level. (`null` leaves a Go string as it is; a number or a list is an error there.)
    fn value(&mut self) {
        let slot = match self.key {
            Some(Key::Model) => &mut self.model,
            Some(Key::Name) => &mut self.name,
            _ => return,
        };
        match self.kept.text() {
            Some(text) => *slot = Some(text.into_owned()),
            None => self.overlong = true,
        }
    }

    /// Whether this is inside an element of the top level's `tools`.
    fn in_tool(&self) -> bool {
        self.depth == 3 && self.key == Some(Key::Tools)
    }
}

impl Default for Look {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Look {
    /// Without what was read: that is somebody's prompt.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Look").field("progress", &self.progress).finish_non_exhaustive()
    }
}

// === impl Key ===

impl Key {
    const ALL: [Self; 5] = [Self::Model, Self::Name, Self::KeepAlive, Self::Options, Self::Tools];

    /// As it is usually written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Name => "name",
            Self::KeepAlive => "keep_alive",
            Self::Options => "options",
            Self::Tools => "tools",
        }
    }

    fn matching(key: &str) -> Option<Self> {
        // Five keys of at most ten characters, of at most three bytes each.
        if key.len() > 30 {
            return None;
        }
        let key = folded(key);
        Self::ALL.into_iter().find(|k| k.as_str() == key)
    }
}

/// A key as `encoding/json` compares it: simple case folding, by which the long s is an s and the kelvin sign a k.
fn folded(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            c => c.to_ascii_lowercase(),
        })
        .collect()
}

// === impl Kept ===

impl Kept {
    fn begin(&mut self, wanted: bool) {
        self.wanted = wanted;
        self.overlong = false;
        self.raw.clear();
    }

    fn push(&mut self, bytes: &[u8]) {
        if !self.wanted || self.overlong {
            return;
        }
        if self.raw.len() + bytes.len() > MAX_STRING {
            self.overlong = true;
        } else {
            self.raw.extend_from_slice(bytes);
        }
    }

    /// The string with its escapes undone, what is not Unicode in it replaced as Go does; nothing if it was too long.
    fn text(&self) -> Option<Cow<'_, str>> {
        if self.overlong {
            return None;
        }
        if !self.raw.contains(&b'\\') {
            return Some(String::from_utf8_lossy(&self.raw));
        }
        let mut quoted = Vec::with_capacity(self.raw.len() + 2);
        quoted.push(b'"');
        quoted.extend_from_slice(&self.raw);
        quoted.push(b'"');
        // As bytes, since as a text serde_json refuses lone surrogates, which Go replaces.
        let bytes = serde_json::Deserializer::from_slice(&quoted).deserialize_bytes(Unescaped).ok()?;
        Some(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

struct Unescaped;

impl<'de> Visitor<'de> for Unescaped {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        if bytes.len() > MAX_STRING { Err(E::custom("too long")) } else { Ok(bytes.to_vec()) }
    }
}

// === impl Slot ===

impl JsonFeeder for Slot {
    fn has_input(&self) -> bool {
        self.0.is_some()
    }

    fn is_done(&self) -> bool {
        false
    }

    fn next_input(&mut self) -> Option<u8> {
        self.0.take()
    }
}

struct Broken;

/// How many bytes from here on are plain characters of a string.
fn plain_run(bytes: &[u8]) -> usize {
    // memchr first: base64 of images makes runs of megabytes, where the check for control characters is one pass.
    let end = memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
    let run = bytes.get(..end).unwrap_or_default();
    run.iter().position(|byte| *byte < b' ').unwrap_or(end)
}

#[cfg(test)]
mod tests {
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
            look.kept.raw.capacity()
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
}
