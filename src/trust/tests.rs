use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::writer::{Bucket, PIN_BURST, unix_now};
use super::*;
use crate::private_file::{self, FileError};

fn id(n: u8) -> Id {
    Id::from_bytes([n; 32])
}

fn met(n: u8, direction: Direction) -> Met {
    Met { id: id(n), name: format!("n{n}").parse().unwrap(), address: None, direction }
}

fn standing(trust: Trust, use_: Use, scope: Scope) -> Standing {
    Standing { trust, use_, scope }
}

struct Home {
    temp: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { temp: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.temp.path().join(TRUST_FILE)
    }

    fn open(&self) -> Book {
        self.try_open().unwrap()
    }

    fn try_open(&self) -> Result<Book, TrustError> {
        Book::open(&self.path(), TrustPolicy::default())
    }

    fn put(&self, content: &str) {
        fs::write(self.path(), content).unwrap();
        fs::set_permissions(self.path(), fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn files(&self) -> Vec<String> {
        fs::read_dir(self.temp.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn disk_full(path: &Path, _: &[u8]) -> Result<(), FileError> {
    Err(FileError::Io { doing: "write", path: path.to_owned(), source: io::ErrorKind::StorageFull.into() })
}

#[tokio::test]
async fn what_was_decided_is_there_after_a_restart() {
    let home = Home::new();
    let book = home.open();
    assert!(home.files().is_empty(), "nothing to write yet");
    book.meet(met(1, Direction::Outbound { provider: true })).await.unwrap();
    book.trust(id(2), "n2".parse().unwrap(), Some("gpu.lan:11435".to_owned()), Scope::Manage, false).await.unwrap();
    let former = book.revoke(id(1)).await.unwrap();
    assert_eq!(former, standing(Trust::FirstUse, Use::Yes, Scope::None));
    assert_eq!(fs::metadata(home.path()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(home.files(), [TRUST_FILE], "no temporary file stays");

    let again = home.open();
    assert_eq!(again.snapshot(), book.snapshot());
    assert_eq!(again.snapshot().standing(&id(1)), standing(Trust::Revoked, Use::No, Scope::None));
    assert_eq!(again.snapshot().standing(&id(2)), standing(Trust::Trusted, Use::No, Scope::Manage));
    assert_eq!(again.snapshot().pin(&id(2)).unwrap().address.as_deref(), Some("gpu.lan:11435"));
    assert!(again.meet(met(1, Direction::Inbound)).await.unwrap().standing.is_revoked());
}

#[tokio::test]
async fn the_window_outlives_a_restart() {
    let home = Home::new();
    home.open().meet(met(1, Direction::Outbound { provider: true })).await.unwrap();
    let written = fs::read_to_string(home.path()).unwrap();
    let opened = unix_now() - 24 * 60 * 60;
    let aged: Vec<String> = written
        .lines()
        .map(|line| match line.starts_with("first_provider_met") {
            true => format!("first_provider_met = {opened}"),
            false => line.to_owned(),
        })
        .collect();
    home.put(&aged.join("\n"));
    let late = home.open().meet(met(2, Direction::Outbound { provider: true })).await.unwrap();
    assert_eq!((late.standing.use_, late.news), (Use::Pending, Some(News::Waiting)));
}

#[tokio::test]
async fn watchers_see_a_change_once_it_counts_and_only_then() {
    let home = Home::new();
    let book = home.open();
    let mut watch = book.watch();
    book.meet(met(1, Direction::Inbound)).await.unwrap();
    assert!(watch.has_changed().unwrap());
    assert_eq!(watch.borrow_and_update().standing(&id(1)).scope, Scope::Infer);
    book.meet(met(1, Direction::Inbound)).await.unwrap();
    assert!(!watch.has_changed().unwrap(), "nothing new");
    book.revoke(id(1)).await.unwrap();
    assert!(watch.borrow_and_update().standing(&id(1)).is_revoked());
}

#[tokio::test]
async fn nothing_is_granted_that_cannot_be_written() {
    let home = Home::new();
    let book = home.open();
    book.meet(met(1, Direction::Inbound)).await.unwrap();
    let (before, written) = (book.snapshot(), fs::read(home.path()).unwrap());
    book.writer.lock().await.replace = disk_full;

    let error = book.meet(met(2, Direction::Inbound)).await.unwrap_err().to_string();
    assert!(error.contains("free some space"), "{error}");
    assert!(book.meet(met(1, Direction::Outbound { provider: true })).await.is_err());
    assert!(book.trust(id(3), "n3".parse().unwrap(), None, Scope::Manage, true).await.is_err());
    assert_eq!(book.snapshot(), before);
    assert_eq!(fs::read(home.path()).unwrap(), written);
    // Who was known is still served.
    assert_eq!(book.meet(met(1, Direction::Inbound)).await.unwrap().standing.scope, Scope::Infer);
    let renamed = Met { name: "other".parse().unwrap(), ..met(1, Direction::Inbound) };
    assert_eq!(book.meet(renamed).await.unwrap().standing.scope, Scope::Infer);

    book.writer.lock().await.replace = private_file::replace;
    assert_eq!(book.meet(met(2, Direction::Inbound)).await.unwrap().standing.scope, Scope::Infer);
    assert_eq!(home.open().snapshot(), book.snapshot());
}

#[tokio::test]
async fn a_revocation_counts_at_once_even_if_it_cannot_be_written_and_says_so() {
    let home = Home::new();
    let book = home.open();
    book.meet(met(1, Direction::Inbound)).await.unwrap();
    book.writer.lock().await.replace = disk_full;
    let error = book.revoke(id(1)).await.unwrap_err().to_string();
    assert!(error.contains("only until this program ends") && error.contains("free some space"), "{error}");
    assert!(book.snapshot().standing(&id(1)).is_revoked());
    assert!(book.meet(met(1, Direction::Inbound)).await.unwrap().standing.is_revoked());
    assert!(!home.open().snapshot().standing(&id(1)).is_revoked());
    // The next thing that can be written takes it along.
    book.writer.lock().await.replace = private_file::replace;
    book.meet(met(2, Direction::Inbound)).await.unwrap();
    assert!(home.open().snapshot().standing(&id(1)).is_revoked());
}

#[tokio::test]
async fn what_someone_else_wrote_meanwhile_is_taken_in_and_not_overwritten() {
    let home = Home::new();
    let (book, other) = (home.open(), home.open());
    other.revoke(id(1)).await.unwrap();
    // Before the next look: a change stands on top of what is on the disk.
    assert!(book.meet(met(1, Direction::Inbound)).await.unwrap().standing.is_revoked());
    book.trust(id(2), "n2".parse().unwrap(), None, Scope::Infer, true).await.unwrap();
    assert!(book.snapshot().standing(&id(1)).is_revoked());
    assert_eq!(home.open().snapshot(), book.snapshot());
}

#[tokio::test]
async fn a_book_that_was_changed_on_disk_is_in_force_and_a_damaged_one_is_not() {
    let home = Home::new();
    let book = home.open();
    book.trust(id(1), "n1".parse().unwrap(), None, Scope::Manage, true).await.unwrap();
    let keeping = tokio_util::task::AbortOnDropHandle::new(tokio::spawn({
        let book = book.clone();
        async move { book.keep_up().await }
    }));
    let mut watch = book.watch();
    let good = fs::read_to_string(home.path()).unwrap();
    // As an editor does it: another file takes the name.
    let beside = home.temp.path().join("beside");
    let put = |content: &str, mode: u32| {
        fs::write(&beside, content).unwrap();
        fs::set_permissions(&beside, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&beside, home.path()).unwrap();
    };
    let soon = Duration::from_secs(30);
    put(&good.replace("manage", "none"), 0o600);
    let lowered = watch.wait_for(|book| book.standing(&id(1)).scope == Scope::None);
    tokio::time::timeout(soon, lowered).await.unwrap().unwrap();
    let lowered = book.snapshot();

    for (content, mode) in [(&good[..good.len() / 2], 0o600), ("", 0o600), (&good, 0o644)] {
        put(content, mode);
        assert!(book.trust(id(2), "n2".parse().unwrap(), None, Scope::Infer, true).await.is_err());
        assert!(book.meet(met(3, Direction::Inbound)).await.is_err());
        assert_eq!(book.snapshot(), lowered, "the last good one");
        assert_eq!(fs::read_to_string(home.path()).unwrap(), content, "and nothing is written over it");
    }
    fs::remove_file(home.path()).unwrap();
    let gone = book.trust(id(2), "n2".parse().unwrap(), None, Scope::Infer, true).await.unwrap_err();
    assert!(matches!(gone, TrustError::Gone(_)));
    assert_eq!(book.snapshot(), lowered);
    // A revocation counts even then, and outlives the mending.
    assert!(matches!(book.revoke(id(4)).await, Err(TrustError::RevokedForNow { .. })));
    put(&good, 0o600);
    let mended = watch.wait_for(|book| book.standing(&id(1)).scope == Scope::Manage);
    tokio::time::timeout(soon, mended).await.unwrap().unwrap();
    assert!(book.snapshot().standing(&id(4)).is_revoked());
    book.trust(id(2), "n2".parse().unwrap(), None, Scope::Infer, true).await.unwrap();
    assert!(home.open().snapshot().standing(&id(4)).is_revoked(), "written with the next change");
    drop(keeping);
}

#[tokio::test]
async fn a_damaged_book_is_refused_with_its_reason_and_left_as_it_is() {
    let home = Home::new();
    home.open().meet(met(1, Direction::Inbound)).await.unwrap();
    let good = fs::read_to_string(home.path()).unwrap();
    let peer = good.split("[[peer]]").nth(1).unwrap();
    for (content, reason) in [
        (String::new(), "version"),
        (good[..good.len() / 2].to_owned(), "line"),
        (good.replace("scope", "scop"), "scop"),
        (good.replace("[[peer]]", "[[peers]]"), "peers"),
        (good.replace("infer", "manage"), "first use never gives manage"),
        (good.replace("\"first-use\"", "\"none\""), "a peer's trust is"),
        (format!("{good}\n[[peer]]{peer}"), "twice"),
        (good.replacen("AEAQ", "AEAA", 1), "slip"),
        (good.replace("version = 1", "version = 2"), "version 2"),
        ("\u{0}\u{1}".to_owned(), "damaged"),
    ] {
        home.put(&content);
        let error = home.try_open().unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(TRUST_FILE), "{reason}: {error}");
        assert!(!error.contains('\n'), "{error}");
        assert_eq!(fs::read_to_string(home.path()).unwrap(), content);
    }
    home.put(&good);
    home.open();
}

#[tokio::test]
async fn a_tombstone_made_by_hand_needs_no_more_than_the_word() {
    let home = Home::new();
    let book = home.open();
    book.trust(id(1), "n1".parse().unwrap(), None, Scope::Manage, true).await.unwrap();
    home.put(&fs::read_to_string(home.path()).unwrap().replace("\"trusted\"", "\"revoked\""));
    let revoked = standing(Trust::Revoked, Use::No, Scope::None);
    assert_eq!(home.open().snapshot().standing(&id(1)), revoked);
}

#[test]
fn a_book_that_others_can_read_or_that_is_a_link_is_refused() {
    let home = Home::new();
    home.put("version = 1");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(home.try_open().unwrap_err().to_string().contains("chmod 600"));
    fs::rename(home.path(), home.temp.path().join("elsewhere")).unwrap();
    symlink(home.temp.path().join("elsewhere"), home.path()).unwrap();
    assert!(home.try_open().unwrap_err().to_string().contains("symbolic link"));
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_no_half_change() {
    let home = Home::new();
    let book = home.open();
    for n in 0..20 {
        let mut meeting = Box::pin(book.meet(met(n, Direction::Inbound)));
        // Polled once, then given up.
        let _ = futures_util::poll!(&mut meeting);
    }
    book.meet(met(99, Direction::Inbound)).await.unwrap();
    assert_eq!(home.open().snapshot(), book.snapshot());
}

#[tokio::test]
async fn strangers_come_into_the_book_a_network_at_once_and_then_slowly() {
    let home = Home::new();
    let book = home.open();
    let mut crowded = 0;
    for n in 0..PIN_BURST + 10 {
        let id = Id::of_spki(&n.to_be_bytes());
        let met = Met { id, name: format!("n{n}").parse().unwrap(), address: None, direction: Direction::Inbound };
        let encounter = book.meet(met).await.unwrap();
        if encounter.news == Some(News::Crowded) {
            assert_eq!(encounter.standing.scope, Scope::None);
            crowded += 1;
        }
    }
    // Not exactly ten on a machine so slow that places come free meanwhile.
    assert!((1..=10).contains(&crowded), "{crowded}");
}

#[tokio::test]
async fn who_is_there_is_not_idle() {
    let home = Home::new();
    let book = home.open();
    let is_present = async |n| book.writer.lock().await.present.get(&id(n)).is_some_and(|p| p.strong_count() > 0);
    let first = book.meet(met(1, Direction::Inbound)).await.unwrap();
    let second = book.meet(met(1, Direction::Outbound { provider: true })).await.unwrap();
    drop(first);
    assert!(is_present(1).await, "the other connection lasts");
    drop(second);
    assert!(!is_present(1).await);
}

#[test]
fn a_bucket_gives_a_burst_and_then_one_every_so_often() {
    let mut bucket = Bucket::new(2, Duration::from_secs(10));
    let start = bucket.filled;
    let at = |seconds| start + Duration::from_secs(seconds);
    assert_eq!([0, 0, 0].map(|s| bucket.take(at(s))), [true, true, false]);
    assert_eq!([9, 10, 11, 20].map(|s| bucket.take(at(s))), [false, true, false, true]);
    assert_eq!([1000, 1000, 1000].map(|s| bucket.take(at(s))), [true, true, false]);
}
