//! What a server says it has: `/api/tags` and `/api/ps` of an Ollama, `/v1/models` of others.
//!
//! Each field is read for itself. An odd one is unknown, an entry without a name is left out, and of either the
//! [`Flaws`](super::trouble::Flaws) say so; the server is used all the same.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;

use super::client::Client;
use super::meet::{Asked, ask};
use super::trouble::Faults;
use super::{Resident, State};
use crate::exchange::{ExchangeError, ModelInfo};
use crate::route::{Entry, List, Listing, ModelName, Said};

pub(super) const TAGS: &str = "/api/tags";
pub(super) const PS: &str = "/api/ps";
pub(super) const MODELS: &str = "/v1/models";

/// The smallest size that is believed of a model. The smallest that anybody runs have some 10 MB; an emulator that has to
/// write a number often writes 1.
const SMALLEST: u64 = 1024 * 1024;
/// The longest name of a model, in bytes; Ollama's has at most 594. Longer ones would be left out of reports to peers.
const LONGEST_NAME: usize = 640;
/// The longest digest: that of SHA-512 in hexadecimal with its name before it.
const LONGEST_DIGEST: usize = 160;

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoList {
    /// The question was not answered.
    #[error("not answered, since the connection broke off")]
    Unanswered(ExchangeError),
    /// It was not answered in time.
    #[error("not answered in time")]
    Late,
    /// It was answered with an error.
    #[error("answered {0}")]
    Status(StatusCode),
    /// The answer is no list of models.
    #[error("answered with something else than a list of models")]
    NoneSuch,
    /// The answer begins like one and cannot be read.
    #[error("answered with a list that cannot be read ({0})")]
    Broken(String),
}

/// The list of an Ollama, as it is read.
#[derive(Debug, Default)]
pub(super) struct Tags {
    models: BTreeMap<String, ModelInfo>,
    remote: BTreeSet<ModelName>,
    faults: Faults,
}

/// Asks an Ollama which models there are, and keeps of `state` which of them were loaded.
pub(super) async fn tags(client: &Client, state: &mut State) -> Result<(), NoList> {
    let said = asked(client, TAGS).await?;
    let text = String::from_utf8_lossy(&said.body);
    let listing = read(&text)?;
    let list = listing.models.ok_or(NoList::NoneSuch)?;
    take(state, read_tags(list));
    Ok(())
}

/// The same of something that may be no Ollama: [`NoList::NoneSuch`] if what it answers is no list of Ollama's. llama-server
/// has the path too, with its list for OpenAI's API.
pub(super) async fn tags_of_stranger(client: &Client, state: &mut State) -> Result<(), NoList> {
    let said = asked(client, TAGS).await?;
    let text = String::from_utf8_lossy(&said.body);
    let listing = read(&text)?;
    match listing.models {
        Some(list) if listing.data.is_none() && !listing.says_list => take(state, read_tags(list)),
        _ => return Err(NoList::NoneSuch),
    }
    Ok(())
}

fn take(state: &mut State, tags: Tags) {
    let Tags { models, remote, faults } = tags;
    state.flaws.set(TAGS, faults);
    state.models = models;
    state.remote = remote;
    // No model that runs on the owner's account is shared by way of another list.
    state.aliases = strange(state);
    state.models.extend(state.aliases.iter().map(|name| (name.clone(), ModelInfo::default())));
    let State { loaded, models, .. } = state;
    loaded.retain(|name| models.contains_key(name));
}

/// Those of the names in its list for the OpenAI API that it does not list elsewhere.
pub(super) fn strange(state: &State) -> BTreeSet<String> {
    let known: BTreeSet<ModelName> = state.models.keys().map(|name| ModelName::new(name)).collect();
    let is_strange = |name: &&String| {
        let model = ModelName::new(name);
        !known.contains(&model) && !state.is_remote(&model)
    };
    state.aliases.iter().filter(is_strange).cloned().collect()
}

