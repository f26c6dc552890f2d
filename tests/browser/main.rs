//! Web pages in a real browser, Debian's Chromium: those that Ollama lets in use the mesh, others do not.
//!
//! A page is served by a [`Site`], does what `pages.js` says and reports what it was let know. Without a Chromium the
//! tests are reported as ignored.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod chromium;
#[path = "../support/fake_ollama.rs"]
mod fake_ollama;
mod mesh;
mod site;
#[path = "../support/tools.rs"]
mod tools;

use std::time::{Duration, Instant};

use chromium::Browser;
use fake_ollama::expected;
use libtest_mimic::{Arguments, Trial};
use mesh::{Mesh, until};
use serde_json::{Value, json};
use site::Site;

/// No model computes for nobody.
const A_CLIENT_THAT_GOES_AWAY_ENDS_THE_WORK: Duration = Duration::from_secs(1);
/// Where a page of somebody else's comes from.
const EVIL: &str = "evil.example";

fn main() {
    let arguments = Arguments::from_args();
    let needs = tools::chromium().map(drop);
    let tests: [(&str, fn()); 11] = [
        ("a_page_on_an_allowed_origin_reads_a_chat_as_it_is_said", streams),
        ("a_page_that_gives_up_ends_the_work", gives_up),
        ("a_browser_that_is_closed_ends_the_work", closed),
        ("a_page_on_an_allowed_origin_may_send_what_is_preflighted", preflighted),
        ("an_origin_of_ollama_origins_is_let_in", configured_origin),
        ("a_page_on_a_foreign_origin_is_refused_whatever_it_tries", foreign),
        ("a_frame_without_an_origin_is_refused", sandboxed),
        ("a_page_is_refused_after_dns_rebinding", rebound),
        ("a_page_on_a_foreign_origin_learns_nothing_from_the_status_page", status_page),
        ("a_page_on_another_port_of_this_machine_learns_nothing_from_the_status_page", status_page_from_localhost),
        ("after_dns_rebinding_the_status_page_is_refused", status_page_rebound),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        // The harness prints no reason of its own, so it stands in the name's kind.
        let kind = needs.as_ref().err().cloned().unwrap_or_default();
        Trial::test(name, move || {
            test();
            Ok(())
        })
        .with_kind(kind)
        .with_ignored_flag(needs.is_err())
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

// === pages that may ===

fn streams() {
    let (mesh, site) = (Mesh::start(&[]), Site::start());
    let pace = Duration::from_millis(100);
    mesh.ollama.set(|settings| (settings.pace, settings.tokens) = (pace, 12));
    let _browser = Browser::open("localhost", &site, "streams", Some(mesh.listen));
    let result = site.result();
    assert_eq!((&result["type"], &result["status"]), (&json!("cors"), &json!(200)), "{result}");
    let pieces = result["pieces"].as_array().unwrap();
    let text: String = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let said: String = lines.map(|line| line["message"]["content"].as_str().unwrap().to_owned()).collect();
    assert_eq!(said, expected("m:latest", "why", 12));
    let at = |piece: Option<&Value>| Duration::from_secs_f64(piece.unwrap()["at"].as_f64().unwrap() / 1000.0);
    // Eleven pauses lie between the first word and the last.
    assert!(at(pieces.last()) - at(pieces.first()) > pace * 8, "it came at once: {result}");
    assert!(pieces.len() >= 6, "it came in lumps: {result}");
}

fn gives_up() {
    let (mesh, site) = (Mesh::start(&[]), Site::start());
    mesh.ollama.set(|settings| (settings.pace, settings.tokens) = (Duration::from_millis(20), 100_000));
    let _browser = Browser::open("localhost", &site, "gives_up", Some(mesh.listen));
    assert_eq!(site.result(), json!("AbortError"));
    assert_the_work_ends(&mesh);
}

fn closed() {
    let (mesh, site) = (Mesh::start(&[]), Site::start());
    mesh.ollama.set(|settings| (settings.pace, settings.tokens) = (Duration::from_millis(20), 100_000));
    let browser = Browser::open("localhost", &site, "reads_on", Some(mesh.listen));
    assert_eq!(site.result(), json!("it reads"));
    drop(browser);
    assert_the_work_ends(&mesh);
}

fn assert_the_work_ends(mesh: &Mesh) {
    let begun = Instant::now();
    until("the Ollama stops", || mesh.ollama.counts().aborted == 1);
    assert!(begun.elapsed() < A_CLIENT_THAT_GOES_AWAY_ENDS_THE_WORK, "it took {:?}", begun.elapsed());
}

fn preflighted() {
    let mesh = Mesh::start(&[]);
    let (site, wire) = (Site::start(), Site::before([127, 0, 0, 1], mesh.listen));
    let _browser = Browser::open("localhost", &site, "preflighted", Some(wire.address));
    let result = site.result();
    for asked in ["json", "openai", "chosen"] {
        assert_eq!(result[asked]["status"], 200, "{asked}: {result}");
    }
    // As from an Ollama: the browser asks first and is told that this header is not among those it may send.
    assert_eq!(result["unheard_of"]["refused"], "TypeError", "{result}");
    assert!(wire.asked().iter().any(|line| line.starts_with("OPTIONS /api/generate")), "{:?}", wire.asked());
}

fn configured_origin() {
    let site = Site::start();
    let mesh = Mesh::start(&[format!("http://app.example:{}", site.address.port())]);
    let _browser = Browser::open("app.example", &site, "streams", Some(mesh.listen));
    let result = site.result();
    assert_eq!((&result["type"], &result["status"]), (&json!("cors"), &json!(200)), "{result}");
}

// === pages that may not ===

fn foreign() {
    let mesh = Mesh::start(&[]);
    let (site, wire) = (Site::start(), Site::before([127, 0, 0, 1], mesh.listen));
    let _browser = Browser::open(EVIL, &site, "intrudes", Some(wire.address));
    let result = site.result();
    for attempt in ["get", "preflighted", "simple", "without_type", "deletes"] {
        assert_eq!(result[attempt], json!({"refused": "TypeError"}), "{attempt}");
    }
    assert_eq!(result["unread"], json!({"type": "opaque", "status": 0, "text": ""}), "sent, and nothing to be read");
    assert_eq!((&result["socket"], &result["form"]), (&json!("refused"), &json!("loaded")));
    // get, two preflights, three posts, beacon, socket, form
    until("all of them are answered", || wire.answered().len() >= 9);
    assert!(wire.answered().iter().all(|status| *status == 403), "{:?} to {:?}", wire.answered(), wire.asked());
    assert_eq!(mesh.reached(), [""; 0]);
}

fn sandboxed() {
    let mesh = Mesh::start(&[]);
    let (site, wire) = (Site::start(), Site::before([127, 0, 0, 1], mesh.listen));
    let _browser = Browser::open("localhost", &site, "intrudes_from_a_sandbox", Some(wire.address));
    assert_eq!(site.result(), json!("refused"));
    assert_eq!((wire.asked_with("Origin"), wire.answered()), (vec!["null".to_owned()], vec![403]));
    assert_eq!(mesh.reached(), [""; 0]);
}

fn rebound() {
    let mesh = Mesh::start(&[]);
    let site = Site::before([127, 0, 0, 2], mesh.listen);
    let _browser = Browser::open(EVIL, &site, "intrudes", None);
    let result = site.result();
    // Of one origin with what it asks, as it believes, the page may read what it is told.
    for attempt in ["get", "preflighted", "simple", "without_type", "unread", "deletes"] {
        assert_eq!(result[attempt], json!({"type": "basic", "status": 403, "text": ""}), "{attempt}");
    }
    assert_eq!(result["socket"], "refused");
    until("all of them are answered", || site.answered().len() >= 9);
    assert!(site.answered().iter().all(|status| *status == 403), "{:?} to {:?}", site.answered(), site.asked());
    let name = format!("{EVIL}:{}", site.address.port());
    assert!(site.asked_with("Host").iter().all(|host| *host == name), "{:?}", site.asked_with("Host"));
    let own = format!("http://{name}");
    assert!(site.asked_with("Origin").iter().all(|origin| *origin == own), "{:?}", site.asked_with("Origin"));
    assert_eq!(mesh.reached(), [""; 0]);
}

// === the status page ===

fn status_page() {
    no_look_at_the_status_from(EVIL);
}

fn status_page_from_localhost() {
    no_look_at_the_status_from("localhost");
}

fn no_look_at_the_status_from(name: &str) {
    let mesh = Mesh::start(&[]);
    let (site, wire) = (Site::start(), Site::before([127, 0, 0, 1], mesh.status));
    let _browser = Browser::open(name, &site, "looks_at_the_status", Some(wire.address));
    let result = site.result();
    // The last one too, whose answer is opaque elsewhere: what says `nosniff` is not let into the page's process at all.
    for attempt in ["page", "json", "peers", "metrics", "simple", "unread"] {
        assert_eq!(result[attempt], json!({"refused": "TypeError"}), "{attempt}");
    }
    // It was answered, and the browser kept the answer to itself; and nothing but looking was possible.
    assert_eq!(wire.answered(), [200, 200, 200, 200, 405, 405]);
}

fn status_page_rebound() {
    let mesh = Mesh::start(&[]);
    let site = Site::before([127, 0, 0, 2], mesh.status);
    let _browser = Browser::open(EVIL, &site, "looks_at_the_status", None);
    let result = site.result();
    for attempt in ["page", "json", "peers", "metrics", "simple", "unread"] {
        assert_eq!(result[attempt]["status"], 403, "{attempt}: {result}");
        assert!(!result[attempt]["text"].as_str().unwrap().contains("laptop"), "{attempt}: {result}");
    }
}
