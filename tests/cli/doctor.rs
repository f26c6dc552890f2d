//! `ollana doctor` says what `ollana serve` would refuse to start with, in the same words.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::process::Command;

use serde_json::Value;

use crate::home::{Home, as_nobody, is_root};

type Damage = Box<dyn Fn(&Home)>;

/// The finding of a check, and the exit code.
fn finding(home: &Home, check: &str) -> (Option<i32>, Value) {
    let ran = home.run(&["doctor", "--json"]);
    let findings: Vec<Value> = serde_json::from_str(&ran.out).unwrap();
    let worst = |finding: &&Value| finding["level"] == "problem";
    let of_check: Vec<&Value> = findings.iter().filter(|finding| finding["check"] == check).collect();
    let found =
        of_check.iter().find(|finding| worst(finding)).or(of_check.first()).unwrap_or_else(|| panic!("{check}"));
    (ran.code, (*found).clone())
}

/// The one line with which `serve` refuses to start.
fn refusal(home: &Home) -> String {
    let ran = home.run(&["serve"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    ran.err.lines().last().unwrap().strip_prefix("ollana: ").unwrap().to_owned()
}

#[test]
fn doctor_reports_each_file_that_serve_refuses() {
    let write = |path: &str, content: &str, mode| {
        let (path, content) = (path.to_owned(), content.to_owned());
        move |home: &Home| {
            let path = home.state().join(&path);
            fs::write(&path, &content).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        }
    };
    let damages: [(&str, Damage); 7] = [
        ("key", Box::new(write("identity.key", "no key", 0o600))),
        (
            "key",
            Box::new(|home| {
                fs::set_permissions(home.state().join("identity.key"), Permissions::from_mode(0o644)).unwrap()
            }),
        ),
        ("trust", Box::new(write("trust.toml", "version = 1\n[[peer]", 0o600))),
        ("trust", Box::new(write("trust.toml", "version = 1\n", 0o640))),
        ("trust", Box::new(|home| symlink("/nowhere", home.state().join("trust.toml")).unwrap())),
        ("trust", Box::new(write("trust.toml", "version = 99\n", 0o600))),
        (
            "state",
            Box::new(|home| {
                fs::remove_file(home.state().join("ollana.lock")).unwrap();
                fs::create_dir(home.state().join("ollana.lock")).unwrap();
            }),
        ),
    ];
    for (check, damage) in damages {
        let home = Home::new();
        home.ok(&["serve", "-d"]);
        home.ok(&["stop"]);
        assert_eq!(finding(&home, check).1["level"], "ok", "{check}");
        damage(&home);
        let refused = refusal(&home);
        let (code, found) = finding(&home, check);
        assert_eq!((code, found["level"].as_str()), (Some(1), Some("problem")), "{refused}: {found}");
        assert_eq!(found["found"], *refused, "the same words");
    }
}

#[test]
fn doctor_reports_settings_that_serve_refuses() {
    let mut home = Home::new();
    home.set("OLLANA_LEND_HOURS", "18:00-08:00");
    home.set("TZ", "Nowhere/City");
    assert_eq!(finding(&home, "hours").1["found"], *refusal(&home));
    home.unset("TZ");
    home.unset("OLLANA_LEND_HOURS");

    let invitation = home.path().join("invitation");
    home.set("OLLANA_INVITATION_FILE", invitation.to_str().unwrap());
    assert_eq!(finding(&home, "invitation").1["found"], *refusal(&home));
    fs::write(&invitation, "none").unwrap();
    fs::set_permissions(&invitation, Permissions::from_mode(0o644)).unwrap();
    assert_eq!(finding(&home, "invitation").1["found"], *refusal(&home));
    home.unset("OLLANA_INVITATION_FILE");

    fs::create_dir_all(home.config().parent().unwrap()).unwrap();
    fs::write(home.config(), "lisen = 1\n").unwrap();
    assert_eq!(finding(&home, "config").1["found"], *refusal(&home));
    // Asking leaves nothing behind.
    assert!(!home.state().exists());
}

#[test]
fn doctor_reports_a_directory_that_cannot_be_written() {
    let home = Home::new();
    home.ok(&["serve", "-d"]);
    home.ok(&["stop"]);
    fs::set_permissions(home.state(), Permissions::from_mode(0o500)).unwrap();
    // Root writes everywhere, so another user tries.
    let run = |args: &[&str]| {
        let mut command = home.command(args);
        if is_root() {
            for dir in home
                .path()
                .ancestors()
                .take(1)
                .map(ToOwned::to_owned)
                .chain(["", ".local", ".local/share", ".local/share/ollana"].map(|dir| home.path().join(dir)))
            {
                chown(dir, Some(65_534), Some(65_534)).unwrap();
            }
            for file in fs::read_dir(home.state()).unwrap().flatten() {
                chown(file.path(), Some(65_534), Some(65_534)).unwrap();
            }
            command = as_nobody(&command);
        }
        command.output().unwrap()
    };
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let refused = run(&["serve"]);
    let line = text(refused.stderr);
    let line = line.lines().last().unwrap().trim_start_matches("ollana: ");
    assert!(refused.status.code() == Some(1) && line.contains("cannot write in the state directory"), "{line}");
    let doctor = run(&["doctor"]);
    let found = text(doctor.stdout);
    assert!(doctor.status.code() == Some(1) && found.contains(line), "{found}\n{line}");
}

#[test]
fn serve_warns_of_an_open_directory_as_doctor_does() {
    let home = Home::new();
    fs::create_dir_all(home.state()).unwrap();
    fs::set_permissions(home.state(), Permissions::from_mode(0o755)).unwrap();
    let warning = format!("{} is open to other users (mode 755)", home.state().display());
    let started = home.ok(&["serve", "-d"]);
    assert!(started.contains(&format!("Warning: {warning}: chmod 700")), "{started}");
    let log = fs::read_to_string(home.state().join("ollana.log")).unwrap();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains(&warning)), "{log}");
    let (code, found) = finding(&home, "state");
    assert_eq!((code, found["found"].as_str(), found["level"].as_str()), (Some(1), Some(&*warning), Some("problem")));
    home.ok(&["stop"]);
    fs::set_permissions(home.state(), Permissions::from_mode(0o700)).unwrap();
    assert!(!home.ok(&["serve", "-d"]).contains("Warning"));
    home.ok(&["stop"]);
}

