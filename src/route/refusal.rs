//! The mesh's own answers, in the shapes that the clients of each API parse.

use data_encoding::HEXLOWER;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use super::Api;
use crate::exchange::{Body, REFUSAL_HEADER, Refusal, RefusalCode, full};

/// A refusal as an answer: the sentence in the API's error shape, the code in [`REFUSAL_HEADER`].
///
/// The shapes are those of Ollama 0.24 as recorded: `{"error": "…"}`; OpenAI's object, of the types that Ollama uses;
/// Anthropic's with a `request_id`. As with Ollama, `/v1` ends with a newline and `/api` does not.
pub fn render(api: Api, refusal: &Refusal) -> Response<Body> {
    let Refusal { code, message, retry_after } = refusal;
    let status = code.status();
    let body = match api {
        Api::Ollama => json!({ "error": message }).to_string(),
        Api::OpenAi => {
            line(&OpenAiError { error: OpenAiFault { message, kind: openai_type(status), param: None, code: None } })
        }
        Api::Anthropic => line(&AnthropicError {
            kind: "error",
            error: AnthropicFault { kind: anthropic_type(status), message },
            request_id: format!("req_{}", HEXLOWER.encode(&rand::random::<[u8; 12]>())),
        }),
    };
    let mut response = json_response(api, status, body);
    response.headers_mut().insert(REFUSAL_HEADER, HeaderValue::from_static(code.to_wire()));
    if let Some(after) = retry_after {
        // Whole seconds; rounded up, since 0 would ask for a busy loop.
        let seconds = after.as_millis().div_ceil(1000).max(1);
        if let Ok(seconds) = HeaderValue::try_from(seconds.to_string()) {
            response.headers_mut().insert(RETRY_AFTER, seconds);
        }
    }
    response
}

/// What a peer is told at `/api/me`: not signed in. Without a `signin_url`, which would carry the owner's key.
pub fn unauthorized() -> Response<Body> {
    render(Api::Ollama, &RefusalCode::NotSignedIn.into())
}

/// What a peer is told at `/api/status`: no cloud here.
pub fn cloud_off() -> Response<Body> {
    let status = json!({ "cloud": { "disabled": true, "source": "config" } });
    json_response(Api::Ollama, StatusCode::OK, status.to_string())
}

fn json_response(api: Api, status: StatusCode, body: String) -> Response<Body> {
    let content_type = match api {
        Api::Ollama => "application/json; charset=utf-8",
        Api::OpenAi | Api::Anthropic => "application/json",
    };
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn line(value: &impl Serialize) -> String {
    // These are texts in structs: there is nothing in them that could fail to serialise.
    serde_json::to_string(value).unwrap_or_default() + "\n"
}

// In the order in which Ollama writes the fields.

#[derive(Serialize)]
struct OpenAiError<'a> {
    error: OpenAiFault<'a>,
}

#[derive(Serialize)]
struct OpenAiFault<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<()>,
    code: Option<()>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    error: AnthropicFault<'a>,
    request_id: String,
}

#[derive(Serialize)]
struct AnthropicFault<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: &'a str,
}

/// `openai.NewError` of Ollama knows three.
fn openai_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::BAD_REQUEST => "invalid_request_error",
        StatusCode::NOT_FOUND => "not_found_error",
        _ => "api_error",
    }
}

/// `anthropic.NewError` of Ollama, and 413 from Anthropic's own list.
fn anthropic_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        _ => "api_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;
    use serde_json::Value;
    use std::time::Duration;

    async fn rendered(api: Api, code: RefusalCode) -> (Response<()>, String) {
        let refusal = Refusal::new(code, "model 'nope' not found").after(Duration::from_millis(1200));
        let (parts, body) = render(api, &refusal).into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        (Response::from_parts(parts, ()), String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn each_api_gets_its_own_shape() {
        let (head, body) = rendered(Api::Ollama, RefusalCode::NoModel).await;
        assert_eq!(body, r#"{"error":"model 'nope' not found"}"#);
        assert_eq!(head.headers()[CONTENT_TYPE], "application/json; charset=utf-8");
        assert_eq!(head.headers()[REFUSAL_HEADER], "no-model");
        assert_eq!(head.headers()[RETRY_AFTER], "2");

        let (head, body) = rendered(Api::OpenAi, RefusalCode::NoModel).await;
        let recorded =
            r#"{"error":{"message":"model 'nope' not found","type":"not_found_error","param":null,"code":null}}"#;
        assert_eq!(body, format!("{recorded}\n"));
        assert_eq!(head.headers()[CONTENT_TYPE], "application/json");

        let (_, body) = rendered(Api::Anthropic, RefusalCode::Scope).await;
        let value: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(value["type"], "error");
        assert_eq!(value["error"]["type"], "permission_error");
        let id = value["request_id"].as_str().unwrap();
        assert!(id.starts_with("req_") && id.len() == 28, "{id}");
    }
}
