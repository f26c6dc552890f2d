//! The discovery beacon.
