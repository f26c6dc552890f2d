use super::*;
use crate::config::{Config, Environment, File, Layer};

fn load(text: &str) -> Result<Config, String> {
    load_with(text, &[])
}

fn load_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    let file = File::read(&path).map_err(|error| error.to_string())?;
    let environment: Environment = [("HOME", "/home/me")].iter().chain(variables).copied().collect();
    Config::load(&Layer::default(), &environment, Some(&file)).map_err(|error| error.to_string())
}

use crate::id::NodeName;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

#[test]
fn who_sets_nothing_lends_to_all_alike_at_all_times() {
    let config = load("").unwrap();
    assert_eq!(config.lend, Lend::default());
    assert_eq!((config.lend.parallel, config.lend.reserve, config.lend.queue), (None, 0, 4096));
    assert!(config.lend.weights.is_empty() && config.lend.hours.is_none() && config.lend.idle.is_none());
    assert_eq!(config.balance, Balance::default());
    assert_eq!((config.balance.prefer_local, config.balance.waiting), (1.2, 1024));
    assert_eq!(config.balance.max_wait, Duration::MAX);
}

#[test]
fn numbers_are_read_from_file_and_environment() {
    let config = load(
        "[lend]\nparallel = 4\nmax_loaded = 2\nreserve = 1\nqueue = 0\nidle = \"15m\"\nhours = \"Mon-Fri 18:00-08:00, Sun 00:00-24:00\"\n\
         [balance]\nprefer_local = 2\nmax_wait = \"90s\"\nwaiting = 7\n",
    );
    let config = config.unwrap();
    assert_eq!((config.lend.parallel, config.lend.max_loaded), (Some(4), Some(2)));
    assert_eq!((config.lend.reserve, config.lend.queue), (1, 0));
    assert_eq!(config.lend.idle, Some(Duration::from_secs(900)));
    assert_eq!(config.lend.hours.unwrap().to_string(), "Mon-Fri 18:00-08:00, Sun 00:00-24:00");
    let balance = Balance { prefer_local: 2.0, max_wait: Duration::from_secs(90), waiting: 7 };
    assert_eq!(config.balance, balance);

    let variables = [("OLLANA_LEND_PARALLEL", "2"), ("OLLANA_BALANCE_PREFER_LOCAL", "1.5")];
    let config =
        load_with("[lend]\nhours = [\"18:00-20:00\", \"Sun 10:00-12:00\"]\nparallel = 9\n", &variables).unwrap();
    assert_eq!((config.lend.parallel, config.balance.prefer_local), (Some(2), 1.5));
    assert_eq!(config.lend.hours.unwrap().to_string(), "18:00-20:00, Sun 10:00-12:00");
}

#[test]
fn weights_are_read_however_they_are_written() {
    let id = Id::of_spki(b"gpu1");
    let written = [
        (format!("lend.weights = {{ gpu-lab = 2, \"{id}\" = 0.5 }}"), None),
        (format!("[lend.weights]\ngpu-lab = 2\n{id} = 0.5"), None),
        (format!("lend.weights = \"gpu-lab=2, {id}=0.5\""), None),
        (String::new(), Some(format!("GPU-lab = 2,{}=0.5", id.to_string().to_lowercase()))),
    ];
    for (text, variable) in written {
        let variable = variable.as_deref().map(|value| ("OLLANA_LEND_WEIGHTS", value));
        let weights = load_with(&text, variable.as_slice()).unwrap().lend.weights;
        assert_eq!(weights.of(&Id::of_spki(b"x"), &name("gpu-LAB")), 2.0, "{text}");
        assert_eq!(weights.of(&Id::of_spki(b"x"), &name("gpu")), 1.0);
        // Whoever bears the name does not change what was said of a key.
        assert_eq!(weights.of(&id, &name("gpu-lab")), 0.5, "{text}");
    }
}

