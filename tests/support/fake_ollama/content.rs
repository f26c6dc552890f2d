//! What an answer says: words, JSON where a format is asked for, or the call of a tool where tools are offered.

use std::io;

use bytes::Bytes;
use data_encoding::BASE64;
use futures_util::stream;
use serde_json::{Map, Value, json};

use super::answers::{Answer, json_answer, streamed, v1_answer};
use super::go_json::Object;
use super::job::Job;
use super::runner::word;
use super::shapes::{self, Dialect, Finish};

/// Bytes of JSON in one token.
const PIECE: usize = 6;

/// What is said.
#[derive(Debug)]
pub(super) enum Content {
    /// Words that follow from a model and a prompt, whatever their number.
    Words { model: String, prompt: String },
    /// JSON, as it was asked for.
    Pieces(Vec<String>),
    /// The first of the tools that were offered, and arguments that its schema allows.
    Call { name: String, arguments: Value },
}

// === impl Content ===

impl Content {
    pub(super) fn of(dialect: Dialect, model: &str, prompt: &str, object: &Object) -> Self {
        if let Some((name, schema)) = tool(dialect, object) {
            return Self::Call { name, arguments: like(&schema) };
        }
        match format(object) {
            Some(schema) => {
                let text = like(&schema).to_string();
                Self::Pieces(text.as_bytes().chunks(PIECE).map(|piece| String::from_utf8_lossy(piece).into()).collect())
            }
            None => Self::Words { model: model.to_owned(), prompt: prompt.to_owned() },
        }
    }

    /// Tokens in it, where it is not as long as one asks for.
    pub(super) fn length(&self) -> Option<usize> {
        match self {
            Self::Words { .. } => None,
            Self::Pieces(pieces) => Some(pieces.len()),
            Self::Call { .. } => Some(1),
        }
    }

    pub(super) fn token(&self, i: usize) -> String {
        match self {
            Self::Words { model, prompt } => word(model, prompt, i),
            Self::Pieces(pieces) => pieces[i].clone(),
            Self::Call { .. } => String::new(),
        }
    }

    pub(super) fn text(&self, count: usize) -> String {
        (0..count).map(|i| self.token(i)).collect()
    }
}

/// What goes into a prompt beside its text: a mark for each image, so that one that got lost is missed.
pub(super) fn images(value: &Value) -> String {
    let mut marks = String::new();
    mark(value, &mut marks);
    marks
}

fn mark(value: &Value, marks: &mut String) {
    let mut image = |data: &str| {
        marks.push_str("\0image ");
        marks.push_str(&shapes::sha256(data.rsplit(',').next().unwrap_or_default().as_bytes()));
    };
    match value {
        Value::Array(parts) => parts.iter().for_each(|part| mark(part, marks)),
        Value::Object(part) => {
            // Ollama's own, OpenAI's and Anthropic's.
            let of_ollama = part.get("images").and_then(Value::as_array).into_iter().flatten();
            of_ollama.filter_map(Value::as_str).for_each(&mut image);
            part.get("image_url")
                .and_then(|url| url.get("url"))
                .and_then(Value::as_str)
                .into_iter()
                .for_each(&mut image);
            part.get("source")
                .and_then(|source| source.get("data"))
                .and_then(Value::as_str)
                .into_iter()
                .for_each(image);
            part.get("content").into_iter().for_each(|content| mark(content, marks));
        }
        _ => {}
    }
}

/// The first tool and the schema of its arguments, unless what a tool said is being answered.
fn tool(dialect: Dialect, object: &Object) -> Option<(String, Value)> {
    let last = object.get("messages")?.as_array()?.last()?;
    let result = last["content"].as_array().is_some_and(|parts| parts.iter().any(|part| part["type"] == "tool_result"));
    if last["role"] == "tool" || result {
        return None;
    }
    let tool = object.get("tools")?.as_array()?.first()?;
    let (name, schema) = match dialect {
        Dialect::Chat | Dialect::V1Chat => (&tool["function"]["name"], &tool["function"]["parameters"]),
        Dialect::V1Messages => (&tool["name"], &tool["input_schema"]),
        _ => return None,
    };
    Some((name.as_str()?.to_owned(), schema.clone()))
}

