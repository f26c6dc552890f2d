use super::*;
use crate::control::{Catalog, Info, OllamaView};
use crate::exchange::{ModelInfo, Unusable};
use crate::id::{Id, NodeName, Scope, Use};
use crate::peers::{PeerState, PeerView};
use crate::trust::Trust;
use http_body_util::BodyExt as _;

struct Fake;

impl Mesh for Fake {
    fn info(&self) -> Info {
        Info {
            name: NodeName::lossy("desk"),
            id: Id::of_spki(b"desk"),
            version: "1.2.3".to_owned(),
            mode: "auto".to_owned(),
            listen: Some("127.0.0.1:11434".parse().unwrap()),
            listeners: vec!["127.0.0.1:11434".parse().unwrap(), "[::1]:11434".parse().unwrap()],
            mesh: "[::]:11435".parse().unwrap(),
            status_page: None,
            config: None,
            taken: crate::control::Taken::default(),
            state_dir: "/s".into(),
            open_files: None,
            uptime_s: 3_700,
        }
    }

    fn ollama(&self) -> OllamaView {
        OllamaView {
            url: "http://x/".to_owned(),
            healthy: true,
            version: None,
            api: None,
            server: None,
            lent: false,
            not_lent: Some("is shared from <b>18:00".to_owned()),
            ignored: 3,
            problem: None,
            problem_code: None,
            flaws: Vec::new(),
        }
    }

    fn peers(&self) -> Vec<PeerView> {
        vec![PeerView {
            name: NodeName::lossy("gpu1"),
            id: Id::of_spki(b"gpu1"),
            address: Some("10.0.0.2:11435".parse().unwrap()),
            state: PeerState::Connected,
            trust: Trust::Vouched,
            use_: Use::Yes,
            scope: Scope::Infer,
            remote_scope: Some(Scope::Manage),
            denial: None,
            voucher: false,
            vouched_by: vec![crate::trust::Voucher { name: NodeName::lossy("desk9"), id: Id::of_spki(b"9") }],
            provider: true,
            api: Default::default(),
            models: vec!["\"><script>alert(1)</script>".to_owned()],
            loaded: Vec::new(),
            inflight: 3,
            direct: 0,
            most_loaded: None,
            draining: false,
            numbers: Default::default(),
            rtt_us: 1_250,
            problem: Some("<img src=x onerror=alert(1)>".to_owned()),
            version: String::new(),
            digests: Default::default(),
        }]
    }

    fn catalogs(&self) -> Vec<Catalog> {
        let models = [("<b>&'".to_owned(), ModelInfo { digest: "<i>".to_owned(), ..ModelInfo::default() })];
        vec![Catalog {
            name: NodeName::lossy("gpu1"),
            id: Id::of_spki(b"gpu1"),
            local: false,
            use_: Use::Pending,
            api: Default::default(),
            models: models.into(),
            loaded: Default::default(),
        }]
    }

    fn unusable(&self) -> Vec<Unusable> {
        vec![Unusable {
            node: "<s>typed".to_owned(),
            id: None,
            address: Some("<s>10.0.0.9".to_owned()),
            verified: false,
            trusted: false,
            denial: None,
            reason: "<s>does not answer".to_owned(),
            advice: Some("<s>let it in".to_owned()),
        }]
    }

    fn conflicts(&self) -> Vec<String> {
        vec!["<u>two nodes</u>".to_owned()]
    }
}

fn ask(method: Method, path: &str, hosts: &[&str]) -> Response<Full<Bytes>> {
    let mut headers = HeaderMap::new();
    for host in hosts {
        headers.append(header::HOST, host.parse().unwrap());
    }
    answer(&Fake, &method, path, &headers)
}

async fn text(response: Response<Full<Bytes>>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn what_strangers_chose_is_text_on_the_page() {
    let response = ask(Method::GET, "/", &["localhost:11437"]);
    assert!(response.headers()[header::CONTENT_SECURITY_POLICY].to_str().unwrap().starts_with("default-src 'none'"));
    let html = text(response).await;
    for tag in ["<script", "<img", "<b>&'", "<i>", "<u>", "<s>"] {
        assert!(!html.contains(tag), "{tag}");
    }
    for shown in [
        "&lt;script&gt;",
        "gpu1",
        "connected",
        "vouched by desk9",
        "10.0.0.2:11435",
        "1.25 ms",
        "&lt;u&gt;two nodes",
        "is shared from &lt;b&gt;18:00",
        "manage",
        "&lt;s&gt;typed",
        "&lt;s&gt;does not answer → &lt;s&gt;let it in",
        "gpu1 (not usable: <code>ollana trust gpu1</code>)",
    ] {
        assert!(html.contains(shown), "{shown}");
    }
}

#[test]
fn only_the_names_of_this_machine_are_answered() {
    for host in ["localhost", "LOCALHOST:11437", "127.0.0.1:11437", "127.0.0.53", "[::1]:11437"] {
        assert_eq!(ask(Method::GET, "/status.json", &[host]).status(), StatusCode::OK, "{host}");
    }
    for host in ["evil.example", "evil.example:11437", "localhost.evil.example", "10.0.0.1", "0.0.0.0", "a b", ""] {
        assert_eq!(ask(Method::GET, "/status.json", &[host]).status(), StatusCode::FORBIDDEN, "{host}");
    }
    assert_eq!(ask(Method::GET, "/", &[]).status(), StatusCode::FORBIDDEN);
    assert_eq!(ask(Method::GET, "/", &["localhost", "evil.example"]).status(), StatusCode::FORBIDDEN);
}

#[test]
fn nothing_can_be_changed() {
    for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
        assert_eq!(ask(method, "/", &["localhost"]).status(), StatusCode::METHOD_NOT_ALLOWED);
    }
    assert_eq!(ask(Method::HEAD, "/metrics", &["localhost"]).status(), StatusCode::OK);
    assert_eq!(ask(Method::GET, "/stop", &["localhost"]).status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn metrics_are_in_the_format_of_prometheus() {
    let metrics = text(ask(Method::GET, "/metrics", &["localhost"])).await;
    for line in [
        "# TYPE ollana_peers gauge",
        "ollana_info{version=\"1.2.3\",name=\"desk\"} 1",
        "ollana_uptime_seconds 3700",
        "ollana_peers{state=\"connected\"} 1",
        "ollana_peers{state=\"refused\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line}\n{metrics}");
    }
    let rtt = metrics.lines().find(|line| line.starts_with("ollana_peer_rtt_seconds{peer=\"gpu1\"")).unwrap();
    assert!(rtt.ends_with("} 0.001250"), "{rtt}");
}

#[test]
fn a_page_that_nobody_asked_for_is_left_out_where_its_port_is_taken() {
    let holder = StdListener::bind("127.0.0.1:0").unwrap();
    let addr = holder.local_addr().unwrap();
    assert!(bind(addr, false).unwrap().is_none());
    let error = bind(addr, true).unwrap_err().to_string();
    assert!(error.contains(&addr.to_string()) && error.contains("--status"), "{error}");
}
