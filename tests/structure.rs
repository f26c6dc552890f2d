//! Which module may import which: the lists below say it, and this test keeps to them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The words that everyone may use, and that know nothing above them.
const LEAVES: [&str; 4] = ["id", "wire", "exchange", "route"];

/// Whom a module may know beside itself; `None` where there is no bound but [`NEVER`].
fn may_know(module: &str) -> Option<Vec<&'static str>> {
    let leaves_and = |more: &[&'static str]| Some(LEAVES.iter().chain(more).copied().collect());
    match module {
        "id" | "wire" | "exchange" | "route" => leaves_and(&[]),
        "private_file" => Some(vec![]),
        "identity" => Some(vec!["id", "private_file"]),
        "tls" => Some(vec!["id", "identity"]),
        "trust" => Some(vec!["id", "private_file"]),
        "pairing" => leaves_and(&["trust", "tls", "identity"]),
        "discovery" => Some(vec!["id", "wire"]),
        "transport" => leaves_and(&["identity", "tls"]),
        "peers" => leaves_and(&["discovery", "pairing", "tls", "transport", "trust"]),
        "inbound" => leaves_and(&["gate", "pairing", "peers", "tls", "transport", "trust"]),
        "digests" => Some(vec!["id", "private_file", "route"]),
        "balance" => leaves_and(&["digests"]),
        "catalog" => leaves_and(&["balance"]),
        "listener" | "devices" => leaves_and(&["balance", "catalog"]),
        "gate" => leaves_and(&["ollama", "trust"]),
        "ollama" => leaves_and(&[]),
        // What is set is parsed once, into the types of those whom it concerns.
        "config" => Some(vec!["id", "discovery", "exchange", "gate", "trust"]),
        "control" => Some(vec!["id", "digests", "exchange", "pairing", "peers", "route", "trust"]),
        "web" => Some(vec!["id", "exchange", "control", "listener", "peers", "trust"]),
        "app" | "cli" | "lib" | "main" => None,
        other => panic!("src has a module `{other}` that is in no list: say here what it may import"),
    }
}

/// Nobody imports these, except those named.
const NEVER: [(&str, &[&str]); 2] = [("cli", &["main"]), ("app", &["cli", "main"])];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The top-level module that a file belongs to: `peers` for `src/peers.rs` and all below `src/peers/`.
fn module_of(path: &Path, src: &Path) -> String {
    let first = path.strip_prefix(src).unwrap().components().next().unwrap();
    first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The top-level modules that a source names after `crate::`, or in `main.rs` after `ollana::`; a comment may speak of
/// anyone.
fn named(source: &str) -> BTreeSet<String> {
    let code: String =
        source.lines().map(|line| line.split("//").next().unwrap_or_default()).fold(String::new(), |mut code, line| {
            code.push_str(line);
            code.push(' ');
            code
        });
    let mut found = BTreeSet::new();
    for root in ["crate::", "ollana::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let rest = code[at + root.len()..].trim_start();
            match rest.strip_prefix('{') {
                // A group: the first word of each branch at its top level.
                Some(group) => {
                    let mut depth = 0;
                    let mut word = String::new();
                    for c in group.chars() {
                        match c {
                            '}' if depth == 0 => break,
                            '{' => depth += 1,
                            '}' => depth -= 1,
                            _ => {}
                        }
                        if depth == 0 && c == ',' {
                            found.insert(first_word(&word));
                            word.clear();
                        } else {
                            word.push(c);
                        }
                    }
                    found.insert(first_word(&word));
                }
                None => {
                    found.insert(first_word(rest));
                }
            }
        }
    }
    found.remove("");
    found
}

fn first_word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// What a file may not name and does.
fn forbidden(module: &str, source: &str) -> Vec<String> {
    let allowed = may_know(module);
    named(source)
        .into_iter()
        .filter(|named| named != module && named.chars().next().is_some_and(char::is_lowercase))
        .filter(|named| {
            let walled = NEVER.iter().any(|(never, except)| never == named && !except.contains(&module));
            walled || allowed.as_ref().is_some_and(|allowed| !allowed.contains(&named.as_str()))
        })
        .collect()
}

#[test]
fn no_module_knows_whom_it_must_not() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 20, "src was not found");
    let mut wrong = Vec::new();
    for file in files {
        let module = module_of(&file, &src);
        let source = fs::read_to_string(&file).unwrap();
        for other in forbidden(&module, &source) {
            wrong.push(format!("{}: `{module}` must not know `{other}`", file.strip_prefix(&src).unwrap().display()));
        }
    }
    assert!(wrong.is_empty(), "imports that the lists above do not allow:\n{}", wrong.join("\n"));
}

#[test]
fn only_the_transport_uses_quinn() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    for file in files {
        let module = module_of(&file, &src);
        let code = fs::read_to_string(&file).unwrap();
        let uses = code.lines().any(|line| !line.trim_start().starts_with("//") && line.contains("quinn::"));
        assert!(!uses || module == "transport", "{}: only `transport` uses quinn", file.display());
    }
}

#[test]
fn a_forbidden_import_is_seen_however_it_is_written() {
    for source in [
        "use crate::transport::Transport;",
        "    use crate::{exchange::Body, transport};",
        "use crate::{\n    id::{Id, NodeName},\n    transport::{self, Remote},\n};",
        "fn f() { crate::transport::dial() }",
        "mod inner { use crate :: id; use crate::transport as t; }",
        "pub(crate) use crate::transport::*;",
    ] {
        assert_eq!(forbidden("balance", source), ["transport"], "{source}");
    }
    for source in
        ["// use crate::transport;", "/// [`crate::transport`]", "use crate::id::Id;", "use other_crate::transport;"]
    {
        assert!(forbidden("balance", source).is_empty(), "{source}");
    }
    assert_eq!(forbidden("web", "use crate::cli::Cli;"), ["cli"]);
    assert_eq!(forbidden("listener", "use crate::app::App;"), ["app"]);
    assert!(forbidden("main", "use ollana::cli::Cli;").is_empty());
    assert!(forbidden("app", "use crate::transport::Transport;").is_empty());
}

#[test]
fn security_md_names_tests_and_constants_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for dir in ["src", "tests"] {
        sources(&root.join(dir), &mut files);
    }
    let code: String = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: BTreeSet<&str> = code.split(|c| !is_name(c)).collect();
    let page = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let quoted = page.split('`').skip(1).step_by(2);
    // Names of tests have several words; what has two only may be a setting.
    let names = quoted.filter(|text| text.chars().all(is_name) && text.matches('_').count() > 1);
    let gone: Vec<&str> = names.filter(|name| !words.contains(name)).collect();
    assert!(gone.is_empty(), "SECURITY.md names what is not in the code: {gone:?}");
}

/// A value that is borrowed from a watch channel is locked: two threads that each hold one lock and want the other's wait for
/// ever.
#[test]
fn no_value_of_a_watch_channel_is_held_in_a_variable() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    let holds = |line: &str| {
        let line = line.trim();
        let borrows = line.ends_with(".borrow();") || line.ends_with(".borrow_and_update();");
        let copies = line.split_whitespace().next_back().is_some_and(|value| value.starts_with('*'));
        borrows && line.starts_with("let ") && !copies
    };
    assert!(holds("let paces = paces.borrow();") && !holds("let kind = *kind.borrow();"));
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        let code = source.split("#[cfg(test)]\nmod tests").next().unwrap();
        let held = code.lines().find(|line| holds(line));
        assert_eq!(held, None, "{}: copy it with clone() first", file.display());
    }
}
