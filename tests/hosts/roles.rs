//! Who lends, and who holds which port.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::app::{App, MODEL, Ollama};
use crate::netns::{Host, Net};
use crate::node::{Home, Node};
use crate::shaped::{self, Shaped};
use crate::{CHANGE, ROLE};

pub fn an_ollama_that_starts_stops_and_starts_again_is_lent_withdrawn_and_lent_again() {
    let (net, lan) = Net::new();
    let (gpu, spare, laptop) = (net.host("gpu", &lan), net.host("spare", &lan), net.host("laptop", &lan));
    let homes = ["gpu", "spare", "laptop"].map(Home::new);
    let flags = ["--ollama", "http://127.0.0.1:11500"];
    let _gpu = Node::start(&gpu, &homes[0], &flags);
    let user = Node::start(&laptop, &homes[2], &[]);
    let app = App::on(&laptop);
    user.until_peer("gpu", CHANGE, |peer| peer.state == "connected" && !peer.provider);
    let refused = app.chat("too early", 1).unwrap();
    assert_eq!(refused.status, 503);
    assert!(refused.refusal().contains("gpu"), "it says which nodes are known");

    let mut ollama = Ollama::at(&gpu, 11500, &[MODEL], |_| {});
    user.until_used("gpu", ROLE);
    assert_eq!(app.is_answered("lent"), "gpu");

    // One that stands at the port of all, where the node is beside it.
    let mut second = Ollama::start(&spare);
    let _spare = Node::start(&spare, &homes[1], &[]);
    user.until_used("spare", CHANGE);
    ollama.stop();
    user.until_peer("gpu", ROLE, |peer| !peer.provider && peer.state == "connected");
    for n in 0..5 {
        assert_eq!(app.is_answered(&format!("elsewhere {n}")), "spare");
    }
    ollama.start_again();
    user.until_used("gpu", ROLE);
    second.stop();
    user.until_peer("spare", ROLE, |peer| !peer.provider);
    assert_eq!(app.is_answered("back"), "gpu");
    second.start_again();
    user.until_used("spare", ROLE);
}

pub fn beside_an_ollama_the_listener_is_at_the_next_port() {
    let (net, lan) = Net::new();
    let (gpu, other) = (net.host("gpu", &lan), net.host("other", &lan));
    let mut ollama = Ollama::start(&gpu);
    let _far = Ollama::start(&other);
    let homes = ["gpu", "other"].map(Home::new);
    let node = Node::start(&gpu, &homes[0], &[]);
    let _other = Node::start(&other, &homes[1], &[]);
    assert_eq!(node.status()["listen"], "127.0.0.1:11433");
    node.logs(&["127.0.0.1:11434 is taken", "11433"], ROLE);
    node.until_status(ROLE, |status| status["ollama"]["lent"] == true);
    let app = App::at(&gpu, 11433);
    assert_eq!(app.is_answered("near"), "gpu", "at a tie, what needs no network");
    // The port stays Ollama's, also while it is away.
    node.until_used("other", CHANGE);
    ollama.stop();
    assert_eq!(app.is_answered_within(ROLE, "far"), "other");
    assert!(App::on(&gpu).chat("nobody", 1).is_err());
    ollama.start_again();
    node.until_status(ROLE, |status| status["ollama"]["lent"] == true);
}

pub fn a_listener_of_ollana_is_never_taken_for_an_ollama() {
    let (net, lan) = Net::new();
    let (laptop, gpu) = (net.host("laptop", &lan), net.host("gpu", &lan));
    let _ollama = Ollama::start(&gpu);
    let homes = ["gpu", "laptop", "second", "third"].map(Home::new);
    let provider = Node::start(&gpu, &homes[0], &[]);
    let first = Node::start(&laptop, &homes[1], &[]);
    first.until_used("gpu", CHANGE);
    // There an application would find all that an Ollama has.
    let app = App::on(&laptop);
    assert_eq!(app.get("/api/version").status, 200);

    let beside = ["--listen", "127.0.0.1:21434", "--mesh", "[::]:21435", "--status", "127.0.0.1:21437"];
    let told = Node::start(&laptop, &homes[2], &[&beside[..], &["--ollama", "http://127.0.0.1:11434"]].concat());
    // The same by default: 11434 and all other ports are taken, and by no Ollama.
    let untold = Node::start(&laptop, &homes[3], &[]);
    assert_eq!(untold.status()["listen"], "127.0.0.1:11433");
    untold.logs(&["11434 is taken", "another ollana"], ROLE);
    for node in [&told, &untold] {
        node.until_used("gpu", CHANGE);
        node.until_status(ROLE, |status| {
            status["ollama"]["problem"].as_str().is_some_and(|problem| problem.to_lowercase().contains("ollana"))
        });
        assert_eq!(node.status()["ollama"]["lent"], false);
    }
    // To the others they are no providers, and nothing goes round.
    for name in ["laptop", "second", "third"] {
        provider.until_peer(name, CHANGE, |peer| peer.state == "connected");
    }
    for peer in provider.peers() {
        assert!(!peer.provider && peer.models.is_empty(), "{peer:?}");
    }
    for port in [11434, 21434, 11433] {
        assert_eq!(App::at(&laptop, port).is_answered("round"), "gpu");
    }
}

