//! Help, bad usage, and what is said where nothing runs.

use crate::home::Home;

#[test]
fn help_names_every_command_and_every_flag_of_serve() {
    let home = Home::new();
    let help = home.ok(&["--help"]);
    let commands =
        ["serve", "stop", "status", "peers", "models", "id", "trust", "vouch", "revoke", "forget", "config", "doctor"];
    for command in commands {
        assert!(help.contains(&format!("\n  {command} ")), "{command}");
        assert!(home.ok(&[command, "--help"]).contains("Usage:"), "{command}");
    }
    let serve = home.ok(&["serve", "--help"]);
    for flag in [
        "-d",
        "--mode",
        "--listen",
        "--listen-open",
        "--ollama",
        "--mesh",
        "--peer",
        "--name",
        "--status",
        "--state-dir",
        "--config",
        "--log-format",
    ] {
        assert!(serve.contains(&format!("{flag} ")) || serve.contains(&format!("{flag},")), "{flag}");
        if flag.len() > 2 {
            let variable = format!("OLLANA_{}", flag.trim_start_matches('-').replace('-', "_").to_uppercase());
            assert!(serve.contains(&variable), "{variable}");
        }
    }
    assert!(home.ok(&["--version"]).starts_with("ollana "));
}

#[test]
fn verbs_of_ollama_and_of_service_managers_are_known_or_answered() {
    let home = Home::new();
    let help = home.ok(&["--help"]);
    assert_eq!(home.ok(&["help"]), help);
    assert!(home.ok(&["help", "serve"]).contains("--mode"));
    assert_eq!(home.ok(&["version"]), home.ok(&["--version"]));
    for models in ["list", "ls", "ps"] {
        assert!(home.fails(1, &[models]).contains("no node runs"), "{models}");
    }
    for (typed, instead) in [
        (&["restart"][..], "`ollana stop`, then `ollana serve -d`"),
        (&["start"], "`ollana serve -d`"),
        (&["logs"], "ollana.log"),
        (&["run", "qwen3"], "`ollama run`"),
        (&["pull", "qwen3"], "`ollama pull`"),
    ] {
        let line = home.fails(2, typed);
        assert!(line.contains(instead) && line.contains(&format!("no command `{}`", typed[0])), "{line}");
    }
    let line = home.fails(2, &["serve", "--mode", "lend"]);
    assert!(line.contains("auto, client or server") && line.contains("`server` shares only"), "{line}");
}

#[test]
fn bad_usage_exits_with_2() {
    let home = Home::new();
    for args in [
        &["frobnicate"][..],
        &[],
        &["serve", "--frobnicate"],
        &["serve", "--mode", "both"],
        &["trust"],
        &["trust", "gpu1", "--scope", "all", "--yes"],
        &["config", "get"],
    ] {
        assert_eq!(home.run(args).code, Some(2), "{args:?}");
    }
    for (args, word) in [
        (&["serve", "--listen", "nonsense"][..], "not an address"),
        (&["serve", "-d", "--listen", "nonsense"], "not an address"),
        (&["serve", "--listen", "0.0.0.0:0"], "--listen-open"),
        (&["serve", "--status", "0.0.0.0:0"], "stays on this machine"),
        (&["serve", "--ollama", "https://gpu1"], "https"),
        (&["serve", "--name", "a b"], "letters"),
        (&["serve", "--peer", "http://gpu1"], "HOST"),
        (&["trust", "gpu1", "--yes"], "whole ID"),
        (&["trust", "gpu1"], "terminal"),
        (&["config", "set", "lisen", "1"], "did you mean \"listen\""),
        (&["config", "set", "mode", "both"], "auto, client or server"),
    ] {
        let line = home.fails(2, args);
        assert!(line.contains(word), "{args:?}: {line}");
    }
}

