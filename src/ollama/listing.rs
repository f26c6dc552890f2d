//! What an Ollama says it has: `/api/version`, `/api/tags` and `/api/ps`.

use std::collections::{BTreeMap, BTreeSet};

use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::State;
use super::client::{Client, MAX_LISTING};
use crate::exchange::{ExchangeError, ModelInfo, empty};
use crate::route::ModelName;

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
struct Listing {
    /// `null` is what Go writes for an empty list that was never made.
    models: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
struct Entry {
    name: String,
    #[serde(default)]
    digest: String,
    #[serde(default)]
    remote_host: String,
    #[serde(default)]
    remote_model: String,
}

/// Asks for the version: the cheapest question that only an Ollama answers.
pub(super) async fn version(client: &Client) -> Result<String, ExchangeError> {
    Ok(ask::<Version>(client, "/api/version").await?.version)
}

/// Asks which models there are, and keeps of `state` which of them were loaded.
pub(super) async fn tags(client: &Client, state: &mut State) -> Result<(), ExchangeError> {
    let listing: Listing = ask(client, "/api/tags").await?;
    let mut models = BTreeMap::new();
    let mut remote = BTreeSet::new();
    for entry in listing.models.unwrap_or_default() {
        let name = ModelName::new(&entry.name);
        if name.is_cloud() || !entry.remote_host.is_empty() || !entry.remote_model.is_empty() {
            remote.insert(name);
        } else {
            let loaded = state.models.get(&entry.name).is_some_and(|known| known.loaded);
            models.insert(entry.name, ModelInfo { digest: entry.digest, loaded });
        }
    }
    state.models = models;
    state.remote = remote;
    Ok(())
}

/// Asks which models are in memory.
pub(super) async fn loaded(client: &Client, state: &mut State) -> Result<(), ExchangeError> {
    let listing: Listing = ask(client, "/api/ps").await?;
    let loaded: BTreeSet<ModelName> =
        listing.models.unwrap_or_default().iter().map(|entry| ModelName::new(&entry.name)).collect();
    for (name, info) in &mut state.models {
        info.loaded = loaded.contains(&ModelName::new(name));
    }
    Ok(())
}

async fn ask<T: DeserializeOwned>(client: &Client, path: &'static str) -> Result<T, ExchangeError> {
    let mut request = Request::new(empty());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = http::Uri::from_static(path);
    let response = client.send(request).await?;
    let status = response.status();
    if status != StatusCode::OK {
        return Err(client.broken(format!("{path} is answered {status}")));
    }
    let body = Limited::new(response.into_body(), MAX_LISTING).collect().await.map_err(|error| client.broken(error))?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| client.broken(format!("{path} is not answered as Ollama answers it: {error}")))
}
