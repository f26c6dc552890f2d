//! One parser a kind of value. An error says what the value should have been; the caller adds where it stands.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use super::{LogFormat, Mode, STATUS_PORT};
use crate::discovery::PeerAddress;
use crate::id::NodeName;
use crate::trust::Policy;

pub(super) fn name(text: &str) -> Result<NodeName, String> {
    text.parse().map_err(|error: crate::id::ParseNameError| error.to_string())
}

pub(super) fn mode(text: &str) -> Result<Mode, String> {
    match text {
        "auto" => Ok(Mode::Auto),
        "client" => Ok(Mode::Client),
        "server" => Ok(Mode::Server),
        _ => Err("a mode is auto, client or server; `client` uses remote models only, `server` shares only".to_owned()),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("a log format is text or json".to_owned()),
    }
}

pub(super) fn policy(text: &str) -> Result<Policy, String> {
    text.parse().map_err(|error: crate::trust::ParsePolicyError| error.to_string())
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("this is either true or false".to_owned()),
    }
}

pub(super) fn peer(text: &str) -> Result<PeerAddress, String> {
    text.parse().map_err(|error| format!("a peer is HOST, HOST:PORT or [IPv6]:PORT ({error})"))
}

/// `IP:PORT`, `IP`, `PORT` or `:PORT`; `localhost` is 127.0.0.1. Host names are not looked up: a listener that follows
/// the DNS would surprise.
pub(super) fn address(text: &str, default_ip: IpAddr, default_port: u16) -> Result<SocketAddr, String> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(addr);
    }
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, default_port));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(match text.parse::<u16>() {
        Ok(_) => ("", text),
        Err(_) => (text, ""),
    });
    let ip = match host {
        "" => Some(default_ip),
        "localhost" => Some(Ipv4Addr::LOCALHOST.into()),
        _ => None,
    };
    let port = if port.is_empty() { Some(default_port) } else { port.parse().ok() };
    match (ip, port) {
        (Some(ip), Some(port)) if !text.is_empty() => Ok(SocketAddr::new(ip, port)),
        _ => Err(format!("not an address to bind, such as {}", SocketAddr::new(default_ip, default_port))),
    }
}

/// The status page shows who uses what, so it stays on this machine.
pub(super) fn status(text: &str) -> Result<Option<SocketAddr>, String> {
    if matches!(text, "off" | "false" | "no") {
        return Ok(None);
    }
    let addr = address(text, Ipv4Addr::LOCALHOST.into(), STATUS_PORT)?;
    if !addr.ip().is_loopback() {
        return Err(
            "the status page stays on this machine; give a loopback address such as 127.0.0.1:11437, or off".to_owned()
        );
    }
    Ok(Some(addr))
}

/// How many tokens.
pub(super) fn tokens(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| "this is a number of tokens such as 8192, or 0".to_owned())
}

/// `90`, `90s`, `15m`, `24h` or `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit.trim() {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => 0,
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds)) {
        // A hundred years: beyond it `Instant + Duration` could overflow.
        Some(total) if seconds > 0 && total <= 3_153_600_000 => Ok(Duration::from_secs(total)),
        _ => Err("not a length of time such as 30s, 15m, 24h or 7d".to_owned()),
    }
}

/// A number of things within bounds.
pub(super) fn whole(text: &str, bounds: RangeInclusive<u32>) -> Result<u32, String> {
    let found = text.parse().ok().filter(|number| bounds.contains(number));
    found.ok_or_else(|| format!("not a whole number from {} to {}", bounds.start(), bounds.end()))
}

/// A number within bounds, whole or not.
pub(super) fn factor(text: &str, bounds: RangeInclusive<f64>) -> Result<f64, String> {
    let found = text.parse().ok().filter(|number| bounds.contains(number));
    found.ok_or_else(|| format!("not a number from {} to {}", bounds.start(), bounds.end()))
}
