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

#[test]
fn hours_are_set_in_every_form_that_is_shown() {
    let home = Home::new();
    for (typed, kept) in [
        (&["Sat-Sun"][..], "Sat-Sun 00:00-24:00"),
        (&["Mon-Fri 18:00-08:00, Sat-Sun"], "Mon-Fri 18:00-08:00,Sat-Sun 00:00-24:00"),
        (&["Mon-Fri", "18:00-08:00,", "Sat-Sun"], "Mon-Fri 18:00-08:00,Sat-Sun 00:00-24:00"),
        (&["Mon-Fri 18:00-08:00", "Sat-Sun 00:00-24:00"], "Mon-Fri 18:00-08:00,Sat-Sun 00:00-24:00"),
        (&["22:00-06:00"], "22:00-06:00"),
    ] {
        home.ok(&[&["config", "set", "lend.hours"], typed].concat());
        assert_eq!(home.ok(&["config", "get", "lend.hours"]), format!("{kept}\n"), "{typed:?}");
    }
    let said = home.fails(2, &["config", "set", "lend.hours", "Sat,Sun 10:00-12:00"]);
    assert!(said.contains("for the whole day write Sat 00:00-24:00"), "{said}");
}

#[test]
fn an_open_listener_is_refused_with_what_to_type_there() {
    let mut home = Home::new();
    let typed = ["config", "set", "listen", "0.0.0.0:11434"];
    let said = home.fails(2, &typed);
    assert!(said.contains("`ollana config set listen_open true` first") && !said.contains("--listen-open"), "{said}");
    home.ok(&["config", "set", "listen_open", "true"]);
    home.ok(&typed);
    home.set("OLLANA_LISTEN", "0.0.0.0:0");
    home.ok(&["config", "unset", "listen_open"]);
    assert!(home.fails(1, &["serve"]).contains("set OLLANA_LISTEN_OPEN=true as well"));
}

#[test]
fn a_value_that_is_there_is_left_unchanged() {
    let home = Home::new();
    assert!(home.ok(&["config", "set", "drain", "10s"]).starts_with("drain = 10s in "));
    let written = std::fs::metadata(home.config()).unwrap().modified().unwrap();
    assert!(home.ok(&["config", "set", "drain", "10s"]).starts_with("unchanged: drain = 10s"));
    assert_eq!(std::fs::metadata(home.config()).unwrap().modified().unwrap(), written);
    let said = home.ok(&["config", "unset", "drain"]);
    assert!(said.contains("drain removed") && said.contains("default 30s from the next start"), "{said}");
    assert!(home.ok(&["config", "unset", "drain"]).starts_with("unchanged: drain is not set"));
}

#[test]
fn the_file_of_the_running_node_is_changed() {
    let home = Home::new();
    let other = home.path().join("other.toml");
    std::fs::write(&other, "name = \"attic\"\n").unwrap();
    let other = other.to_str().unwrap();
    home.ok(&["serve", "-d", "--config", other]);
    assert_eq!(home.ok(&["config", "path"]).trim(), other);
    assert_eq!(home.ok(&["config", "get", "name"]), "attic\n");
    assert!(home.ok(&["config", "set", "lend.push", "true"]).contains(other));
    assert!(!home.config().exists());
    assert!(std::fs::read_to_string(other).unwrap().contains("push = true"));
    // A user who names a file means it.
    let named = home.run(&["--config", home.config().to_str().unwrap(), "config", "path"]);
    assert_eq!(named.out.trim(), home.config().to_str().unwrap());
    assert!(named.err.contains("note: the running node reads") && named.err.contains(other), "{}", named.err);
    home.ok(&["stop"]);
}
