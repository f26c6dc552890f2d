//! Several users of one machine: a service that runs as a user of its own, a colleague's node, and root who administers them.
//! Each test has a network, and so a list of sockets, of its own; and directories in the places that only a system has.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use crate::home::{Home, is_root};

/// Runs a shell script as root with `/etc` and `/var/lib` of its own. `$BIN` is the program, `$NOBODY` what makes a command
/// another user's, `$SERVICE` and `$ROOT` are home directories.
fn script(script: &str) -> Option<String> {
    if !is_root() {
        eprintln!("only root can become another user: not tested");
        return None;
    }
    let home = Home::new();
    let dir = home.path();
    for made in ["etc", "lib", "lib/ollana", "service", "root"] {
        fs::create_dir(dir.join(made)).unwrap();
        fs::set_permissions(dir.join(made), Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(dir, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(dir.join("lib/ollana"), Permissions::from_mode(0o700)).unwrap();
    for owned in ["lib/ollana", "service"] {
        std::os::unix::fs::chown(dir.join(owned), Some(65_534), Some(65_534)).unwrap();
    }
    let prepared = format!(
        "set -e\nip link set lo up\nmount --bind {0}/etc /etc\nmount --bind {0}/lib /var/lib\n{script}",
        dir.display()
    );
    let known = home.command(&[]);
    let ran = Command::new("unshare")
        .args(["--mount", "--net", "sh", "-c", &prepared])
        .env_clear()
        .envs(known.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("BIN", env!("CARGO_BIN_EXE_ollana"))
        .env("NOBODY", "setpriv --reuid=65534 --regid=65534 --clear-groups")
        .env("SERVICE", dir.join("service"))
        .env("ROOT", dir.join("root"))
        .current_dir(dir)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{out}\n{err}");
    Some(format!("{out}{err}"))
}

#[test]
fn root_changes_the_file_that_the_service_reads() {
    let Some(said) = script(
        "mkdir /etc/ollana; echo 'name = \"desk\"' > /etc/ollana/config.toml
         HOME=/nowhere STATE_DIRECTORY=/var/lib/ollana $NOBODY \"$BIN\" serve -d > /dev/null
         export HOME=$ROOT
         mkdir -p \"$ROOT/.config/ollana\"; echo 'name = \"roots\"' > \"$ROOT/.config/ollana/config.toml\"
         \"$BIN\" config path
         \"$BIN\" config set trust.inbound paired
         \"$BIN\" config get name
         echo ---; cat /etc/ollana/config.toml; echo ---; cat \"$ROOT/.config/ollana/config.toml\"
         \"$BIN\" stop",
    ) else {
        return;
    };
    let parts: Vec<&str> = said.split("---\n").collect();
    assert!(parts[0].starts_with("/etc/ollana/config.toml\n"), "{said}");
    assert!(parts[0].contains("trust.inbound = paired in /etc/ollana/config.toml"), "{said}");
    assert!(parts[0].ends_with("desk\n"), "{said}");
    assert!(parts[1].contains("inbound = \"paired\""), "{said}");
    assert!(parts[2].starts_with("name = \"roots\"\nstopped"), "{said}");
}

#[test]
fn root_writes_its_file_by_its_own_name_and_not_by_another_users_link() {
    let Some(said) = script(
        "mkdir -p \"$ROOT/.config/ollana\"; echo 'name = \"roots\"' > \"$ROOT/.config/ollana/config.toml\"
         chmod -R a+rX \"$ROOT\"
         ln -s \"$ROOT/.config/ollana/config.toml\" \"$SERVICE/link.toml\"
         HOME=$SERVICE $NOBODY \"$BIN\" --config \"$SERVICE/link.toml\" serve -d > /dev/null
         export HOME=$ROOT
         dir=$SERVICE/.local/share/ollana
         \"$BIN\" --state-dir \"$dir\" config set lend.push true
         \"$BIN\" --state-dir \"$dir\" stop",
    ) else {
        return;
    };
    let set = said.lines().find(|line| line.starts_with("lend.push = true in ")).unwrap_or_else(|| panic!("{said}"));
    assert!(set.contains("/root/.config/ollana/config.toml;"), "{said}");
}

#[test]
fn root_reads_no_file_on_another_users_word() {
    let Some(said) = script(
        "export file=\"$SERVICE/config.toml\" dir=$SERVICE/.local/share/ollana
         $NOBODY sh -c 'echo \"name = \\\"desk\\\"\" > \"$file\"'
         HOME=$SERVICE $NOBODY \"$BIN\" --config \"$file\" serve -d > /dev/null
         export HOME=$ROOT
         (umask 077; echo 'name = \"secret\"' > \"$ROOT/private.toml\")
         on() { timeout 20 \"$BIN\" --state-dir \"$dir\" \"$@\"; }
         pid=$(on status --json | tr ',' '\\n' | sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p')
         trap 'kill $pid' EXIT
         on config get name
         refused() {
             echo \"--- $1\"
             code=0; on config show || code=$?; test $code = 1
             code=0; on doctor || code=$?; test $code -le 1
             rm \"$file\"
         }
         rm \"$file\"; $NOBODY mkfifo \"$file\"; refused fifo
         $NOBODY ln -s /dev/zero \"$file\"; refused device
         $NOBODY ln -s \"$ROOT/private.toml\" \"$file\"; refused link
         cp -p \"$ROOT/private.toml\" \"$file\"; refused private
         $NOBODY head -c 3000000 /dev/zero > \"$file\"; chown 65534 \"$file\"; refused large
         $NOBODY sh -c 'echo \"name = \\\"again\\\"\" > \"$file\"'
         on config get name
         for state in lock pid; do
             rm \"$dir/ollana.$state\"; $NOBODY mkfifo \"$dir/ollana.$state\"
         done
         code=0; on doctor || code=$?; test $code -le 1
         on config get name",
    ) else {
        return;
    };
    assert!(said.starts_with("desk\n") && said.matches("again\n").count() == 2, "{said}");
    assert!(!said.contains("secret"), "{said}");
    assert_eq!(said.matches("is a link or no regular file").count(), 6, "{said}");
    assert_eq!(said.matches("does not belong to that user").count(), 2, "{said}");
    assert_eq!(said.matches("more than 1 MiB").count(), 2, "{said}");
}

#[test]
fn another_users_node_is_named_and_cannot_choose_the_file_that_root_writes() {
    let Some(said) = script(
        "HOME=$SERVICE $NOBODY \"$BIN\" serve -d > /dev/null
         export HOME=$ROOT
         dir=$SERVICE/.local/share/ollana
         \"$BIN\" status && exit 1
         \"$BIN\" doctor || true
         \"$BIN\" config set lend.push true
         test -e \"$ROOT/.config/ollana/config.toml\"
         \"$BIN\" --state-dir \"$dir\" config set lend.push true && exit 1
         test ! -e \"$SERVICE/.config/ollana/config.toml\"
         \"$BIN\" serve -d --name second
         \"$BIN\" stop
         \"$BIN\" --state-dir \"$dir\" stop",
    ) else {
        return;
    };
    assert!(
        said.contains("no node of yours runs here") && said.contains("but a node of another user does, in"),
        "{said}"
    );
    assert!(!said.contains("start one with"), "{said}");
    assert!(said.contains("do not start a second one on this machine"), "{said}");
    assert!(said.contains("does not read this file"), "{said}");
    assert!(said.contains("service/.config/ollana/config.toml, not"), "{said}");
    assert!(said.contains("Warning: a node of another user runs on this machine"), "{said}");
}
