//! Keys: new, known, copied, revoked.

use std::time::Duration;

use crate::app::{App, MODEL, Next, Ollama};
use crate::netns::Net;
use crate::node::{Home, Node, until};
use crate::{CHANGE, ROLE};

/// What a person types takes effect at once.
const AT_ONCE: Duration = Duration::from_secs(2);
/// A node that was refused asks again after 20 s, and some.
const ASKS_AGAIN: Duration = Duration::from_secs(30);

pub fn an_impostor_with_a_known_name_gets_nothing_and_is_reported() {
    let (net, lan) = Net::new();
    let (real, laptop, evil) = (net.host("real", &lan), net.host("laptop", &lan), net.host("evil", &lan));
    let ollamas = [
        Ollama::start(&real),
        Ollama::with(&evil, &[MODEL, "bait"], |_| {}),
        Ollama::at(&laptop, 11500, &["private"], |_| {}),
    ];
    let homes = ["gpu", "laptop", "gpu"].map(Home::new);
    let gpu = Node::start(&real, &homes[0], &[]);
    let user = Node::start(&laptop, &homes[1], &["--ollama", "http://127.0.0.1:11500"]);
    let known = user.until_used("gpu", CHANGE);
    let lender = gpu.until_used("laptop", CHANGE).id;
    let app = App::on(&laptop);
    assert_eq!(app.is_answered("before"), "gpu");

    let impostor = Node::start(&evil, &homes[2], &[]);
    let its_id = impostor.id();
    let reported = until(CHANGE, "the impostor is shown", || {
        user.peers().into_iter().find(|peer| peer.id == its_id && peer.state == "connected" && peer.provider)
    });
    assert_eq!(reported.use_, "pending");
    assert_ne!(reported.name, "gpu", "the name is taken");
    assert_eq!((reported.scope.as_str(), reported.trust.as_str()), ("none", "none"));
    let problem = reported.problem.unwrap();
    assert!(problem.contains("different key") && problem.contains(&known.id), "{problem}");
    assert!(problem.contains("rename one of them") && !problem.contains("revoke"), "{problem}");
    user.logs(&["WARN", "different key", &its_id], ROLE);
    assert!(user.ollana(&["peers"]).unwrap().contains("different key"));
    assert!(user.ollana(&["status"]).unwrap().contains("different key"));

    // The real one keeps its place and its name.
    let still = user.until_used("gpu", CHANGE);
    assert_eq!(still.id, known.id);
    for n in 0..10 {
        assert_eq!(app.is_answered(&format!("after {n}")), "gpu");
    }
    assert_eq!(app.chat_with(MODEL, "chosen", 4, Some("gpu")).unwrap().must_be_right(), "gpu");
    assert_eq!(app.models(), ["private:latest", MODEL]);
    let bait = app.chat_with("bait", "secret", 1, None).unwrap();
    assert_eq!(bait.status, 503);
    let error = bait.refusal();
    assert!(error.contains(&format!("ollana trust {}", reported.name)), "{error}");
    let counts = ollamas[1].counts();
    assert_eq!((counts.of("/api/chat"), counts.of("/api/generate")), (0, 0), "no prompt may come to it");

    // And it gets nothing from those who know the name.
    impostor.until_peer("laptop", CHANGE, |peer| peer.provider && peer.models.is_empty());
    let its_app = App::at(&evil, 11433);
    for peer in [None, Some(lender.as_str())] {
        let refused = its_app.chat_with("private", "mine", 1, peer).unwrap();
        assert!(matches!(refused.status, 403 | 404 | 503), "{}", refused.refusal());
    }
    assert_eq!(ollamas[2].chats(), 0);
    // Whose name it bears sees it as someone else.
    let twin = gpu.peers().into_iter().find(|peer| peer.id == its_id).unwrap();
    assert!(twin.name != "gpu" && twin.problem.is_some(), "{twin:?}");
}

