use proptest::prelude::*;

use super::*;
use crate::pairing::code::Code;

fn nonce() -> Hex<32> {
    Hex(rand::random())
}

fn id(n: u8) -> Id {
    Id::from_bytes([n; 32])
}

/// The ID of the other side.
fn other(side: usize) -> Id {
    id(if side == A { 2 } else { 1 })
}

/// Sides of a [`Pair`]: the smaller ID is the initiator.
const A: usize = 0;
const B: usize = 1;

/// Two machines and the connections between them.
struct Pair {
    now: Instant,
    machines: [Machine; 2],
    /// What is on its way, to whom.
    wire: VecDeque<(usize, LineId, Pairing)>,
    /// All that was ever sent, by whom.
    sent: Vec<(usize, LineId, Pairing)>,
    told: [Vec<News>; 2],
    asked: [usize; 2],
    disputed: [usize; 2],
}

impl Pair {
    fn new() -> Self {
        Self {
            now: Instant::now(),
            machines: [Machine::new(id(1), nonce), Machine::new(id(2), nonce)],
            wire: VecDeque::new(),
            sent: Vec::new(),
            told: Default::default(),
            asked: [0; 2],
            disputed: [0; 2],
        }
    }

    /// With a connection that A dialled and one that B dialled.
    fn connected() -> Self {
        let mut pair = Self::new();
        pair.connect(1, true);
        pair.connect(2, false);
        pair
    }

    fn connect(&mut self, line: u64, by_a: bool) {
        let secret = [u8::try_from(line).unwrap(); 32];
        let [a, b] = [id(1), id(2)];
        let ends =
            [Session { me: a, peer: b, dialled: by_a, secret }, Session { me: b, peer: a, dialled: !by_a, secret }];
        for (side, session) in ends.into_iter().enumerate() {
            self.machines[side].handle_connected(self.now, LineId(line), session);
        }
        self.collect();
    }

    fn disconnect(&mut self, line: u64) {
        self.wire.retain(|(_, on, _)| *on != LineId(line));
        for machine in &mut self.machines {
            machine.handle_disconnected(self.now, LineId(line));
        }
        self.collect();
    }

    fn wish(&mut self, side: usize) -> Result<(), Refusal> {
        let peer = other(side);
        let wished = self.machines[side].handle_wish(self.now, peer);
        self.collect();
        wished
    }

    fn end(&mut self, side: usize, said_no: bool) {
        self.machines[side].handle_end(self.now, other(side), said_no);
        self.collect();
    }

    fn confirm(&mut self, side: usize) {
        self.machines[side].handle_confirm(self.now, other(side));
        self.collect();
    }

    fn collect(&mut self) {
        for side in [A, B] {
            while let Some(output) = self.machines[side].poll_output() {
                match output {
                    Output::Send(line, step) => {
                        self.sent.push((side, line, step.clone()));
                        self.wire.push_back((1 - side, line, step));
                    }
                    Output::Tell(_, news) => self.told[side].push(news),
                    Output::Asked(_) => self.asked[side] += 1,
                    Output::Disputed(_) => self.disputed[side] += 1,
                }
            }
        }
    }

    fn hear(&mut self, side: usize, line: u64, step: Pairing) {
        self.machines[side].handle_step(self.now, LineId(line), step);
        self.collect();
    }

    /// A step that is made up, with the right numbers.
    fn step(&mut self, side: usize, line: u64, step: PairStep) {
        let own = matches!(step, PairStep::Offer | PairStep::Withdrawn { .. });
        let round = if own { 77 } else { self.machines[side].wishes.values().next().map_or(0, |wish| wish.round) };
        self.hear(side, line, Pairing { round, step });
    }

    /// Somebody with A's key commits to something.
    fn commits(&mut self, line: u64) {
        self.step(B, line, PairStep::Offer);
        self.step(B, line, PairStep::Commit(Hex([7; 32])));
    }

    fn deliver_one(&mut self) -> bool {
        let Some((to, line, step)) = self.wire.pop_front() else { return false };
        self.hear(to, line.0, step);
        true
    }

    fn deliver(&mut self) {
        while self.deliver_one() {}
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        for machine in &mut self.machines {
            machine.handle_timeout(self.now);
        }
        self.collect();
    }

    fn codes(&self, side: usize) -> Vec<Code> {
        let code = |news: &News| if let News::Code(code) = news { Some(code.clone()) } else { None };
        self.told[side].iter().filter_map(code).collect()
    }

    fn code(&self, side: usize) -> Code {
        let [code] = self.codes(side).try_into().unwrap_or_else(|codes: Vec<_>| panic!("{} codes", codes.len()));
        code
    }

