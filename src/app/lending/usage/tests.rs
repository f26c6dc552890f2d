use super::*;
use std::fs::{File, FileTimes};
use std::os::unix::fs::PermissionsExt as _;

const MINUTE: Duration = Duration::from_secs(60);

/// A machine with these terminals, read so long ago, and a `loginctl` that is this script.
fn machine(terminals: &[(&str, Duration)], loginctl: Option<&str>) -> (tempfile::TempDir, Usage) {
    let dir = tempfile::tempdir().unwrap();
    let (dev, logins, program) = (dir.path().join("dev"), dir.path().join("sessions"), dir.path().join("loginctl"));
    fs::create_dir_all(dev.join("pts")).unwrap();
    fs::create_dir(&logins).unwrap();
    for (name, ago) in terminals {
        let file = File::create(dev.join(name)).unwrap();
        file.set_times(FileTimes::new().set_accessed(SystemTime::now() - *ago)).unwrap();
    }
    if let Some(script) = loginctl {
        fs::write(logins.join("1"), "").unwrap();
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let usage = Usage { dev, logins, loginctl: program };
    (dir, usage)
}

/// A machine that nobody has ever used.
pub(in crate::app::lending) fn nobody() -> (tempfile::TempDir, Usage) {
    machine(&[], None)
}

fn about(found: Duration, wanted: Duration) -> bool {
    found >= wanted && found < wanted + MINUTE / 2
}

#[tokio::test]
async fn the_terminal_that_was_read_last_counts() {
    let terminals = [("tty1", 60 * MINUTE), ("pts/0", 30 * MINUTE), ("pts/17", 5 * MINUTE)];
    let (_dir, usage) = machine(&terminals, None);
    assert!(about(usage.unused_for().await, 5 * MINUTE));
}

#[tokio::test]
async fn devices_that_are_no_persons_do_not_count() {
    let others = ["tty", "ttyS0", "ttyUSB0", "ttyprintk", "pts/ptmx", "null"].map(|name| (name, Duration::ZERO));
    let (_dir, usage) = machine(&others, None);
    assert_eq!(usage.unused_for().await, Duration::MAX);
}

#[tokio::test]
async fn a_clock_that_was_set_back_does_not_make_a_use_look_old() {
    let (dir, usage) = machine(&[], None);
    let file = File::create(dir.path().join("dev/tty1")).unwrap();
    file.set_times(FileTimes::new().set_accessed(SystemTime::now() + 60 * MINUTE)).unwrap();
    assert_eq!(usage.unused_for().await, Duration::ZERO);
}

#[tokio::test]
async fn logind_is_asked_about_each_session() {
    let since = (SystemTime::now() - 7 * MINUTE).duration_since(UNIX_EPOCH).unwrap().as_micros();
    let script = format!(
        "if [ $1 = list-sessions ]; then echo ' 2 1000 me seat0 tty2'; echo 'c1 120 gdm'; exit; fi\n\
         [ \"$4 $5\" = '2 c1' ] || exit 1\n\
         echo Class=user; echo Type=wayland; echo State=active; echo LockedHint=no; echo IdleHint=yes\n\
         echo IdleSinceHint={since}; echo\n\
         echo Class=greeter; echo Type=wayland; echo State=active; echo IdleHint=no"
    );
    let (_dir, usage) = machine(&[("pts/0", 30 * MINUTE)], Some(&script));
    assert!(about(usage.unused_for().await, 7 * MINUTE));
}

#[tokio::test]
async fn a_session_that_ends_while_it_is_asked_for_is_no_use() {
    // The first list has one that is gone a moment later.
    let script = "here=$(dirname $0); if [ $1 = show-session ]; then exit 1; fi\n\
                  if [ -e $here/again ]; then exit 0; fi; touch $here/again; echo '9 1000 me'";
    let (_dir, usage) = machine(&[], Some(script));
    assert_eq!(usage.unused_for().await, Duration::MAX);
}

#[tokio::test]
async fn a_logind_that_does_not_answer_counts_as_a_use() {
    for script in ["exit 1", "exec sleep 60"] {
        let (_dir, usage) = machine(&[("pts/0", 30 * MINUTE)], Some(script));
        assert_eq!(usage.unused_for().await, Duration::ZERO, "{script}");
    }
}

#[test]
fn a_desktop_is_used_while_it_is_in_front_and_neither_idle_nor_locked() {
    let now = UNIX_EPOCH + 100 * MINUTE;
    let micros = (90 * MINUTE).as_micros();
    let idle = format!("Class=user\nType=x11\nState=active\nLockedHint=yes\nIdleHint=yes\nIdleSinceHint={micros}\n");
    for (session, unused) in [
        ("Class=user\nType=wayland\nState=active\nLockedHint=no\nIdleHint=no\nIdleSinceHint=1\n", Some(Duration::ZERO)),
        ("Class=user-early\nType=x11\nState=active\nIdleHint=no\n", Some(Duration::ZERO)),
        (&idle, Some(10 * MINUTE)),
        ("Class=user\nType=x11\nState=active\nLockedHint=yes\nIdleHint=no\n", None),
        ("Class=user\nType=x11\nState=online\nLockedHint=no\nIdleHint=no\n", None),
        ("Class=user\nType=tty\nState=active\nIdleHint=no\n", None),
        ("Class=greeter\nType=x11\nState=active\nIdleHint=no\n", None),
        ("Class=user\nType=x11\nIdleHint=yes\nIdleSinceHint=0\n", None),
        ("Class=user\nType=x11\nIdleHint=yes\nIdleSinceHint=18446744073709551615\n", Some(Duration::ZERO)),
        ("nonsense\n", None),
        ("", None),
    ] {
        assert_eq!(desktop(session, now), unused, "{session}");
    }
    let both = format!("{idle}\nClass=user\nType=wayland\nState=active\nIdleHint=no\n");
    assert_eq!(desktops(&both, now), Duration::ZERO, "whoever is there counts");
    assert_eq!(desktops("", now), Duration::MAX);
}
