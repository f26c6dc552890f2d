//! What the server's own process says of how it was set up: environment and runners' arguments, where they can be read.
//!
//! On Linux, of a server on this machine, best effort: the process that listens on the port is found by its socket, which
//! only its own user and root may see, and an Ollama in a container is not there at all. Of the environment nothing is
//! looked at but two settings of Ollama's; none of it is kept or logged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::Uri;
use tokio::sync::watch;

use super::direct::local_port;
use super::speeds::Speeds;
use super::{Memory, State};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Told {
    /// `OLLAMA_NUM_PARALLEL`, or what another server was told of its slots.
    pub(super) parallel: Option<u32>,
    /// `OLLAMA_MAX_LOADED_MODELS`.
    pub(super) most_loaded: Option<u32>,
    /// What the runners of models in memory were told of their slots, by the names of the models.
    pub(super) runners: BTreeMap<String, u32>,
}

/// Looks when the server comes and when a model was loaded, and tells what it says.
pub(super) async fn watch(
    target: Uri,
    mut state: watch::Receiver<Arc<State>>,
    speeds: Speeds,
    memory: watch::Sender<Arc<Memory>>,
) {
    // What was loaded at the last look; nothing before the first.
    let mut seen: Option<BTreeSet<String>> = None;
    loop {
        let (healthy, loaded) = {
            let state = state.borrow_and_update().clone();
            (state.healthy, state.loaded.clone())
        };
        if healthy
            && seen.as_ref().is_none_or(|seen| !loaded.is_subset(seen))
            && let Some(port) = local_port(&target)
        {
            let names: Vec<String> = loaded.iter().cloned().collect();
            let found = tokio::task::spawn_blocking(move || look(port, &names)).await.ok().flatten();
            tracing::debug!(?found, "what the local server's process says of itself");
            let told = found.unwrap_or_default();
            speeds.told(told.parallel, &told.runners);
            memory.send_if_modified(|known| {
                let changed = known.told != told.most_loaded;
                if changed {
                    *known = Arc::new(Memory { told: told.most_loaded, ..Memory::clone(known) });
                }
                changed
            });
        }
        seen = healthy.then_some(loaded);
        if state.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Looks for the process that listens on this port. `loaded`: the models in memory, to tell its runners apart. Reads
/// files: not for a thread that others wait on.
#[cfg(target_os = "linux")]
pub(super) fn look(port: u16, loaded: &[String]) -> Option<Told> {
    linux::look(port, loaded)
}

/// Nothing is known elsewhere.
#[cfg(not(target_os = "linux"))]
pub(super) fn look(_: u16, _: &[String]) -> Option<Told> {
    None
}

/// A number that is set, and not left to the server by 0.
fn set(value: &[u8]) -> Option<u32> {
    let number = std::str::from_utf8(value).ok()?.trim().trim_matches(['"', '\'']).parse().ok()?;
    (number > 0).then_some(number)
}

/// The value of an option of a command line: `--name value` or `--name=value`.
fn option<'a>(arguments: &[&'a [u8]], names: &[&str]) -> Option<&'a [u8]> {
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        for name in names {
            match argument.strip_prefix(name.as_bytes()) {
                Some([]) => return arguments.next().copied(),
                Some([b'=', value @ ..]) => return Some(value),
                _ => {}
            }
        }
    }
    None
}

/// How many requests a command line says are worked on at a time: llama-server's `-np`, and Ollama's runner's.
fn parallel(arguments: &[&[u8]]) -> Option<u32> {
    set(option(arguments, &["--parallel", "-np"])?)
}

