//! What crosses the network between nodes: bounded, pure codecs. No I/O and no clock here, so all of it can be fuzzed.
//!
//! - [`beacon`]: one UDP datagram of discovery.
//! - [`frame`]: how a QUIC stream is cut into frames, on exchanges and on the control stream alike.
//! - [`head`]: the head of a request, the head of a response, trailers.
//! - [`control`]: what the frames of the control stream hold; [`dealing`] and [`vouching`]: those of them that are about
//!   trust.

pub mod beacon;
pub mod control;
pub mod dealing;
pub mod frame;
pub mod head;
pub mod vouching;