#[test]
fn what_is_out_of_bounds_is_told_why_and_where() {
    let slip = format!("{}A", &Id::of_spki(b"key").to_string()[..62]);
    for (text, said) in [
        ("lend.parallel = 0", ":1: lend.parallel = \"0\": not a whole number from 1 to 256"),
        ("lend.parallel = 257", "from 1 to 256"),
        ("lend.max_loaded = 0", "not a whole number from 1 to 256"),
        ("lend.parallel = 1.5", "not a whole number"),
        ("lend.parallel = true", "not a whole number"),
        ("lend.parallel = [1]", "lend.parallel takes a number"),
        ("lend.reserve = -1", "not a whole number from 0 to 255"),
        (
            "\nlend = { parallel = 2, reserve = 2 }",
            ":2: lend.reserve = \"2\": of 2 slots (lend.parallel) that leaves none",
        ),
        ("lend.queue = 1000000", "from 0 to 16384"),
        ("lend.idle = \"soon\"", "not a length of time"),
        ("lend.idle = \"5s\"", "the minimum is 30s"),
        ("lend.hours = \"always\"", "lend.hours = \"always\": \"always\": \"always\" is no day"),
        ("lend.hours = []", "there are no hours in it"),
        ("lend.hours = { from = 1 }", "lend.hours takes a list of texts"),
        ("lend.weights = { gpu1 = 0 }", "gpu1: not a number from 0.01 to 100"),
        ("lend.weights = { gpu1 = nan }", "gpu1: not a number"),
        ("lend.weights = { gpu1 = inf }", "gpu1: not a number"),
        ("lend.weights = { gpu1 = [1] }", "lend.weights takes a table of numbers such as { gpu1 = 2 }"),
        ("lend.weights = { \"gpu 1\" = 1 }", "a name is made of letters"),
        ("lend.weights = { gpu1 = 1, GPU1 = 2 }", "GPU1 has two weights"),
        ("lend.weights = \"gpu1\"", "\"gpu1\" is no weight; write NAME=NUMBER or ID=NUMBER, such as gpu1=2"),
        ("lend.weights = \"=1\"", "a name has 1 to 63 characters"),
        ("balance.prefer_local = 0.9", "not a number from 1 to 100"),
        ("balance.prefer_local = nan", "not a number from 1 to 100"),
        ("balance.max_wait = 1.5", "not a length of time"),
        ("balance.waiting = 5000", "from 0 to 4096"),
        ("lend.weigths = { a = 1 }", "did you mean \"lend.weights\"?"),
        ("[lend]\nparalel = 3", ":2: there is no key \"lend.paralel\"; did you mean \"lend.parallel\"?"),
        (&format!("lend.weights = \"{slip}=1\""), "there is a slip in characters 43 to 56 of the ID"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(said), "{text:?}: {error}");
    }
}

#[test]
fn a_table_of_weights_in_the_file_can_be_replaced_and_keeps_its_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    std::fs::write(&path, "# mine\n[lend]\nqueue = 8 # few\n\n[lend.weights]\ngpu1 = 2\n").unwrap();
    let file = File::read(&path).unwrap();
    let file = file.with(Key::LendWeights, &["gpu2=3,gpu3=0.5".to_owned()]).unwrap();
    let text = |file: &File| {
        file.write().unwrap();
        std::fs::read_to_string(&path).unwrap()
    };
    assert_eq!(text(&file), "# mine\n[lend]\nqueue = 8 # few\nweights = { gpu2 = 3, gpu3 = 0.5 }\n");
    let file = file.with(Key::LendReserve, &["1".to_owned()]).unwrap();
    let file = file.without(Key::LendWeights).unwrap().unwrap();
    assert_eq!(text(&file), "# mine\n[lend]\nqueue = 8 # few\nreserve = 1\n");

    std::fs::write(&path, "[lend.weights]\ngpu1 = 2\n").unwrap();
    let file = File::read(&path).unwrap().with(Key::LendWeights, &["gpu1=1".to_owned()]).unwrap();
    assert_eq!(file.value(Key::LendWeights).unwrap().values, ["gpu1=1"]);
}
