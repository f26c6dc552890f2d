//! Datagrams of discovery: what is read can be written, and is read the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ollana::internals::wire::beacon::Beacon;

fuzz_target!(|datagram: &[u8]| {
    if let Ok(beacon) = Beacon::parse(datagram) {
        assert_eq!(Beacon::parse(&beacon.encode()).ok(), Some(beacon));
    }
});
