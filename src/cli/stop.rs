//! `ollana stop`.

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::{Failure, Place, block_on, output};
use crate::control::{StateDir, Stopping};

/// Time for goodbyes beside the draining, before the node counts as stuck.
const GRACE: Duration = Duration::from_secs(10);
/// After this long one wants to know why nothing happens.
const PATIENCE: Duration = Duration::from_secs(1);

/// Ends the node, and returns when its process is gone.
pub(super) fn run(place: &Place) -> Result<(), Failure> {
    let (stopping, state_dir) = block_on(async {
        let client = place.client().await?;
        let stopping: Stopping = client.post("/stop", &()).await?;
        let pid = client.pid().unwrap_or(stopping.pid);
        Ok((Stopping { pid, ..stopping }, client.state_dir().to_owned()))
    })?;
    let ended = wait(state_dir);
    if let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(PATIENCE) {
        eprintln_quietly(&format!("waiting for running answers, {} s at most …", stopping.drain_s));
        if ended.recv_timeout(Duration::from_secs(stopping.drain_s).saturating_add(GRACE)).is_err() {
            return Err(Failure::new(format!(
                "the node (process {0}) does not stop; `kill -9 {0}` stops it at once",
                stopping.pid
            )));
        }
    }
    if !gone(stopping.pid) {
        return Err(Failure::new(format!("the node has stopped serving, but its process {} still runs", stopping.pid)));
    }
    output::print("stopped\n")
}

/// Tells when the state directory is free. The thread may block for ever; it ends with the command.
fn wait(state_dir: PathBuf) -> mpsc::Receiver<()> {
    let (tell, ended) = mpsc::channel();
    std::thread::spawn(move || {
        if StateDir::wait_until_free(&state_dir).is_ok() {
            let _ = tell.send(());
        }
        // A directory that is gone has nobody in it either: the sender is dropped, which the receiver takes for an end.
    });
    ended
}

/// Waits for the last few milliseconds between giving the state directory free and the end of the process.
fn gone(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return true };
    let deadline = Instant::now() + GRACE;
    while lives(pid) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Whether the process runs. One that has ended and that nobody has waited for (its parent, `serve -d`, is long gone, and
/// not every container has an init that cares) does not.
fn lives(pid: rustix::process::Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // `pid (name) state …`, where the name may hold anything.
    let ended = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
    !ended && rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

fn eprintln_quietly(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}
