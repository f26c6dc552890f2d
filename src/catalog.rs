//! The lists that an application sees of the whole mesh: `/api/tags`, `/api/ps` and `/v1/models` of all providers in one.
//! Servers that are no Ollamas are in the last one alone.
//!
//! With one provider its answer passes through untouched. With several all are asked at once, for a bounded time, and
//! one that is slow or answers nonsense is left out rather than waited for. A model has one entry, byte for byte what a
//! server said: where servers have different weights under its name, one that has those which are used; this machine's
//! own if it has it, else the one that Ollama would put first (most recently modified, for `ps` the one that stays loaded
//! longest). The order is Ollama's too. The version of the whole is the lowest. With no provider at all the answer is the mesh's
//! 503 with the reason and not an empty list, which would read as "there are no models" (DESIGN §3).

mod version;

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use tower::Service as _;

use crate::balance::Router;
use crate::exchange::{self, Body, Endpoint, PEER_HEADER, Refusal};
use crate::route::{self, Api, Dialect, ModelName};

/// A list is there in milliseconds, and `ollama list` is something a person waits for.
const PATIENCE: Duration = Duration::from_secs(3);
/// Read of one list at most: some 5,000 models.
const PER_LIST: usize = 2 * 1024 * 1024;
/// Read of all lists of one request at most, however many peers there are and whatever they send.
const IN_ALL: usize = 16 * 1024 * 1024;

/// As Ollama's own routes say it.
const OLLAMAS_JSON: &str = "application/json; charset=utf-8";

/// Which list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    /// `/api/tags`: the models on disk.
    Tags,
    /// `/api/ps`: the models in memory.
    Ps,
    /// `/v1/models`: the models on disk, as OpenAI lists them.
    V1Models,
}

/// Answers lists from all providers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Catalog {
    router: Router,
}

/// One model in one server's list.
struct Model {
    raw: Box<RawValue>,
    /// What Ollama sorts by, in Unix seconds: the largest first.
    at: i64,
    local: bool,
    /// What the server's report says of its weights.
    digest: String,
}

// === impl Catalog ===

impl Catalog {
    /// Asks whom `router` would ask.
    pub fn new(router: Router) -> Self {
        Self { router }
    }

    /// The answer to a request for the version: the lowest of all that are in use, so that it is the same whoever has the
    /// least to do. With one provider, or where none says any, its answer passes through.
    pub async fn version(&self, request: Request<Body>) -> Response<Body> {
        let chosen = request.headers().contains_key(PEER_HEADER);
        let providers = if chosen { Ok(Vec::new()) } else { self.router.providers(Dialect::Ollama).await };
        let reports: Vec<_> = match providers {
            Ok(providers) if providers.len() > 1 => {
                providers.iter().map(|provider| (provider.is_trusted(), provider.report().borrow().clone())).collect()
            }
            Ok(_) => Vec::new(),
            Err(refusal) => return route::render(Api::Ollama, &refusal),
        };
        match version::lowest(reports.iter().map(|(trusted, report)| (*trusted, &*report.version))) {
            Some(version) => json(serde_json::json!({ "version": version }).to_string(), OLLAMAS_JSON),
            None => {
                let Ok(response) = self.router.clone().call(request).await;
                response
            }
        }
    }

