//! gRPC by its own makers: a server and a client of the PyPI package `grpcio`, with two nodes between them.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use libtest_mimic::Trial;
use ollana::internals::exchange::ServerKind;

use super::in_a_runtime;
use super::node::node;
use super::tools;

pub fn trial() -> Trial {
    let python = tools::python();
    let reason = python.as_ref().err().cloned().unwrap_or_default();
    let ignored = python.is_err();
    Trial::test("grpcio::a_real_client_makes_all_four_calls_at_a_real_server", move || {
        in_a_runtime(all_four_calls(python.unwrap()));
        Ok(())
    })
    .with_kind(reason)
    .with_ignored_flag(ignored)
}

struct Server {
    child: Child,
    says: BufReader<ChildStdout>,
}

impl Server {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn script(python: &Path) -> Command {
    let mut command = Command::new(python);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers/grpcio.py")).stdin(Stdio::null());
    command
}

async fn all_four_calls(python: PathBuf) {
    let mut child = script(&python).arg("server").stdout(Stdio::piped()).spawn().unwrap();
    let says = BufReader::new(child.stdout.take().unwrap());
    let mut server = Server { child, says };
    let port = server.line();
    let provider = node("gpu1").lends_at(format!("http://127.0.0.1:{port}").parse().unwrap()).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    let peer = user.until_peer(provider.id(), |peer| peer.provider).await;
    assert_eq!(peer.api, ServerKind::Grpc);
    let mut client = script(&python);
    client.args(["client", &user.listen.port().to_string()]);
    let called = tokio::task::spawn_blocking(move || client.output().unwrap()).await.unwrap();
    assert!(called.status.success(), "{}", String::from_utf8_lossy(&called.stderr));
    assert_eq!(server.line(), "given up", "the deadline of a call ends its work");
}
