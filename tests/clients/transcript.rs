//! Two transcripts side by side.

use serde_json::Value;

use super::script::{Client, Step};

/// IDs that a server makes up, by what they begin with.
const MADE_UP: &[&str] = &["chatcmpl-", "cmpl-", "resp_", "msg_", "call_", "toolu_", "req_", "fc_"];

/// Asserts that the same came of every step.
pub fn assert_same(client: Client, direct: Vec<Step>, mesh: Vec<Step>) {
    let names = |steps: &[Step]| steps.iter().map(|step| step.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&mesh), names(&direct), "{client}: the same steps");
    let wrong: Vec<String> = direct
        .into_iter()
        .zip(mesh)
        .map(|(direct, mesh)| (direct.name, timeless(direct.result), timeless(mesh.result)))
        .filter(|(_, direct, mesh)| direct != mesh)
        .map(|(name, direct, mesh)| format!("{name}:\n    asked directly    {direct}\n    through the mesh  {mesh}"))
        .collect();
    assert!(wrong.is_empty(), "{client}: through the mesh {} steps differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// Without what differs between two runs of one request: times, durations and made-up IDs.
pub fn timeless(mut value: Value) -> Value {
    strip(&mut value);
    value
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|key, _| {
                !key.ends_with("_duration")
                    && !["created", "created_at", "completed_at", "expires_at"].contains(&key.as_str())
            });
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::String(text) if MADE_UP.iter().any(|prefix| text.contains(prefix)) => *text = without_ids(text),
        _ => {}
    }
}

fn without_ids(text: &str) -> String {
    let of_an_id = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(of_an_id) {
        let (before, word) = rest.split_at(start);
        let (word, after) = word.split_at(word.find(|c| !of_an_id(c)).unwrap_or(word.len()));
        let made_up = MADE_UP.iter().find(|prefix| word.starts_with(**prefix));
        out.push_str(before);
        out.push_str(made_up.copied().unwrap_or(word));
        rest = after;
    }
    out + rest
}
