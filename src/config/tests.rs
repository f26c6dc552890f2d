use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    [("HOME", "/home/me")].iter().chain(variables).copied().collect()
}

fn file(text: &str) -> (tempfile::TempDir, Result<File, FileError>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    let file = File::read(&path);
    (dir, file)
}

fn load(flags: &[(Key, &str)], variables: &[(&str, &str)], text: &str) -> Result<Config, String> {
    let (_dir, file) = file(text);
    let file = file.map_err(|error| error.to_string())?;
    let mut layer = Layer::default();
    for (key, value) in flags {
        layer.set(*key, Some(*value));
    }
    Config::load(&layer, &environment(variables), Some(&file)).map_err(|error| error.to_string())
}

#[test]
fn nothing_said_gives_the_defaults_of_the_contract() {
    let config = load(&[], &[], "").unwrap();
    assert_eq!(config.listen.addr.to_string(), "127.0.0.1:11434");
    assert!(!config.listen.explicit && !config.mesh.explicit && !config.ollama.explicit);
    assert_eq!(config.mesh.addr.to_string(), "[::]:11435");
    assert_eq!(config.status, Status::At { addr: "127.0.0.1:11437".parse().unwrap(), explicit: false });
    assert_eq!(config.state_dir, Path::new("/home/me/.local/share/ollana"));
    assert_eq!(config.ollama.url, "http://127.0.0.1:11434/");
    assert_eq!(config.drain, Duration::from_secs(30));
    assert_eq!(config.mode, Mode::Auto);
    assert!(config.discovery);
}

#[test]
fn flag_goes_over_variable_over_file() {
    let text = "listen = \"127.0.0.1:3\"\nname = \"file\"\nmode = \"server\"\n";
    let variables = [("OLLANA_LISTEN", "127.0.0.1:2"), ("OLLANA_NAME", "variable")];
    let config = load(&[(Key::Listen, "127.0.0.1:1")], &variables, text).unwrap();
    assert_eq!(config.listen.addr.port(), 1);
    assert_eq!(config.name.as_str(), "variable");
    assert_eq!(config.mode, Mode::Server);
}

#[test]
fn every_key_can_be_said_in_a_variable_and_in_the_file() {
    let samples = |key: Key| match key {
        Key::Name => "gpu1",
        Key::Mode => "client",
        Key::Listen | Key::Mesh | Key::Status => "127.0.0.1:5",
        Key::ListenOpen | Key::Discovery | Key::Daemon => "true",
        Key::Ollama => "http://127.0.0.1:5",
        Key::Peer => "gpu1:5",
        Key::StateDir | Key::InvitationFile => "/tmp/x",
        Key::LogFormat => "json",
        Key::Drain | Key::TrustFirstUseWindow => "5m",
        Key::Origins => "https://x.example",
        Key::LendPush => "true",
        Key::LendMaxContext => "8192",
        Key::LendParallel | Key::LendMaxLoaded | Key::LendReserve | Key::LendQueue | Key::BalanceWaiting => "3",
        Key::LendWeights => "gpu1=2.5",
        Key::LendHours => "Mon-Fri 18:00-08:00",
        Key::LendIdle | Key::BalanceMaxWait => "10m",
        Key::BalancePreferLocal => "1.5",
        Key::TrustInbound | Key::TrustOutbound => "paired",
    };
    for key in Key::ALL {
        let variable = key.variable();
        let environment = environment(&[(&variable, samples(key))]);
        let settings = Settings::gather(&Layer::default(), &environment, None).unwrap();
        assert_eq!(settings.raw(key).unwrap().source, Source::Variable(variable));
        Config::from_settings(&settings, &environment).unwrap();

        let file = File::empty(Path::new("/nowhere/config.toml")).with(key, &[samples(key).to_owned()]).unwrap();
        let settings = Settings::gather(&Layer::default(), &self::environment(&[]), Some(&file)).unwrap();
        assert_eq!(settings.raw(key).unwrap().text(), samples(key));
    }
}

