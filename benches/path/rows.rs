//! What is measured. Each row is one load, and has one or more figures.

use std::time::Duration;

use super::load::{self, Paced, Request, Requests, Streams};
use super::systems::{Memory, System};

/// Between two tokens of a paced stream.
const TOKEN: Duration = Duration::from_millis(20);
const MANY: usize = 64;
const FLAT: usize = 200;
const OPEN: usize = 1000;
/// Loads like `hey -n 1000 -c 50` in a measurement; each alone is short.
const BURSTS: usize = 5;
const BURST: (usize, usize) = (1000, 50);

/// How long and how much.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub span: Duration,
    /// Of downloads and uploads.
    pub bytes: u64,
    /// Of each stream that goes flat out.
    pub tokens: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    Start,
    Idle,
    Open,
    One,
    Many,
    Embed,
    EmbedMany,
    Flat,
    Paced(usize),
    First,
    Down,
    Up,
    Connect,
    Hey,
}

pub struct Row {
    pub name: &'static str,
    pub load: Load,
    pub figures: &'static [Figure],
}

pub struct Figure {
    pub name: &'static str,
    pub unit: &'static str,
}

const fn figure(name: &'static str, unit: &'static str) -> Figure {
    Figure { name, unit }
}

/// In the order in which they are measured: memory first, while it is that of new processes.
pub const ROWS: &[Row] = &[
    Row {
        name: "start",
        load: Load::Start,
        figures: &[
            figure("user's side started, to the first answer", "ms"),
            figure("a node alone beside its Ollama, to the first answer", "ms"),
        ],
    },
    Row {
        name: "idle",
        load: Load::Idle,
        figures: &[figure("idle, both", "% of a core"), figure("idle, the larger side", "MB")],
    },
    Row {
        name: "open",
        load: Load::Open,
        figures: &[figure("1,000 open streams, the larger side", "MB"), figure("1,000 open streams, both", "MB")],
    },
    Row {
        name: "one",
        load: Load::One,
        figures: &[
            figure("one small request at a time, p50", "µs"),
            figure("one small request at a time, p99", "µs"),
            figure("one small request at a time", "CPU µs a request"),
        ],
    },
    Row {
        name: "many",
        load: Load::Many,
        figures: &[
            figure("64 small requests at once", "requests/s"),
            figure("64 small requests at once, p99", "ms"),
            figure("64 small requests at once", "CPU µs a request"),
        ],
    },
    Row {
        name: "embed",
        load: Load::Embed,
        figures: &[
            figure("one embedding at a time, p50", "µs"),
            figure("one embedding at a time, p99", "µs"),
            figure("one embedding at a time", "CPU µs a request"),
        ],
    },
    Row {
        name: "embed64",
        load: Load::EmbedMany,
        figures: &[
            figure("64 embeddings at once", "requests/s"),
            figure("64 embeddings at once, p99", "ms"),
            figure("64 embeddings at once", "CPU µs a request"),
        ],
    },
    Row {
        name: "flat",
        load: Load::Flat,
        figures: &[
            figure("200 streams flat out", "tokens/s"),
            figure("200 streams flat out", "CPU µs a token"),
            figure("200 streams flat out, peak of both", "MB"),
        ],
    },
    Row {
        name: "paced100",
        load: Load::Paced(100),
        figures: &[
            figure("100 streams at 50 tokens/s", "CPU µs a token"),
            figure("100 streams at 50 tokens/s, delay p50", "ms"),
            figure("100 streams at 50 tokens/s, delay p99", "ms"),
            figure("100 streams at 50 tokens/s, delivered", "%"),
        ],
    },
    Row {
        name: "paced1000",
        load: Load::Paced(1000),
        figures: &[
            figure("1,000 streams at 50 tokens/s", "CPU µs a token"),
            figure("1,000 streams at 50 tokens/s, delay p50", "ms"),
            figure("1,000 streams at 50 tokens/s, delay p99", "ms"),
            figure("1,000 streams at 50 tokens/s, delivered", "%"),
        ],
    },
    Row {
        name: "first",
        load: Load::First,
        figures: &[
            figure("first token beside 100 such streams, p50", "ms"),
            figure("first token beside 100 such streams, p99", "ms"),
        ],
    },
    Row { name: "down", load: Load::Down, figures: &[figure("download", "Gbit/s"), figure("download", "CPU ms a GB")] },
    Row { name: "up", load: Load::Up, figures: &[figure("upload", "Gbit/s"), figure("upload", "CPU ms a GB")] },
    Row {
        name: "connect",
        load: Load::Connect,
        figures: &[figure("new connections", "connections/s"), figure("new connections", "CPU µs a connection")],
    },
    Row {
        name: "hey",
        load: Load::Hey,
        figures: &[
            figure("as hey -n 1000 -c 50", "requests/s"),
            figure("as hey -n 1000 -c 50, p50", "ms"),
            figure("as hey -n 1000 -c 50, p99", "ms"),
        ],
    },
];

impl Figure {
    /// Whether more of it is better.
    pub fn more_is_better(&self) -> bool {
        self.unit.ends_with("/s") || self.unit == "%"
    }
}

