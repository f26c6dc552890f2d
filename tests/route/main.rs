//! What is read in a request, held against what Go reads in it: the vectors are recorded from Go itself, by the programs
//! beside them in `tests/data`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod form;
mod json;
mod zstd;
