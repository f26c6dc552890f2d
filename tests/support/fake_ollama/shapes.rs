//! The JSON that each API speaks, field by field as recorded.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Durations, Model};

/// When all its models were made and all its answers are said: the shape matters, the time does not.
const TIME: &str = "2026-11-22T12:45:47.243547182Z";
const UNIX: u64 = 1_795_351_547;

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Which API an answer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    Generate,
    Chat,
    V1Chat,
    V1Completions,
    V1Responses,
    V1Messages,
}

/// What is known of an answer when it ends.
#[derive(Debug, Clone)]
pub(crate) struct Finish {
    pub(crate) reason: &'static str,
    pub(crate) tokens: usize,
    pub(crate) text: String,
    pub(crate) load_ns: u64,
    pub(crate) usage: bool,
    pub(crate) took: Option<Took>,
    pub(crate) durations: Durations,
}

/// When what happened to a request, for an answer that says how long it really took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) asked: Instant,
    pub(crate) begun: Instant,
    pub(crate) prompt: Duration,
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: usize,
}

// === impl Dialect ===

impl Dialect {
    pub(crate) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/api/generate" => Self::Generate,
            "/api/chat" => Self::Chat,
            "/v1/chat/completions" => Self::V1Chat,
            "/v1/completions" => Self::V1Completions,
            "/v1/responses" => Self::V1Responses,
            "/v1/messages" => Self::V1Messages,
            _ => return None,
        })
    }

    /// Whether it streams where the request does not say.
    pub(crate) fn streams(self) -> bool {
        matches!(self, Self::Generate | Self::Chat)
    }

    pub(crate) fn is_v1(self) -> bool {
        !self.streams()
    }

    pub(crate) fn stream_type(self) -> &'static str {
        if self.is_v1() { "text/event-stream" } else { "application/x-ndjson" }
    }

    pub(crate) fn has_event_headers(self) -> bool {
        matches!(self, Self::V1Responses | Self::V1Messages)
    }

    /// What comes before the first word, a chunk each.
    pub(crate) fn opening(self, model: &str) -> Vec<String> {
        match self {
            Self::V1Responses => vec![
                event(
                    "response.created",
                    &json!({"type":"response.created","sequence_number":0,"response":response(model, "in_progress", None)}),
                ),
                event(
                    "response.in_progress",
                    &json!({"type":"response.in_progress","sequence_number":1,"response":response(model, "in_progress", None)}),
                ),
                event(
                    "response.output_item.added",
                    &json!({"type":"response.output_item.added","sequence_number":2,"output_index":0,
                    "item":{"id":"msg_1","type":"message","role":"assistant","status":"in_progress","content":[]}}),
                ),
                event(
                    "response.content_part.added",
                    &json!({"type":"response.content_part.added","sequence_number":3,"item_id":"msg_1",
                    "output_index":0,"content_index":0,"part":{"type":"output_text","text":"","annotations":[],"logprobs":[]}}),
                ),
            ],
            Self::V1Messages => vec![
                event(
                    "message_start",
                    &json!({"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","model":model,
                    "content":[],"usage":{"input_tokens":8,"output_tokens":0}}}),
                ),
                event(
                    "content_block_start",
                    &json!({"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}),
                ),
            ],
            _ => Vec::new(),
        }
    }

    /// One word.
    pub(crate) fn delta(self, model: &str, i: usize, word: &str) -> String {
        match self {
            Self::Generate => line(&json!({"model":model,"created_at":TIME,"response":word,"done":false})),
            Self::Chat => line(
                &json!({"model":model,"created_at":TIME,"message":{"role":"assistant","content":word},"done":false}),
            ),
            Self::V1Chat => data(&chunk(
                model,
                &json!([{"index":0,"delta":{"role":"assistant","content":word},"finish_reason":null}]),
            )),
            Self::V1Completions => data(&completion(model, word, &Value::Null)),
            Self::V1Responses => event(
                "response.output_text.delta",
                &json!({"type":"response.output_text.delta","sequence_number":i + 4,
                "item_id":"msg_1","output_index":0,"content_index":0,"delta":word,"logprobs":[]}),
            ),
            Self::V1Messages => event(
                "content_block_delta",
                &json!({"type":"content_block_delta","index":0,
                "delta":{"type":"text_delta","text":word}}),
            ),
        }
    }

    /// What comes after the last word, a chunk each.
    pub(crate) fn closing(self, model: &str, end: &Finish) -> Vec<String> {
        let Finish { reason, tokens, text, usage, .. } = end;
        match self {
            Self::Generate | Self::Chat => vec![line(&self.last(model, "", end))],
            Self::V1Chat => {
                let last = data(&chunk(
                    model,
                    &json!([{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":reason}]),
                ));
                let mut total = chunk(model, &json!([]));
                total["usage"] = v1_usage(*tokens);
                let total = if *usage { data(&total) } else { String::new() };
                vec![format!("{last}{total}data: [DONE]\n\n")]
            }
            Self::V1Completions => vec![format!("{}data: [DONE]\n\n", data(&completion(model, "", &json!(reason))))],
            Self::V1Responses => {
                let part = json!({"type":"output_text","text":text,"annotations":[],"logprobs":[]});
                let item =
                    json!({"id":"msg_1","type":"message","role":"assistant","status":"completed","content":[part]});
                let n = tokens + 4;
                vec![
                    event(
                        "response.output_text.done",
                        &json!({"type":"response.output_text.done","sequence_number":n,"item_id":"msg_1",
                        "output_index":0,"content_index":0,"text":text,"logprobs":[]}),
                    ),
                    event(
                        "response.content_part.done",
                        &json!({"type":"response.content_part.done","sequence_number":n + 1,"item_id":"msg_1",
                        "output_index":0,"content_index":0,"part":part}),
                    ),
                    event(
                        "response.output_item.done",
                        &json!({"type":"response.output_item.done","sequence_number":n + 2,"output_index":0,"item":item}),
                    ),
                    event(
                        "response.completed",
                        &json!({"type":"response.completed","sequence_number":n + 3,
                        "response":response(model, "completed", Some((text.as_str(), *tokens)))}),
                    ),
                ]
            }
            Self::V1Messages => vec![
                event("content_block_stop", &json!({"type":"content_block_stop","index":0})),
                event(
                    "message_delta",
                    &json!({"type":"message_delta","delta":{"stop_reason":stop_reason(reason)},
                    "usage":{"input_tokens":10,"output_tokens":tokens}}),
                ),
                event("message_stop", &json!({"type":"message_stop"})),
            ],
        }
    }

    /// The whole answer at once.
    pub(crate) fn whole(self, model: &str, end: &Finish) -> String {
        let Finish { reason, tokens, text, .. } = end;
        match self {
            Self::Generate | Self::Chat => self.last(model, text, end).to_string(),
            Self::V1Chat => line(&json!({"id":"chatcmpl-1","object":"chat.completion","created":UNIX,"model":model,
                "system_fingerprint":"fp_ollama","choices":[{"index":0,"message":{"role":"assistant","content":text},"finish_reason":reason}],
                "usage":v1_usage(*tokens)})),
            Self::V1Completions => line(&json!({"id":"cmpl-1","object":"text_completion","created":UNIX,"model":model,
                "system_fingerprint":"fp_ollama","choices":[{"text":text,"index":0,"finish_reason":reason}],"usage":v1_usage(*tokens)})),
            Self::V1Responses => line(&response(model, "completed", Some((text.as_str(), *tokens)))),
            Self::V1Messages => line(&json!({"id":"msg_1","type":"message","role":"assistant","model":model,
                "content":[{"type":"text","text":text}],"stop_reason":stop_reason(reason),"usage":{"input_tokens":10,"output_tokens":tokens}})),
        }
    }

    /// The answer to a request that only loads or unloads.
    pub(crate) fn nothing(self, model: &str, reason: &str) -> String {
        match self {
            Self::Chat => json!({"model":model,"created_at":TIME,"message":{"role":"assistant","content":""},"done":true,"done_reason":reason}),
            _ => json!({"model":model,"created_at":TIME,"response":"","done":true,"done_reason":reason}),
        }
        .to_string()
    }

    fn last(self, model: &str, text: &str, end: &Finish) -> Value {
        let mut last = json!({"model":model,"created_at":TIME,"done":true,"done_reason":end.reason,"total_duration":691_593_087u64,
            "load_duration":end.load_ns.max(1),"prompt_eval_count":10,"prompt_eval_duration":169_780_521u64,
            "eval_count":end.tokens,"eval_duration":144_677_257u64});
        if let Some(took) = end.took {
            last["total_duration"] = json!(nanoseconds(took.asked.elapsed()));
            last["prompt_eval_count"] = json!(took.prompt_tokens);
            last["prompt_eval_duration"] = json!(nanoseconds(took.prompt));
            last["eval_duration"] = json!(nanoseconds(took.begun.elapsed().saturating_sub(took.prompt)));
        }
        if end.tokens < 2 {
            // No time between tokens, and Go leaves a zero out.
            last.as_object_mut().unwrap().remove("eval_duration");
        }
        odd_durations(last.as_object_mut().unwrap(), end.durations);
        if self == Self::Generate {
            last["response"] = json!(text);
            last["context"] = json!([1, 4093, 198]);
        } else {
            last["message"] = json!({"role":"assistant","content":text});
        }
        last
    }
}

fn odd_durations(last: &mut serde_json::Map<String, Value>, durations: Durations) {
    let odd = [json!(u64::MAX), json!(i64::MIN), json!(1.5e300)];
    last.retain(|name, _| durations != Durations::Missing || !name.ends_with("_duration"));
    for (nth, (_, time)) in last.iter_mut().filter(|(name, _)| name.ends_with("_duration")).enumerate() {
        match durations {
            Durations::Said | Durations::Missing => {}
            Durations::Zero => *time = json!(0),
            Durations::Absurd => *time = odd[nth % odd.len()].clone(),
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap()
}

fn stop_reason(reason: &str) -> &'static str {
    if reason == "length" { "max_tokens" } else { "end_turn" }
}

fn v1_usage(tokens: usize) -> Value {
    json!({"prompt_tokens":10,"completion_tokens":tokens,"total_tokens":tokens + 10})
}

fn chunk(model: &str, choices: &Value) -> Value {
    json!({"id":"chatcmpl-1","object":"chat.completion.chunk","created":UNIX,"model":model,"system_fingerprint":"fp_ollama","choices":choices})
}

fn completion(model: &str, text: &str, reason: &Value) -> Value {
    json!({"id":"cmpl-1","object":"text_completion","created":UNIX,"choices":[{"text":text,"index":0,"finish_reason":reason}],
        "model":model,"system_fingerprint":"fp_ollama"})
}

fn response(model: &str, status: &str, done: Option<(&str, usize)>) -> Value {
    let output = done.map(|(text, _)| {
        json!({"id":"msg_1","type":"message","status":"completed","role":"assistant",
        "content":[{"type":"output_text","text":text,"annotations":[],"logprobs":[]}]})
    });
    let usage = done.map(|(_, tokens)| {
        json!({"input_tokens":10,"output_tokens":tokens,"total_tokens":tokens + 10,
        "input_tokens_details":{"cached_tokens":0},"output_tokens_details":{"reasoning_tokens":0}})
    });
    json!({"id":"resp_1","object":"response","created_at":UNIX,"completed_at":done.map(|_| UNIX),"status":status,
        "incomplete_details":null,"model":model,"previous_response_id":null,"instructions":null,
        "output":output.into_iter().collect::<Vec<_>>(),"error":null,"tools":[],"tool_choice":"auto","truncation":"disabled",
        "parallel_tool_calls":true,"text":{"format":{"type":"text"}},"top_p":1,"presence_penalty":0,"frequency_penalty":0,
        "top_logprobs":0,"temperature":1,"reasoning":null,"usage":usage,"max_output_tokens":4,"max_tool_calls":null,"store":false,
        "background":false,"service_tier":"default","metadata":{},"safety_identifier":null,"prompt_cache_key":null})
}

pub(crate) fn tags(models: &[Model]) -> Value {
    json!({"models": models.iter().map(|model| {
        let mut entry = json!({"name":model.name,"model":model.name,"modified_at":TIME,"size":model.size,"digest":model.digest,"details":details()});
        if let Some(host) = &model.remote_host {
            entry["remote_host"] = json!(host);
            entry["remote_model"] = json!("upstream");
        }
        entry
    }).collect::<Vec<_>>()})
}

pub(crate) fn ps(models: &[Model]) -> Value {
    json!({"models": models.iter().filter(|model| model.loaded).map(|model| json!({"name":model.name,"model":model.name,"size":model.size,
        "digest":model.digest,"details":details(),"expires_at":model.expires_at.as_deref().unwrap_or(TIME),"size_vram":0,"context_length":4096})).collect::<Vec<_>>()})
}

pub(crate) fn show(model: &Model) -> Value {
    json!({"modelfile":format!("# Modelfile generated by \"ollama show\"\nFROM {}\n", model.name),"parameters":"stop \"<|im_end|>\"",
        "template":"{{ .Prompt }}","details":details(),"model_info":{"general.architecture":"llama"},
        "tensors":[{"name":"token_embd.weight","type":"Q8_0","shape":[576,49152]}],"capabilities":["completion"],"modified_at":TIME})
}

pub(crate) fn v1_models(models: &[Model]) -> Value {
    json!({"object":"list","data": models.iter().map(|model| v1_model(&model.name)).collect::<Vec<_>>()})
}

pub(crate) fn v1_model(name: &str) -> Value {
    json!({"id":name,"object":"model","created":UNIX,"owned_by":"library"})
}

fn details() -> Value {
    json!({"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"134.52M","quantization_level":"Q4_1"})
}

/// An error as this path says it. Ollama's wording, OpenAI's object, Anthropic's object.
pub(crate) fn error(path: &str, status: u16, message: &str) -> String {
    let kind = match status {
        400 => "invalid_request_error",
        404 => "not_found_error",
        _ => "api_error",
    };
    // By hand, for the order of the fields.
    let message = json!(message);
    if path.starts_with("/v1/messages") {
        let error = format!(r#"{{"type":"{kind}","message":{message}}}"#);
        format!(r#"{{"type":"error","error":{error},"request_id":"req_39d342ba1e3a7582b44c6799"}}"#) + "\n"
    } else if path.starts_with("/v1/") {
        let error = format!(r#"{{"error":{{"message":{message},"type":"{kind}","param":null,"code":null}}}}"#);
        // Its own 400s, which come before a model is looked at, have no newline.
        if status == 400 { error } else { error + "\n" }
    } else {
        json!({"error":message}).to_string()
    }
}

/// Numbers that follow from the text, between -1 and 1.
pub(crate) fn embedding(model: &str, text: &str) -> Vec<f32> {
    let hash = Sha256::digest(format!("{model}\0{text}").as_bytes());
    hash.iter().map(|byte| (f32::from(*byte) - 127.5) / 127.5).collect()
}

pub(crate) fn line(value: &Value) -> String {
    format!("{value}\n")
}

fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn event(name: &str, value: &Value) -> String {
    format!("event: {name}\ndata: {value}\n\n")
}
