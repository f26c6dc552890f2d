//! The loads that the footprint of a node is measured under: by a test, briefly, and by a bench, at length.
#![allow(dead_code, reason = "each test takes what it needs of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::processes::Node;
use crate::stand_in::{Event, Pace, StandIn, Wire};

/// A node that uses, a node that lends, and the server behind it.
pub struct Pair {
    pub user: Node,
    pub provider: Node,
    pub server: StandIn,
}

/// How far into it a client disconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    WaitingForTheHead,
    BetweenTokens,
    InMidUpload,
    InMidDownload,
}

/// What a stall showed.
pub struct Stalled {
    /// What went into the mesh before nothing more did, with all sockets on the way.
    pub uploaded: u64,
    pub downloaded: u64,
}

// === impl Pair ===

impl Pair {
    pub async fn start() -> Self {
        let server = StandIn::start().await;
        let address = server.address;
        // Starting processes blocks, and the server must answer meanwhile.
        let (user, provider) = tokio::task::spawn_blocking(move || {
            let provider = Node::start("provider", Some(address), &[]);
            let user = Node::start("user", None, &[provider.mesh]);
            user.waits_for_providers(1);
            provider.lets_manage(&user);
            (user, provider)
        })
        .await
        .unwrap();
        Self { user, provider, server }
    }

    pub fn nodes(&self) -> [(&'static str, &Node); 2] {
        [("user", &self.user), ("provider", &self.provider)]
    }

    /// An upload and a download at once: first their readers stall until nothing moves, then they are slow for a while,
    /// then everything goes as fast as it can.
    pub async fn both_ways(&self, bytes: u64, slow: Duration) -> Stalled {
        let (pace, mut reader) = watch::channel(Pace::Stalled);
        self.server.pace.send_replace(Pace::Stalled);
        self.server.sent.store(0, Ordering::Relaxed);
        let at = self.user.listen;
        let written = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&written);
        let upload = tokio::spawn(async move {
            let mut wire = Wire::connect(at).await;
            wire.ask_upload(bytes, "provider").await;
            wire.upload(bytes, &counted).await.unwrap();
            wire.answered(&mut watch::channel(Pace::Full).1).await.unwrap();
        });
        let download = tokio::spawn(async move {
            let mut wire = Wire::connect(at).await;
            wire.ask_download(bytes).await;
            assert_eq!(wire.answered(&mut reader).await.unwrap(), bytes);
        });
        let stalled = Stalled {
            uploaded: stands_still(&written).await,
            downloaded: self.waits_until_downloads_stand_still().await,
        };
        for next in [Pace::Slow, Pace::Full] {
            self.server.pace.send_replace(next);
            pace.send_replace(next);
            if next == Pace::Slow {
                tokio::time::sleep(slow).await;
            }
        }
        upload.await.unwrap();
        download.await.unwrap();
        stalled
    }

    /// Waits until the server gets rid of nothing more.
    pub async fn waits_until_downloads_stand_still(&self) -> u64 {
        stands_still(&self.server.sent).await
    }

    /// A client disconnects; how long it took until the server's connection was closed.
    pub async fn disconnect(&mut self, when: When) -> Duration {
        while self.server.events.try_recv().is_ok() {}
        self.server.pace.send_replace(Pace::Full);
        let mut wire = Wire::connect(self.user.listen).await;
        match when {
            When::WaitingForTheHead => wire.ask("wait").await,
            When::BetweenTokens => {
                wire.ask("tokens 1000000 every 20").await;
                wire.head().await.unwrap();
            }
            When::InMidUpload => {
                wire.ask_upload(1 << 30, "provider").await;
                wire.upload(1 << 20, &AtomicU64::new(0)).await.unwrap();
            }
            When::InMidDownload => {
                wire.ask_download(1 << 40).await;
                wire.head().await.unwrap();
            }
        }
        let Event::Began = self.server.event().await else { panic!("{when:?}: it is over before it began") };
        let start = Instant::now();
        drop(wire);
        match self.server.event().await {
            Event::Closed(at) => at - start,
            event => panic!("{when:?}: {event:?} where the connection should be closed"),
        }
    }
}

/// Waits until a count has not changed for a while, and what it came to.
async fn stands_still(count: &AtomicU64) -> u64 {
    let mut before = u64::MAX;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = count.load(Ordering::Relaxed);
        if now > 0 && now == before {
            return now;
        }
        before = now;
    }
}