pub fn a_port_that_is_taken_is_a_clear_message_and_not_half_a_start() {
    let net = Net::empty();
    let host = net.bare_host("host");
    let homes = ["first", "second", "third"].map(Home::new);
    let _first = Node::start(&host, &homes[0], &[]);
    let _second = Node::start(&host, &homes[1], &[]);
    let fails = |flags: &[&str]| {
        let (code, error) = homes[2].fails(&host, flags);
        assert_eq!(code, Some(1));
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    };
    let both = fails(&[]);
    assert!(both.contains("11434") && both.contains("11433") && both.contains("--listen"), "{both}");
    let chosen = fails(&["--listen", "127.0.0.1:11434"]);
    assert!(chosen.contains("another ollana") && chosen.contains("--listen"), "{chosen}");
    let free = ["--listen", "127.0.0.1:31434"];
    let mesh = fails(&[&free[..], &["--mesh", "[::]:11435"]].concat());
    assert!(mesh.contains("UDP") && mesh.contains("11435") && mesh.contains("--mesh"), "{mesh}");
    let page = fails(&[&free[..], &["--status", "127.0.0.1:11437"]].concat());
    assert!(page.contains("11437") && page.contains("--status"), "{page}");
    // A start that failed leaves nothing in the way of the next.
    let third = Node::start(&host, &homes[2], &free);
    third.until_peer("first", CHANGE, |peer| peer.state == "connected");
}

pub fn an_address_of_this_machine_in_ollama_host_is_shared() {
    let (net, lan) = Net::new();
    let host = net.host("gpu", &lan);
    // As a bridge of containers is: no other machine is there.
    host.ip(&["link", "add", "docker0", "type", "bridge"]);
    host.ip(&["addr", "add", "172.17.0.1/16", "dev", "docker0"]);
    host.ip(&["link", "set", "docker0", "up"]);
    // A text that the resolver takes for a name, and for an address, without a server of names.
    let named = format!("{}:11434", u32::from(host.v4(&lan)));
    let addresses =
        [format!("{}:11434", host.v4(&lan)), format!("[{}]:11434", host.v6(&lan)), "172.17.0.1:11434".to_owned()];
    for (n, address) in addresses.iter().chain([&named]).enumerate() {
        let at = addresses.get(n).unwrap_or(&addresses[0]).parse().unwrap();
        let _ollama = host.inside(|| Shaped::start_at(at, shaped::ollama("0.33.0")));
        let home = Home::new("gpu");
        let node = Node::start_with(&host, &home, &[], &[("OLLAMA_HOST", address)]);
        node.until_status(CHANGE, |status| status["ollama"]["lent"] == true);
        // The loopback address is free.
        assert_eq!(node.status()["listen"], "127.0.0.1:11434", "{address}");
        assert_eq!(node.status()["ollama"]["url"], format!("http://{address}/"));
    }
    let home = Home::new("gpu");
    let node = Node::start_with(&host, &home, &[], &[("OLLAMA_HOST", "10.83.255.254:11434")]);
    let status = node.status();
    assert!(status["ollama"]["problem"].as_str().unwrap().contains("not on this machine"), "{status}");
}

pub fn an_address_that_comes_and_goes_is_shared_while_it_is_here() {
    let (net, lan) = Net::new();
    let (host, other) = (net.host("gpu", &lan), net.host("other", &lan));
    let at = "10.83.0.200:11434".parse().unwrap();
    let moves = |host: &Host, verb: &str| host.ip(&["addr", verb, "10.83.0.200/24", "dev", "eth0"]);
    moves(&other, "add");
    let others = other.inside(|| Shaped::start_at(at, shaped::ollama("0.33.0")));
    let home = Home::new("gpu");
    let node = Node::start_with(&host, &home, &[], &[("OLLAMA_HOST", "10.83.0.200")]);
    let elsewhere = |status: &serde_json::Value| {
        status["ollama"]["lent"] == false && status["ollama"]["problem_code"] == "elsewhere"
    };
    node.until_status(ROLE, elsewhere);
    // As DHCP gives an address to another machine, and a VPN or a bridge of containers one to this.
    moves(&other, "del");
    moves(&host, "add");
    let own = host.inside(|| Shaped::start_at(at, shaped::ollama("0.33.0")));
    node.until_status(CHANGE, |status| status["ollama"]["lent"] == true);
    assert_ne!(own.seen(), Vec::<String>::new());
    moves(&host, "del");
    moves(&other, "add");
    node.until_status(3 * CHANGE, elsewhere);
    assert_eq!(others.seen(), Vec::<String>::new(), "another machine's server is not asked");
}