#[test]
fn an_unknown_key_is_an_error_with_the_line_and_the_nearest_key() {
    for (text, expected) in [
        ("# head\n\nlisten-open = true\n", ":3: there is no key \"listen-open\"; did you mean \"listen_open\"?"),
        ("[trust]\ninbond = \"paired\"\n", ":2: there is no key \"trust.inbond\"; did you mean \"trust.inbound\"?"),
        ("moed = 1", ":1: there is no key \"moed\"; did you mean \"mode\"?"),
        ("frobnicate = 1", ":1: there is no key \"frobnicate\"; `ollana config show`"),
        ("[trust.inbound]\nx = 1", ":1: trust.inbound takes a text"),
        ("mode = [\"auto\"]", ":1: mode takes a text"),
        ("mode = \"auto\"\nlisten = \n", ":2: "),
        ("mode = \"auto\"\nmode = \"auto\"\n", ":2: "),
    ] {
        let (_dir, file) = file(text);
        let error = file.unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
}

#[test]
fn a_value_that_is_wrong_is_named_with_its_place() {
    for (text, variables, expected) in [
        ("\nmode = \"both\"", &[][..], ":2: mode = \"both\": a mode is auto, client or server"),
        ("", &[("OLLANA_MODE", "both")][..], "OLLANA_MODE=both: a mode is"),
        ("", &[("OLLANA_DRAIN", "fast")][..], "OLLANA_DRAIN=fast: not a length of time"),
        ("status = \"0.0.0.0:1\"", &[][..], "stays on this machine"),
        ("listen = \"0.0.0.0:1\"", &[][..], "`ollana config set listen_open true` first"),
        ("", &[("OLLANA_LISTEN", "0.0.0.0:1")][..], "set OLLANA_LISTEN_OPEN=true as well"),
        ("peer = [\"a b\"]", &[][..], "peer"),
    ] {
        let error = load(&[], variables, text).unwrap_err();
        assert!(error.contains(expected), "{text:?} {variables:?}: {error}");
    }
    let mut layer = Layer::default();
    layer.set(Key::Listen, Some("nonsense"));
    let error = Config::load(&layer, &environment(&[]), None).unwrap_err();
    assert!(error.is_usage() && error.to_string().starts_with("--listen nonsense: not an address"), "{error}");
}

#[test]
fn a_listener_beyond_loopback_has_to_be_confirmed() {
    assert!(load(&[(Key::Listen, "192.168.1.2:11434")], &[], "").is_err());
    let config = load(&[(Key::Listen, "192.168.1.2")], &[], "listen_open = true").unwrap();
    assert!(config.listen.open);
    assert_eq!(config.listen.addr.to_string(), "192.168.1.2:11434");
    assert!(!load(&[(Key::Listen, "[::1]:5")], &[], "listen_open = true").unwrap().listen.open);
}

#[test]
fn an_ollama_that_ollama_host_names_is_not_named_to_ollana() {
    let from_host = load(&[], &[("OLLAMA_HOST", "192.168.1.9")], "").unwrap().ollama;
    assert_eq!(from_host.url, "http://192.168.1.9:11434/");
    assert!(!from_host.explicit);
    let named = load(&[(Key::Ollama, "192.168.1.9")], &[("OLLAMA_HOST", "x")], "").unwrap().ollama;
    assert_eq!(named.url, "http://192.168.1.9:11434/");
    assert!(named.explicit);
    // Ollama's own client may be set to a server behind https; that is no reason not to start.
    assert_eq!(load(&[], &[("OLLAMA_HOST", "ollama.com")], "").unwrap().ollama.url, "https://ollama.com:443/");
}

#[test]
fn addresses_may_be_short() {
    for (text, expected) in [
        ("11500", "127.0.0.1:11500"),
        (":11500", "127.0.0.1:11500"),
        ("localhost:11500", "127.0.0.1:11500"),
        ("localhost", "127.0.0.1:11434"),
        ("[::1]:5", "[::1]:5"),
        ("::1", "[::1]:11434"),
    ] {
        assert_eq!(load(&[(Key::Listen, text)], &[], "").unwrap().listen.addr.to_string(), expected);
    }
    for text in ["", "gpu1:5", "99999", "1.2.3.4.5:1", "localhost:x"] {
        assert!(load(&[(Key::Listen, text)], &[], "").is_err(), "{text:?}");
    }
}

#[test]
fn the_state_directory_follows_systemd_and_xdg() {
    let dir = |variables: &[(&str, &str)]| load(&[], variables, "").unwrap().state_dir;
    assert_eq!(dir(&[("XDG_DATA_HOME", "/data")]), Path::new("/data/ollana"));
    assert_eq!(dir(&[("XDG_DATA_HOME", "relative")]), Path::new("/home/me/.local/share/ollana"));
    assert_eq!(dir(&[("XDG_DATA_HOME", "/data"), ("STATE_DIRECTORY", "/var/lib/a:/b")]), Path::new("/var/lib/a"));
    assert_eq!(dir(&[("STATE_DIRECTORY", "/s"), ("OLLANA_STATE_DIR", "~/o")]), Path::new("/home/me/o"));
    let bare = Environment::from_iter([("PATH", "/bin")]);
    assert!(matches!(Config::load(&Layer::default(), &bare, None), Err(ConfigError::NoHome)));
}

#[test]
fn a_relative_state_directory_in_the_file_is_beside_the_file() {
    let (dir, file) = file("state_dir = \"state\"");
    let config = Config::load(&Layer::default(), &environment(&[]), Some(&file.unwrap())).unwrap();
    assert_eq!(config.state_dir, dir.path().join("state"));
}

#[test]
fn editing_keeps_comments() {
    let text = "# head of the file\n\n# why\nname = \"a\" # aside\nmode = \"auto\"\n\n[trust]\n# strict\ninbound = \"paired\"\n";
    let (_dir, file) = file(text);
    let file = file.unwrap().with(Key::Name, &["b".to_owned()]).unwrap();
    let file = file.with(Key::TrustOutbound, &["paired".to_owned()]).unwrap();
    let file = file.with(Key::Peer, &["a,b:5".to_owned()]).unwrap();
    file.write().unwrap();
    let written = std::fs::read_to_string(file.path()).unwrap();
    assert_eq!(
        written,
        "# head of the file\n\n# why\nname = \"b\" # aside\nmode = \"auto\"\npeer = [\"a\", \"b:5\"]\n\n[trust]\n# strict\n\
         inbound = \"paired\"\noutbound = \"paired\"\n"
    );
    let file = file.without(Key::Name).unwrap().unwrap();
    assert!(file.without(Key::Name).unwrap().is_none());
    assert!(file.with(Key::Mode, &["client".to_owned()]).unwrap().value(Key::Mode).unwrap().text() == "client");
    file.write().unwrap();
    let written = std::fs::read_to_string(file.path()).unwrap();
    assert!(written.starts_with("# head of the file\n\n# why\nmode = \"auto\"\n"), "{written}");
}