/// Where Ollama keeps the manifest of a model, below `manifests`; nothing if the name would lead elsewhere.
fn manifest(name: &str) -> Option<String> {
    let (path, tag) = name.rsplit_once(':')?;
    let mut parts: Vec<&str> = path.split('/').collect();
    match parts.len() {
        1 => drop(parts.splice(0..0, ["registry.ollama.ai", "library"])),
        2 => parts.insert(0, "registry.ollama.ai"),
        _ => {}
    }
    parts.push(tag);
    let harmless = |part: &&str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !part.is_empty() && !part.starts_with('.') && part.bytes().all(plain)
    };
    parts.iter().all(harmless).then(|| parts.join("/"))
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::{BTreeMap, BTreeSet};
    use std::ffi::OsStr;
    use std::fs::{self, File};
    use std::io::Read as _;
    use std::os::unix::ffi::OsStrExt as _;
    use std::path::{Path, PathBuf};

    use serde::Deserialize;

    use super::{Told, manifest, option, parallel, set};
    use crate::ollama::direct::diag::{self, LISTEN};

    /// More than any of the files has that are read here.
    const MOST: u64 = 1 << 20;

    /// What of a model's manifest is looked at.
    #[derive(Deserialize)]
    struct Manifest {
        layers: Vec<Layer>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layer {
        media_type: String,
        digest: String,
    }

    pub(super) fn look(port: u16, loaded: &[String]) -> Option<Told> {
        let inodes: BTreeSet<u32> = diag::sockets(port, LISTEN).ok()?.iter().map(|socket| socket.inode).collect();
        let server = processes().find(|process| holds(process, &inodes))?;
        let environment = read(&server.join("environ")).unwrap_or_default();
        let variable = |name: &str| {
            let mut variables = environment.split(|byte| *byte == 0);
            variables.find_map(|line| set(line.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?))
        };
        let children = processes().filter(|process| parent(process).as_deref() == server.file_name());
        let runners = children.filter_map(|process| runner(&process)).collect();
        Some(Told {
            parallel: variable("OLLAMA_NUM_PARALLEL").or_else(|| runner(&server).map(|(_, parallel)| parallel)),
            most_loaded: variable("OLLAMA_MAX_LOADED_MODELS"),
            runners: named(runners, loaded),
        })
    }

    fn processes() -> impl Iterator<Item = PathBuf> {
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter(|entry| entry.file_name().as_bytes().iter().all(u8::is_ascii_digit)).map(|entry| entry.path())
    }

    fn holds(process: &Path, inodes: &BTreeSet<u32>) -> bool {
        let mut open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        open.any(|entry| {
            let Ok(what) = fs::read_link(entry.path()) else { return false };
            let inode = what.to_str().and_then(|what| what.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            inode.is_some_and(|inode| inodes.contains(&inode))
        })
    }

    /// The ID of a process's parent: the second field after its name, which stands in brackets and may have any in it.
    fn parent(process: &Path) -> Option<std::ffi::OsString> {
        let stat = read(&process.join("stat"))?;
        let after = stat.get(memchr::memrchr(b')', &stat)? + 1..)?;
        let parent = after.split(|byte| *byte == b' ').nth(2)?;
        Some(OsStr::from_bytes(parent).to_owned())
    }

    /// Which weights a process was told to run, and how many requests at a time.
    fn runner(process: &Path) -> Option<(PathBuf, u32)> {
        let line = read(&process.join("cmdline"))?;
        let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let model = option(&arguments, &["--model", "-m"]).unwrap_or_default();
        Some((PathBuf::from(OsStr::from_bytes(model)), parallel(&arguments)?))
    }

    /// Which model is whose: a runner is told a file with weights, whose digest stands in the model's manifest beside it.
    /// Where that cannot be read and all runners were told the same, it is the same for all models.
    fn named(runners: Vec<(PathBuf, u32)>, loaded: &[String]) -> BTreeMap<String, u32> {
        let mut named = BTreeMap::new();
        for (weights, parallel) in &runners {
            let digest = weights.file_name().and_then(OsStr::to_str).map(|name| name.replacen('-', ":", 1));
            let Some((store, digest)) = weights.parent().and_then(Path::parent).zip(digest) else { continue };
            let is_its = |name: &&String| {
                let Some(path) = manifest(name) else { return false };
                let bytes = read(&store.join("manifests").join(path)).unwrap_or_default();
                serde_json::from_slice::<Manifest>(&bytes).is_ok_and(|manifest| {
                    let weights = "application/vnd.ollama.image.model";
                    manifest.layers.iter().any(|layer| layer.media_type == weights && layer.digest == digest)
                })
            };
            named.extend(loaded.iter().filter(is_its).map(|name| (name.clone(), *parallel)));
        }
        match &runners[..] {
            [(_, first), others @ ..] if named.is_empty() && others.iter().all(|(_, other)| other == first) => {
                loaded.iter().map(|name| (name.clone(), *first)).collect()
            }
            _ => named,
        }
    }

    fn read(path: &Path) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path).ok()?.take(MOST).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    #[cfg(test)]
    mod tests {
        use std::net::TcpListener;
        use std::process::{Child, Command, Stdio};

        use super::*;

        /// A child of this test, which listens on a port, with a command line like a runner's.
        fn child(arguments: &[&str]) -> Child {
            let mut command = Command::new("sh");
            // A shell with a name and arguments of our choice, which waits for the end of its input.
            command.args(["-c", "read line", "llama-server"]).args(arguments);
            command.stdin(Stdio::piped()).spawn().unwrap()
        }

        #[test]
        fn the_process_that_listens_and_its_runners_are_found() {
            let store = tempfile::tempdir().unwrap();
            for (name, digest) in [("one/latest", "sha256:1a"), ("two/7b", "sha256:2b")] {
                let path = store.path().join("manifests/registry.ollama.ai/library").join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                let layer = |kind: &str, digest: &str| format!(r#"{{"mediaType":"{kind}","digest":"{digest}"}}"#);
                let (text, weights) = (
                    layer("application/vnd.ollama.image.template", "sha256:9"),
                    layer("application/vnd.ollama.image.model", digest),
                );
                fs::write(path, format!(r#"{{"layers":[{text},{weights}]}}"#)).unwrap();
            }
            let weights = |digest: &str| store.path().join("blobs").join(digest).to_str().unwrap().to_owned();
            let mut children = [
                child(&["--model", &weights("sha256-1a"), "-np", "4"]),
                child(&["--model", &weights("sha256-2b"), "--parallel=1", "--port", "1"]),
                child(&["--something", "else"]),
            ];
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let loaded = ["one:latest", "two:7b", "three:latest"].map(str::to_owned);
            let told = look(port, &loaded);
            for child in &mut children {
                drop(child.stdin.take());
                child.wait().unwrap();
            }
            let told = told.expect("this process listens");
            assert_eq!(told.runners, BTreeMap::from([("one:latest".to_owned(), 4), ("two:7b".to_owned(), 1)]));
            drop(listener);
            assert_eq!(look(port, &loaded), None);
        }

        #[test]
        fn runners_that_cannot_be_told_apart_count_if_they_agree() {
            let loaded = ["one:latest", "two:7b"].map(str::to_owned);
            let runners = |parallel: [u32; 2]| {
                parallel.map(|parallel| (PathBuf::from("/nowhere/blobs/sha256-1"), parallel)).to_vec()
            };
            assert_eq!(named(runners([3, 3]), &loaded).into_values().collect::<Vec<_>>(), [3, 3]);
            assert_eq!(named(runners([3, 1]), &loaded), BTreeMap::new());
            assert_eq!(named(Vec::new(), &loaded), BTreeMap::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_of_runners_are_read() {
        let read = |line: &str| parallel(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        assert_eq!(read("/usr/lib/ollama/llama-server --model /m/blobs/sha256-1 -np 4 --port 5"), Some(4));
        assert_eq!(read("/usr/bin/ollama runner --model /m --ctx-size 8192 --parallel 2 --port 5"), Some(2));
        assert_eq!(read("llama-server --parallel=3"), Some(3));
        assert_eq!(read("/usr/bin/ollama runner --ollama-engine --model /m --port 5"), None);
        for odd in ["llama-server -np", "llama-server -np x", "llama-server -np 0", "llama-server -np -1", ""] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }

    #[test]
    fn manifests_are_found_and_nothing_outside() {
        let found = |name: &str| manifest(name).unwrap_or_default();
        assert_eq!(found("qwen3:4b"), "registry.ollama.ai/library/qwen3/4b");
        assert_eq!(found("me/mine:latest"), "registry.ollama.ai/me/mine/latest");
        assert_eq!(found("hf.co/them/theirs:Q4_K_M"), "hf.co/them/theirs/Q4_K_M");
        for odd in ["../../etc:passwd", "a/..:b", "untagged", ":", "a b:c", "/etc/passwd:x", "a:..", "a//b:c"] {
            assert_eq!(manifest(odd), None, "{odd}");
        }
    }
}
