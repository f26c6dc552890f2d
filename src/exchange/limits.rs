//! How many requests at once are taken, of whom: the defaults, in one place.
//!
//! A bound that refuses protects memory, and lies above what an honest application meets: an Ollama lets 512 requests
//! wait (`OLLAMA_MAX_QUEUE`), and a request that waits costs some kilobytes here. A request that finds a free slot does
//! not wait.

/// Requests that may wait for a slot: those of one peer at a provider, and those of this machine's applications, or of one
/// other machine at an open listener.
pub const WAITING_EACH: usize = 1024;
/// Requests of all peers that may wait at one provider. The owner's own may be as many again.
pub const WAITING: usize = 4096;
/// Requests of one peer at once, those that wait and those that run, over all its connections; and so the streams of one of
/// them. A new list or version must not stand behind 1,024 that wait. QUIC keeps a table of the streams that a connection
/// may have, whose size is a power of two: up to 1,792 take no more memory than 1,024.
pub const REQUESTS_EACH: usize = WAITING_EACH + WAITING_EACH / 2;
/// Requests at once of all peers together whom no person trusts.
pub const REQUESTS_OF_STRANGERS: usize = strangers_of(WAITING) + WAITING_EACH;

/// The part of `all` that all peers together may have whom no person trusts: the rest is kept for those who are
/// trusted. A key costs nothing, so strangers may be any number of peers.
pub const fn strangers_of(all: usize) -> usize {
    all.div_ceil(2)
}
