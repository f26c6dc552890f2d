//! `ollana config`, and which layer wins.

use crate::home::Home;

#[test]
fn a_value_can_be_set_read_and_taken_out_again() {
    let mut home = Home::new();
    home.unset("OLLANA_LISTEN");
    assert_eq!(home.ok(&["config", "path"]).trim(), home.config().to_str().unwrap());
    assert!(!home.config().exists());
    assert_eq!(home.ok(&["config", "get", "listen"]), "127.0.0.1:11434\n");
    home.ok(&["config", "set", "listen", "127.0.0.1:21434"]);
    home.ok(&["config", "set", "peer", "gpu1", "10.0.0.7:5"]);
    home.ok(&["config", "set", "trust.inbound", "paired"]);
    home.ok(&["config", "set", "discovery", "no"]);
    let text = std::fs::read_to_string(home.config()).unwrap();
    assert_eq!(
        text,
        "listen = \"127.0.0.1:21434\"\npeer = [\"gpu1\", \"10.0.0.7:5\"]\ndiscovery = false\n\n[trust]\ninbound = \"paired\"\n"
    );
    assert_eq!(home.ok(&["config", "get", "listen"]), "127.0.0.1:21434\n");
    assert_eq!(home.ok(&["config", "get", "peer"]), "gpu1,10.0.0.7:5\n");
    home.ok(&["config", "unset", "listen"]);
    home.ok(&["config", "unset", "listen"]);
    assert_eq!(home.ok(&["config", "get", "listen"]), "127.0.0.1:11434\n");
    assert_eq!(home.ok(&["config", "get", "trust.inbound"]), "paired\n");
}

#[test]
fn comments_survive_a_change_and_a_bad_value_is_not_written() {
    let home = Home::new();
    std::fs::create_dir_all(home.config().parent().unwrap()).unwrap();
    let text = "# how this machine is set up\nname = \"desk\" # mine\n";
    std::fs::write(home.config(), text).unwrap();
    home.fails(2, &["config", "set", "listen", "0.0.0.0:11434"]);
    home.fails(2, &["config", "set", "drain", "soon"]);
    assert_eq!(std::fs::read_to_string(home.config()).unwrap(), text);
    home.ok(&["config", "set", "name", "attic"]);
    assert_eq!(
        std::fs::read_to_string(home.config()).unwrap(),
        "# how this machine is set up\nname = \"attic\" # mine\n"
    );
}

#[test]
fn show_says_where_each_value_comes_from() {
    let mut home = Home::new();
    home.ok(&["config", "set", "name", "attic"]);
    home.set("OLLANA_MODE", "client");
    home.set("OLLAMA_ORIGINS", "https://x.example");
    let shown = home.ok(&["config", "show"]);
    let row = |key: &str| {
        let line = shown.lines().find(|line| line.split_whitespace().next() == Some(key)).unwrap();
        let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        (cells[1].to_owned(), cells[2].to_owned())
    };
    assert_eq!(row("name"), ("attic".to_owned(), format!("{}:1", home.config().display())));
    assert_eq!(row("mode"), ("client".to_owned(), "OLLANA_MODE".to_owned()));
    assert_eq!(row("origins"), ("https://x.example".to_owned(), "OLLAMA_ORIGINS".to_owned()));
    assert_eq!(row("drain"), ("30s".to_owned(), "default".to_owned()));
}

#[test]
fn a_running_node_shows_flag_over_variable_over_file() {
    let mut home = Home::new();
    let name = |home: &Home, args: &[&str]| {
        home.ok(&[&["serve", "-d"], args].concat());
        let name = home.json(&["status", "--json"])["name"].as_str().unwrap().to_owned();
        home.ok(&["stop"]);
        name
    };
    home.ok(&["config", "set", "name", "from-file"]);
    assert_eq!(name(&home, &[]), "from-file");
    home.set("OLLANA_NAME", "from-variable");
    assert_eq!(name(&home, &[]), "from-variable");
    assert_eq!(name(&home, &["--name", "from-flag"]), "from-flag");
}

#[test]
fn the_state_directory_can_be_named_everywhere() {
    let mut home = Home::new();
    let flag = home.path().join("flag");
    home.ok(&["serve", "-d", "--state-dir", "flag"]);
    assert!(home.run(&["status"]).code == Some(1));
    home.ok(&["status", "--state-dir", flag.to_str().unwrap()]);
    home.set("OLLANA_STATE_DIR", flag.to_str().unwrap());
    home.ok(&["status"]);
    home.unset("OLLANA_STATE_DIR");
    home.ok(&["config", "set", "state_dir", flag.to_str().unwrap()]);
    home.ok(&["status"]);
    // A slip in the file must not keep a node running that a flag names.
    std::fs::write(home.config(), "nonsense").unwrap();
    home.fails(1, &["stop"]);
    home.ok(&["stop", "--state-dir", flag.to_str().unwrap()]);
}
