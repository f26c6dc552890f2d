//! A server: a batch that slows itself down, a queue, and conversations that it remembers.

use std::collections::VecDeque;

use super::Asked;
use crate::balance::score::batch;

pub(super) const SLOTS: usize = 3;
/// Tokens a second.
pub(super) const PREFILL: f64 = 1100.0;
pub(super) const DECODE: f64 = 55.0;
/// Conversations that a runner keeps.
const CACHED: usize = SLOTS + 8;

pub(super) struct Job {
    pub(super) request: usize,
    /// Seconds of work that are left, alone.
    pub(super) reading: f64,
    pub(super) writing: f64,
}

#[derive(Default)]
pub(super) struct Host {
    pub(super) jobs: Vec<Job>,
    /// Sent there and waiting.
    pub(super) queue: VecDeque<usize>,
    pub(super) tickets: VecDeque<usize>,
    /// Session, its tokens, and whether it runs; the latest last.
    pub(super) cache: Vec<(usize, f64, bool)>,
    pub(super) as_of: f64,
    pub(super) version: u64,
    /// When, how many ran and how much waited.
    pub(super) reports: VecDeque<(f64, usize, f64)>,
}

// === impl Host ===

impl Host {
    /// Lets what runs run until now.
    pub(super) fn run_until(&mut self, now: f64) {
        let done = (now - self.as_of) * batch(self.jobs.len() as f64);
        self.as_of = now;
        for job in &mut self.jobs {
            let read = job.reading.min(done);
            job.reading -= read;
            job.writing -= done - read;
        }
    }

    /// Seconds until something is done.
    pub(super) fn next_step(&self) -> Option<f64> {
        let left = |job: &Job| if job.reading > 0.0 { job.reading } else { job.writing.max(0.0) };
        self.jobs.iter().map(left).min_by(f64::total_cmp).map(|work| work / batch(self.jobs.len() as f64))
    }

    pub(super) fn begin(&mut self, request: usize, asked: &Asked) {
        let cached = match self.cache.iter().position(|(session, _, runs)| *session == asked.session && !runs) {
            Some(at) => self.cache.remove(at).1,
            None => 0.0,
        };
        if self.cache.len() >= CACHED
            && let Some(idle) = self.cache.iter().position(|(_, _, runs)| !runs)
        {
            self.cache.remove(idle);
        }
        self.cache.push((asked.session, cached, true));
        let reading = (asked.prompt - cached).max(1.0) / PREFILL;
        self.jobs.push(Job { request, reading, writing: asked.answer / DECODE });
    }

    pub(super) fn end(&mut self, session: usize, tokens: f64) {
        self.cache.retain(|(cached, ..)| *cached != session);
        self.cache.push((session, tokens, false));
    }
}
