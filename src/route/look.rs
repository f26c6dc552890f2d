//! An incremental look at a JSON body: what does it ask for, at the top level, as Go's `encoding/json` reads it.
//!
//! The grammar is [`actson`]'s, a push parser that takes a byte at a time. It would keep whole strings and numbers in
//! memory, so it is shown every string empty and every number short: [`Look`] follows the quotes and escapes itself,
//! keeps the raw bytes of the few strings that matter (bounded), and has `serde_json` undo their escapes. What is not
//! plainly part of a string or a run of digits goes to the parser, which is the only judge of the syntax.
//!
//! Memory: 4 KiB (`kept::MAX_STRING`) for the string under way, as much for each of four names, and a byte a level of
//! nesting up to `MAX_DEPTH`: some 32 KiB, whatever the body.

mod hidden;
mod keep_alive;
mod kept;
mod key;

use std::borrow::Cow;
use std::fmt;

use actson::feeder::JsonFeeder;
use actson::options::JsonParserOptionsBuilder;
use actson::{JsonEvent, JsonParser};

use super::ModelName;
use super::options::{Effect, option};
pub use hidden::Hidden;
use hidden::HiddenKeys;
use keep_alive::KeepAlive;
use kept::Kept;
pub use key::Key;
use key::folded;

/// Deepest nesting: `encoding/json` gives up beyond 10,000; one more is the parser's own bottom.
const MAX_DEPTH: usize = 10_001;

