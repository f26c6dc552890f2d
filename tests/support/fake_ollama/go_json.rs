//! JSON bodies read as Go's `json.NewDecoder(…).Decode` reads them into a struct, written without the crate's own look
//! so that the two can be held against each other: keys without case, the last one wins, what follows is ignored.

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;

/// The fields of a top-level object in their order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Object(Vec<(String, Value)>);

/// Why a body is no request, in Go's words as far as they matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// There is nothing.
    Empty,
    /// There is not enough, or something else.
    Text(String),
}

// === impl Object ===

impl Object {
    /// Reads the first value of a body; nothing if it is not complete yet and `more` may come.
    pub(crate) fn read(body: &[u8], more: bool) -> Option<Result<Self, Fault>> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return (!more).then_some(Err(Fault::Empty));
        }
        match serde_json::Deserializer::from_slice(body).into_iter::<Self>().next() {
            Some(Ok(object)) => Some(Ok(object)),
            Some(Err(error)) if error.is_eof() => (!more).then(|| Err(Fault::Text("unexpected EOF".to_owned()))),
            Some(Err(error)) => Some(Err(Fault::Text(format!("invalid character: {error}")))),
            None => (!more).then_some(Err(Fault::Empty)),
        }
    }

    /// The value of a field; `null` is as if it were not there.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().rev().find(|(key, value)| folded(key) == name && !value.is_null()).map(|(_, value)| value)
    }

    /// A text, empty if it is not there.
    pub(crate) fn text(&self, name: &str) -> Result<String, Fault> {
        match self.get(name) {
            None => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => {
                let kind = match other {
                    Value::Number(_) => "number",
                    Value::Bool(_) => "bool",
                    Value::Array(_) => "array",
                    _ => "object",
                };
                let field = format!("Go struct field GenerateRequest.{name} of type string");
                Err(Fault::Text(format!("json: cannot unmarshal {kind} into {field}")))
            }
        }
    }
}

fn folded(key: &str) -> String {
    key.chars().map(|c| if c == 'ſ' { 's' } else { c.to_lowercase().next().unwrap_or(c) }).collect()
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Object;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_any(Fields)
    }
}
