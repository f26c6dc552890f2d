//! The lists that an application sees of the whole mesh: `/api/tags`, `/api/ps` and `/v1/models` of all providers in one.
//! Servers that are no Ollamas are in the last one alone.
//!
//! With one provider its answer passes through untouched. With several all are asked at once, for a bounded time. One
//! that is slow or answers nonsense is not waited for: what it has is in its report, and is listed from that with the fields
//! that are known, since requests for it are sent there. A model has one entry, byte for byte what a
//! server said: where servers have different weights under its name, one that has those which are used; this machine's
//! own if it has it, else the one that Ollama would put first (most recently modified, for `ps` the one that stays loaded
//! longest). The order is Ollama's too. The version of the whole is the lowest. With no provider at all the answer is the mesh's
//! 503 with the reason and not an empty list, which would read as "there are no models".

mod version;

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::json;
use tower::Service as _;

use crate::balance::Router;
use crate::exchange::{self, Body, Endpoint, PEER_HEADER, Refusal, RefusalCode, ServerKind};
use crate::id::Id;
use crate::route::{self, Api, Dialect, Listing, ModelName};

/// A list is there in milliseconds, and `ollama list` is something a person waits for.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same for one that was late before.
const LITTLE_PATIENCE: Duration = Duration::from_millis(100);
/// For how long it is, until it is given more time again.
const LATE: Duration = Duration::from_secs(30);
/// Read of one list at most: some 5,000 models.
const PER_LIST: usize = 2 * 1024 * 1024;
/// Read of all lists of one request at most, however many peers there are and whatever they send.
const IN_ALL: usize = 16 * 1024 * 1024;

/// Go's zero time, which Ollama's clients take for one that is not known.
const NO_TIME: &str = "0001-01-01T00:00:00Z";
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
    late: Arc<Late>,
}

/// The providers whose list came too late, and when; bounded by how many there are.
#[derive(Debug, Default)]
struct Late(Mutex<HashMap<Id, Instant>>);