/// Asks for the version at an address, under a name that means this machine: the status, or nothing if nobody is there.
fn version(host: &Host, ip: IpAddr, port: u16, name: &str) -> Option<u16> {
    host.inside(|| {
        let mut stream = TcpStream::connect((ip, port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let request = format!("GET /api/version HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said.split(' ').nth(1)?.parse().ok()
    })
}

const V4: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

pub fn both_addresses_of_loopback_lead_to_the_mesh() {
    let (net, lan) = Net::new();
    let (gpu, laptop) = (net.host("gpu", &lan), net.host("laptop", &lan));
    let _ollama = Ollama::start(&gpu);
    let homes = ["gpu", "laptop", "without", "told"].map(Home::new);
    let _gpu = Node::start(&gpu, &homes[0], &[]);
    let user = Node::start(&laptop, &homes[1], &[]);
    user.until_used("gpu", CHANGE);
    for (ip, names) in [(V4, ["127.0.0.1:11434", "localhost:11434"]), (V6, ["[::1]:11434", "localhost"])] {
        for name in names {
            assert_eq!(version(&laptop, ip, 11434, name), Some(200), "{ip} as {name}");
        }
        assert_eq!(version(&laptop, ip, 11434, "evil.example"), Some(403), "{ip}");
    }
    assert_eq!(user.status()["listeners"], serde_json::json!(["127.0.0.1:11434", "[::1]:11434"]));
    user.logs(&["http://127.0.0.1:11434 and http://[::1]:11434"], ROLE);
    drop(user);
    // An address that somebody chose is the only one.
    let told = Node::start(&laptop, &homes[3], &["--listen", "127.0.0.1:11434"]);
    assert_eq!(told.status()["listeners"], serde_json::json!(["127.0.0.1:11434"]));
    assert_eq!(version(&laptop, V6, 11434, "localhost"), None);
    drop(told);
    // Without IPv6 there is one address, and nothing is wrong.
    laptop.sysctl("net.ipv6.conf.lo.disable_ipv6", "1");
    let without = Node::start(&laptop, &homes[2], &[]);
    assert_eq!(without.status()["listeners"], serde_json::json!(["127.0.0.1:11434"]));
    without.until_used("gpu", CHANGE);
    assert_eq!(version(&laptop, V4, 11434, "localhost"), Some(200));
}

pub fn an_ollama_at_either_address_of_loopback_holds_the_port() {
    let net = Net::empty();
    for held in [V4, V6] {
        let host = net.bare_host(if held.is_ipv4() { "four" } else { "six" });
        let home = Home::new("host");
        let holder = host.inside(|| TcpListener::bind((held, 11434)).unwrap());
        let holds = std::thread::spawn(move || {
            // Each connection by itself: the node keeps one open that asks nothing.
            while let Ok((mut stream, _)) = holder.accept() {
                std::thread::spawn(move || {
                    let mut asked = [0; 1024];
                    let read = stream.read(&mut asked).unwrap_or(0);
                    let lists = asked[..read].starts_with(b"GET /api/tags ");
                    let said = if lists { r#"{"models":[]}"# } else { r#"{"version":"0.24.0"}"# };
                    let said = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: {}\r\n\
                     Connection: close\r\n\r\n{said}",
                        said.len()
                    );
                    let _ = stream.write_all(said.as_bytes());
                });
            }
        });
        let node = Node::start(&host, &home, &[]);
        let at = std::net::SocketAddr::new(held, 11434);
        assert_eq!(node.status()["listeners"], serde_json::json!(["127.0.0.1:11433", "[::1]:11433"]));
        let mut words =
            vec![format!("{at} is taken"), "Ollama 0.24.0".to_owned(), "OLLAMA_HOST=127.0.0.1:11433".to_owned()];
        if held.is_ipv6() {
            words.push("--ollama http://[::1]:11434".to_owned());
        }
        node.logs(&words.iter().map(String::as_str).collect::<Vec<_>>(), ROLE);
        for ip in [V4, V6] {
            let other = version(&host, ip, 11434, "localhost");
            assert_eq!(other.is_some(), ip == held, "the other address of the port is nobody's");
            assert!(version(&host, ip, 11433, "localhost").is_some());
        }
        drop(holds);
    }
}
