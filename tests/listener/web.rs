//! Web pages: the guard that Ollama has, held against what a real one answered.

use http::StatusCode;

use crate::{FakeEndpoint, Node, soon};

#[tokio::test]
async fn foreign_hosts_and_origins_are_refused_before_anything_runs() {
    let (_a, a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    for head in [
        "GET /api/version\nHost: evil.example",
        "GET /api/version\nOrigin: https://evil.example",
        "POST /api/chat\nOrigin: null",
        "OPTIONS /api/chat\nOrigin: https://evil.example\nAccess-Control-Request-Method: POST",
        "GET /\nHost: evil.example",
        "GET /@a/api/version\nHost: evil.example",
    ] {
        let reply = node.ask(head, "").await;
        assert_eq!((reply.status, &*reply.body, reply.field("Content-Length")), (403, "", Some("0")), "{head}");
        assert_eq!(reply.field("Access-Control-Allow-Origin"), None);
        assert_eq!(reply.field("Ollana-Peer"), Some("me"));
    }
    assert!(a.is_empty());
}

#[tokio::test]
async fn an_allowed_page_is_answered_by_the_listener_and_unseen_behind_it() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client
        .send(&crate::request("POST /api/chat\nOrigin: http://localhost:3000\nCookie: a=b", r#"{"model":"m"}"#))
        .await;
    let call = soon(a.next()).await;
    for gone in ["origin", "cookie"] {
        assert!(!call.request.headers().contains_key(gone), "{gone}");
    }
    call.answer(StatusCode::OK, "hi");
    let reply = client.reply().await;
    assert_eq!(reply.body, "hi");
    assert_eq!(reply.field("Access-Control-Allow-Origin"), Some("http://localhost:3000"));
    assert_eq!(reply.field("Vary"), Some("Origin"));
    // The mesh's own errors are the page's to read too.
    client.send(&crate::request("POST /api/chat\nOrigin: app://x", r#"{"model":"nope"}"#)).await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.field("Access-Control-Allow-Origin")), (404, Some("app://x")));
}

#[tokio::test]
async fn a_preflight_is_answered_as_a_real_ollama_answered_it() {
    let (_a, a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let reply = node
        .ask(
            "OPTIONS /api/chat\nOrigin: http://localhost:3000\nAccess-Control-Request-Method: POST\n\
             Access-Control-Request-Headers: content-type",
            "",
        )
        .await;
    // As recorded of Ollama 0.24.0; without `Allow`, which is gin's 405 and not CORS.
    let recorded = "HTTP/1.1 204 No Content\n\
        Access-Control-Allow-Headers: Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,\
        X-Stainless-Arch,X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,\
        X-Stainless-Os,X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,\
        X-Stainless-Runtime-Version,X-Stainless-Timeout\n\
        Access-Control-Allow-Methods: GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS\n\
        Access-Control-Allow-Origin: http://localhost:3000\n\
        Access-Control-Max-Age: 43200\n\
        Vary: Origin\n\
        Vary: Access-Control-Request-Method\n\
        Vary: Access-Control-Request-Headers\n";
    assert!(reply.head.starts_with(recorded), "{}", reply.head);
    assert!(a.is_empty());
}
