//! What the frames of the control stream hold: JSON, so that a later version can add fields.
//!
//! The node that dialled says [`Hello`]; the other answers with its own, or with [`Refused`] and the reason. After that
//! the answering side sends a [`Report`] at once and on each change, and its [`Load`] on each change and as a heartbeat.
//! Beside that both may deal with trust ([`Dealing`]), and the dialler may ask for whom the other vouches ([`Vouching`]).

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::dealing::Dealing;
use super::frame::{self, FrameError, Kind, MAX_LOAD, MAX_REPORT};
use super::vouching::Vouching;
use crate::exchange::{Load, Report, Residence};
use crate::id::{Instance, NodeName};

/// The version of the protocol this program speaks.
pub const PROTOCOL: u16 = 1;
/// The oldest version it still understands.
pub const OLDEST_PROTOCOL: u16 = 1;

/// Longest version of a program that is kept.
const MAX_VERSION: usize = 32;
/// Models of one report that are kept: as many as fit into a frame with names and digests of the usual length. Without a
/// bound, 1 MiB of one-letter names would become some 20 MiB here.
const MAX_MODELS: usize = 8192;
/// Longest name of a model: host, namespace, model and tag of 80 or 350 bytes at most
/// ([Ollama's `types/model/name.go`](https://github.com/ollama/ollama/blob/main/types/model/name.go)).
const MAX_MODEL_NAME: usize = 640;
/// Most requests that can wait for one model: more than a gate has room for.
const MAX_QUEUED: f32 = 1e6;
/// Bytes of a report or load beside its models, and to spare.
const REST: usize = 1024;
/// Longest digest: SHA-512 in hexadecimal, and the algorithm's name.
const MAX_DIGEST: usize = 160;

/// Who speaks, and which versions of the protocol it understands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The newest version of the protocol it speaks.
    pub protocol: u16,
    /// The oldest version it understands.
    pub oldest_protocol: u16,
    /// The name it wants to be called by.
    pub name: NodeName,
    /// Which run of the program it is.
    pub instance: Instance,
    /// The program's own version, for people; harmless and short once it was [decoded](Message::decode).
    pub version: String,
}

impl Hello {
    /// What this program says.
    pub fn of(name: NodeName, instance: Instance) -> Self {
        Self {
            protocol: PROTOCOL,
            oldest_protocol: OLDEST_PROTOCOL,
            name,
            instance,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The newest version that both understand.
    ///
    /// # Errors
    /// That there is none, for people on this side. The other side is told [`Refused::version`].
    pub fn agree(&self) -> Result<u16, String> {
        let version = self.protocol.min(PROTOCOL);
        if version >= self.oldest_protocol.max(OLDEST_PROTOCOL) {
            return Ok(version);
        }
        Err(no_common_version(self.oldest_protocol, self.protocol))
    }
}

/// The sentence for people on this side: numbers, and no word of the other side's.
fn no_common_version(oldest: u16, newest: u16) -> String {
    format!(
        "it speaks versions {oldest} to {newest} of the protocol, this node (ollana {}) {OLDEST_PROTOCOL} to {PROTOCOL}; \
         bring the older one up to date",
        env!("CARGO_PKG_VERSION"),
    )
}

/// Why there will be no conversation: a code and numbers. The sentence for people is made by the side that reads it, or a
/// stranger could put words on its screen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// A word for programs: one of the constants below.
    pub code: String,
    /// The newest version of the protocol that the refusing side speaks.
    #[serde(default)]
    pub protocol: u16,
    /// The oldest one that it understands.
    #[serde(default)]
    pub oldest_protocol: u16,
}

impl Refused {
    /// No common version of the protocol.
    pub const VERSION: &'static str = "version";

    /// The refusal of a node that speaks no version of the protocol that this one understands.
    pub fn version() -> Self {
        Self { code: Self::VERSION.to_owned(), protocol: PROTOCOL, oldest_protocol: OLDEST_PROTOCOL }
    }

    /// Its meaning, for people on this side.
    pub fn sentence(&self) -> String {
        match &*self.code {
            Self::VERSION => no_common_version(self.oldest_protocol, self.protocol),
            _ => "it refuses this node, for a reason that this version does not know".to_owned(),
        }
    }
}

/// A message of the control stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// Who speaks.
    Hello(Hello),
    /// Why not.
    Refused(Refused),
    /// How things are.
    Report(Report),
    /// How busy it is.
    Load(Load),
    /// A step towards trust.
    Trust(Dealing),
    /// Whom a node vouches for.
    Vouching(Vouching),
}

