//! The table of options against the source of an Ollama, where `OLLAMA_SOURCE` names a checkout of one.

use std::collections::BTreeSet;
use std::path::PathBuf;

use ollana::internals::route::options::{Effect, LOADING_KEYS, OPTIONS};

/// The checkout, or why there is none.
pub fn checkout() -> Result<PathBuf, String> {
    let named = std::env::var_os("OLLAMA_SOURCE").map(PathBuf::from);
    let checkout = named.ok_or("no OLLAMA_SOURCE: a checkout of github.com/ollama/ollama")?;
    match checkout.join("api/types.go").is_file() {
        true => Ok(checkout),
        false => Err(format!("no api/types.go in {}", checkout.display())),
    }
}

/// The text between this line and the `}` that ends it.
fn block<'a>(source: &'a str, begins: &str) -> &'a str {
    let from = source.find(begins).unwrap_or_else(|| panic!("no {begins}"));
    let text = &source[from..];
    &text[..text.find("\n}").expect("an end")]
}

/// The names that a struct's fields have in JSON.
fn names(block: &str) -> BTreeSet<&str> {
    block.split("json:\"").skip(1).map(|tag| tag.split(['"', ',']).next().unwrap()).collect()
}

fn known(of: impl Fn(Effect) -> bool) -> BTreeSet<&'static str> {
    OPTIONS.iter().filter(|(_, effect)| of(*effect)).map(|(name, _)| *name).collect()
}

/// Every option of this Ollama is in the table, and as what it is; and nothing else of a request loads a model anew.
pub fn the_table_of_options_has_what_this_source_has() {
    let checkout = checkout().unwrap();
    let read = |file: &str| std::fs::read_to_string(checkout.join(file)).unwrap();
    let (types, sched) = (read("api/types.go"), read("server/sched.go"));
    let loads = names(block(&types, "type Runner struct {"));
    let answers = names(block(&types, "type Options struct {"));
    assert!(loads.contains("num_ctx") && answers.contains("temperature"), "not read: {loads:?} {answers:?}");
    let unknown: Vec<_> = loads.difference(&known(|effect| effect != Effect::Answer)).copied().collect();
    assert!(unknown.is_empty(), "these load a model anew and are not in the table as that: {unknown:?}");
    let unknown: Vec<_> = answers.difference(&known(|effect| effect == Effect::Answer)).copied().collect();
    assert!(unknown.is_empty(), "these are not in the table, and so ignored: {unknown:?}");
    // The parts of a request that decide: its model, its options, and `shift`.
    let decides = block(&sched, "func (runner *runnerRef) needsReload(");
    let fields: BTreeSet<&str> = decides
        .split("req.")
        .skip(1)
        .map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap())
        .collect();
    let seen = BTreeSet::from(["model", "opts", "numCtxAuto", "numBatchAuto", "contextShift", "shift"]);
    let unknown: Vec<_> = fields.difference(&seen).copied().collect();
    assert!(unknown.is_empty(), "a model is loaded anew for something else of a request: {unknown:?}");
    if fields.contains("shift") {
        let chat = names(block(&types, "type ChatRequest struct {"));
        assert!(LOADING_KEYS.iter().all(|key| chat.contains(key)), "{chat:?}");
    }
}
