//! `ollana trust` as two people see it, each at a terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::home::{Home, signal};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Bounds every wait.
const PATIENCE: Duration = Duration::from_secs(30);

/// A person at a terminal who has typed a command.
struct Person {
    child: Child,
    keyboard: File,
    screen: String,
}

impl Person {
    fn types(home: &Home, args: &[&str]) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = File::options().read(true).write(true).open(name).unwrap();
        let mut command = home.command(args);
        command.stdin(slave).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { child: command.spawn().unwrap(), keyboard: File::from(master), screen: String::new() }
    }

    /// Waits until this stands on the screen.
    fn reads(&mut self, text: &str) -> &str {
        let start = Instant::now();
        while !self.screen.contains(text) {
            let mut bytes = [0; 1024];
            let read = self.child.stderr.as_mut().unwrap().read(&mut bytes).unwrap();
            assert!(read > 0 && start.elapsed() < PATIENCE, "no {text:?} on the screen:\n{}", self.screen);
            self.screen.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        &self.screen
    }

    fn code(&mut self) -> String {
        let screen = self.reads("the connection is authentic");
        let code = screen.lines().find_map(|line| line.trim().strip_prefix("code ")).unwrap().trim().to_owned();
        assert_eq!(code.len(), 7, "{code}");
        code
    }

    fn answers(mut self, text: &str) -> (Option<i32>, String, String) {
        writeln!(self.keyboard, "{text}").unwrap();
        self.ends()
    }

    fn ends(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), self.screen.clone());
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        (self.child.wait().unwrap().code(), out, err)
    }
}

/// Two nodes that know each other.
fn two() -> [Home; 2] {
    let homes = [Home::new(), Home::new()];
    homes[0].ok(&["serve", "-d", "--name", "desk"]);
    let mesh = homes[0].json(&["status", "--json"])["mesh"].as_str().unwrap().to_owned();
    homes[1].ok(&["serve", "-d", "--name", "gpu1", "--peer", &mesh]);
    let start = Instant::now();
    for home in &homes {
        while home.json(&["status", "--json"])["peers"] != 1 {
            assert!(start.elapsed() < PATIENCE, "they do not meet");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    homes
}

fn trust(home: &Home) -> String {
    home.json(&["peers", "--json"])[0]["trust"].as_str().unwrap().to_owned()
}

#[test]
fn two_people_compare_six_digits_and_each_confirms() {
    let homes = two();
    let id = homes[1].ok(&["id"]);
    let mut at_desk = Person::types(&homes[0], &["trust", "gpu1"]);
    let screen = at_desk.reads("[y/N]");
    assert!(screen.contains(id.trim()) && screen.contains("address  127.0.0.1:"), "{screen}");
    assert!(screen.contains("type `ollana trust desk` there within 5 minutes"), "{screen}");
    let mut at_gpu = Person::types(&homes[1], &["trust", "desk"]);
    let code = at_desk.code();
    assert_eq!(code, at_gpu.code());
    let (status, out, _) = at_gpu.answers("y");
    assert_eq!(status, Some(0));
    assert!(out.contains("is now trusted"), "{out}");
    at_desk.reads("The other side has confirmed");
    assert_eq!((trust(&homes[0]), trust(&homes[1])), ("first-use".to_owned(), "trusted".to_owned()));
    let (status, out, _) = at_desk.answers("yes");
    assert_eq!((status, out.contains("(may run models here; used as a provider)")), (Some(0), true), "{out}");
    assert_eq!(trust(&homes[0]), "trusted");
    let log = std::fs::read_to_string(homes[0].state().join("ollana.log")).unwrap();
    assert!(!log.contains(&code) && !log.contains(&code.replace(' ', "")), "{log}");
    for home in homes {
        home.ok(&["stop"]);
    }
}

#[test]
fn a_no_on_one_terminal_ends_it_on_the_other_and_changes_nothing() {
    let homes = two();
    let mut at_desk = Person::types(&homes[0], &["trust", "gpu1"]);
    let mut at_gpu = Person::types(&homes[1], &["trust", "desk"]);
    assert_eq!(at_desk.code(), at_gpu.code());
    let (status, _, err) = at_gpu.answers("n");
    assert_eq!(status, Some(1), "{err}");
    let (status, _, err) = at_desk.ends();
    assert_eq!(status, Some(1));
    assert!(err.contains("the codes differ") && err.contains("Nothing was changed"), "{err}");
    assert_eq!((trust(&homes[0]), trust(&homes[1])), ("first-use".to_owned(), "first-use".to_owned()));
    for home in homes {
        home.ok(&["stop"]);
    }
}

#[test]
fn ctrl_c_withdraws_and_one_side_alone_can_go_by_the_id() {
    let homes = two();
    let mut at_desk = Person::types(&homes[0], &["trust", "gpu1"]);
    at_desk.reads("[y/N]");
    signal(at_desk.child.id(), Signal::INT);
    at_desk.ends();
    // Nobody waits at the desk any more: so there is no code, and the ID has to do.
    let mut at_gpu = Person::types(&homes[1], &["trust", "desk"]);
    at_gpu.reads("[y/N]");
    let (status, out, err) = at_gpu.answers("y");
    assert_eq!(status, Some(0), "{err}");
    assert!(out.contains("is now trusted") && !err.contains("code  "), "{err}");
    for home in homes {
        home.ok(&["stop"]);
    }
}