pub fn two_nodes_with_one_key_both_stop_lending_and_say_so_until_one_has_another_key() {
    let (net, lan) = Net::new();
    let hosts = ["original", "copy", "laptop"].map(|name| net.host(name, &lan));
    let _ollamas = [Ollama::start(&hosts[0]), Ollama::with(&hosts[1], &["other"], |_| {})];
    let homes = ["original", "laptop"].map(Home::new);
    // The disk is cloned after the first start, while the node is off.
    Node::start(&hosts[0], &homes[0], &[]).stop();
    let cloned = homes[0].clone_to("copy");
    let original = Node::start(&hosts[0], &homes[0], &[]);
    let user = Node::start(&hosts[2], &homes[1], &[]);
    user.until_used("original", CHANGE);
    let app = App::on(&hosts[2]);
    assert_eq!(app.is_answered("before"), "original");

    let copy = Node::start(&hosts[1], &cloned, &[]);
    assert_eq!(copy.id(), original.id());
    for node in [&original, &copy] {
        node.until_status(CHANGE, |status| {
            status["ollama"]["lent"] == false
                && status["conflicts"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|text| text.as_str().unwrap().contains("identity.key"))
        });
        node.logs(&["ERROR", "identity.key"], ROLE);
        assert!(node.ollana(&["status"]).unwrap().contains("identity.key"));
    }
    let id = original.id();
    until(2 * CHANGE, "the user is told", || {
        let peers = user.peers();
        peers
            .iter()
            .any(|peer| peer.id == id && peer.problem.as_ref().is_some_and(|p| p.contains("two live nodes")))
            .then_some(())
    });
    let refused = app.chat("to a clone", 1).unwrap();
    assert_eq!(refused.status, 503, "{}", refused.refusal());

    copy.stop();
    cloned.forget_key();
    let copy = Node::start(&hosts[1], &cloned, &[]);
    assert_ne!(copy.id(), original.id());
    // A copy that was proved is remembered for 30 s.
    let heals = Duration::from_secs(40);
    original
        .until_status(heals, |status| status["ollama"]["lent"] == true && status["conflicts"] == serde_json::json!([]));
    user.until_used("original", CHANGE);
    user.until_used("copy", CHANGE);
    assert_eq!(app.is_answered("after"), "original");
    assert_eq!(app.models(), ["other:latest", MODEL]);
}

pub fn a_revoked_peer_is_cut_off_at_once_and_stays_out_until_it_is_trusted_again() {
    let (net, lan) = Net::new();
    let (gpu, laptop) = (net.host("gpu", &lan), net.host("laptop", &lan));
    let ollama = Ollama::with(&gpu, &[MODEL], |settings| settings.pace = Duration::from_millis(50));
    let homes = [Home::new("gpu"), Home::new("laptop")];
    let mut provider = Node::start(&gpu, &homes[0], &[]);
    let mut user = Node::start(&laptop, &homes[1], &[]);
    user.until_used("gpu", CHANGE);
    provider.until_peer("laptop", CHANGE, |peer| peer.scope == "infer");
    let id = user.id();
    let app = App::on(&laptop);
    let mut running = app.chat("running", 100_000).unwrap();
    assert!(matches!(running.next(), Next::Word(_)));

    assert!(provider.ollana(&["revoke", "laptop"]).unwrap().contains(&id));
    running.breaks_within(AT_ONCE);
    ollama.until_running(0);
    let chats = ollama.chats();
    let refused = |app: &App| {
        let refused = app.chat("again", 1).unwrap();
        assert!(matches!(refused.status, 403 | 503), "{}", refused.refusal());
    };
    refused(&app);
    provider.until_peer("laptop", AT_ONCE, |peer| peer.trust == "revoked" && peer.state == "refused");
    user.until_peer("gpu", CHANGE, |peer| peer.state == "refused" && peer.problem.is_some());
    // Neither a restart of the one nor of the other changes anything.
    provider.kill();
    let provider = Node::start(&gpu, &homes[0], &[]);
    user.kill();
    let user = Node::start(&laptop, &homes[1], &[]);
    user.until_peer("gpu", CHANGE, |peer| peer.state == "refused");
    refused(&App::on(&laptop));
    assert_eq!(provider.peers().into_iter().find(|peer| peer.id == id).unwrap().trust, "revoked");
    assert_eq!(ollama.chats(), chats);

    assert!(provider.ollana(&["trust", &id, "--yes"]).unwrap().contains("trusted"));
    user.until_used("gpu", ASKS_AGAIN);
    assert_eq!(app.is_answered_within(ROLE, "trusted again"), "gpu");
}