/// One model in one server's list.
struct Model {
    raw: Box<str>,
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
        Self { router, late: Arc::default() }
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
            Err(refusal) if refusal.code == RefusalCode::NoServerOfApi => return list.response(HashMap::new(), head),
            Err(refusal) => return route::render(list.api(), &refusal),
        };
        let room = Arc::new(AtomicUsize::new(IN_ALL));
        let user_agent = request.headers().get(USER_AGENT).cloned();
        let mut asked: FuturesUnordered<_> = providers
            .iter()
            .map(|provider| {
                let asking = list.ask(provider, user_agent.clone(), room.clone(), &self.late);
                async move { asking.await.ok_or(provider) }
            })
            .collect();
        let mut merged = HashMap::new();
        let mut answers = 0;
        while let Some(models) = asked.next().await {
            let models = match models {
                Ok(models) => {
                    answers += 1;
                    models
                }
                Err(provider) => list.last_report(provider, &room),
            };
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
        if answers == 0 && merged.is_empty() {
            let message = format!("none of {} servers gave its list of models", providers.len());
            return route::render(list.api(), &Refusal::new(RefusalCode::BrokeOff, message));
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
        late: &Late,
    ) -> Option<Vec<(ModelName, Model)>> {
        let (id, peer) = (endpoint.id(), endpoint.label());
        match tokio::time::timeout(late.patience(id), self.read(endpoint, user_agent, &room)).await {
            Ok(Ok(bytes)) => match self.parse(&bytes, endpoint) {
                Some(models) => Some(models),
                None => {
                    tracing::debug!(%peer, ?self, "its list cannot be read");
                    None
                }
            },
            Ok(Err(reason)) => {
                tracing::debug!(%peer, ?self, %reason, "it gave no list");
                None
            }
            Err(_) => {
                tracing::debug!(%peer, ?self, "it is too slow");
                late.note(id);
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

    /// The entries that have a name, whatever else is in them: they are passed on as they are.
    fn parse(self, bytes: &[u8], endpoint: &Arc<dyn Endpoint>) -> Option<Vec<(ModelName, Model)>> {
        let text = String::from_utf8_lossy(bytes);
        let listing = Listing::read(&text).ok()?;
        let (list, keys, time): (_, &[&str], _) = match self {
            Self::Tags => (listing.models, &["name", "model"], "modified_at"),
            Self::Ps => (listing.models, &["name", "model"], "expires_at"),
            Self::V1Models => (listing.data, &["id"], "created"),
        };
        let (local, report) = (endpoint.is_local(), endpoint.report().borrow().clone());
        let mut models = Vec::new();
        for entry in list.unwrap_or_default().entries {
            // A number is no name to route by; straight it would be listed all the same.
            let odd = || keys.iter().find(|key| entry.number(key).is_some()).and_then(|key| entry.written(key));
            let Some(name) = entry.name(keys).or_else(|| odd().map(Cow::Borrowed)) else { continue };
            let text = entry.text(time).this();
            let at = text.and_then(|text| unix_seconds(&text)).or_else(|| entry.number(time).map(whole));
            let digest = report.models.get(&*name).map(|info| info.digest.clone()).unwrap_or_default();
            let model = Model { raw: entry.raw.into(), at: at.unwrap_or(i64::MIN), local, digest };
            models.push((ModelName::new(&name), model));
        }
        Some(models)
    }

    /// The models of a provider that gives no list, by its last report: with the fields that are known, and those that
    /// a client cannot do without.
    fn last_report(self, endpoint: &Arc<dyn Endpoint>, room: &AtomicUsize) -> Vec<(ModelName, Model)> {
        let (report, load) = (endpoint.report().borrow().clone(), endpoint.load().borrow().clone());
        let mut models = Vec::new();
        let loaded: Vec<&str> = load.loaded().collect();
        for (name, info) in &report.models {
            let raw = match self {
                Self::Tags | Self::Ps if report.api != ServerKind::Ollama => continue,
                Self::Ps if !loaded.contains(&name.as_str()) => continue,
                Self::Tags => json!({
                    "name": name, "model": name, "modified_at": NO_TIME, "size": info.size, "digest": info.digest,
                    "details": {},
                }),
                Self::Ps => json!({
                    "name": name, "model": name, "size": info.size, "digest": info.digest, "details": {},
                    "expires_at": NO_TIME, "size_vram": 0,
                }),
                Self::V1Models => json!({"id": name, "object": "model", "created": 0, "owned_by": "library"}),
            };
            let raw = raw.to_string();
            let fits = |left: usize| left.checked_sub(raw.len());
            if room.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
                break;
            }
            let model =
                Model { raw: raw.into(), at: i64::MIN, local: endpoint.is_local(), digest: info.digest.clone() };
            models.push((ModelName::new(name), model));
        }
        models
    }

    fn response(self, models: HashMap<ModelName, Model>, head: bool) -> Response<Body> {
        let mut models: Vec<_> = models.into_iter().collect();
        models.sort_by(|(name, model), (other_name, other)| other.at.cmp(&model.at).then_with(|| name.cmp(other_name)));
        let entries = models.iter().map(|(_, model)| &*model.raw).collect::<Vec<_>>().join(",");
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

// === impl Late ===

impl Late {
    fn patience(&self, id: Id) -> Duration {
        let late = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_late = late.get(&id).is_some_and(|at| at.elapsed() < LATE);
        if is_late { LITTLE_PATIENCE } else { PATIENCE }
    }

    fn note(&self, id: Id) {
        let mut late = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        late.retain(|_, at| at.elapsed() < LATE);
        late.entry(id).or_insert_with(Instant::now);
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

/// Seconds of a time that is written as a number.
#[allow(clippy::cast_possible_truncation)]
fn whole(seconds: f64) -> i64 {
    // Casts of floats saturate.
    seconds as i64
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