    fn failure(&self, side: usize) -> Option<Failure> {
        self.told[side].iter().find_map(|news| if let News::Failed(failure) = news { Some(*failure) } else { None })
    }
}

#[test]
fn typed_on_both_in_whatever_order_both_show_the_same_six_digits_once() {
    for (first, second) in [(A, B), (B, A)] {
        let mut pair = Pair::connected();
        pair.wish(first).unwrap();
        pair.deliver();
        assert!(pair.told.concat().is_empty(), "typed on one alone there is no code");
        assert_eq!(pair.asked[second], 2, "on each connection once");
        pair.wait(WINDOW - Duration::from_secs(1));
        pair.wish(second).unwrap();
        pair.deliver();
        assert_eq!(pair.code(A), pair.code(B));
        assert!(pair.code(A).digits().len() == 6 && pair.code(A).digits().bytes().all(|b| b.is_ascii_digit()));
        pair.confirm(first);
        pair.deliver();
        assert_eq!(pair.told[second].last(), Some(&News::Confirmed));
        assert_ne!(pair.told[first].last(), Some(&News::Confirmed));
        pair.confirm(second);
        pair.deliver();
        assert!(pair.failure(A).is_none() && pair.failure(B).is_none());
    }
}

#[test]
fn typed_at_the_same_moment_it_works_as_well_and_over_either_connection_alone() {
    for (lines, by_a) in [(1, true), (1, false), (2, true)] {
        let mut pair = Pair::new();
        pair.connect(1, by_a);
        if lines == 2 {
            pair.connect(2, !by_a);
        }
        pair.wish(A).unwrap();
        pair.wish(B).unwrap();
        pair.deliver();
        assert_eq!(pair.code(A), pair.code(B));
    }
}

#[test]
fn a_connection_that_comes_later_or_breaks_before_the_nonces_costs_nothing() {
    let mut pair = Pair::new();
    pair.wish(A).unwrap();
    pair.wish(B).unwrap();
    pair.connect(1, true);
    // Both offers, and A's commitment is on its way.
    pair.deliver_one();
    pair.deliver_one();
    assert!(matches!(pair.wire.front(), Some((B, _, Pairing { step: PairStep::Commit(_), .. }))), "{:?}", pair.wire);
    pair.disconnect(1);
    pair.connect(3, false);
    pair.deliver();
    assert_eq!(pair.code(A), pair.code(B));
}

#[test]
fn outside_the_window_there_is_no_code() {
    let mut pair = Pair::connected();
    pair.wish(B).unwrap();
    pair.deliver();
    pair.wait(WINDOW);
    assert_eq!(pair.told[B], [News::Over]);
    pair.deliver();
    pair.wish(A).unwrap();
    pair.deliver();
    assert!(pair.codes(A).is_empty() && pair.codes(B).is_empty());
    // Not even if the withdrawal is kept back.
    let mut pair = Pair::connected();
    pair.wish(B).unwrap();
    pair.deliver();
    pair.machines[A].handle_timeout(pair.now + WINDOW);
    pair.now += WINDOW;
    pair.wish(A).unwrap();
    assert!(!pair.sent.iter().any(|(_, _, step)| matches!(step.step, PairStep::Commit(_))), "{:?}", pair.sent);
}

#[test]
fn a_wrong_reveal_shows_no_code_and_fails() {
    let mut pair = Pair::connected();
    pair.wish(B).unwrap();
    pair.commits(1);
    pair.step(B, 1, PairStep::Reveal(Hex([8; 32])));
    assert_eq!(pair.told[B], [News::Failed(Failure::WrongReveal)]);
}

#[test]
fn a_second_commitment_after_the_nonce_was_seen_fails() {
    // Whoever could commit anew once it knows nonce R could grind.
    for line in [1, 2] {
        let mut pair = Pair::connected();
        pair.wish(B).unwrap();
        pair.commits(1);
        pair.step(B, line, PairStep::Commit(Hex([9; 32])));
        assert_eq!(pair.failure(B), Some(Failure::OutOfTurn));
        assert_eq!(pair.sent.iter().filter(|(_, _, step)| matches!(step.step, PairStep::Nonce(_))).count(), 1);
    }
}

#[test]
fn what_was_recorded_in_one_session_is_worth_nothing_in_another() {
    let mut old = Pair::connected();
    old.wish(A).unwrap();
    old.wish(B).unwrap();
    old.deliver();
    let replay: Vec<PairStep> =
        old.sent.iter().filter(|(side, _, _)| *side == A).map(|(_, _, step)| step.step.clone()).collect();
    assert!(replay.iter().any(|step| matches!(step, PairStep::Reveal(_))));
    let mut pair = Pair::new();
    pair.connect(9, true);
    pair.wish(B).unwrap();
    for step in replay {
        pair.step(B, 9, step);
    }
    assert!(pair.codes(B).is_empty());
    assert_eq!(pair.failure(B), Some(Failure::WrongReveal));
}

