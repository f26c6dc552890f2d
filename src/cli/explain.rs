//! `ollana explain`.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use super::output::{Table, print, print_json, shown};
use super::{Failure, Place, block_on};
use crate::exchange::{Account, CutOff, Decision, Look, RequestId, Weighed};

/// Requests that are listed where none is named: a screen.
const LISTED: usize = 20;

/// What `ollana explain` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The request: the header `ollana-request` of its answer. Without it, the latest are listed
    request: Option<String>,

    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Says how a request went, or lists the latest.
pub(super) fn run(args: &Args, place: &Place) -> Result<(), Failure> {
    let id = args.request.as_deref().map(str::parse::<RequestId>).transpose();
    let id = id.map_err(|error| Failure::usage(error.to_string()))?;
    let accounts: Vec<Account> = block_on(async { Ok(place.client().await?.get("/requests").await?) })?;
    let Some(id) = id else {
        return if args.json { print_json(&accounts) } else { print(&list(&accounts, now())) };
    };
    let Some(account) = accounts.into_iter().find(|account| account.id == id) else {
        return Err(Failure::new(format!(
            "request {id} is not known here: a node keeps its latest 512 until it stops. `ollana explain` lists them; for a \
             request that another node took, ask there"
        )));
    };
    if args.json { print_json(&account) } else { print(&explain(&account, now())) }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn list(accounts: &[Account], now: u64) -> String {
    if accounts.is_empty() {
        return "no application has sent this node a request since it started\n".to_owned();
    }
    let mut table =
        Table::new(&["REQUEST", ">AGE", "PATH", "MODEL", "NODE", ">WAITED", ">FIRST BYTE", ">TOOK", "ANSWER"]);
    for account in accounts.iter().take(LISTED) {
        table.row([
            account.id.to_string(),
            age(account, now),
            format!("{} {}", account.method, account.path),
            account.model.clone().unwrap_or_default(),
            account.tries.last().map(|last| last.peer.to_string()).unwrap_or_default(),
            account.sent_ms.map(seconds).unwrap_or_default(),
            account.head_ms.map(seconds).unwrap_or_default(),
            account.end_ms.map(seconds).unwrap_or_default(),
            match (account.status, &account.cut_off) {
                (Some(status), None) => status.to_string(),
                (Some(status), Some(CutOff::Cancelled)) => format!("{status}, cancelled"),
                (Some(status), Some(CutOff::Failed(_))) => format!("{status}, cut off"),
                (None, _) if account.end_ms.is_some() => "cancelled".to_owned(),
                (None, _) if account.tries.is_empty() => "queued".to_owned(),
                (None, _) => "running".to_owned(),
            },
        ]);
    }
    table.render()
}

fn explain(account: &Account, now: u64) -> String {
    let mut text = format!("request {}: {} {}", account.id, shown(&account.method), shown(&account.path));
    if let Some(model) = &account.model {
        let _ = write!(text, ", model {}", shown(model));
    }
    if let Some(tokens) = account.prompt_tokens {
        let _ = write!(text, ", a prompt of some {tokens} tokens");
    }
    let _ = writeln!(text, ", {} ago", age(account, now));
    let mut lines: Vec<(u64, String)> = Vec::new();
    for look in &account.looks {
        lines.push((look.after_ms, decided(look)));
    }
    for (n, attempt) in account.tries.iter().enumerate() {
        let again = if n > 0 { "again, " } else { "" };
        let slot = if attempt.slot { ", slot reserved" } else { "" };
        let unknown = if account.end_ms.is_some() { "no answer" } else { "running" };
        let outcome = attempt.outcome.as_deref().unwrap_or(unknown);
        lines.push((attempt.after_ms, format!("{again}sent to {}{slot}: {}\n", attempt.peer, shown(outcome))));
    }
    if let Some(at) = account.head_ms {
        let what = match (&account.refusal, account.status) {
            (Some(refusal), Some(status)) => format!("refused with {status}: {}\n", shown(refusal)),
            _ => "the answer began\n".to_owned(),
        };
        lines.push((at, what));
    }
    if let Some(at) = account.end_ms {
        let end = match &account.cut_off {
            None => "completed\n".to_owned(),
            Some(CutOff::Cancelled) => "cancelled: the application closed the connection\n".to_owned(),
            Some(CutOff::Failed(why)) => format!("cut off: {}\n", shown(why)),
        };
        lines.push((at, end));
    }
    // Stable: what happened in the same millisecond stays in its order.
    lines.sort_by_key(|(at, _)| *at);
    for (at, line) in lines {
        let _ = write!(text, "{:>9}  {line}", format!("+{}", seconds(at)));
    }
    text
}

/// A decision, and below it what it was made from.
fn decided(look: &Look) -> String {
    let chosen: Vec<_> =
        look.servers.iter().filter(|server| server.chosen).map(|server| server.peer.to_string()).collect();
    let chosen = chosen.join(" and ");
    let mut text = match look.decision {
        Decision::Send => format!("{chosen} is the best\n"),
        Decision::Queue => format!("queues at {chosen}\n"),
        Decision::Stay => "re-evaluated: still queued\n".to_owned(),
        Decision::Refuse => "all queues are full\n".to_owned(),
    };
    let mut table = Table::new(&[
        "", "NODE", "LOADED", ">RUNNING", ">QUEUED", ">CACHED", ">WAIT", ">LOAD", ">COMPUTE", ">IMPACT", ">PENALTY",
        ">SCORE", "",
    ]);
    for server in &look.servers {
        table.row(row(server));
    }
    for line in table.render().lines() {
        let _ = writeln!(text, "           {line}");
    }
    text
}

fn row(server: &Weighed) -> [String; 13] {
    let time = |seconds: f32| format!("{seconds:.2} s");
    [
        if server.chosen { "*" } else { " " }.to_owned(),
        server.peer.to_string(),
        if server.warm { "yes" } else { "no" }.to_owned(),
        format!("{} of {}", server.running, server.slots),
        match server.ahead {
            Some(ahead) => format!("{ahead:.1} ahead"),
            None => format!("{:.1}", server.queued),
        },
        server.cached_tokens.to_string(),
        time(server.wait_s),
        time(server.load_s),
        time(server.service_s),
        time(server.others_s),
        format!("{:.2}", server.factor),
        time(server.score_s),
        match server {
            Weighed { left_alone: true, .. } => "paused after failures",
            Weighed { chosen: true, warm: false, due: true, .. } => "loads it, since many have waited",
            Weighed { chosen: true, warm: true, idle: true, .. } => "was idle",
            _ => "",
        }
        .to_owned(),
    ]
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}

fn age(account: &Account, now: u64) -> String {
    match now.saturating_sub(account.at_ms) / 1000 {
        s @ 0..=119 => format!("{s} s"),
        s @ 120..=7199 => format!("{} min", s / 60),
        s => format!("{} h", s / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Try;
    use crate::id::{Id, NodeName};

    #[test]
    fn a_request_is_told_in_the_order_in_which_it_went() {
        let (peer, id) = (NodeName::lossy("gpu1"), Id::of_spki(b"gpu1"));
        let server = Weighed {
            peer: peer.clone(),
            id,
            chosen: true,
            warm: true,
            running: 1,
            queued: 0.5,
            slots: 1,
            ahead: Some(1.5),
            left_alone: true,
            due: false,
            idle: true,
            cached_tokens: 120,
            wait_s: 2.0,
            load_s: 0.0,
            service_s: 3.25,
            others_s: 0.0,
            factor: 2.0,
            score_s: 10.5,
        };
        let account = Account {
            id: RequestId::random(),
            at_ms: 1_000,
            method: "POST".to_owned(),
            path: "/api/chat".to_owned(),
            model: Some("m\u{1b}[2J".to_owned()),
            prompt_tokens: Some(300),
            looks: vec![Look { after_ms: 0, decision: Decision::Queue, servers: vec![server] }],
            tries: vec![Try { peer, id, after_ms: 1_500, slot: true, outcome: Some("200".to_owned()) }],
            status: Some(200),
            refusal: None,
            sent_ms: Some(1_500),
            head_ms: Some(1_700),
            end_ms: Some(4_000),
            cut_off: None,
        };
        let text = explain(&account, 13_000);
        let order = [
            "POST /api/chat",
            "12 s ago",
            "+0.000 s  queues at gpu1",
            "1.5 ahead",
            "2.00  10.50 s  paused after failures",
            "+1.500 s  sent to gpu1, slot reserved: 200",
            "+1.700 s  the answer began",
            "+4.000 s  completed",
        ];
        let found: Vec<_> =
            order.iter().map(|part| text.find(part).unwrap_or_else(|| panic!("{part} in {text}"))).collect();
        assert!(found.is_sorted(), "{text}");
        assert!(!text.contains('\u{1b}'));
        let listed = list(std::slice::from_ref(&account), 13_000);
        assert!(listed.contains("POST /api/chat") && listed.contains("1.500 s") && listed.contains("200"), "{listed}");
        for (cut_off, told) in [
            (CutOff::Failed("the connection to gpu1 was lost".to_owned()), "cut off: the connection to gpu1 was lost"),
            (CutOff::Cancelled, "cancelled: the application closed"),
        ] {
            let account = Account { cut_off: Some(cut_off), ..account.clone() };
            let text = explain(&account, 13_000);
            assert!(text.contains(told) && !text.contains("completed"), "{text}");
        }
    }
}
