//! `ollana doctor` on ports that other programs use.

use std::net::UdpSocket;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::netns::Net;
use crate::node::{Home, Node};

pub fn the_program_on_port_11434_is_named_and_its_end_noticed() {
    let (net, lan) = Net::new();
    let host = net.host("host", &lan);
    let home = Home::new("host");
    // A web server of some kind.
    let inside = host.runtime();
    let listener = inside.run(async { TcpListener::bind("127.0.0.1:11434").await.unwrap() });
    inside.start(async move {
        loop {
            let (mut asked, _) = listener.accept().await.unwrap();
            let _ = asked.read(&mut [0; 1024]).await;
            let _ = asked.write_all(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    let this = format!("(process {})", std::process::id());
    let (_, before) = home.ollana(&host, &["doctor"]);
    let line = before
        .lines()
        .find(|line| line.contains("TCP 127.0.0.1:11434 is used by"))
        .unwrap_or_else(|| panic!("{before}"));
    assert!(line.contains(&this) && line.contains("http://127.0.0.1:11433"), "{line}");

    let _node = Node::start(&host, &home, &[]);
    let (_, beside) = home.ollana(&host, &["doctor"]);
    let line = beside.lines().find(|line| line.contains("clients")).unwrap_or_else(|| panic!("{beside}"));
    assert!(line.contains("port 11434 is used by") && line.contains(&this), "{line}");
    assert!(line.contains("which is no Ollama") && beside.contains("export OLLAMA_HOST=127.0.0.1:11433"), "{beside}");

    drop(inside);
    let (_, alone) = home.ollana(&host, &["doctor"]);
    assert!(
        alone.contains("nothing listens on port 11434 any more") && !alone.contains("your local Ollama"),
        "{alone}"
    );
    assert!(alone.contains("ollana stop && ollana serve -d, to have port 11434"), "{alone}");
}

pub fn a_udp_port_that_was_replaced_is_told() {
    let (net, lan) = Net::new();
    let host = net.host("host", &lan);
    let home = Home::new("host");
    let holder = host.inside(|| UdpSocket::bind("[::]:11435").unwrap());
    let node = Node::start(&host, &home, &[]);
    let (_, found) = home.ollana(&host, &["doctor"]);
    let got = node.status()["mesh"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
    let line = found.lines().find(|line| line.contains("UDP 11435 was taken")).unwrap_or_else(|| panic!("{found}"));
    assert!(line.starts_with("hint") && line.contains(&format!("UDP {got}")), "{line}");
    assert!(line.contains("no firewall rule fits"), "{line}");
    assert!(found.contains(&format!("(process {}): stop that", std::process::id())), "{found}");
    drop(holder);
    let (_, found) = home.ollana(&host, &["doctor"]);
    assert!(found.contains("restart the node to have UDP 11435 again"), "{found}");
}

pub fn every_port_that_serve_uses_is_checked_before_it_starts() {
    let (net, lan) = Net::new();
    let host = net.host("host", &lan);
    let home = Home::new("host");
    let (_, free) = home.ollana(&host, &["doctor"]);
    for words in [
        "TCP 127.0.0.1:11434 and [::1]:11434 can be used",
        "UDP [::]:11435 is free",
        "UDP 11436 can be used for discovery",
        "TCP 127.0.0.1:11437 is free",
    ] {
        assert!(free.contains(words), "{words}\n{free}");
    }
    let this = format!("(process {})", std::process::id());
    let tcp = |addr: &str| host.inside(|| std::net::TcpListener::bind(addr).unwrap());
    let held = (tcp("[::1]:11434"), host.inside(|| UdpSocket::bind("[::]:11435").unwrap()), tcp("127.0.0.1:11437"));
    let (_, taken) = home.ollana(&host, &["doctor"]);
    for (start, end) in [
        ("TCP [::1]:11434", "http://127.0.0.1:11433 and http://[::1]:11433"),
        ("UDP [::]:11435 is used by", "no firewall rule fits"),
        ("TCP 127.0.0.1:11437 is used by", "there will be no status page"),
    ] {
        let line = taken.lines().find(|line| line.contains(start)).unwrap_or_else(|| panic!("{start}\n{taken}"));
        assert!(line.starts_with("hint") && line.contains(&this) && line.contains(end), "{line}");
    }
    drop(held);
}

pub fn a_port_that_serve_cannot_do_without_is_told_in_its_words() {
    let (net, lan) = Net::new();
    let host = net.host("host", &lan);
    let home = Home::new("host");
    for (addr, mesh) in [("0.0.0.0:11436", None), ("[::]:12345", Some("[::]:12345"))] {
        let holder = host.inside(|| UdpSocket::bind(addr).unwrap());
        if let Some(mesh) = mesh {
            home.configure(&format!("mesh = \"{mesh}\"\n"));
        }
        let (code, refused) = home.fails(&host, &[]);
        let refused = refused.trim().strip_prefix("ollana: ").unwrap().to_owned();
        assert_eq!(code, Some(1), "{refused}");
        let (code, found) = home.ollana(&host, &["doctor"]);
        assert_eq!(code, Some(1), "{found}");
        let line = found.lines().find(|line| line.starts_with("BAD")).unwrap_or_else(|| panic!("{found}"));
        assert!(line.ends_with(&refused), "{line}\n{refused}");
        drop(holder);
    }
}