#[test]
fn a_bad_variable_or_file_is_a_failure_that_names_it() {
    let mut home = Home::new();
    home.set("OLLANA_MODE", "both");
    assert!(home.fails(1, &["serve"]).contains("OLLANA_MODE=both"));
    assert!(home.fails(1, &["serve", "-d"]).contains("OLLANA_MODE=both"));
    home.unset("OLLANA_MODE");
    std::fs::create_dir_all(home.config().parent().unwrap()).unwrap();
    std::fs::write(home.config(), "# mine\nlisten = \"127.0.0.1:0\"\nmoed = \"auto\"\n").unwrap();
    let line = home.fails(1, &["serve"]);
    assert!(line.contains("config.toml:3") && line.contains("did you mean \"mode\""), "{line}");
    let named = home.path().join("absent.toml");
    assert!(home.fails(1, &["serve", "--config", named.to_str().unwrap()]).contains("absent.toml"));
}

#[test]
fn where_no_node_runs_the_line_says_how_to_start_one() {
    let home = Home::new();
    for command in ["status", "peers", "models", "stop"] {
        let line = home.fails(1, &[command]);
        assert!(line.contains("no node runs") && line.contains("ollana serve -d"), "{line}");
        assert!(line.contains(home.state().to_str().unwrap()) && line.contains("/var/lib/ollana"), "{line}");
    }
    // Asking leaves nothing behind.
    assert!(!home.state().exists());
}

#[test]
fn nobody_who_reads_on_is_no_failure() {
    let home = Home::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = home.command(&["config", "show"]).stdout(writer).output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

#[test]
fn the_id_is_there_once_a_node_was() {
    let home = Home::new();
    assert!(home.fails(1, &["id"]).contains("ollana serve"));
    assert!(!home.state().exists());
    home.ok(&["serve", "-d"]);
    let running = home.ok(&["id"]);
    home.ok(&["stop"]);
    assert_eq!(home.ok(&["id"]), running);
    let json = home.json(&["id", "--json"]);
    assert_eq!(json["id"].as_str().unwrap(), running.trim());
    assert!(json["name"].is_string());
}

#[test]
fn doctor_finds_what_is_there_and_what_is_not() {
    let mut home = Home::new();
    let check = |home: &Home, name: &str| {
        let ran = home.run(&["doctor", "--json"]);
        let findings: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
        let found = findings.as_array().unwrap().iter().find(|finding| finding["check"] == name);
        (ran.code, found.map(|finding| finding["level"].as_str().unwrap().to_owned()))
    };
    assert_eq!(check(&home, "node").1.as_deref(), Some("hint"));
    assert_eq!(check(&home, "ollama").1.as_deref(), Some("hint"));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    home.set("OLLANA_LISTEN", &taken.local_addr().unwrap().to_string());
    assert_eq!(check(&home, "listen"), (Some(1), Some("problem".to_owned())));
    home.set("OLLANA_LISTEN", "127.0.0.1:0");
    assert_eq!(check(&home, "listen").1.as_deref(), Some("ok"));

    home.ok(&["serve", "-d"]);
    assert_eq!(check(&home, "node").1.as_deref(), Some("ok"));
    assert_eq!(check(&home, "state").1.as_deref(), Some("ok"));
    std::fs::set_permissions(home.state(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(check(&home, "state"), (Some(1), Some("problem".to_owned())));
    home.ok(&["stop"]);
}

#[test]
fn the_choice_of_weights_wants_a_model_and_a_node() {
    let home = Home::new();
    for wrong in ["qwen3", "@gpu1", "qwen3@"] {
        home.fails(2, &["models", "--keep", wrong]);
    }
    home.fails(1, &["models", "--keep", "qwen3@gpu1"]);
}

#[test]
fn a_slip_in_an_id_is_shown_where_it_is() {
    let home = Home::new();
    let id = ollana::Id::of_spki(b"key").to_string();
    let slip_at = |at: usize| {
        let other = if id.as_bytes()[at] == b'A' { "B" } else { "A" };
        format!("{}{other}{}", &id[..at], &id[at + 1..])
    };
    for (typed, said) in [
        (slip_at(0), "characters 1 to 14"),
        (slip_at(20), "characters 15 to 28"),
        (id[1..].to_owned(), "this has 55"),
        ("gpu1".to_owned(), "the whole ID"),
    ] {
        let line = home.fails(2, &["trust", &typed, "--yes"]);
        assert!(line.contains(said), "{typed}: {line}");
    }
    for command in ["revoke", "vouch", "forget"] {
        let line = home.fails(1, &[command, &slip_at(20)]);
        assert!(line.contains("characters 15 to 28"), "{line}");
    }
}