#[test]
fn a_responder_cannot_begin_and_nobody_can_be_made_its_own_peer() {
    let mut pair = Pair::connected();
    pair.wish(A).unwrap();
    pair.step(A, 1, PairStep::Commit(Hex([7; 32])));
    assert_eq!(pair.failure(A), Some(Failure::OutOfTurn), "the roles are the IDs'");
    let mut machine = Machine::new(id(1), nonce);
    assert_eq!(machine.handle_wish(Instant::now(), id(1)), Err(Refusal::OwnKey));
    let own = Session { me: id(1), peer: id(1), dialled: true, secret: [0; 32] };
    machine.handle_connected(Instant::now(), LineId(1), own);
    machine.handle_step(Instant::now(), LineId(1), Pairing { round: 1, step: PairStep::Offer });
    assert_eq!(machine.poll_output(), None);
}

#[test]
fn who_stops_in_the_middle_is_given_up_and_it_counts() {
    let mut pair = Pair::connected();
    for _ in 0..MAX_FAILURES {
        pair.wish(B).unwrap();
        pair.commits(1);
        pair.wait(STEP);
        assert_eq!(pair.told[B].last(), Some(&News::Failed(Failure::Stopped)));
    }
    assert!(matches!(pair.wish(B), Err(Refusal::Locked(left)) if left > LOCK - Duration::from_secs(1)));
    pair.wait(LOCK);
    pair.wish(B).unwrap();
}

#[test]
fn three_codes_that_were_not_confirmed_lock_both_sides_and_others_stay_free() {
    let mut pair = Pair::connected();
    for n in 0..MAX_FAILURES {
        pair.wish(A).unwrap();
        pair.wish(B).unwrap();
        pair.deliver();
        // A person says no, or goes away: to whoever is in the middle it must be the same.
        pair.end(A, n % 2 == 0);
        pair.deliver();
        assert!(pair.failure(B).is_some());
    }
    assert!(matches!(pair.wish(A), Err(Refusal::Locked(_))));
    assert!(matches!(pair.wish(B), Err(Refusal::Locked(_))));
    pair.machines[A].handle_wish(pair.now, id(9)).unwrap();
    pair.wait(LOCK);
    pair.wish(A).unwrap();
}

#[test]
fn new_keys_bring_no_new_guesses() {
    let mut machine = Machine::new(id(200), nonce);
    let now = Instant::now();
    let mut guesses = 0;
    for n in 1..100 {
        if machine.handle_wish(now, id(n)).is_err() {
            continue;
        }
        let session = Session { me: id(200), peer: id(n), dialled: false, secret: [n; 32] };
        machine.handle_connected(now, LineId(n.into()), session);
        let round = machine.wishes[&id(n)].round;
        for step in [PairStep::Offer, PairStep::Commit(Hex([7; 32])), PairStep::Reveal(Hex([8; 32]))] {
            machine.handle_step(now, LineId(n.into()), Pairing { round, step });
        }
        guesses += 1;
    }
    assert_eq!(guesses, MAX_FAILURES_OF_ALL);
    machine.handle_wish(now + LOCK, id(150)).unwrap();
}

#[test]
fn a_flood_of_steps_from_whom_nobody_has_named_does_nothing() {
    let mut pair = Pair::connected();
    for n in 0..10_000u32 {
        let hex = Hex([n.to_le_bytes()[0]; 32]);
        for step in [PairStep::Offer, PairStep::Commit(hex), PairStep::Nonce(hex), PairStep::Reveal(hex)] {
            pair.step(B, 1 + u64::from(n % 2), step);
        }
    }
    assert!(pair.sent.is_empty() && pair.told[B].is_empty());
    assert_eq!(pair.asked[B], 2, "said once a connection");
    pair.wish(B).unwrap();
}

#[test]
fn a_no_on_one_side_ends_it_on_the_other_and_disputes_what_was_confirmed() {
    let mut pair = Pair::connected();
    pair.wish(A).unwrap();
    pair.wish(B).unwrap();
    pair.deliver();
    pair.end(A, true);
    pair.deliver();
    assert_eq!(pair.failure(B), Some(Failure::Mismatch));

    let mut pair = Pair::connected();
    pair.wish(A).unwrap();
    pair.wish(B).unwrap();
    pair.deliver();
    pair.confirm(B);
    pair.deliver();
    pair.end(A, true);
    pair.deliver();
    // It goes out on both connections, and is said once.
    assert_eq!(pair.disputed, [0, 1]);
}