fn read_tags(list: List<'_>) -> Tags {
    let mut tags = Tags::default();
    odd_entries(&list, &mut tags.faults);
    let mut also = Vec::new();
    for entry in &list.entries {
        let Some(name) = name_of(entry, &["name", "model"], &mut tags.faults) else { continue };
        let elsewhere = is_elsewhere(entry, &name, &mut tags.faults);
        let info = ModelInfo {
            digest: digest(entry, &name, &mut tags.faults),
            size: size(entry, "size", &name, &mut tags.faults),
            ..ModelInfo::default()
        };
        // Programs ask for what `model` says; of an Ollama that is the name, of KoboldCpp it is not.
        let model = entry.text("model").this().filter(|model| !model.trim().is_empty() && model.len() <= LONGEST_NAME);
        let model = model.filter(|model| *model != name).map(std::borrow::Cow::into_owned);
        also.extend(
            docker_alias(&name, &info.digest).into_iter().chain(model).map(|also| (also, elsewhere, info.clone())),
        );
        tags.add(name, elsewhere, info);
    }
    let known: BTreeSet<ModelName> = tags.models.keys().map(|name| ModelName::new(name)).collect();
    for (name, elsewhere, info) in also {
        if !known.contains(&ModelName::new(&name)) {
            tags.add(name, elsewhere, info);
        }
    }
    let Tags { models, remote, .. } = &mut tags;
    // Of two entries with one name, that which runs elsewhere counts.
    models.retain(|name, _| remote.is_empty() || !remote.contains(&ModelName::new(name)));
    tags
}

/// Docker Model Runner takes `ai/smollm2` for what it lists as `docker.io/ai/smollm2:latest`. Of an Ollama these are two
/// models; its digests have no `sha256:` before them.
fn docker_alias(name: &str, digest: &str) -> Option<String> {
    let short = name.strip_prefix("docker.io/").filter(|_| digest.starts_with("sha256:"))?;
    Some(short.to_owned())
}

/// Asks an Ollama which models are in memory: nothing if it does not say.
///
/// # Errors
/// If the question is not answered at all.
pub(super) async fn loaded(
    client: &Client,
    state: &mut State,
) -> Result<Option<BTreeMap<String, Resident>>, ExchangeError> {
    let said = match asked(client, PS).await {
        Ok(said) => said,
        Err(NoList::Unanswered(error)) => return Err(error),
        Err(none) => {
            nothing_known(state, &none);
            return Ok(None);
        }
    };
    let text = String::from_utf8_lossy(&said.body);
    let list = match read(&text).map(|listing| listing.models) {
        Ok(Some(list)) => list,
        Ok(None) => {
            nothing_known(state, &NoList::NoneSuch);
            return Ok(None);
        }
        Err(none) => {
            nothing_known(state, &none);
            return Ok(None);
        }
    };
    let mut faults = Faults::default();
    odd_entries(&list, &mut faults);
    let mut there = BTreeMap::new();
    for entry in &list.entries {
        let Some(name) = name_of(entry, &["name", "model"], &mut faults) else { continue };
        let resident = resident(entry, &name, &mut faults);
        let model = entry.text("model").this();
        for name in model.as_deref().into_iter().chain([&*name]) {
            there.insert(ModelName::new(name), resident);
        }
    }
    state.flaws.set(PS, faults);
    let resident = |name: &String| Some((name.clone(), *there.get(&ModelName::new(name))?));
    let residents: BTreeMap<String, Resident> = state.models.keys().filter_map(resident).collect();
    state.loaded = residents.keys().cloned().collect();
    state.loaded_unknown = false;
    Ok(Some(residents))
}

fn nothing_known(state: &mut State, none: &NoList) {
    state.loaded.clear();
    state.loaded_unknown = true;
    state.flaws.unanswered(PS, none, "which models are in memory is not known");
}

/// Asks an Ollama for its list for OpenAI's API: some have names there that they answer to and do not list elsewhere. They
/// are in [`State::models`] from the next list on, so this comes before it.
///
/// # Errors
/// If the question is not answered at all.
pub(super) async fn aliases(client: &Client, state: &mut State) -> Result<(), ExchangeError> {
    let mut openai = State::default();
    match openai_list(client, &mut openai).await {
        Ok(()) => {
            state.aliases = openai.models.into_keys().collect();
            state.flaws.set(MODELS, Faults::default());
        }
        Err(NoList::Unanswered(error)) => return Err(error),
        Err(none) => {
            state.aliases.clear();
            state.flaws.unanswered(MODELS, &none, "what applications ask at /v1 fails there");
        }
    }
    Ok(())
}

