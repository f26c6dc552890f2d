//! The pairs of proxies that the path is measured beside, set up as well as they can be for this: mutual TLS 1.3 between the
//! two, connections kept open on both sides, nothing buffered, nothing logged, two threads each.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustix::process::{Resource, getrlimit};

use super::hosts::Hosts;

const NAME: &str = "path.bench";

/// One side of a pair.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    User,
    Provider,
}

/// A CA and a certificate for each side, as both programs read them.
pub fn make_certificates(directory: &Path) -> Result<(), String> {
    let text = |error: rcgen::Error| error.to_string();
    let ca_key = KeyPair::generate().map_err(text)?;
    let mut ca = CertificateParams::default();
    ca.distinguished_name.push(DnType::CommonName, "the bench's CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).map_err(text)?;
    let issuer = Issuer::new(ca, ca_key);
    let mut files = vec![("ca.pem".to_owned(), ca_certificate.pem())];
    for side in [Side::User, Side::Provider] {
        let key = KeyPair::generate().map_err(text)?;
        let mut params = CertificateParams::new(vec![NAME.to_owned()]).map_err(text)?;
        params.distinguished_name.push(DnType::CommonName, side.name());
        let certificate = params.signed_by(&key, &issuer).map_err(text)?.pem();
        // HAProxy wants both in one file, and nginx does not mind.
        files.push((format!("{}.pem", side.name()), format!("{certificate}{}", key.serialize_pem())));
    }
    files.into_iter().try_for_each(|(name, pem)| write(&directory.join(name), &pem))
}

/// One of the two nginx.
pub fn nginx(directory: &Path, side: Side, listen: SocketAddr, to: SocketAddr) -> Result<Command, String> {
    let (name, own) = (side.name(), directory.join(format!("nginx-{}", side.name())));
    fs::create_dir_all(&own).map_err(|error| error.to_string())?;
    let (dir, own_text) = (directory.display(), own.display());
    let (server, location) = match side {
        Side::User => (
            format!("listen {listen} backlog=4096;"),
            format!(
                "proxy_pass https://next; proxy_ssl_certificate {dir}/{name}.pem; proxy_ssl_certificate_key {dir}/{name}.pem;
                 proxy_ssl_trusted_certificate {dir}/ca.pem; proxy_ssl_verify on; proxy_ssl_name {NAME};
                 proxy_ssl_protocols TLSv1.3; proxy_ssl_session_reuse on;"
            ),
        ),
        Side::Provider => (
            format!(
                "listen {listen} ssl backlog=4096; ssl_certificate {dir}/{name}.pem; ssl_certificate_key {dir}/{name}.pem;
                 ssl_client_certificate {dir}/ca.pem; ssl_verify_client on; ssl_protocols TLSv1.3;
                 ssl_session_cache shared:tls:10m; ssl_buffer_size 16k;"
            ),
            "proxy_pass http://next;".to_owned(),
        ),
    };
    let most = most_connections();
    // In a user namespace there may be no other user than root.
    let config = format!(
        "daemon off; user root; worker_processes 2; pid {own_text}/pid; error_log {own_text}/error crit;
         events {{ worker_connections {most}; }}
         http {{
             access_log off; tcp_nodelay on; keepalive_timeout 600; keepalive_requests 100000000; client_max_body_size 0;
             client_body_temp_path {own_text}/body; proxy_temp_path {own_text}/proxy; fastcgi_temp_path {own_text}/fastcgi;
             uwsgi_temp_path {own_text}/uwsgi; scgi_temp_path {own_text}/scgi;
             upstream next {{ server {to}; keepalive 1024; keepalive_requests 100000000; keepalive_timeout 600; }}
             server {{
                 {server}
                 location / {{
                     {location}
                     proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host localhost;
                     proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 600; proxy_send_timeout 600;
                 }}
             }}
         }}\n"
    );
    let file = own.join("nginx.conf");
    write(&file, &config)?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(file).arg("-e").arg(own.join("error"));
    Ok(quiet(command))
}

/// One of the two HAProxies, with HTTP/2 between them.
pub fn haproxy(directory: &Path, side: Side, listen: SocketAddr, to: SocketAddr) -> Result<Command, String> {
    let (name, dir) = (side.name(), directory.display());
    let tls = format!("ssl crt {dir}/{name}.pem ca-file {dir}/ca.pem verify required alpn h2 ssl-min-ver TLSv1.3");
    let (bind, server) = match side {
        Side::User => (String::new(), format!("{tls} sni str({NAME}) verifyhost {NAME}")),
        Side::Provider => (tls, String::new()),
    };
    let most = most_connections();
    let config = format!(
        "global
            nbthread 2
            maxconn {most}
        defaults
            mode http
            option http-no-delay
            http-reuse always
            timeout connect 5s
            timeout client 600s
            timeout server 600s
        frontend in
            bind {listen} backlog 4096 {bind}
            default_backend out
        backend out
            server next {to} {server}\n"
    );
    let file = directory.join(format!("haproxy-{name}.cfg"));
    write(&file, &config)?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file);
    Ok(quiet(command))
}

/// Connections that a program may have, two open files each and some of its own.
fn most_connections() -> u64 {
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    (files.saturating_sub(200) / 2).clamp(100, 8192)
}

/// Whether a program is there.
pub fn installed(program: &str) -> Result<(), String> {
    let found = quiet(Command::new(program)).arg("-v").status().is_ok_and(|status| status.success());
    if found { Ok(()) } else { Err(format!("the program `{program}` is missing: apt-get install {program}")) }
}

/// Where a side listens, if its pair has this number.
pub fn listen(side: Side, pair: u16) -> SocketAddr {
    match side {
        Side::User => SocketAddr::from(([127, 0, 0, 1], 11600 + pair)),
        Side::Provider => Hosts::provider(11700 + pair),
    }
}

fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}

// === impl Side ===

impl Side {
    pub const fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Provider => "provider",
        }
    }
}