/// Why a frame is not a message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// A frame that belongs on an exchange.
    #[error("a {0:?} frame on the control stream")]
    Kind(Kind),
    /// The JSON does not say what it should, from this byte on. What it says instead is in no message: the library would
    /// quote it, and it may be a secret, or long, or made to deceive.
    #[error("a {0:?} frame that cannot be read, from byte {1}")]
    Json(Kind, usize),
    /// It does not fit into a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl Message {
    /// The whole frame.
    ///
    /// # Errors
    /// [`MessageError::Frame`] if it is too long, [`MessageError::Json`] never in practice.
    pub fn encode(&self) -> Result<Bytes, MessageError> {
        let (kind, json) = match self {
            Self::Hello(hello) => (Kind::Hello, serde_json::to_vec(hello)),
            Self::Refused(refused) => (Kind::Refused, serde_json::to_vec(refused)),
            Self::Report(report) => (Kind::Report, report_that_fits(report)),
            Self::Load(load) => (Kind::Load, load_that_fits(load)),
            Self::Trust(dealing) => (Kind::Trust, serde_json::to_vec(dealing)),
            Self::Vouching(vouching) => (Kind::Vouching, serde_json::to_vec(vouching)),
        };
        Ok(frame::encode(kind, &json.map_err(|e| MessageError::Json(kind, e.column()))?)?)
    }

    /// Reads a frame's payload.
    ///
    /// # Errors
    /// [`MessageError`] if it is none of the control stream's messages.
    pub fn decode(kind: Kind, payload: &[u8]) -> Result<Self, MessageError> {
        let json = |e: serde_json::Error| MessageError::Json(kind, e.column());
        Ok(match kind {
            Kind::Hello => {
                let hello: Hello = serde_json::from_slice(payload).map_err(json)?;
                let version = hello.version.chars().filter(|c| is_of_version(*c)).take(MAX_VERSION).collect();
                Self::Hello(Hello { version, ..hello })
            }
            Kind::Refused => Self::Refused(serde_json::from_slice(payload).map_err(json)?),
            Kind::Report => Self::Report(bounded(serde_json::from_slice(payload).map_err(json)?)),
            Kind::Load => Self::Load(sensible(serde_json::from_slice(payload).map_err(json)?)),
            Kind::Trust => Self::Trust(serde_json::from_slice(payload).map_err(json)?),
            Kind::Vouching => {
                let vouching: Vouching = serde_json::from_slice(payload).map_err(json)?;
                Self::Vouching(vouching.bounded())
            }
            other => return Err(MessageError::Kind(other)),
        })
    }
}

/// A report without the models that it has no room for: else a server that lists thousands could not be shared at all.
fn report_that_fits(report: &Report) -> serde_json::Result<Vec<u8>> {
    let json = serde_json::to_vec(report)?;
    if json.len() <= MAX_REPORT {
        return Ok(json);
    }
    let models = with_room_for(MAX_REPORT - REST, report.models.iter().collect());
    serde_json::to_vec(&Report { models, ..report.clone() })
}

/// The same of a load. What runs or is waited for comes first, then what is known to be in memory: of a server that does not
/// say what is, all that it lists is here.
fn load_that_fits(load: &Load) -> serde_json::Result<Vec<u8>> {
    let json = serde_json::to_vec(load)?;
    if json.len() <= MAX_LOAD {
        return Ok(json);
    }
    let mut models: Vec<_> = load.models.iter().collect();
    models.sort_by_key(|(_, model)| {
        let rests = model.running == 0 && model.queued <= 0.0;
        (rests, matches!(model.residence, Residence::Unknown | Residence::Disk))
    });
    let models = with_room_for(MAX_LOAD - REST, models);
    serde_json::to_vec(&Load { models, ..load.clone() })
}

/// The first of these models that need no more than so many bytes.
fn with_room_for<T: Serialize + Clone>(mut room: usize, models: Vec<(&String, &T)>) -> BTreeMap<String, T> {
    let fits = |(name, model): (&String, &T)| {
        // A pair of brackets and a comma for what is a colon and a comma in the object.
        let size = serde_json::to_vec(&(name, model)).map_or(usize::MAX, |json| json.len());
        room = room.checked_sub(size)?;
        Some((name.clone(), model.clone()))
    };
    models.into_iter().map_while(fits).collect()
}

/// A report with a version that fits a line, and without models whose names nobody could show or type, and with no more of them than there is room for.
fn bounded(mut report: Report) -> Report {
    if report.version.len() > MAX_VERSION || !report.version.chars().all(is_harmless) {
        report.version.clear();
    }
    let mut room = MAX_MODELS;
    report.models.retain(|name, model| {
        let fits = name.len() <= MAX_MODEL_NAME && model.digest.len() <= MAX_DIGEST;
        let keep = room > 0 && fits && name.chars().chain(model.digest.chars()).all(is_harmless);
        room -= usize::from(keep);
        model.pace = model.pace.plausible();
        keep
    });
    report
}

/// A load without numbers that are none.
fn sensible(mut load: Load) -> Load {
    load.models.retain(|name, model| {
        // Also false for what is no number.
        name.len() <= MAX_MODEL_NAME && (0.0..=MAX_QUEUED).contains(&model.queued)
    });
    load
}

