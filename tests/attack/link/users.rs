//! Another user of the same machine.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::netns::Net;
use crate::node::{Home, Node, OLLANA};

/// `nobody`.
const OTHER: u32 = 65534;

/// Whether a process may be started as somebody else, and if not, why.
pub fn permitted() -> Result<(), String> {
    match Command::new("true").uid(OTHER).gid(OTHER).status() {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("no process can be started as another user: {error}")),
    }
}

pub fn another_user_is_refused_at_the_socket_even_if_it_lets_itself_be_opened() {
    let net = Net::empty();
    let host = net.bare_host("desk");
    let home = Home::new("desk");
    let node = Node::start(&host, &home, &["--status", "off"]);
    // The program where anybody may run it.
    let bin = tempfile::Builder::new().prefix("ollana-bin-").tempdir().unwrap();
    let set_mode =
        |path: &std::path::Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    set_mode(bin.path(), 0o755);
    let program = bin.path().join("ollana");
    std::fs::copy(OLLANA, &program).unwrap();
    set_mode(&program, 0o755);
    let state = home.state_dir();
    let as_other = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).arg("--state-dir").arg(&state).env_clear().env("HOME", "/").current_dir("/");
        let output = command.uid(OTHER).gid(OTHER).output().unwrap();
        (
            output.status.code(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    };
    let id = node.id();
    let attempts: [&[&str]; 6] = [
        &["status"],
        &["peers", "--json"],
        &["stop"],
        &["trust", &id, "--yes", "--scope", "manage"],
        &["invite"],
        &["trust", "export"],
    ];
    // As it is; and if somebody has opened every door but the kernel's answer to who is there.
    for opened in [false, true] {
        if opened {
            for dir in
                state.ancestors().take_while(|dir| dir.starts_with("/tmp") && *dir != std::path::Path::new("/tmp"))
            {
                set_mode(dir, 0o755);
            }
            set_mode(&state.join("ollana.sock"), 0o666);
        }
        for attempt in attempts {
            let (code, said) = as_other(attempt);
            assert_eq!(code, Some(1), "{attempt:?}: {said}");
            assert!(!said.contains(&id) || attempt.contains(&id.as_str()), "{attempt:?}: {said}");
        }
        for file in ["identity.key", "ollana.log"] {
            let read = Command::new("cat").arg(state.join(file)).uid(OTHER).gid(OTHER).output().unwrap();
            assert!(!read.status.success() && read.stdout.is_empty(), "{file}");
        }
    }
    assert_eq!(node.status()["name"], "desk", "it runs on");
}
