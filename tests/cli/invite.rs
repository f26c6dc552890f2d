//! `ollana invite`, and a node that is started with what it prints.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::home::Home;

#[test]
fn an_invitation_is_printed_listed_used_from_standard_input_and_taken_back() {
    let [gpu, guest] = [Home::new(), Home::new()];
    gpu.ok(&["serve", "-d", "--name", "gpu1"]);
    assert!(gpu.ok(&["invite", "--list"]).contains("no invitation is open"));
    let text = gpu.ok(&["invite", "--uses", "2", "--until", "7d", "--scope", "manage"]);
    let secret = text.lines().find_map(|line| line.strip_prefix("secret = ")).unwrap().trim_matches('"').to_owned();
    assert_eq!(secret.len(), 52);
    assert!(text.contains(gpu.ok(&["id"]).trim()) && text.contains("127.0.0.1:"), "{text}");

    let mut start = guest.command(&["serve", "-d", "--name", "guest", "--invitation-file", "-"]);
    let mut start = start.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    start.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(start.wait().unwrap().success());
    let began = Instant::now();
    let trust = |home: &Home| home.json(&["peers", "--json"])[0].clone();
    while trust(&gpu)["trust"] != "trusted" || trust(&guest)["trust"] != "trusted" {
        assert!(began.elapsed() < Duration::from_secs(30), "{} {}", trust(&gpu), trust(&guest));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((trust(&gpu)["scope"].as_str(), trust(&guest)["use"].as_str()), (Some("manage"), Some("yes")));

    let listed = gpu.json(&["invite", "--list", "--json"]);
    assert_eq!(listed[0]["redeemed"][0], guest.ok(&["id"]).trim());
    let number = listed[0]["number"].as_str().unwrap().to_owned();
    let shown = gpu.ok(&["invite", "--list"]);
    assert!(shown.contains("6d 23h") || shown.contains("7d 0h"), "{shown}");
    let row: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[0], row[1], row[2], row[3]), ("1", "open", "1", "2"), "{shown}");
    assert!(row.contains(&"guest"), "{shown}");
    assert!(gpu.ok(&["invite", "--revoke", &number[..8]]).contains("1 have used it"));
    assert!(gpu.fails(1, &["invite", "--revoke", &number]).contains("--list"));
    assert_eq!(trust(&gpu)["trust"], "trusted", "who used it stays");

    // What a shell makes for it is for nobody else.
    let file = gpu.path().join("invitation");
    let out = std::fs::File::create(&file).unwrap();
    assert!(gpu.command(&["invite"]).stdout(out).status().unwrap().success());
    assert_eq!(crate::home::mode(&file), 0o600);

    // The secret is nowhere but where it was printed.
    for home in [&gpu, &guest] {
        for entry in std::fs::read_dir(home.state()).unwrap().map(Result::unwrap) {
            let content = std::fs::read(entry.path()).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&content).contains(&secret), "{:?}", entry.path());
        }
        home.ok(&["stop"]);
    }
}

#[test]
fn what_is_no_invitation_keeps_a_node_from_starting_and_is_not_quoted() {
    let home = Home::new();
    let file = home.path().join("invitation");
    std::fs::write(&file, "secret = \"hush\"\n").unwrap();
    let open_to = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    for mode in [0o644, 0o640, 0o604, 0o622] {
        open_to(mode);
        let said = home.fails(1, &["serve", "-d", "--invitation-file", "invitation"]);
        assert!(said.contains("chmod 600") && said.contains("invite --revoke") && !said.contains("hush"), "{said}");
    }
    open_to(0o600);
    let said = home.fails(1, &["serve", "-d", "--invitation-file", "invitation"]);
    assert!(said.contains("no invitation") && !said.contains("hush"), "{said}");
    assert!(home.fails(1, &["serve", "-d", "--invitation-file", "nowhere"]).contains("--invitation-file"));
    assert!(home.fails(2, &["invite", "--until", "yesterday"]).contains("2026-12-31"));
    home.fails(1, &["invite"]);
}

#[test]
fn an_invitation_that_systemd_passes_as_a_credential_is_read() {
    let [gpu, mut guest] = [Home::new(), Home::new()];
    gpu.ok(&["serve", "-d", "--name", "gpu1"]);
    let credentials = guest.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    let file = credentials.join("invitation");
    std::fs::write(&file, gpu.ok(&["invite"])).unwrap();
    let mode = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    let start = ["serve", "-d", "--invitation-file", file.to_str().unwrap()];
    // With an access control list for the service's user, whose right shows as a group's.
    mode(0o440);
    let refused = guest.fails(1, &start);
    assert!(refused.contains("can be read by other users (mode 440)"), "{refused}");
    guest.set("CREDENTIALS_DIRECTORY", credentials.to_str().unwrap());
    for foreign in [0o444, 0o460, 0o441] {
        mode(foreign);
        assert!(guest.fails(1, &start).contains("can be read by other users"), "{foreign:o}");
    }
    mode(0o440);
    guest.ok(&start);
    let began = Instant::now();
    while guest.json(&["peers", "--json"])[0]["trust"] != "trusted" {
        assert!(began.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    guest.ok(&["stop"]);
}

#[test]
fn an_invitation_is_taken_back_by_the_number_that_the_list_shows() {
    let gpu = Home::new();
    gpu.ok(&["serve", "-d"]);
    for _ in 0..3 {
        gpu.ok(&["invite"]);
    }
    gpu.ok(&["invite", "--until", "1s"]);
    let numbers = || -> Vec<String> {
        let listed = gpu.ok(&["invite", "--list"]);
        listed.lines().skip(1).map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
    };
    assert_eq!(numbers(), ["1", "2", "3", "4"]);
    let second = gpu.json(&["invite", "--list", "--json"])[1]["number"].as_str().unwrap().to_owned();
    assert!(gpu.ok(&["invite", "--revoke", "2"]).contains(&second));
    // The others keep theirs: a number read in an old list takes back no other.
    assert_eq!(numbers(), ["1", "3", "4"]);
    for gone in ["2", "0", "5", ""] {
        assert!(gpu.fails(1, &["invite", "--revoke", gone]).contains("--list"), "{gone:?}");
    }
    let third = gpu.json(&["invite", "--list", "--json"])[1]["number"].as_str().unwrap().to_uppercase();
    gpu.ok(&["invite", "--revoke", &third[..8]]);
    std::thread::sleep(Duration::from_secs(2));
    let listed = gpu.ok(&["invite", "--list"]);
    assert!(listed.lines().any(|line| line.starts_with("4 ") && line.contains("expired")), "{listed}");
    gpu.ok(&["stop"]);
}