/// Whether it is a character of a program's version. No blank, so that no sentence comes of it.
fn is_of_version(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '_')
}

/// A stranger's text without what could act on a terminal or turn the line around, and not too long for a log line.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| is_harmless(*c)).take(400).collect()
}

/// Whether a character neither acts on a terminal nor is invisible nor turns text around.
fn is_harmless(c: char) -> bool {
    let format = matches!(
        c,
        '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    );
    !c.is_control() && !format
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::{ModelInfo, ModelLoad};

    fn hello(oldest: u16, newest: u16) -> Hello {
        Hello { protocol: newest, oldest_protocol: oldest, ..Hello::of(NodeName::lossy("a"), Instance(1)) }
    }

    #[test]
    fn versions_agree_where_they_overlap_and_else_say_what_to_do() {
        assert_eq!(hello(1, 1).agree(), Ok(1));
        assert_eq!(hello(1, 9).agree(), Ok(1));
        let refused = hello(2, 9).agree().unwrap_err();
        assert!(refused.contains("2 to 9") && refused.contains("up to date"));
        let told = Refused { protocol: 9, oldest_protocol: 2, ..Refused::version() };
        assert_eq!(told.sentence(), refused);
    }

    #[test]
    fn a_message_survives_and_later_fields_are_no_error() {
        for message in [Message::Hello(hello(1, 1)), Message::Load(Load { inflight: 3, ..Load::default() })] {
            let frame = message.encode().unwrap();
            let kind = if matches!(message, Message::Hello(_)) { Kind::Hello } else { Kind::Load };
            assert_eq!(Message::decode(kind, &frame[frame::HEADER..]).unwrap(), message);
        }
        assert!(Message::decode(Kind::Report, br#"{"provider":true,"later":{}}"#).is_ok());
        assert!(Message::decode(Kind::Data, b"{}").is_err());
    }

    #[test]
    fn what_a_stranger_says_of_itself_is_harmless_and_bounded() {
        let hello = Hello { version: "1\u{1b}[2J\u{202e}".repeat(99), ..hello(1, 1) };
        let Message::Hello(hello) = Message::decode(Kind::Hello, &serde_json::to_vec(&hello).unwrap()).unwrap() else {
            panic!()
        };
        assert!(hello.version.starts_with("12J12J") && hello.version.len() == MAX_VERSION);

        let mut report = Report::default();
        for name in (0..2 * MAX_MODELS).map(|n| format!("m{n}")).chain(["a\u{7}b".to_owned(), "x".repeat(700)]) {
            report.models.insert(name, Default::default());
        }
        let Message::Report(read) = Message::decode(Kind::Report, &serde_json::to_vec(&report).unwrap()).unwrap()
        else {
            panic!()
        };
        assert_eq!(read.models.len(), MAX_MODELS);
        assert!(read.models.keys().all(|name| name.starts_with('m')));
    }

    #[test]
    fn a_server_of_thousands_of_models_is_told_of_as_far_as_there_is_room() {
        let (mut report, mut load) = (Report { provider: true, ..Report::default() }, Load::default());
        for n in 0..MAX_MODELS {
            let info = ModelInfo { digest: "d".repeat(64), ..ModelInfo::default() };
            report.models.insert(format!("models/of-a-\"large\"-server:{n}"), info);
            let model = ModelLoad { residence: Residence::Unknown, ..ModelLoad::default() };
            load.models.insert(format!("models/of-a-\"large\"-server:{n}"), model);
        }
        let busy = ModelLoad { running: 1, ..ModelLoad::default() };
        load.models.insert("zzz".to_owned(), busy);
        let frame = Message::Report(report).encode().unwrap();
        let Message::Report(read) = Message::decode(Kind::Report, &frame[frame::HEADER..]).unwrap() else { panic!() };
        assert!(read.provider && (3000..MAX_MODELS).contains(&read.models.len()), "{}", read.models.len());
        let frame = Message::Load(load).encode().unwrap();
        let Message::Load(read) = Message::decode(Kind::Load, &frame[frame::HEADER..]).unwrap() else { panic!() };
        assert!((400..1000).contains(&read.models.len()), "{}", read.models.len());
        assert_eq!(read.models["zzz"], busy);
    }

    #[test]
    fn what_cannot_be_read_is_not_quoted() {
        for json in [r#"{"secret":1}"#, r#"{"pair":{"round":"secret","step":"offer"}}"#, "secret"] {
            let error = Message::decode(Kind::Trust, json.as_bytes()).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn a_refusals_words_are_not_the_other_sides() {
        let json = serde_json::json!({"code": "evil\u{1b}[2J", "reason": "evil", "protocol": 7});
        let json = serde_json::to_vec(&json).unwrap();
        let Message::Refused(refused) = Message::decode(Kind::Refused, &json).unwrap() else { panic!() };
        assert!(!refused.sentence().contains("evil"), "{}", refused.sentence());
    }
}
