//! Nodes of other users on this machine. Their sockets cannot be opened, but Linux shows everyone their paths.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::SOCKET;
use super::server::FRESH_SOCKET;

/// A few lines of a message; more nodes than that are a test bench.
const SHOWN: usize = 3;

/// The state directories of nodes that run on this machine for other users.
pub fn others() -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = listening(&table).map(Path::to_owned).filter(|dir| is_foreign(dir)).collect();
    dirs.sort();
    dirs.dedup();
    dirs.truncate(SHOWN);
    dirs
}

/// A path as one word of a shell's command, since people type what a message says: the name of another user's directory
/// could hold a command.
pub fn quoted(path: &Path) -> String {
    let path = path.display().to_string();
    match path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@:,=".contains(c)) {
        true => path,
        false => format!("'{}'", path.replace('\'', r"'\''")),
    }
}

/// The directories of the control sockets in a table of `/proc/net/unix` (unix(7) and net/unix/af_unix.c: `Num RefCount
/// Protocol Flags Type St Inode Path`). The path is the one that was bound, before the socket was renamed.
fn listening(table: &str) -> impl Iterator<Item = &Path> {
    table.lines().filter_map(|line| {
        let (columns, _) = line.split_once('/')?;
        // __SO_ACCEPTCON: it listens.
        let listens = columns.split_whitespace().nth(3) == Some("00010000");
        let path = Path::new(line.get(columns.len()..)?);
        let ours = path.file_name().is_some_and(|name| name == SOCKET || name == FRESH_SOCKET);
        path.parent().filter(|_| listens && ours)
    })
}

fn is_foreign(dir: &Path) -> bool {
    match fs::metadata(dir) {
        Ok(found) => found.uid() != rustix::process::geteuid().as_raw(),
        // A home directory that only its owner may enter.
        Err(error) => error.kind() == std::io::ErrorKind::PermissionDenied,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_in_a_command_is_one_word() {
        for (path, word) in [
            ("/home/anna/.local/share/ollana", "/home/anna/.local/share/ollana"),
            ("/home/anna b", "'/home/anna b'"),
            ("/tmp/$(id);`id`", "'/tmp/$(id);`id`'"),
            ("/tmp/'; id; '", r"'/tmp/'\''; id; '\'''"),
        ] {
            assert_eq!(quoted(Path::new(path)), word);
        }
    }

    #[test]
    fn control_sockets_that_listen_are_found_in_the_kernels_table() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 77001 /home/anna b/.local/share/ollana/ollana.new\n\
             0000000000000000: 00000003 00000000 00000000 0001 03 77002 /home/ben/.local/share/ollana/ollana.new\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 77003 /run/user/1000/bus\n\
             0000000000000000: 00000002 00000000 00010000 0001 01 77004 @/tmp/abstract\n\
             0000000000000000: 00000003 00000000 00000000 0001 03 77005\n";
        let found: Vec<_> = listening(table).collect();
        assert_eq!(found, [Path::new("/home/anna b/.local/share/ollana")]);
    }
}