#[test]
fn a_file_that_is_damaged_while_the_node_runs_is_a_problem() {
    let home = Home::new();
    home.ok(&["serve", "-d"]);
    home.ok(&["trust", &ollana::Id::of_spki(b"peer").to_string(), "--yes"]);
    assert_eq!(finding(&home, "trust").1["level"], "ok");
    fs::write(home.state().join("trust.toml"), "half a f").unwrap();
    let (code, found) = finding(&home, "trust");
    assert_eq!((code, found["level"].as_str()), (Some(1), Some("problem")), "{found}");
    home.ok(&["stop"]);
}

#[test]
fn a_directory_that_another_process_holds_is_a_problem() {
    let home = Home::new();
    let held = ollana::internals::control::StateDir::take(&home.state()).unwrap();
    let refused = refusal(&home);
    assert!(refused.contains("already runs"), "{refused}");
    let found = home.run(&["doctor"]).out;
    assert!(found.contains(&refused), "{found}");
    drop(held);
}

#[test]
fn an_unused_directory_is_fine_and_nothing_is_made() {
    let home = Home::new();
    for check in ["state", "key", "trust", "config"] {
        let found = finding(&home, check).1;
        assert_eq!(found["level"], "ok", "{found}");
    }
    assert!(!home.state().exists() && !home.config().exists());
}

/// The unit file that README.md offers.
fn unit() -> String {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, rest) = readme.split_once("```ini\n").unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn systemd_accepts_the_unit_of_the_readme() {
    let dir = tempfile::tempdir().unwrap();
    let unit = unit().replace("/usr/local/bin/ollana", env!("CARGO_BIN_EXE_ollana"));
    let path = dir.path().join("ollana.service");
    fs::write(&path, unit).unwrap();
    match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output() {
        // One that cannot look at the machine's other units says so as well.
        Ok(ran) => {
            let said = String::from_utf8_lossy(&ran.stderr);
            assert!(!said.lines().any(|line| line.contains("ollana.service")), "{said}");
        }
        Err(error) => eprintln!("no systemd-analyze here: {error}"),
    }
}
