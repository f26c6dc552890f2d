//! Who is there: an Ollama, another server that speaks the OpenAI API, or one of gRPC.
//!
//! `/api/version` is the question that only an Ollama answers as Ollama does: llama.cpp's `llama-server` has some of
//! Ollama's other paths, and LM Studio answers 200 to whatever it does not know. `/v1/models` is what all servers of the
//! OpenAI API have. Before both stands the version of HTTP: one that is asked over HTTP/1.1 and breaks off may speak
//! HTTP/2 alone.

use http::header::{CONTENT_TYPE, SERVER, TE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;

use super::client::{Client, MAX_LISTING, Spoken, get, says_ollana};
use super::{State, listing};
use crate::exchange::{Body, ExchangeError, ServerKind, full};

/// What only an Ollama answers as Ollama does.
const VERSION: &str = "/api/version";

/// An answer to a question of our own, whole.
pub(super) struct Said {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: bytes::Bytes,
}

/// Finds out who is there: [`State::kind`], and of an Ollama its version, of others all there is to know.
///
/// A server that is none of those known is an error, except one that speaks HTTP/2 alone, if it was `named`: somebody
/// wants it lent, and nothing else is known to be spoken that way but gRPC.
pub(super) async fn meet(client: &Client, named: bool) -> Result<State, ExchangeError> {
    let (spoken, said) = greet(client).await?;
    client.speaks(spoken);
    if said.status == StatusCode::SERVICE_UNAVAILABLE {
        // What llama-server says while it loads its model.
        return Err(client.broken("it is not ready yet: it answers 503"));
    }
    if let Some(version) = ollama_version(&said) {
        return Ok(State { kind: ServerKind::Ollama, version, ..State::default() });
    }
    let mut state = State { kind: ServerKind::OpenAi, server: server(&said.headers), ..State::default() };
    match listing::openai(client, &mut state).await {
        Ok(()) => Ok(state),
        Err(error) if says_ollana(&error) => Err(error),
        Err(_) if spoken == Spoken::OnlyHttp2 && named => Ok(State { kind: ServerKind::Grpc, ..state }),
        Err(error) => Err(client.broken(format!(
            "neither an Ollama ({VERSION} is answered {}) nor a server of the OpenAI API ({error})",
            said.status
        ))),
    }
}

/// Asks for Ollama's version, over whichever version of HTTP is spoken there; of a server that answers to nothing but
/// gRPC something that it can answer.
pub(super) async fn greet(client: &Client) -> Result<(Spoken, Said), ExchangeError> {
    let questions = [
        (Version::HTTP_11, Spoken::Http1, get(VERSION)),
        (Version::HTTP_2, Spoken::OnlyHttp2, get(VERSION)),
        (Version::HTTP_2, Spoken::OnlyHttp2, health_check()),
    ];
    let mut first = None;
    for (version, spoken, question) in questions {
        match question_over(client, version, question).await {
            Ok(said) => return Ok((spoken, said)),
            Err(error) if says_ollana(&error) => return Err(error),
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    // There were questions, so there is an error.
    Err(first.unwrap_or_else(|| client.broken("it was not asked")))
}

async fn question_over(client: &Client, version: Version, question: Request<Body>) -> Result<Said, ExchangeError> {
    read(client, client.send_over(version, question).await?).await
}

/// The call that every server of gRPC may be asked (`grpc.health.v1`), with an empty message; one that does not have it
/// answers that it does not.
fn health_check() -> Request<Body> {
    let mut request = Request::new(full(&[0_u8; 5][..]));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static("/grpc.health.v1.Health/Check");
    request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
    request
}

/// Asks a question of a server that has been met.
pub(super) async fn ask(client: &Client, path: &'static str) -> Result<Said, ExchangeError> {
    read(client, client.send(get(path)).await?).await
}

async fn read(client: &Client, response: Response<Body>) -> Result<Said, ExchangeError> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_LISTING).collect().await.map_err(|error| client.broken(error))?.to_bytes();
    Ok(Said { status: parts.status, headers: parts.headers, body })
}

/// The version, if this is how Ollama gives it.
pub(super) fn ollama_version(said: &Said) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        version: String,
    }
    let answer = serde_json::from_slice::<Answer>(&said.body).ok()?;
    (said.status == StatusCode::OK).then_some(answer.version)
}

/// What a server calls itself, harmless to show and not too long.
fn server(headers: &HeaderMap) -> Option<String> {
    let said = headers.get(SERVER)?.to_str().ok()?;
    Some(crate::wire::control::printable(said).chars().take(40).collect())
}