/// The figures of a row for one system, on the runtime of the user's host. What a system does not have is not a number.
pub async fn measure(load: Load, system: &System, scale: Scale) -> Result<Vec<f64>, String> {
    let figures = Box::pin(figures(load, system, scale)).await?;
    let known = system.is_proxied();
    Ok(figures.into_iter().map(|(value, of_proxies)| if of_proxies && !known { f64::NAN } else { value }).collect())
}

/// Each with whether it is about the proxies alone.
async fn figures(load: Load, system: &System, scale: Scale) -> Result<Vec<(f64, bool)>, String> {
    let span = scale.span;
    Ok(match load {
        Load::Start => vec![(system.start.unwrap_or(f64::NAN), true), (system.start_alone.unwrap_or(f64::NAN), true)],
        Load::Idle => return Err("is measured for all at once".to_owned()),
        Load::Open => {
            let mut memory = None;
            system.forget_peaks();
            load::open(system, OPEN, || memory = Some(system.peaks())).await?;
            let Memory { node, both } = memory.ok_or("nobody looked")?;
            vec![(node, true), (both, true)]
        }
        Load::One => alone(&load::closed_loop(system, 1, Request::small(), span).await?),
        Load::Many => together(&load::closed_loop(system, MANY, Request::small(), span).await?),
        Load::Embed => alone(&load::closed_loop(system, 1, Request::embedding(), span).await?),
        Load::EmbedMany => together(&load::closed_loop(system, MANY, Request::embedding(), span).await?),
        Load::Flat => {
            system.forget_peaks();
            let Streams { tokens, seconds, cpu, .. } = load::flat_out(system, FLAT, scale.tokens).await?;
            let tokens = tokens as f64;
            vec![(tokens / seconds, false), (cpu * 1e6 / tokens, true), (system.peaks().both, true)]
        }
        Load::Paced(streams) => {
            let paced = Paced { streams, every: TOKEN, span, probes: false };
            let Streams { tokens, seconds, cpu, delays, .. } = load::paced(system, paced).await?;
            let due = streams as f64 * seconds / TOKEN.as_secs_f64();
            vec![
                (cpu * 1e6 / tokens as f64, true),
                (quantile(&delays, 0.5), false),
                (quantile(&delays, 0.99), false),
                (tokens as f64 / due * 100.0, false),
            ]
        }
        Load::First => {
            let paced = Paced { streams: 100, every: TOKEN, span, probes: true };
            let first = load::paced(system, paced).await?.first;
            vec![(quantile(&first, 0.5), false), (quantile(&first, 0.99), false)]
        }
        Load::Down => bulk(scale.bytes, load::download(system, scale.bytes).await?),
        Load::Up => bulk(scale.bytes, load::upload(system, scale.bytes).await?),
        Load::Connect => {
            let Requests { micros, seconds, cpu } = load::connections(system, MANY, span).await?;
            let count = micros.len() as f64;
            vec![(count / seconds, false), (cpu * 1e6 / count, true)]
        }
        Load::Hey => {
            let (mut rates, mut micros) = (Vec::new(), Vec::new());
            for _ in 0..BURSTS {
                let burst = load::burst(system, BURST.0, BURST.1).await?;
                rates.push(burst.micros.len() as f64 / burst.seconds);
                micros.extend(burst.micros);
            }
            let [p50, p99] = [0.5, 0.99].map(|part| quantile(&micros, part) / 1e3);
            vec![(quantile(&rates, 0.5), false), (p50, false), (p99, false)]
        }
    })
}

/// Processor and memory of all systems that do nothing for so long.
pub fn idle(systems: &[System], span: Duration) -> Vec<Vec<f64>> {
    let before: Vec<f64> = systems.iter().map(System::cpu).collect();
    std::thread::sleep(span);
    let share = |(system, before): (&System, f64)| {
        if !system.is_proxied() {
            return vec![f64::NAN; 2];
        }
        vec![(system.cpu() - before) / span.as_secs_f64() * 100.0, system.resident().node]
    };
    systems.iter().zip(before).map(share).collect()
}

fn alone(requests: &Requests) -> Vec<(f64, bool)> {
    let (micros, count) = (&requests.micros, requests.micros.len() as f64);
    vec![(quantile(micros, 0.5), false), (quantile(micros, 0.99), false), (requests.cpu * 1e6 / count, true)]
}

fn together(requests: &Requests) -> Vec<(f64, bool)> {
    let count = requests.micros.len() as f64;
    let p99 = quantile(&requests.micros, 0.99) / 1e3;
    vec![(count / requests.seconds, false), (p99, false), (requests.cpu * 1e6 / count, true)]
}

fn bulk(bytes: u64, (seconds, cpu): (f64, f64)) -> Vec<(f64, bool)> {
    let gigabytes = bytes as f64 / 1e9;
    vec![(gigabytes * 8.0 / seconds, false), (cpu * 1e3 / gigabytes, true)]
}

pub fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count => sorted[((count as f64 * part) as usize).min(count - 1)],
    }
}