/// The schema of the JSON that is asked for.
fn format(object: &Object) -> Option<Value> {
    let any = || json!({"type":"object","properties":{"answer":{"type":"string"}}});
    let asked = object.get("format").or(object.get("response_format"));
    let asked = asked.or(object.get("text").and_then(|text| text.get("format")))?;
    if *asked == json!("json") {
        return Some(any());
    }
    match asked["type"].as_str() {
        Some("json_object") => Some(any()),
        Some("json_schema") => asked.pointer("/json_schema/schema").or(asked.get("schema")).cloned(),
        Some("text") | None => None,
        Some(_) => Some(asked.clone()),
    }
}

/// A value that a schema allows.
fn like(schema: &Value) -> Value {
    if let Some(first) = schema["enum"].as_array().and_then(|values| values.first()) {
        return first.clone();
    }
    match schema["type"].as_str() {
        Some("integer") => json!(7),
        Some("number") => json!(1.5),
        Some("boolean") => json!(true),
        Some("array") => json!([like(&schema["items"])]),
        Some("object") => {
            let properties = schema["properties"].as_object().cloned().unwrap_or_default();
            Value::Object(properties.iter().map(|(name, schema)| (name.clone(), like(schema))).collect::<Map<_, _>>())
        }
        _ => json!("Paris"),
    }
}

/// An answer that calls a tool, streamed or whole.
pub(super) fn call(
    mut job: Job,
    dialect: Dialect,
    model: &str,
    tool: &str,
    arguments: &Value,
    end: Finish,
    whole: bool,
) -> Answer {
    let reason = if dialect == Dialect::V1Chat { "tool_calls" } else { "stop" };
    let end = Finish { reason, ..end };
    job.finish();
    if whole {
        let mut answer: Value = serde_json::from_str(&dialect.whole(model, &end)).unwrap();
        match dialect {
            Dialect::Chat => answer["message"]["tool_calls"] = calls(tool, arguments),
            Dialect::V1Chat => answer["choices"][0]["message"]["tool_calls"] = v1_calls(tool, arguments),
            _ => {
                answer["content"] = json!([{"type":"tool_use","id":"call_1","name":tool,"input":arguments}]);
                answer["stop_reason"] = json!("tool_use");
            }
        }
        return if dialect.is_v1() {
            v1_answer(200, shapes::line(&answer))
        } else {
            json_answer(200, answer.to_string())
        };
    }
    let chunks = match dialect {
        Dialect::Chat => {
            let mut said: Value = serde_json::from_str(&dialect.delta(model, 0, "")).unwrap();
            said["message"]["tool_calls"] = calls(tool, arguments);
            let mut chunks = vec![shapes::line(&said)];
            chunks.extend(dialect.closing(model, &end));
            chunks
        }
        Dialect::V1Chat => {
            let said = dialect.delta(model, 0, "");
            let mut said: Value = serde_json::from_str(said.trim_start_matches("data: ")).unwrap();
            said["choices"][0]["delta"]["tool_calls"] = v1_calls(tool, arguments);
            let mut chunks = vec![format!("data: {said}\n\n")];
            chunks.extend(dialect.closing(model, &end));
            chunks
        }
        _ => messages_call(dialect, model, tool, arguments, &end),
    };
    streamed(
        dialect.stream_type(),
        stream::iter(chunks.into_iter().map(|chunk| Ok::<_, io::Error>(Bytes::from(chunk)))),
    )
}

fn calls(tool: &str, arguments: &Value) -> Value {
    json!([{"id":"call_1","function":{"index":0,"name":tool,"arguments":arguments}}])
}

fn v1_calls(tool: &str, arguments: &Value) -> Value {
    json!([{"id":"call_1","index":0,"type":"function","function":{"name":tool,"arguments":arguments.to_string()}}])
}

/// Anthropic's events: the opening one of a message, then a block for the call where a text would have its own.
fn messages_call(dialect: Dialect, model: &str, tool: &str, arguments: &Value, end: &Finish) -> Vec<String> {
    let event = |name: &str, value: Value| format!("event: {name}\ndata: {value}\n\n");
    let mut chunks: Vec<_> = dialect.opening(model).into_iter().take(1).collect();
    chunks.push(event(
        "content_block_start",
        json!({"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"call_1","name":tool,"input":{}}}),
    ));
    chunks.push(event(
        "content_block_delta",
        json!({"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":arguments.to_string()}}),
    ));
    chunks.extend(dialect.closing(model, end).into_iter().map(|chunk| chunk.replace("\"end_turn\"", "\"tool_use\"")));
    chunks
}

/// An embedding as OpenAI's clients like it: little-endian floats in base64.
pub(super) fn base64(vector: &[f32]) -> String {
    BASE64.encode(&vector.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>())
}
