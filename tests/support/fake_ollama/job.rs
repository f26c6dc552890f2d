//! Requests under way, and what is kept of them.

use std::sync::Arc;

use http::Request;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256};

use super::answers::Answer;
use super::{MOST_SEEN, Seen, Shared, shapes};

/// A request under way. Whoever drops it before it is finished has lost its client.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) shared: Arc<Shared>,
    finished: bool,
}

/// Reads a body to its end: its length and hash; nothing if it broke off.
pub(super) async fn read(job: &Job, body: &mut Incoming, hash: bool) -> Option<(u64, String)> {
    let (mut length, mut hasher) = (0, Sha256::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.ok()?;
        let Some(data) = frame.data_ref() else { continue };
        length += data.len() as u64;
        if hash {
            hasher.update(data);
        }
        job.shared.counts.send_modify(|counts| counts.received += data.len() as u64);
    }
    Some((length, shapes::hex(&hasher.finalize())))
}

// === impl Job ===

impl Job {
    pub(super) fn begin(shared: Arc<Shared>, path: &str) -> Self {
        shared.counts.send_modify(|counts| {
            *counts.requests.entry(path.to_owned()).or_default() += 1;
            counts.running += 1;
            counts.most_running = counts.most_running.max(counts.running);
        });
        Self { shared, finished: false }
    }

    /// Keeps what was asked.
    pub(super) fn seen(self, request: &Request<Incoming>, model: Option<String>, body: &[u8], complete: bool) -> Self {
        self.keep(request, model, body.len() as u64, &shapes::sha256(body), complete);
        self.shared.counts.send_modify(|counts| counts.received += body.len() as u64);
        self
    }

    pub(super) fn seen_as(self, request: &Request<Incoming>, length: u64, sha256: &str, complete: bool) -> Self {
        self.keep(request, None, length, sha256.trim_start_matches("sha256:"), complete);
        self
    }

    pub(super) fn keep(
        &self,
        request: &Request<Incoming>,
        model: Option<String>,
        length: u64,
        sha256: &str,
        complete: bool,
    ) {
        if !self.shared.settings.lock().unwrap().record {
            return;
        }
        let seen = Seen {
            method: request.method().clone(),
            target: request.uri().to_string(),
            headers: request.headers().clone(),
            length,
            sha256: sha256.to_owned(),
            complete,
            model,
        };
        self.shared.counts.send_modify(|counts| {
            if counts.seen.len() == MOST_SEEN {
                counts.seen.pop_front();
            }
            counts.seen.push_back(seen);
        });
    }

    /// An answer that is all there.
    pub(super) fn full(mut self, answer: Answer) -> Answer {
        self.finish();
        answer
    }

    pub(super) fn finish(&mut self) {
        self.finished = true;
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.shared.counts.send_modify(|counts| {
            counts.running -= 1;
            if self.finished {
                counts.finished += 1;
            } else {
                counts.aborted += 1;
            }
        });
    }
}
