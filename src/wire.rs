//! What crosses the network between nodes: bounded, pure codecs. No I/O here.

pub mod beacon;
