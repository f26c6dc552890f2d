//! Models changed through the mesh by the real `ollama` command: of a node that may, of one of two, and where it may not.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Lab, eventually, get, registry};

/// What a command printed, and whether it was content.
struct Ran {
    ok: bool,
    out: String,
    err: String,
}

struct Manage<'a> {
    lab: &'a Lab,
    /// The listener, as `OLLAMA_HOST` has it.
    mesh: String,
}

pub fn manage(lab: &Lab) {
    let manage = Manage { lab, mesh: lab.mesh.to_string() };
    eventually("both are there", Duration::from_secs(20), || {
        let peers = manage.ollana("laptop", &["peers", "--json"]);
        (peers.matches("\"provider\": true").count() == 2).then_some(())
    });
    manage.nothing_may_be_changed();
    manage.one_may_be_changed();
    manage.two_may_be_changed();
    manage.a_pull_shows_its_progress();
}

impl Manage<'_> {
    fn nothing_may_be_changed(&self) {
        let modelfile = self.lab.modelfile();
        let changing: [&[&str]; 4] = [
            &["create", "mine", "-f", &modelfile],
            &["cp", "smollm2", "mine"],
            &["rm", "smollm2"],
            &["pull", "nope/nope"],
        ];
        for at in ["", "/@gpu1"] {
            for arguments in changing {
                let ran = self.ran(at, arguments);
                assert!(
                    !ran.ok && ran.err.contains("ollana trust laptop --scope manage"),
                    "{arguments:?}: {}",
                    ran.err
                );
            }
            // To ollama.com the command asks for the account first, and gets a node's own answer: there is none.
            assert!(self.ran(at, &["push", "smollm2"]).out.contains("signed in"));
            let pushed = self.ran(at, &["push", "127.0.0.1:9/library/smollm2"]);
            assert!(!pushed.ok && pushed.err.contains("ollana trust laptop --scope manage"), "{}", pushed.err);
        }
        assert!(self.says("", &["list"]).contains("smollm2:latest"));
        assert!(!self.says("", &["list"]).contains("mine"));
    }

    fn one_may_be_changed(&self) {
        self.allow("gpu1");
        // Its blob is there already: the answer comes before the file was sent.
        let modelfile = self.lab.modelfile();
        for _ in 0..3 {
            let created = self.ran("", &["create", "mine", "-f", &modelfile]);
            assert!(created.ok, "{}", created.err);
            assert!(self.says("", &["show", "mine"]).contains("llama"), "at once");
        }
        self.says("", &["cp", "mine", "copy"]);
        assert!(!self.says("", &["run", "copy", "Say hello in one word."]).trim().is_empty());
        assert!(self.says("", &["ps"]).contains("copy:latest"));
        self.says("", &["stop", "copy"]);
        eventually("it is stopped", Duration::from_secs(10), || {
            (!self.says("", &["ps"]).contains("copy")).then_some(())
        });
        self.says("", &["rm", "copy"]);
        let list = self.says("", &["list"]);
        assert!(list.contains("mine:latest") && !list.contains("copy"), "{list}");
        assert!(!self.ran("", &["show", "copy"]).ok);
        let pushed = self.ran("", &["push", "127.0.0.1:9/library/mine"]);
        assert!(!pushed.ok && pushed.err.contains("signed with the key of the server's owner"), "{}", pushed.err);
    }

    fn two_may_be_changed(&self) {
        self.allow("gpu2");
        let modelfile = self.lab.modelfile();
        for (arguments, command) in [
            (&["cp", "smollm2", "other"][..], "cp"),
            (&["create", "other", "-f", &modelfile], "create"),
            (&["rm", "mine"], "rm"),
            (&["pull", "nope/nope"], "pull"),
        ] {
            let ran = self.ran("", arguments);
            let typed = |name| format!("OLLAMA_HOST={}/@{name} ollama {command}", self.mesh);
            assert!(!ran.ok && ["gpu1", "gpu2"].iter().any(|name| ran.err.contains(&typed(name))), "{}", ran.err);
        }
        // The whole file goes there first.
        let created = self.ran("/@gpu2", &["create", "other", "-f", &modelfile]);
        assert!(created.ok, "{}", created.err);
        assert!(self.says("", &["show", "other"]).contains("llama"), "at once, wherever it is");
        assert!(!self.says("", &["run", "other", "Say hello in one word."]).trim().is_empty());
        assert!(self.says("/@gpu2", &["list"]).contains("other") && !self.says("/@gpu1", &["list"]).contains("other"));
        self.says("/@gpu2", &["rm", "other"]);
        assert!(!self.says("", &["list"]).contains("other"));
        assert!(self.ran("/@gpu3", &["list"]).err.contains("no node is called 'gpu3'"));
        assert!(self.lab.models(2).join("blobs").is_dir());
    }

    fn a_pull_shows_its_progress(&self) {
        let registry = registry::serve(self.lab.models(1));
        let name = format!("http://{registry}/library/m");
        let begun = Instant::now();
        let lines = self.pull(&name);
        assert_eq!(lines.last().unwrap().1["status"], "success", "{lines:?}");
        let came: Vec<(Duration, u64)> =
            lines.iter().filter_map(|(at, line)| Some((*at - begun, line["completed"].as_u64()?))).collect();
        let between = came.iter().map(|(_, completed)| completed).collect::<std::collections::BTreeSet<_>>().len();
        let (first, last) = (came.first().unwrap().0, came.last().unwrap().0);
        assert!(between > 5 && last - first > Duration::from_secs(1), "as it comes: {came:?}");
        assert!(get(self.lab.mesh, "/api/tags").contains(&format!("{registry}/library/m:latest")));
        let pulled = self.ran("/@gpu2", &["pull", "--insecure", &name]);
        assert!(pulled.ok && pulled.err.contains("success"), "{}", pulled.err);
        assert!(!self.says("", &["run", &format!("{registry}/library/m"), "Say hello."]).trim().is_empty());
    }

    /// The lines of a pull to gpu2, and when they came.
    fn pull(&self, name: &str) -> Vec<(Instant, Value)> {
        let mut stream = TcpStream::connect(self.lab.mesh).unwrap();
        let body = serde_json::json!({"model": name, "insecure": true}).to_string();
        let length = body.len();
        // HTTP/1.0, so that the lines come without chunks around them.
        write!(stream, "POST /@gpu2/api/pull HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
            .unwrap();
        let lines = BufReader::new(stream).lines().map(Result::unwrap).skip_while(|line| !line.is_empty()).skip(1);
        lines.map(|line| (Instant::now(), serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}")))).collect()
    }

    /// Lets the laptop change the models of this node.
    fn allow(&self, provider: &str) {
        let id = self.ollana("laptop", &["id"]);
        self.ollana(provider, &["trust", id.trim(), "--scope", "manage", "--yes"]);
        eventually("the laptop knows", Duration::from_secs(10), || {
            let at = format!("/@{provider}");
            self.ran(&at, &["rm", "never-there"]).err.contains("not found").then_some(())
        });
    }

    fn ran(&self, at: &str, arguments: &[&str]) -> Ran {
        let ran = self.lab.ollama(format!("{}{at}", self.mesh), arguments).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { ok: ran.status.success(), out: text(ran.stdout), err: text(ran.stderr) }
    }

    fn says(&self, at: &str, arguments: &[&str]) -> String {
        let ran = self.ran(at, arguments);
        assert!(ran.ok, "ollama {arguments:?}: {}", ran.err);
        ran.out
    }

    fn ollana(&self, node: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
        command.args(arguments).arg("--state-dir").arg(self.lab.home.path().join(node));
        command.arg("--config").arg(self.lab.home.path().join("config.toml")).env("HOME", self.lab.home.path());
        let ran = command.stdin(Stdio::null()).output().unwrap();
        assert!(ran.status.success(), "ollana {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    }
}