    /// The answer to a request for a list.
    pub async fn answer(&self, list: List, request: Request<Body>) -> Response<Body> {
        let providers = if request.headers().contains_key(PEER_HEADER) {
            Ok(Vec::new())
        } else {
            self.router.providers(list.dialect()).await
        };
        let head = *request.method() == Method::HEAD;
        let providers = match providers {
            Ok(providers) if providers.len() < 2 => {
                let Ok(response) = self.router.clone().call(request).await;
                return response;
            }
            Ok(providers) => providers,
            // There are servers, and none of them has a model that could be used as Ollama's are.
            Err(refusal) if refusal.code == "other-api" => return list.response(HashMap::new(), head),
            Err(refusal) => return route::render(list.api(), &refusal),
        };
        let room = Arc::new(AtomicUsize::new(IN_ALL));
        let user_agent = request.headers().get(USER_AGENT).cloned();
        let mut asked: FuturesUnordered<_> =
            providers.iter().map(|provider| list.ask(provider, user_agent.clone(), room.clone())).collect();
        let mut merged = HashMap::new();
        let mut answers = 0;
        while let Some(models) = asked.next().await {
            let Some(models) = models else { continue };
            answers += 1;
            for (name, model) in models {
                match merged.entry(name) {
                    Entry::Vacant(entry) => {
                        entry.insert(model);
                    }
                    Entry::Occupied(mut entry) => {
                        let rank = |model: &Model| (self.router.keeps_to(entry.key(), &model.digest), model.rank());
                        if rank(&model) > rank(entry.get()) {
                            entry.insert(model);
                        }
                    }
                }
            }
        }
        if answers == 0 {
            return route::render(
                list.api(),
                &Refusal {
                    status: StatusCode::BAD_GATEWAY,
                    code: "broke-off",
                    message: format!("none of {} servers gave its list of models", providers.len()),
                    retry_after: None,
                },
            );
        }
        list.response(merged, head)
    }
}

// === impl List ===

impl List {
    const fn path(self) -> &'static str {
        match self {
            Self::Tags => "/api/tags",
            Self::Ps => "/api/ps",
            Self::V1Models => "/v1/models",
        }
    }

    /// Who is asked: what is listed in Ollama's own shape is there to be used with Ollama's own API.
    const fn dialect(self) -> Dialect {
        match self {
            Self::Tags | Self::Ps => Dialect::Ollama,
            Self::V1Models => Dialect::OpenAi,
        }
    }

    const fn api(self) -> Api {
        match self {
            Self::Tags | Self::Ps => Api::Ollama,
            Self::V1Models => Api::OpenAi,
        }
    }

    /// One server's list, or `None` (logged) if it did not give one in time.
    async fn ask(
        self,
        endpoint: &Arc<dyn Endpoint>,
        user_agent: Option<HeaderValue>,
        room: Arc<AtomicUsize>,
    ) -> Option<Vec<(ModelName, Model)>> {
        let peer = endpoint.label();
        match tokio::time::timeout(PATIENCE, self.read(endpoint, user_agent, &room)).await {
            Ok(Ok(bytes)) => match self.parse(&bytes, endpoint) {
                Ok(models) => Some(models),
                Err(error) => {
                    tracing::debug!(%peer, ?self, %error, "left out: its list cannot be read");
                    None
                }
            },
            Ok(Err(reason)) => {
                tracing::debug!(%peer, ?self, %reason, "left out: it gave no list");
                None
            }
            Err(_) => {
                tracing::debug!(%peer, ?self, "left out: it is too slow");
                None
            }
        }
    }

    async fn read(
        self,
        endpoint: &Arc<dyn Endpoint>,
        user_agent: Option<HeaderValue>,
        room: &AtomicUsize,
    ) -> Result<Vec<u8>, String> {
        let mut request = Request::new(exchange::empty());
        *request.uri_mut() = http::Uri::from_static(self.path());
        // The answer is read here, so it must not be compressed for the application.
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(user_agent) = user_agent {
            request.headers_mut().insert(USER_AGENT, user_agent);
        }
        let response = endpoint.exchange(request).await.map_err(|error| error.to_string())?;
        if response.status() != StatusCode::OK {
            return Err(format!("status {}", response.status()));
        }
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() else { continue };
            let fits = |left: usize| left.checked_sub(data.len());
            if bytes.len() + data.len() > PER_LIST
                || room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err()
            {
                return Err("too long".to_owned());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }

    fn parse(self, bytes: &[u8], endpoint: &Arc<dyn Endpoint>) -> Result<Vec<(ModelName, Model)>, serde_json::Error> {
        #[derive(Deserialize)]
        struct Lists {
            models: Option<Vec<Box<RawValue>>>,
            data: Option<Vec<Box<RawValue>>>,
        }
        #[derive(Deserialize)]
        struct Fields<'a> {
            #[serde(borrow)]
            name: Option<Cow<'a, str>>,
            #[serde(borrow)]
            id: Option<Cow<'a, str>>,
            #[serde(borrow)]
            modified_at: Option<Cow<'a, str>>,
            #[serde(borrow)]
            expires_at: Option<Cow<'a, str>>,
            created: Option<i64>,
        }
        let lists: Lists = serde_json::from_slice(bytes)?;
        let raw = match self {
            Self::Tags | Self::Ps => lists.models,
            Self::V1Models => lists.data,
        };
        let (local, report) = (endpoint.is_local(), endpoint.report().borrow().clone());
        let named = |raw: Box<RawValue>| {
            let fields: Fields<'_> = serde_json::from_str(raw.get()).ok()?;
            let (name, at) = match self {
                Self::Tags => (fields.name, fields.modified_at.and_then(|at| unix_seconds(&at))),
                Self::Ps => (fields.name, fields.expires_at.and_then(|at| unix_seconds(&at))),
                Self::V1Models => (fields.id, fields.created),
            };
            let name = name?;
            let digest = report.models.get(&*name).map(|info| info.digest.clone()).unwrap_or_default();
            Some((ModelName::new(&name), Model { raw, at: at.unwrap_or(i64::MIN), local, digest }))
        };
        Ok(raw.unwrap_or_default().into_iter().filter_map(named).collect())
    }

    fn response(self, models: HashMap<ModelName, Model>, head: bool) -> Response<Body> {
        let mut models: Vec<_> = models.into_iter().collect();
        models.sort_by(|(name, model), (other_name, other)| other.at.cmp(&model.at).then_with(|| name.cmp(other_name)));
        let entries = models.iter().map(|(_, model)| model.raw.get()).collect::<Vec<_>>().join(",");
        // As Ollama writes them: `/v1` ends with a newline, and has no list at all where it is empty.
        let (body, content_type) = match self {
            Self::Tags | Self::Ps => (format!("{{\"models\":[{entries}]}}"), OLLAMAS_JSON),
            Self::V1Models if entries.is_empty() => {
                ("{\"object\":\"list\",\"data\":null}\n".to_owned(), "application/json")
            }
            Self::V1Models => (format!("{{\"object\":\"list\",\"data\":[{entries}]}}\n"), "application/json"),
        };
        let response = json(body, content_type);
        if head { response.map(|_| exchange::empty()) } else { response }
    }
}