/// Digits in a row after which the parser has seen enough of them to be in a state that more digits do not change.
const ENOUGH_DIGITS: u8 = 2;

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
    /// Where the byte under way is, counted from the body's start.
    at: u64,
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
    /// What is made from it: one route reads this, another the next, and either could hide the other.
    from: Option<String>,
    source: Option<String>,
    seen: [u8; Key::ALL.len()],
    overlong: bool,
    web_search: bool,
    remote_host: bool,
    keep_alive: KeepAlive,
    hidden: HiddenKeys,
    /// Whether the last `prompt` says something.
    prompt: bool,
    /// Whether there is something in the last `messages`.
    messages: bool,
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
            at: 0,
            text: Text::Outside,
            kept: Kept::default(),
            digits: 0,
            depth: 0,
            began: false,
            key: None,
            tool_type: false,
            model: None,
            name: None,
            from: None,
            source: None,
            seen: [0; Key::ALL.len()],
            overlong: false,
            web_search: false,
            remote_host: false,
            keep_alive: KeepAlive::default(),
            hidden: HiddenKeys::default(),
            prompt: false,
            messages: false,
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
            self.at = self.fed + at as u64;
            let fed = match self.text {
                Text::Outside => self.outside(byte),
                _ => self.inside(byte),
            };
            if fed.is_err() {
                self.progress = Progress::Broken { at: self.at };
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

    /// Every name in it that is not empty: `model`, `name`, and what one is made from (`from`, `source`). Who must forbid
    /// looks at all of them.
    pub fn names(&self) -> impl Iterator<Item = ModelName> + '_ {
        let names = [&self.model, &self.name, &self.from, &self.source].into_iter().flatten();
        names.filter(|name| !name.is_empty()).map(|name| ModelName::new(name))
    }

    /// A key of the top level that decides what is run, and came twice.
    pub fn doubled(&self) -> Option<Key> {
        Key::ALL
            .into_iter()
            .filter(|key| key.is_single())
            .find(|key| self.seen.get(*key as usize).is_some_and(|times| *times > 1))
    }

    /// Whether `model` or `name` was longer than any name may be.
    pub fn overlong(&self) -> bool {
        self.overlong
    }

    /// Whether an element of `tools` is a web search that the server would run.
    pub fn web_search(&self) -> bool {
        self.web_search
    }

    /// Whether it says where a model runs: what `create` makes of that runs there, on the owner's account.
    pub fn remote_host(&self) -> bool {
        self.remote_host
    }

    /// Keys by which a request says how long its model stays in memory or how it is loaded, in their order.
    pub fn hidden(&self) -> &[Hidden] {
        self.hidden.keys()
    }

    /// Whether there are more of them than any honest request has, so that not all are known.
    pub fn hides_too_much(&self) -> bool {
        self.hidden.too_many()
    }

    /// An option that decides how the model is loaded, and came twice.
    pub fn doubled_option(&self) -> Option<&'static str> {
        self.hidden.doubled()
    }

    /// The context that is asked for (`num_ctx`), in tokens: whatever number was written, for it need be no whole one.
    pub fn context(&self) -> Option<f64> {
        self.hidden.context()
    }

    /// Whether what was fed may end in the last byte of a key that is to be [hidden](Self::hidden), so that it should not be
    /// passed on before more has come.
    pub fn may_end_in_hidden(&self) -> bool {
        let is_hidden = |key: Cow<'_, str>| match self.depth {
            1 => matches!(Key::matching(&key), Some(Key::KeepAlive | Key::Loading)),
            2 => self.key == Some(Key::Options) && !matches!(option(&key), Some((_, Effect::Answer))),
            _ => false,
        };
        self.progress == Progress::Open && self.text == Text::Plain && self.kept.text().is_some_and(is_hidden)
    }

    /// Whether Ollama's route at `path` takes this for the order to unload the model, once it is
    /// [`Progress::Complete`]: `keep_alive` is nothing, and so is what there would be to do.
    pub fn unloads(&self, path: &str) -> bool {
        self.is_order(path) && self.keep_alive.is_zero()
    }

    /// Whether Ollama's route at `path` takes this for the order to load the model or to unload it, once it is
    /// [`Progress::Complete`]: there is nothing to do.
    pub fn is_order(&self, path: &str) -> bool {
        let idle = match path {
            "/api/generate" => !self.prompt,
            "/api/chat" => !self.messages,
            _ => false,
        };
        idle && self.progress == Progress::Complete
    }

    fn named(&self) -> Option<&str> {
        [&self.model, &self.name].into_iter().flatten().map(String::as_str).find(|name| !name.is_empty())
    }

    /// A byte between strings.
    fn outside(&mut self, byte: u8) -> Result<(), Broken> {
        if self.depth == 1 && self.key == Some(Key::KeepAlive) {
            self.keep_alive.digit(byte);
        }
        if self.in_options() {
            self.hidden.digit(byte);
        }
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
            self.kept.begin(self.depth == 1 || self.in_options() || self.in_tool());
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
        if self.depth == 2 && self.key == Some(Key::Messages) {
            self.messages |= !matches!(event, JsonEvent::EndArray | JsonEvent::EndObject);
        }
        match event {
            JsonEvent::StartObject => {
                self.began = true;
                self.depth += 1;
            }
            // A list, a text or a number is no request.
            _ if self.depth == 0 => return Err(Broken),
            JsonEvent::StartArray => {
                self.messages &= self.depth != 1 || self.key != Some(Key::Messages);
                self.depth += 1;
            }
            JsonEvent::EndObject | JsonEvent::EndArray => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.progress = Progress::Complete;
                }
            }
            JsonEvent::FieldName if self.depth == 1 => self.field(),
            JsonEvent::FieldName if self.in_options() => {
                let spoiled = self.kept.spoiled();
                self.hidden.option(self.kept.text().as_deref(), self.at.saturating_sub(1), spoiled);
            }
            JsonEvent::ValueInt | JsonEvent::ValueFloat if self.in_options() => self.hidden.number(),
            JsonEvent::FieldName if self.in_tool() => {
                self.tool_type = self.kept.text().is_some_and(|key| folded(&key) == "type");
            }
            JsonEvent::ValueString if self.depth == 1 => self.value(),
            JsonEvent::ValueString if self.in_tool() && self.tool_type => {
                // Blanks and case more generously than Ollama has it.
                let search = |text: Cow<'_, str>| text.trim().to_lowercase().starts_with("web_search");
                self.web_search |= self.kept.is_overlong() || self.kept.text().is_some_and(search);
            }
            JsonEvent::ValueInt | JsonEvent::ValueFloat if self.depth == 1 && self.key == Some(Key::KeepAlive) => {
                self.keep_alive.number();
            }
            JsonEvent::ValueNull if self.depth == 1 && self.key == Some(Key::Messages) => self.messages = false,
            _ => {}
        }
        Ok(())
    }

    /// The name of a field at the top level, whose last quote is under way.
    fn field(&mut self) {
        self.key = self.kept.text().and_then(|key| Key::matching(&key));
        if let Some(times) = self.key.and_then(|key| self.seen.get_mut(key as usize)) {
            *times = times.saturating_add(1);
        }
        if self.key == Some(Key::KeepAlive) {
            self.keep_alive.begin();
        }
        if matches!(self.key, Some(Key::KeepAlive | Key::Loading)) {
            self.hidden.hide(self.at.saturating_sub(1), self.kept.spoiled());
        }
    }

    /// A text at the top level. (`null` leaves a Go string as it is; a number or a list is an error there.)
    fn value(&mut self) {
        let slot = match self.key {
            Some(Key::Model) => &mut self.model,
            Some(Key::Name) => &mut self.name,
            Some(Key::From) => &mut self.from,
            Some(Key::Source) => &mut self.source,
            Some(Key::RemoteHost) => {
                self.remote_host |= self.kept.text().is_none_or(|text| !text.is_empty());
                return;
            }
            Some(Key::KeepAlive) => return self.keep_alive.string(self.kept.text().as_deref()),
            Some(Key::Prompt) => {
                self.prompt = self.kept.text().is_none_or(|text| !text.is_empty());
                return;
            }
            _ => return,
        };
        match self.kept.text() {
            Some(text) => *slot = Some(text.into_owned()),
            None => self.overlong = true,
        }
    }

    /// Whether this is inside the top level's `options`.
    fn in_options(&self) -> bool {
        self.depth == 2 && self.key == Some(Key::Options)
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
mod go_vectors;
#[cfg(test)]
mod tests;