/// Asks a server of the OpenAI API which models there are. What it serves it has in memory, unless it says otherwise.
pub(super) async fn openai(client: &Client, state: &mut State) -> Result<(), NoList> {
    openai_list(client, state).await
}

async fn openai_list(client: &Client, state: &mut State) -> Result<(), NoList> {
    let said = asked(client, MODELS).await?;
    let text = String::from_utf8_lossy(&said.body);
    let listing = read(&text)?;
    let list = match listing.data {
        Some(list) => list,
        None if listing.says_list => List::default(),
        None => return Err(NoList::NoneSuch),
    };
    let mut faults = Faults::default();
    odd_entries(&list, &mut faults);
    state.models.clear();
    state.loaded.clear();
    for entry in &list.entries {
        let Some(id) = name_of(entry, &["id"], &mut faults) else { continue };
        match entry.text("owned_by") {
            Said::Nothing => {}
            Said::Odd => faults.note("owned_by is no text", &id),
            Said::This(owner) => {
                if let Some(server) = known_server(&owner) {
                    state.server = Some(server.to_owned());
                }
                if let Some(short) = id.strip_prefix("docker.io/").filter(|_| owner == "docker") {
                    state.models.insert(short.to_owned(), ModelInfo::default());
                    state.loaded.insert(short.to_owned());
                }
            }
        }
        let is_loaded = is_in_memory(entry, &id, &mut faults);
        for name in aliases_of(entry).into_iter().chain([id]) {
            if is_loaded {
                state.loaded.insert(name.clone());
            }
            state.models.insert(name, ModelInfo::default());
        }
    }
    // It runs its models as they are asked for, some of them at a time.
    state.loaded_unknown = state.server.as_deref() == Some(LLAMA_SWAP);
    if state.loaded_unknown {
        state.loaded.clear();
    }
    state.flaws.set(MODELS, faults);
    Ok(())
}

/// The other names that it answers to: llama-server says them in the entry, and llama-swap in what it adds to one.
fn aliases_of(entry: &Entry<'_>) -> Vec<String> {
    let added = entry.object("meta").this().and_then(|meta| meta.object("llamaswap").this());
    let names = entry.texts("aliases").into_iter().chain(added.iter().flat_map(|added| added.texts("aliases")));
    names.filter(|name| !name.trim().is_empty() && name.len() <= LONGEST_NAME).collect()
}

const LLAMA_SWAP: &str = "llama-swap";

/// The servers that say in `owned_by` what they are.
fn known_server(owner: &str) -> Option<&'static str> {
    match owner {
        "llamacpp" => Some("llama.cpp"),
        "vllm" => Some("vLLM"),
        "organization_owner" | "organization-owner" => Some("LM Studio"),
        "llama-swap" => Some(LLAMA_SWAP),
        "koboldcpp" => Some("KoboldCpp"),
        "docker" => Some("Docker Model Runner"),
        _ => None,
    }
}

/// llama-server says it of each model where it runs several.
fn is_in_memory(entry: &Entry<'_>, id: &str, faults: &mut Faults) -> bool {
    let value = match entry.object("status") {
        Said::Nothing => return true,
        Said::This(status) => return status.text("value").this().is_none_or(|value| value == "loaded"),
        Said::Odd => entry.text("status").this(),
    };
    faults.note("status is no object", id);
    value.is_none_or(|value| value != "unloaded")
}

fn odd_entries(list: &List<'_>, faults: &mut Faults) {
    faults.times("an entry is no object and was left out", "", list.odd);
    faults.times("an entry beyond the first 8192 was left out", "", list.beyond);
}

fn name_of(entry: &Entry<'_>, keys: &[&str], faults: &mut Faults) -> Option<String> {
    let Some(name) = entry.name(keys) else {
        faults.note("an entry has no name and was left out", "");
        return None;
    };
    if name.len() > LONGEST_NAME {
        faults.note("a name is too long, and its entry was left out", &name);
        return None;
    }
    Some(name.into_owned())
}