pub fn a_provider_that_is_revoked_gets_nothing_more() {
    let (net, lan) = Net::new();
    let (gpu, laptop) = (net.host("gpu", &lan), net.host("laptop", &lan));
    let ollama = Ollama::with(&gpu, &[MODEL], |settings| settings.pace = Duration::from_millis(50));
    let homes = [Home::new("gpu"), Home::new("laptop")];
    let _provider = Node::start(&gpu, &homes[0], &[]);
    let user = Node::start(&laptop, &homes[1], &[]);
    let id = user.until_used("gpu", CHANGE).id;
    let app = App::on(&laptop);
    let mut running = app.chat("running", 100_000).unwrap();
    assert!(matches!(running.next(), Next::Word(_)));
    user.ollana(&["revoke", "gpu"]).unwrap();
    running.breaks_within(AT_ONCE);
    ollama.until_running(0);
    let chats = ollama.chats();
    user.until_peer("gpu", AT_ONCE, |peer| peer.state == "refused" && peer.use_ == "no");
    assert_eq!(app.chat("again", 1).unwrap().status, 503);
    assert_eq!(ollama.chats(), chats);
    user.ollana(&["trust", &id, "--yes"]).unwrap();
    assert_eq!(app.is_answered_within(CHANGE, "trusted again"), "gpu");
}

pub fn a_provider_that_turns_up_late_waits_for_a_person() {
    let (net, lan) = Net::new();
    let hosts = ["early", "late", "laptop"].map(|name| net.host(name, &lan));
    let ollamas = [Ollama::start(&hosts[0]), Ollama::with(&hosts[1], &["large"], |_| {})];
    let homes = ["early", "late", "laptop"].map(Home::new);
    homes[2].configure("[trust]\nfirst_use_window = \"1s\"\n");
    let _early = Node::start(&hosts[0], &homes[0], &[]);
    let user = Node::start(&hosts[2], &homes[2], &[]);
    user.until_used("early", CHANGE);
    // The window is a time; in whole seconds, so two are surely more than one.
    std::thread::sleep(Duration::from_secs(2));
    let late = Node::start(&hosts[1], &homes[1], &[]);
    let pending = user.until_peer("late", CHANGE, |peer| peer.provider);
    assert_eq!((pending.use_.as_str(), pending.state.as_str()), ("pending", "connected"));
    let app = App::on(&hosts[2]);
    let refused = app.chat_with("large", "hello", 1, None).unwrap();
    assert_eq!(refused.status, 503);
    let error = refused.refusal();
    assert!(error.contains("late") && error.contains("ollana trust late"), "{error}");
    assert_eq!(ollamas[1].chats(), 0);
    assert_eq!(app.is_answered("meanwhile"), "early");
    let models = user.ollana(&["models"]).unwrap();
    assert!(models.contains("late (pending)") && models.contains("→ ollana trust late"), "{models}");
    let listed: serde_json::Value = serde_json::from_str(&user.ollana(&["models", "--json"]).unwrap()).unwrap();
    let large = listed.as_array().unwrap().iter().find(|model| model["name"] == "large:latest").unwrap();
    assert_eq!((&large["usable"], &large["nodes"][0]["use"]), (&false.into(), &"pending".into()));

    user.ollana(&["trust", &late.id(), "--yes"]).unwrap();
    user.until_used("late", AT_ONCE);
    let chat = app.chat_with("large", "hello", 1, None).unwrap();
    assert_eq!((chat.status, chat.peer.as_deref()), (200, Some("late")));
}