#[test]
fn typed_again_at_once_what_is_late_of_the_last_time_is_not_taken_for_this_one() {
    // Every order in which what the first round left on the two connections may come.
    for swaps in 0..64usize {
        let mut pair = Pair::connected();
        pair.wish(A).unwrap();
        pair.wish(B).unwrap();
        for _ in 0..swaps % 8 {
            pair.deliver_one();
        }
        pair.end(A, false);
        pair.end(B, false);
        pair.told = Default::default();
        pair.wish(A).unwrap();
        pair.wish(B).unwrap();
        // In order on each connection, in any order between them.
        while let Some(first) = pair.wire.front().map(|(_, line, _)| *line) {
            let other = pair.wire.iter().position(|(_, line, _)| *line != first).filter(|_| swaps / 8 % 2 == 1);
            let (to, line, step) = pair.wire.remove(other.unwrap_or(0)).unwrap();
            pair.hear(to, line.0, step);
        }
        assert_eq!(pair.code(A), pair.code(B), "{swaps}");
    }
}

#[test]
fn one_wish_a_peer_and_so_many_in_all() {
    let mut machine = Machine::new(id(1), nonce);
    let now = Instant::now();
    machine.handle_wish(now, id(2)).unwrap();
    assert_eq!(machine.handle_wish(now, id(2)), Err(Refusal::Busy));
    let wished = (3..100).filter(|n| machine.handle_wish(now, id(*n)).is_ok()).count();
    assert_eq!(wished, MAX_WISHES - 1);
    machine.handle_wish(now + WINDOW, id(2)).unwrap();
}

/// Somebody between A and B, who ends both connections under a key of their own and passes on whatever helps them.
#[test]
fn in_the_middle_there_is_one_guess_in_a_million() {
    let tries = 400;
    let mut same = 0;
    for _ in 0..tries {
        let (a, m, b) = (id(1), id(2), id(3));
        let to = |me: Id, peer: Id, secret: u8| Session { me, peer, dialled: me < peer, secret: [secret; 32] };
        let now = Instant::now();
        let [mut left, mut right] = [Machine::new(a, nonce), Machine::new(b, nonce)];
        left.handle_connected(now, LineId(1), to(a, m, 1));
        right.handle_connected(now, LineId(2), to(b, m, 2));
        left.handle_wish(now, m).unwrap();
        right.handle_wish(now, m).unwrap();
        let drain = |machine: &mut Machine| {
            let mut steps = Vec::new();
            let mut code = None;
            while let Some(output) = machine.poll_output() {
                match output {
                    Output::Send(_, step) => steps.push(step),
                    Output::Tell(_, News::Code(shown)) => code = Some(shown),
                    other => panic!("{other:?}"),
                }
            }
            (steps, code)
        };
        let (rounds, _) = drain(&mut right);
        let of_right = rounds[0].round;
        // A commits to M; M learns nothing from that, and has to choose its nonce towards A and its commitment to B.
        left.handle_step(now, LineId(1), Pairing { round: 5, step: PairStep::Offer });
        let (steps, _) = drain(&mut left);
        assert!(matches!(steps.last(), Some(Pairing { round: 5, step: PairStep::Commit(_) })));
        let of_left = steps[0].round;
        let own = nonce();
        right.handle_step(now, LineId(2), Pairing { round: 6, step: PairStep::Offer });
        let commit = PairStep::Commit(to(m, b, 2).commitment(&own));
        right.handle_step(now, LineId(2), Pairing { round: of_right, step: commit });
        let (steps, _) = drain(&mut right);
        let Some(Pairing { round: 6, step: PairStep::Nonce(of_b) }) = steps.last() else { panic!("{steps:?}") };
        // The best it can do: pass B's nonce on to A, and reveal to B what it is committed to.
        left.handle_step(now, LineId(1), Pairing { round: of_left, step: PairStep::Nonce(*of_b) });
        let (_, shown_to_a) = drain(&mut left);
        right.handle_step(now, LineId(2), Pairing { round: of_right, step: PairStep::Reveal(own) });
        let (_, shown_to_b) = drain(&mut right);
        same += usize::from(shown_to_a.unwrap() == shown_to_b.unwrap());
    }
    // Four hundred tries hit one in a million once in 2,500 runs, and twice never.
    assert!(same <= 1, "{same} of {tries}");
}

