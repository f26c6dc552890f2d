//! Who is there: an Ollama, another server that speaks the OpenAI API, or one of gRPC.
//!
//! An Ollama has `/api/tags`, and says its version at `/api/version`; `/v1/models` is what all servers of the OpenAI API
//! have. Neither of Ollama's paths says enough alone: llama-swap has a version, llama.cpp's `llama-server` has
//! `/api/tags` with its list for OpenAI's API, LM Studio answers 200 to whatever it does not know, and some emulators have no
//! version. Before all stands the version of HTTP: one that is asked over HTTP/1.1 and breaks off may speak HTTP/2 alone.

use std::time::Duration;

use http::header::{CONTENT_TYPE, SERVER, TE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use tokio::time::timeout;

use super::State;
use super::client::{Client, MAX_LISTING, Spoken, get, says_ollana};
use super::listing::{self, MODELS, NoList, TAGS};
use super::trouble::Trouble;
use crate::exchange::{Body, ExchangeError, ServerKind, full};

/// The path at which an Ollama says its version.
const VERSION: &str = "/api/version";
/// Longest version and name of a server that are kept.
const MAX_VERSION: usize = 40;

/// How long a server that is met may take for its first answer. Nothing is shared yet, so nobody waits; a machine that has
/// just booted may read for that long from its disk.
const FIRST_ANSWER: Duration = Duration::from_secs(20);
/// The same of each question after that. It has answered, so it is alive.
const NEXT_ANSWER: Duration = Duration::from_secs(60);
/// And of one that is not needed.
const EXTRA_ANSWER: Duration = Duration::from_secs(2);

/// An answer to a question of our own, whole.
pub(super) struct Asked {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: bytes::Bytes,
}

/// A server as it is met.
pub(super) struct Met {
    /// Its kind and its models, but not which of an Ollama's are in memory.
    pub(super) state: State,
    /// Its answer to the question for its version; as long as that stays the same, so does its kind.
    pub(super) greeting: Option<String>,
    /// Whether an Ollama's list for the OpenAI API has to be asked for again: it has names there that are nowhere else, or
    /// was too slow.
    pub(super) has_aliases: bool,
}

/// Finds out who is there: [`State::kind`], and what it has.
///
/// A server that is none of those known is an error, except one that speaks HTTP/2 alone, if it was `named`: somebody
/// wants it shared, and nothing else is known to be spoken that way but gRPC.
pub(super) async fn meet(client: &Client, named: bool) -> Result<Met, Trouble> {
    let url = client.target();
    let trouble = |error: &ExchangeError| Trouble::of(url, error);
    let (spoken, said) = greet(client, FIRST_ANSWER).await.map_err(|error| trouble(&error))?;
    client.speaks(spoken);
    if said.status == StatusCode::SERVICE_UNAVAILABLE {
        // What llama-server says while it loads its model.
        return Err(Trouble::NotReady(url.clone()));
    }
    let greeting = ollama_version(&said);
    let mut state = State { server: server(&said.headers), ..State::default() };
    let mut answers = vec![(VERSION, answer_of(&said))];
    let tags = match &greeting {
        Some(_) => in_time(listing::tags(client, &mut state)).await,
        None => in_time(listing::tags_of_stranger(client, &mut state)).await,
    };
    match tags {
        Ok(()) => return Ok(met_ollama(client, state, &said, greeting).await),
        Err(NoList::Unanswered(error)) if says_ollana(&error) => return Err(trouble(&error)),
        // An Ollama that is in trouble has no more to say of its models elsewhere.
        Err(NoList::Unanswered(error)) if greeting.is_some() => return Err(trouble(&error)),
        Err(NoList::Status(status @ StatusCode::UNAUTHORIZED)) if greeting.is_some() => {
            return Err(Trouble::NeedsKey { url: url.clone(), path: TAGS, status });
        }
        Err(none) if greeting.is_some() && !none.is_absence() => {
            return Err(Trouble::Broken { url: url.clone(), why: format!("{TAGS} is {none}") });
        }
        Err(none) => answers.push((TAGS, none.to_string())),
    }
    state.kind = ServerKind::OpenAi;
    let none = match in_time(listing::openai(client, &mut state)).await {
        Ok(()) => return Ok(Met { state, greeting, has_aliases: false }),
        Err(NoList::Unanswered(error)) if says_ollana(&error) => return Err(trouble(&error)),
        Err(none) => none,
    };
    if spoken == Spoken::OnlyHttp2 && named {
        let state = State { kind: ServerKind::Grpc, server: state.server, ..State::default() };
        return Ok(Met { state, greeting, has_aliases: false });
    }
    answers.push((MODELS, none.to_string()));
    Err(match none {
        NoList::Status(StatusCode::SERVICE_UNAVAILABLE) => Trouble::NotReady(url.clone()),
        NoList::Status(status @ StatusCode::UNAUTHORIZED) => {
            Trouble::NeedsKey { url: url.clone(), path: MODELS, status }
        }
        _ => Trouble::Other { url: url.clone(), answers },
    })
}

/// An Ollama has given its list; what else it says is good to know.
async fn met_ollama(client: &Client, mut state: State, said: &Asked, greeting: Option<String>) -> Met {
    match &greeting {
        Some(version) => state.version.clone_from(version),
        None => state.flaws.unanswered(VERSION, &answer_of(said), "which version of Ollama's API it has is not known"),
    }
    // Of an Ollama it is known what it is.
    state.server = None;
    let aliases = timeout(EXTRA_ANSWER, listing::aliases(client, &mut state)).await;
    // Before a list of its own, so that no model which runs elsewhere and has come in between is taken for one that does not.
    let has_aliases = match aliases {
        Ok(Ok(())) if listing::strange(&state).is_empty() => {
            state.aliases.clear();
            false
        }
        Ok(Ok(())) => in_time(listing::tags(client, &mut state)).await.is_ok(),
        // Another time.
        Ok(Err(_)) | Err(_) => true,
    };
    Met { state, greeting, has_aliases }
}

async fn in_time<T>(question: impl Future<Output = Result<T, NoList>>) -> Result<T, NoList> {
    timeout(NEXT_ANSWER, question).await.unwrap_or(Err(NoList::Late))
}

/// Asks for Ollama's version, over whichever version of HTTP is spoken there; of a server that answers to nothing but
/// gRPC something that it can answer. Each question may take so long.
pub(super) async fn greet(client: &Client, patience: Duration) -> Result<(Spoken, Asked), ExchangeError> {
    let questions = [
        (Version::HTTP_11, Spoken::Http1, get(VERSION)),
        (Version::HTTP_2, Spoken::OnlyHttp2, get(VERSION)),
        (Version::HTTP_2, Spoken::OnlyHttp2, health_check()),
    ];
    let mut first = None;
    for (version, spoken, question) in questions {
        match timeout(patience, question_over(client, version, question)).await {
            Ok(Ok(said)) => return Ok((spoken, said)),
            Ok(Err(error)) if says_ollana(&error) => return Err(error),
            Ok(Err(error)) => drop(first.get_or_insert(error)),
            // It takes its time, which is no reason to talk to it in another way.
            Err(_) => return Err(first.unwrap_or_else(|| client.broken(Late))),
        }
    }
    // There were questions, so there is an error.
    Err(first.unwrap_or_else(|| client.broken(Late)))
}

/// There was no answer in time.
#[derive(Debug, thiserror::Error)]
#[error("it does not answer in time")]
pub(super) struct Late;

async fn question_over(client: &Client, version: Version, question: Request<Body>) -> Result<Asked, ExchangeError> {
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
pub(super) async fn ask(client: &Client, path: &'static str) -> Result<Asked, ExchangeError> {
    read(client, client.send(get(path)).await?).await
}

async fn read(client: &Client, response: Response<Body>) -> Result<Asked, ExchangeError> {
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_LISTING).collect().await.map_err(|error| client.broken(error))?.to_bytes();
    Ok(Asked { status: parts.status, headers: parts.headers, body })
}

/// The version, if this is how Ollama gives it.
pub(super) fn ollama_version(said: &Asked) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        version: String,
    }
    let answer = serde_json::from_slice::<Answer>(&said.body).ok().filter(|_| said.status == StatusCode::OK)?;
    Some(crate::wire::control::printable(&answer.version).chars().take(MAX_VERSION).collect())
}

fn answer_of(said: &Asked) -> String {
    match said.status {
        StatusCode::OK => "answered with something else than a version".to_owned(),
        status => format!("answered {status}"),
    }
}

/// What a server calls itself, harmless to show and not too long.
fn server(headers: &HeaderMap) -> Option<String> {
    let said = headers.get(SERVER)?.to_str().ok()?;
    Some(crate::wire::control::printable(said).chars().take(MAX_VERSION).collect())
}
