//! A node's life: `serve`, `serve -d`, `stop`, signals, and starts that cannot succeed.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::home::{Home, mode, signal};

#[test]
fn a_daemon_serves_when_the_command_returns_and_is_gone_when_stop_does() {
    let home = Home::new();
    let said = home.ok(&["serve", "-d"]);
    let status = home.json(&["status", "--json"]);
    let pid = status["pid"].as_u64().unwrap();
    assert!(said.contains(&format!("process {pid}")) && said.contains(status["listen"].as_str().unwrap()), "{said}");
    let state = home.state();
    assert_eq!(std::fs::read_to_string(state.join("ollana.pid")).unwrap().trim(), pid.to_string());
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&state.join("ollana.sock")), 0o600);
    assert_eq!(mode(&state.join("ollana.log")), 0o600);
    assert_eq!(mode(&state.join("identity.key")), 0o600);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    assert_eq!(fields[3], pid.to_string(), "it leads a session of its own");
    assert_eq!(fields[4], "0", "it has no terminal");
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    for (fd, target) in [("0", Path::new("/dev/null")), ("1", Path::new("/dev/null")), ("2", &state.join("ollana.log"))]
    {
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap(), target);
    }

    assert_eq!(home.ok(&["stop"]), "stopped\n");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "{stat}");
    assert!(!state.join("ollana.sock").exists());
    assert!(!state.join("ollana.pid").exists());
    home.fails(1, &["stop"]);
}

#[test]
fn a_node_may_hold_as_many_files_as_its_hard_limit_lets_it() {
    let home = Home::new();
    let started = Command::new("sh")
        .args(["-c", "ulimit -Sn 200 && ulimit -Hn 3000 && exec \"$0\" serve -d", env!("CARGO_BIN_EXE_ollana")])
        .env_clear()
        .envs(home.command(&[]).get_envs().filter_map(|(name, value)| Some((name, value?))))
        .output()
        .unwrap();
    assert!(started.status.success(), "{started:?}");
    let pid = home.json(&["status", "--json"])["pid"].to_string();
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["3000", "3000"]);
    home.ok(&["stop"]);
}

#[test]
fn a_daemon_keeps_nothing_open_that_its_starter_had_open() {
    let home = Home::new();
    let started = Command::new("sh")
        .args(["-c", "exec 9>held; exec \"$0\" serve -d", env!("CARGO_BIN_EXE_ollana")])
        .env_clear()
        .envs(home.command(&[]).get_envs().filter_map(|(name, value)| Some((name, value?))))
        .current_dir(home.path())
        .output()
        .unwrap();
    assert!(started.status.success() && home.path().join("held").exists(), "{started:?}");
    let pid = home.json(&["status", "--json"])["pid"].to_string();
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        // One that was closed since the listing is none that it keeps.
        let Ok(target) = std::fs::read_link(fd.path()) else { continue };
        assert!(!target.ends_with("held"), "{target:?}");
    }
    home.ok(&["stop"]);
}

#[test]
fn a_second_start_on_one_directory_is_refused_with_the_pid() {
    let home = Home::new();
    home.ok(&["serve", "-d"]);
    let pid = home.json(&["status", "--json"])["pid"].to_string();
    for args in [&["serve", "-d"][..], &["serve"]] {
        let line = home.fails(1, args);
        assert!(line.contains(&format!("process {pid}")) && line.contains("ollana stop"), "{line}");
    }
    // The first one is none the worse for it.
    assert_eq!(home.json(&["status", "--json"])["pid"].to_string(), pid);
    home.ok(&["stop"]);
    home.ok(&["serve", "-d"]);
    home.ok(&["stop"]);
}

#[test]
fn a_killed_node_leaves_nothing_that_stands_in_the_way() {
    let home = Home::new();
    home.ok(&["serve", "-d"]);
    let before = home.json(&["status", "--json"]);
    signal(u32::try_from(before["pid"].as_u64().unwrap()).unwrap(), Signal::KILL);
    // The lock is free when the process is gone.
    std::fs::File::open(home.state().join("ollana.lock")).unwrap().lock().unwrap();
    assert!(home.state().join("ollana.sock").exists());
    assert!(home.fails(1, &["status"]).contains("no node runs"));
    home.ok(&["serve", "-d"]);
    assert_eq!(home.json(&["status", "--json"])["id"], before["id"]);
    home.ok(&["stop"]);
}

#[test]
fn a_signal_ends_a_node_in_order() {
    for what in [Signal::TERM, Signal::INT, Signal::HUP] {
        let home = Home::new();
        let node = home.foreground(&["serve"]);
        home.ok(&["status"]);
        node.signal(what);
        let (code, log) = node.end();
        assert_eq!(code, Some(0), "{what:?}: {log}");
        assert!(!home.state().join("ollana.sock").exists());
        assert!(!home.state().join("ollana.pid").exists());
    }
}

#[test]
fn stop_ends_a_node_in_the_foreground_too() {
    let home = Home::new();
    let node = home.foreground(&["serve"]);
    home.ok(&["stop"]);
    assert_eq!(node.end().0, Some(0));
}

#[test]
fn the_log_can_be_json() {
    let home = Home::new();
    let node = home.foreground(&["serve", "--log-format", "json"]);
    for line in node.first.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
    node.signal(Signal::TERM);
    assert_eq!(node.end().0, Some(0));
}

#[test]
fn a_directory_that_cannot_be_is_said_so() {
    let home = Home::new();
    for args in [&["serve", "--state-dir", "/dev/null/x"][..], &["serve", "-d", "--state-dir", "/dev/null/x"]] {
        let line = home.fails(1, args);
        assert!(line.contains("/dev/null/x") && line.contains("--state-dir"), "{line}");
    }
}

#[test]
fn a_socket_path_that_is_too_long_is_said_so() {
    let home = Home::new();
    let long = home.path().join("d".repeat(100));
    for args in [&["serve", "--state-dir"][..], &["serve", "-d", "--state-dir"]] {
        let line = home.fails(1, &[args, &[long.to_str().unwrap()]].concat());
        assert!(line.contains("107") && line.contains("shorter"), "{line}");
    }
    assert!(!long.join("identity.key").exists());
}

#[test]
fn a_port_that_was_asked_for_and_is_taken_is_a_failure() {
    let home = Home::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for flag in ["--status", "--listen"] {
        for serve in [&["serve"][..], &["serve", "-d"]] {
            let line = home.run(&[serve, &[flag, &addr]].concat());
            assert_eq!(line.code, Some(1), "{}", line.err);
            let last = line.err.lines().last().unwrap();
            assert!(last.contains(&addr) && last.contains(flag), "{last}");
        }
    }
    // Nothing is left half-started.
    assert!(!home.state().join("ollana.pid").exists());
    assert!(home.fails(1, &["status"]).contains("no node runs"));
}