/// Whether it would run on the owner's account. One that says something odd of it is not shared either.
fn is_elsewhere(entry: &Entry<'_>, name: &str, faults: &mut Faults) -> bool {
    let mut elsewhere = false;
    for key in ["remote_host", "remote_model"] {
        elsewhere |= match entry.text(key) {
            Said::Nothing => false,
            Said::This(text) => !text.is_empty(),
            Said::Odd => {
                faults.note("remote_host or remote_model is no text, and the model is not shared", name);
                true
            }
        };
    }
    elsewhere
}

fn digest(entry: &Entry<'_>, name: &str, faults: &mut Faults) -> String {
    match entry.text("digest") {
        Said::Nothing => String::new(),
        Said::This(digest) if digest.len() <= LONGEST_DIGEST => digest.into_owned(),
        Said::This(_) | Said::Odd => {
            faults.note("a digest is none and counts as unknown", name);
            String::new()
        }
    }
}

/// Bytes; 0 where it is not known.
fn size(entry: &Entry<'_>, key: &str, name: &str, faults: &mut Faults) -> u64 {
    match entry.bytes(key) {
        Said::Nothing | Said::This(0) => 0,
        Said::This(size) if size >= SMALLEST => size,
        Said::This(_) => {
            faults.note("a size is below any model's and counts as unknown", name);
            0
        }
        Said::Odd => {
            faults.note("a size is no number of bytes and counts as unknown", name);
            0
        }
    }
}

fn resident(entry: &Entry<'_>, name: &str, faults: &mut Faults) -> Resident {
    let expires_at = match entry.text("expires_at") {
        Said::Nothing => None,
        Said::This(text) => Resident::until(&text),
        Said::Odd => {
            faults.note("expires_at is no time and counts as unknown", name);
            None
        }
    };
    let size = size(entry, "size", name, faults);
    let size_vram = match entry.bytes("size_vram") {
        Said::Nothing => 0,
        Said::This(bytes) => bytes,
        Said::Odd => {
            faults.note("a size is no number of bytes and counts as unknown", name);
            0
        }
    };
    Resident { size, size_vram, expires_at }
}

async fn asked(client: &Client, path: &'static str) -> Result<Asked, NoList> {
    let said = ask(client, path).await.map_err(NoList::Unanswered)?;
    match said.status {
        StatusCode::OK => Ok(said),
        status => Err(NoList::Status(status)),
    }
}

fn read(text: &str) -> Result<Listing<'_>, NoList> {
    Listing::read(text).map_err(|error| match text.trim_start().starts_with('{') {
        true => NoList::Broken(error.to_string()),
        false => NoList::NoneSuch,
    })
}

// === impl Tags ===

impl Tags {
    fn add(&mut self, name: String, elsewhere: bool, info: ModelInfo) {
        let model = ModelName::new(&name);
        if elsewhere || model.is_cloud() {
            self.remote.insert(model);
        } else {
            self.models.insert(name, info);
        }
    }
}

// === impl NoList ===

impl NoList {
    /// The same for those who know of exchanges.
    pub(super) fn of(self, client: &Client) -> ExchangeError {
        match self {
            Self::Unanswered(error) => error,
            none => client.broken(format!("its list of models is {none}")),
        }
    }

    /// Whether a server that has given a list before may have become another one, and not only be in trouble.
    pub(super) fn is_another(&self) -> bool {
        let passes = |status: StatusCode| {
            let later = matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::SERVICE_UNAVAILABLE);
            (status.is_server_error() && !later) || status == StatusCode::TOO_MANY_REQUESTS
        };
        matches!(self, Self::Status(status) if !passes(*status))
    }

    /// Whether this is how a server answers that does not have such a list at all.
    pub(super) fn is_absence(&self) -> bool {
        match self {
            Self::Unanswered(_) | Self::Late | Self::Broken(_) => false,
            Self::NoneSuch => true,
            Self::Status(status) => matches!(
                *status,
                StatusCode::NOT_FOUND
                    | StatusCode::METHOD_NOT_ALLOWED
                    | StatusCode::NOT_IMPLEMENTED
                    | StatusCode::GONE
                    | StatusCode::BAD_REQUEST
            ),
        }
    }
}