#[test]
fn the_code_depends_on_session_keys_roles_and_nonces() {
    let session = Session { me: id(1), peer: id(2), dialled: true, secret: [3; 32] };
    let (i, r) = (Hex([4; 32]), Hex([5; 32]));
    let other_end = Session { me: id(2), peer: id(1), dialled: false, ..session.clone() };
    assert_eq!(session.mac("code", &[&i.0, &r.0]), other_end.mac("code", &[&i.0, &r.0]));
    assert_eq!(session.code(&i, &r), other_end.code(&i, &r));
    let mac = session.mac("code", &[&i.0, &r.0]);
    let others = [
        Session { secret: [9; 32], ..session.clone() },
        Session { peer: id(9), ..session.clone() },
        Session { dialled: false, ..session.clone() },
        Session { me: id(3), ..session.clone() },
    ];
    for other in others {
        assert_ne!(mac, other.mac("code", &[&i.0, &r.0]), "{other:?}");
    }
    assert_ne!(mac, session.mac("code", &[&r.0, &i.0]));
    assert_ne!(mac, session.mac("commitment", &[&i.0, &r.0]));
}

#[derive(Debug, Clone)]
enum Act {
    Wish(usize),
    End(usize, bool),
    Confirm(usize),
    Deliver,
    Drop,
    Duplicate,
    Reconnect(u64),
    Wait(u64),
    Forge(usize, u64, PairStep),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let side = 0..2usize;
    let step = prop_oneof![
        Just(PairStep::Offer),
        any::<[u8; 32]>().prop_map(|b| PairStep::Commit(Hex(b))),
        any::<[u8; 32]>().prop_map(|b| PairStep::Nonce(Hex(b))),
        any::<[u8; 32]>().prop_map(|b| PairStep::Reveal(Hex(b))),
        Just(PairStep::Confirmed),
        any::<bool>().prop_map(|mismatch| PairStep::Withdrawn { mismatch }),
    ];
    let act = prop_oneof![
        4 => side.clone().prop_map(Act::Wish),
        1 => (side.clone(), any::<bool>()).prop_map(|(side, no)| Act::End(side, no)),
        1 => side.clone().prop_map(Act::Confirm),
        12 => Just(Act::Deliver),
        1 => Just(Act::Drop),
        1 => Just(Act::Duplicate),
        1 => (1..3u64).prop_map(Act::Reconnect),
        1 => (1..400u64).prop_map(Act::Wait),
        1 => (side, 1..3u64, step).prop_map(|(side, line, step)| Act::Forge(side, line, step)),
    ];
    proptest::collection::vec(act, 0..120)
}

proptest! {
    /// Whatever is typed, lost, repeated or made up: no code is shown to who has not typed, none more than once a wish,
    /// nonces are never said twice, everybody is told an end in time, and the tables stay small.
    #[test]
    fn nothing_shakes_the_machine(acts in acts()) {
        let mut pair = Pair::connected();
        let mut wishes = [0usize; 2];
        for act in acts {
            match act {
                Act::Wish(side) => wishes[side] += usize::from(pair.wish(side).is_ok()),
                Act::End(side, no) => pair.end(side, no),
                Act::Confirm(side) => pair.confirm(side),
                Act::Deliver => { pair.deliver_one(); }
                Act::Drop => { pair.wire.pop_front(); }
                Act::Duplicate => {
                    if let Some((to, line, step)) = pair.wire.front().cloned() {
                        pair.hear(to, line.0, step);
                    }
                }
                Act::Reconnect(line) => {
                    pair.disconnect(line);
                    pair.connect(line, line == 1);
                }
                Act::Wait(seconds) => pair.wait(Duration::from_secs(seconds)),
                Act::Forge(side, line, step) => pair.step(side, line, step),
            }
        }
        for side in [A, B] {
            prop_assert!(pair.codes(side).len() <= wishes[side]);
            let machine = &pair.machines[side];
            prop_assert!(machine.wishes.len() <= 1 && machine.lines.len() == 2);
            prop_assert!(machine.failures.len() <= 1 && machine.failures_of_all.len() <= MAX_FAILURES_OF_ALL);
        }
        let mut said: Vec<&Hex<32>> = pair.sent.iter().filter_map(|(_, _, step)| match &step.step {
            PairStep::Nonce(hex) | PairStep::Commit(hex) => Some(hex),
            _ => None,
        }).collect();
        let all = said.len();
        said.sort();
        said.dedup();
        prop_assert_eq!(said.len(), all);
        pair.wait(WINDOW);
        for machine in &pair.machines {
            prop_assert!(machine.wishes.is_empty() && machine.poll_timeout().is_none());
        }
    }
}
