//! What a server says it has: `/api/tags` and `/api/ps` of an Ollama, `/v1/models` of others.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::client::Client;
use super::meet::ask;
use super::{Resident, State};
use crate::exchange::{ExchangeError, ModelInfo};
use crate::route::ModelName;

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
    size: u64,
    #[serde(default)]
    remote_host: String,
    #[serde(default)]
    remote_model: String,
    #[serde(default)]
    size_vram: u64,
    #[serde(default)]
    expires_at: String,
}

/// What of OpenAI's `GET /v1/models` is looked at. `object` and `data` are what every server of that API has.
#[derive(Deserialize)]
struct OpenAiListing {
    #[serde(rename = "object")]
    _object: List,
    data: Vec<OpenAiEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum List {
    List,
}

#[derive(Deserialize)]
struct OpenAiEntry {
    id: String,
    owned_by: Option<String>,
    /// llama-server's, where it runs several models.
    status: Option<OpenAiStatus>,
}

#[derive(Deserialize)]
struct OpenAiStatus {
    #[serde(default)]
    value: String,
}

/// Asks an Ollama for all that may have changed; what it has in memory is returned as it says it.
pub(super) async fn refresh(client: &Client, state: &mut State) -> Result<BTreeMap<String, Resident>, ExchangeError> {
    tags(client, state).await?;
    loaded(client, state).await
}

/// Asks an Ollama which models there are, and keeps of `state` which of them were loaded.
pub(super) async fn tags(client: &Client, state: &mut State) -> Result<(), ExchangeError> {
    let listing: Listing = list(client, "/api/tags").await?;
    let mut models = BTreeMap::new();
    let mut remote = BTreeSet::new();
    for entry in listing.models.unwrap_or_default() {
        let name = ModelName::new(&entry.name);
        if name.is_cloud() || !entry.remote_host.is_empty() || !entry.remote_model.is_empty() {
            remote.insert(name);
        } else {
            models.insert(entry.name, ModelInfo { digest: entry.digest, size: entry.size, ..ModelInfo::default() });
        }
    }
    state.loaded.retain(|name| models.contains_key(name));
    state.models = models;
    state.remote = remote;
    Ok(())
}

/// Asks an Ollama which models are in memory.
async fn loaded(client: &Client, state: &mut State) -> Result<BTreeMap<String, Resident>, ExchangeError> {
    let listing: Listing = list(client, "/api/ps").await?;
    let entries = listing.models.unwrap_or_default();
    let loaded: BTreeMap<ModelName, Resident> =
        entries.iter().map(|entry| (ModelName::new(&entry.name), entry.resident())).collect();
    let resident = |name: &String| Some((name.clone(), *loaded.get(&ModelName::new(name))?));
    let residents: BTreeMap<String, Resident> = state.models.keys().filter_map(resident).collect();
    state.loaded = residents.keys().cloned().collect();
    Ok(residents)
}

/// Asks a server of the OpenAI API which models there are. What it serves it has in memory, unless it says otherwise.
pub(super) async fn openai(client: &Client, state: &mut State) -> Result<(), ExchangeError> {
    let listing: OpenAiListing = list(client, "/v1/models").await?;
    if let Some(owner) = listing.data.iter().find_map(|entry| known_server(entry.owned_by.as_deref()?)) {
        state.server = Some(owner.to_owned());
    }
    let in_memory = |entry: &&OpenAiEntry| entry.status.as_ref().is_none_or(|status| status.value == "loaded");
    state.loaded = listing.data.iter().filter(in_memory).map(|entry| entry.id.clone()).collect();
    state.models = listing.data.into_iter().map(|entry| (entry.id, ModelInfo::default())).collect();
    Ok(())
}

/// The servers that say in `owned_by` who they are.
fn known_server(owner: &str) -> Option<&'static str> {
    match owner {
        "llamacpp" => Some("llama.cpp"),
        "vllm" => Some("vLLM"),
        "organization_owner" | "organization-owner" => Some("LM Studio"),
        _ => None,
    }
}

// === impl Entry ===

impl Entry {
    fn resident(&self) -> Resident {
        Resident { size: self.size, size_vram: self.size_vram, expires_at: Resident::until(&self.expires_at) }
    }
}

async fn list<T: DeserializeOwned>(client: &Client, path: &'static str) -> Result<T, ExchangeError> {
    let said = ask(client, path).await?;
    if said.status != StatusCode::OK {
        return Err(client.broken(format!("{path} is answered {}", said.status)));
    }
    serde_json::from_slice(&said.body)
        .map_err(|error| client.broken(format!("{path} is not answered as such a server does: {error}")))
}
