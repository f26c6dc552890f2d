use super::*;
use proptest::prelude::*;

const fn server(n: u8) -> Id {
    Id::from_bytes([n; 32])
}

fn fingerprint(prefixes: &Prefixes, body: &[u8]) -> Fingerprint {
    let mut reading = prefixes.read();
    reading.feed(body);
    reading.fingerprint()
}

/// A chat's body as Ollama's own clients write it, with what comes after the messages.
fn chat(messages: &[&str]) -> Vec<u8> {
    let messages: Vec<_> = messages
        .iter()
        .enumerate()
        .map(|(n, text)| {
            format!(r#"{{"role":"{}","content":"{text}"}}"#, if n % 2 == 0 { "user" } else { "assistant" })
        })
        .collect();
    format!(
        r#"{{"model":"m","messages":[{}],"stream":true,"options":{{"temperature":0.5}},"keep_alive":"5m"}}"#,
        messages.join(",")
    )
    .into_bytes()
}

fn text(seed: u32, words: u32) -> String {
    (0..words).map(|n| format!("word{} ", seed.wrapping_mul(2_654_435_761).wrapping_add(n * n) % 1000)).collect()
}

#[test]
fn a_conversation_is_found_where_it_was_but_for_its_tail() {
    let mut prefixes = Prefixes::new();
    let (question, answer) = (text(1, 300), text(2, 100));
    let first = chat(&[&question]);
    prefixes.record(&server(1), "m", &fingerprint(&prefixes, &first), 1, 0);

    let body = chat(&[&question, &answer, "and then?"]);
    let next = fingerprint(&prefixes, &body);
    let matched = prefixes.matched(&server(1), "m", &next, 0);
    // The answer came from there, and is in the cache as well; the new message is not.
    let new = memmem::rfind(&body, b"\"role\"").unwrap();
    assert_eq!(matched, new);
    // A body without messages that begins alike: what was sent.
    let completion = |text: &str| format!(r#"{{"model":"m","prompt":"{text}","stream":true}}"#).into_bytes();
    prefixes.record(&server(3), "m", &fingerprint(&prefixes, &completion(&question)), 1, 0);
    let longer = fingerprint(&prefixes, &completion(&format!("{question}{answer}")));
    let begins = prefixes.matched(&server(3), "m", &longer, 0);
    assert!(begins <= question.len() + 50 && begins + BLOCK > question.len(), "{begins} of {}", question.len());
    assert_eq!(tokens(matched), matched as f64 / 4.0);
    assert_eq!(prefixes.matched(&server(2), "m", &next, 0), 0);
    assert_eq!(prefixes.matched(&server(1), "n", &next, 0), 0);
    // It stands for the older one now.
    prefixes.record(&server(1), "m", &next, 1, 0);
    assert_eq!(prefixes.servers[&server(1)]["m"].conversations.len(), 1);
}

#[test]
fn a_conversation_that_went_on_elsewhere_is_cached_as_far_as_it_was_there() {
    let mut prefixes = Prefixes::new();
    let texts: Vec<_> = (0..4).map(|n| text(n, 150)).collect();
    let [one, two, three, four] = &texts[..] else { panic!() };
    prefixes.record(&server(1), "m", &fingerprint(&prefixes, &chat(&[one])), 1, 0);
    let later = chat(&[one, two, three, four, "and now?"]);
    let matched = prefixes.matched(&server(1), "m", &fingerprint(&prefixes, &later), 0);
    let third = memmem::find_iter(&later, b"\"role\"").nth(2).unwrap();
    assert_eq!(matched, third, "its own answer, and nothing of what others said");
    // Another conversation behind the same long system prompt has none of the answer.
    let (system, mine, theirs) = (text(9, 300), text(10, 150), text(11, 150));
    prefixes.record(&server(2), "m", &fingerprint(&prefixes, &chat(&[&system, &mine])), 1, 0);
    let other = chat(&[&system, &theirs, "answer", "and?"]);
    let matched = prefixes.matched(&server(2), "m", &fingerprint(&prefixes, &other), 0);
    assert!(matched <= system.len() + 100, "{matched}");
}

proptest! {
    #[test]
    fn where_messages_begin_is_found_however_a_body_is_cut(
        words in prop::collection::vec(0u32..30, 1..6),
        cuts in prop::collection::vec(1usize..40, 1..30),
    ) {
        let prefixes = Prefixes::new();
        let texts: Vec<_> = words.iter().map(|n| text(*n, *n)).collect();
        let body = chat(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let mut reading = prefixes.read();
        let (mut rest, mut cuts) = (&body[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, others) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            reading.feed(piece);
            rest = others;
        }
        let expected: Vec<u32> = memmem::find_iter(&body, b"\"role\"").map(|at| u32::try_from(at).unwrap()).collect();
        prop_assert_eq!(&*reading.fingerprint().messages, &expected[..]);
        prop_assert_eq!(reading.fingerprint(), fingerprint(&prefixes, &body));
    }
}

#[test]
fn of_two_conversations_only_what_they_share_is_cached() {
    let mut prefixes = Prefixes::new();
    let system = text(0, 200);
    prefixes.record(&server(1), "m", &fingerprint(&prefixes, &chat(&[&system, &text(1, 300)])), 1, 0);
    let other = fingerprint(&prefixes, &chat(&[&system, &text(2, 300)]));
    let matched = prefixes.matched(&server(1), "m", &other, 0);
    assert!(matched <= system.len() + 100 && matched + BLOCK > system.len(), "{matched} of {}", system.len());
    prefixes.record(&server(1), "m", &other, 1, 0);
    assert_eq!(prefixes.servers[&server(1)]["m"].conversations.len(), 2, "each of them is kept");
}

#[test]
fn a_runner_keeps_its_slots_and_eight_and_the_oldest_goes() {
    let mut prefixes = Prefixes::new();
    let body = |n: u32| chat(&[&text(n, 100)]);
    for n in 0..11 {
        prefixes.record(&server(1), "m", &fingerprint(&prefixes, &body(n)), 2, 0);
    }
    let matched = |n| prefixes.matched(&server(1), "m", &fingerprint(&prefixes, &body(n)), 0);
    assert_eq!(matched(0), 0);
    assert!((1..11).all(|n| matched(n) > 0));
}

#[test]
fn what_is_gone_has_no_cache() {
    let mut prefixes = Prefixes::new();
    let body = fingerprint(&prefixes, &chat(&[&text(1, 100)]));
    for (id, model) in [(1, "a"), (1, "b"), (2, "a")] {
        prefixes.record(&server(id), model, &body, 1, 0);
    }
    prefixes.forget_model(&server(1), "a");
    let matched = |prefixes: &Prefixes, id, model| prefixes.matched(&server(id), model, &body, 0) > 0;
    assert!(!matched(&prefixes, 1, "a") && matched(&prefixes, 1, "b") && matched(&prefixes, 2, "a"));
    prefixes.forget_model(&server(1), "b");
    prefixes.forget_model(&server(2), "a");
    prefixes.forget_model(&server(2), "a");
    assert_eq!((prefixes.kept, prefixes.servers.len()), (0, 0));
}

#[test]
fn what_is_short_is_not_kept_and_what_is_long_is_bounded() {
    let mut prefixes = Prefixes::new();
    prefixes.record(&server(1), "m", &fingerprint(&prefixes, &[b'x'; BLOCK - 1]), 1, 0);
    assert_eq!(prefixes.kept, 0);
    let mut reading = prefixes.read();
    for _ in 0..1000 {
        reading.feed(&[b'x'; 1000]);
    }
    assert!(reading.is_full());
    let long = reading.fingerprint();
    prefixes.record(&server(1), "m", &long, 1, 0);
    assert_eq!(prefixes.matched(&server(1), "m", &long, 0), READ);
}

#[test]
fn in_all_no_more_is_kept_than_a_mebibyte_and_what_is_used_stays() {
    let mut prefixes = Prefixes::new();
    let body = |n: u32| -> Vec<u8> { (0..16 * 1024u32).flat_map(|at| (at ^ n << 20).to_le_bytes()).collect() };
    let used = fingerprint(&prefixes, &body(4000));
    for n in 0..600 {
        let (id, model) = (server(u8::try_from(n % 100).unwrap()), if n % 2 == 0 { "a" } else { "b" });
        prefixes.record(&id, model, &fingerprint(&prefixes, &body(n)), 1, 0);
        prefixes.record(&server(200), "a", &used, 1, 0);
        assert!(prefixes.kept <= KEPT);
    }
    let counted: usize = prefixes.servers.values().flat_map(|models| models.values()).map(Runner::size).sum();
    assert_eq!(counted, prefixes.kept);
    assert!(counted > KEPT / 2);
    assert_eq!(prefixes.matched(&server(200), "a", &used, 0), READ);
}

#[test]
fn nobody_can_know_the_hashes() {
    let body = chat(&[&text(1, 100)]);
    let of = || fingerprint(&Prefixes::new(), &body);
    assert_ne!(of(), of());
}

/// Measured with optimization, on a core of a busy machine: 14 µs to read 16 KiB, 2 µs to look it up at 8 servers with 9
/// conversations each that all begin alike.
#[test]
#[ignore = "measures time: cargo test --release --lib balance::prefix -- --ignored --nocapture"]
fn speed() {
    let mut prefixes = Prefixes::new();
    let body: Vec<u8> = (0..16 * 1024u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for n in 0..8u8 {
        for m in 1..10u16 {
            let mut other = body.clone();
            other[usize::from(m) * 1600..].fill(n);
            prefixes.record(&server(n), "m", &fingerprint(&prefixes, &other), 1, 0);
        }
    }
    let time = |what: &str, work: &mut dyn FnMut()| {
        let start = std::time::Instant::now();
        (0..2000).for_each(|_| work());
        let each = start.elapsed() / 2000;
        println!("{what}: {each:?}");
        each
    };
    let reading = time("reading 16 KiB", &mut || {
        std::hint::black_box(fingerprint(&prefixes, std::hint::black_box(&body)));
    });
    let body = fingerprint(&prefixes, &body);
    let matching = time("looking it up at 8 servers with 9 conversations each", &mut || {
        let all: usize = (0..8).map(|n| prefixes.matched(&server(n), "m", &body, 0)).sum();
        std::hint::black_box(all);
    });
    assert!(reading + matching < std::time::Duration::from_micros(50));
}

proptest! {
    #[test]
    fn how_a_body_comes_in_pieces_makes_no_difference(
        body in prop::collection::vec(any::<u8>(), 0..3000), cuts in prop::collection::vec(1usize..700, 1..20),
    ) {
        let prefixes = Prefixes::new();
        let mut reading = prefixes.read();
        let (mut rest, mut cuts) = (&body[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            reading.feed(piece);
            rest = after;
        }
        prop_assert_eq!(reading.fingerprint(), fingerprint(&prefixes, &body));
    }

    #[test]
    fn what_matches_is_the_longest_common_beginning_in_whole_blocks(
        body in prop::collection::vec(any::<u8>(), 0..6000), at in any::<prop::sample::Index>(),
        older in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let mut prefixes = Prefixes::new();
        let common = at.index(body.len() + 1);
        let mut other = body[..common].to_vec();
        other.extend(body.get(common).map(|byte| byte ^ 1));
        other.extend(older);
        prefixes.record(&server(1), "m", &fingerprint(&prefixes, &other), 1, 0);
        prop_assert_eq!(prefixes.matched(&server(1), "m", &fingerprint(&prefixes, &body), 0), common / BLOCK * BLOCK);
    }
}

#[test]
fn what_others_sent_has_pushed_out_what_rested_longest() {
    let mut prefixes = Prefixes::new();
    let body = |n: u8| fingerprint(&Prefixes { keys: prefixes.keys.clone(), ..Prefixes::new() }, &[n; 4 * BLOCK]);
    let bodies = [body(0), body(1), body(2)];
    // Two slots and eight beside them. The first of ours was the sixth that it began, and we sent all that came since.
    for (body, begun) in bodies.iter().zip(6..) {
        prefixes.record(&server(1), "m", body, 2, begun);
    }
    let held = |begun| bodies.each_ref().map(|body| prefixes.matched(&server(1), "m", body, begun) > 0);
    assert_eq!(held(8), [true; 3], "all of them are ours");
    assert_eq!(held(8 + 11), [true; 3], "some of the others' find their own there");
    assert_eq!(held(8 + 13), [false, true, true]);
    assert_eq!(held(8 + 16), [false; 3]);
    assert_eq!(held(0), [true; 3], "it was started again, and its Ollama perhaps not");
}