/// An answer with this body, and its length also where the body is left out.
fn json(body: String, content_type: &'static str) -> Response<Body> {
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(exchange::full(Bytes::from(body)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response
}

// === impl Model ===

impl Model {
    /// The highest of one name and one digest is the one that is shown.
    fn rank(&self) -> (bool, i64) {
        (self.local, self.at)
    }
}

/// The Unix time of what Go writes (RFC 3339, any zone), whole seconds; all that is needed to sort.
fn unix_seconds(text: &str) -> Option<i64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let zone = text.get(19..)?.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
    let offset = if zone.eq_ignore_ascii_case("z") {
        0
    } else {
        let sign = if zone.starts_with('-') { -1 } else { 1 };
        let hours: i64 = zone.get(1..3)?.parse().ok()?;
        let minutes: i64 = zone.get(4..6)?.parse().ok()?;
        sign * (hours * 60 + minutes) * 60
    };
    // Days since 1970-01-01 in the proleptic Gregorian calendar, with the year starting in March, so that the leap day
    // comes last (https://howardhinnant.github.io/date_algorithms.html#days_from_civil).
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second - offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_any_zone() {
        // `modified_at` and `created` of one model, as recorded.
        assert_eq!(unix_seconds("2026-11-22T12:45:47.243547182Z"), Some(1_795_351_547));
        assert_eq!(unix_seconds("2026-11-22T14:15:47.2+01:30"), Some(1_795_351_547));
        assert_eq!(unix_seconds("2026-11-22T04:45:47-08:00"), Some(1_795_351_547));
        assert_eq!(unix_seconds("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(unix_seconds("0001-01-01T00:00:00Z"), Some(-62_135_596_800));
        for odd in ["", "yesterday", "2026-11-22", "2026-11-22T12:45:47", "2026-11-22T12:45:47+1", "…………………………"]
        {
            assert_eq!(unix_seconds(odd), None, "{odd}");
        }
    }
}
