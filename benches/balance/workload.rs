//! The sessions of users and their requests over time, the same for the same seed, and the fleets of servers they are put to.

/// Models there are.
pub const MODELS: usize = 6;
/// Tokens after which a conversation ends.
pub const CONTEXT: f64 = 8192.0;
/// Users, the first of whom ask most.
pub const CLIENTS: usize = 50;
/// Prompt tokens a second of a server of speed 1, of a model of weight 1.
pub const PREFILL: f64 = 500.0;
/// Tokens a second that it generates.
pub const DECODE: f64 = 25.0;

/// Work a token, relative to the smallest model.
const WEIGHTS: [f64; MODELS] = [1.0, 1.0, 1.6, 1.6, 2.8, 2.8];
pub const GIGABYTES: [f64; MODELS] = [5.0, 5.0, 9.0, 9.0, 19.0, 19.0];
/// Zipf's law with exponent 1.
const POPULARITY: [f64; MODELS] = [0.408, 0.204, 0.136, 0.102, 0.082, 0.068];
/// Seconds of a load before the first byte is read.
const LOAD_FLOOR: f64 = 1.5;

const CHAT_SHARE: f64 = 0.7;
const MOST_TURNS: usize = 20;
const LAST_TURN_CHANCE: f64 = 0.25;

/// splitmix64, with a stream of numbers for each purpose: the same seed has to give the same sessions.
#[derive(Debug, Clone)]
pub struct Random(u64);

/// What a server can do.
#[derive(Debug, Clone)]
pub struct ServerSpec {
    /// Work that it does in a second, of one request alone.
    pub speed: f64,
    /// `OLLAMA_NUM_PARALLEL`.
    pub slots: usize,
    /// `OLLAMA_MAX_LOADED_MODELS`.
    pub most_loaded: usize,
    /// GB a second that it reads from its disk.
    pub bandwidth: f64,
    /// Whether the model is on its disk.
    pub disk: [bool; MODELS],
}

/// A server that is slow for a while, again and again.
#[derive(Debug, Clone, Copy)]
pub struct Brownout {
    pub server: usize,
    pub factor: f64,
    /// Seconds that it lasts.
    pub lasts: f64,
    /// Seconds from one beginning to the next; the first is with the end of the warm-up.
    pub every: f64,
}

/// A fleet and what it is put through.
#[derive(Debug, Clone)]
pub struct Scenario {
    pub name: &'static str,
    pub servers: Vec<ServerSpec>,
    /// Requests a second that the central ideal can keep up with: 100 % of load.
    pub capacity: f64,
    /// Whether there is only the first model, loaded everywhere from the beginning.
    pub one_model: bool,
    pub brownout: Option<Brownout>,
    /// Seconds by which nodes learn late how busy the servers are, beyond what it takes anyhow.
    pub report_delay: f64,
}

/// A spell of load.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Seconds at the beginning that do not count.
    pub warm_up: f64,
    /// Seconds after which nothing counts that is asked.
    pub end: f64,
}

/// One question of a session and the time until the next.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    /// Tokens that are new in its prompt.
    pub prompt: f64,
    /// Tokens of its answer.
    pub output: f64,
    /// Seconds after the answer.
    pub think: f64,
}

/// A conversation, or a request that stands alone.
#[derive(Debug, Clone)]
pub struct Session {
    /// Its index.
    pub conversation: u32,
    /// Seconds.
    pub begins: f64,
    pub client: usize,
    pub model: usize,
    pub chat: bool,
    pub turns: Vec<Turn>,
}

/// Seconds that it takes a server of speed 1, alone.
pub fn work(model: usize, prompt: f64, output: f64) -> f64 {
    (prompt / PREFILL + output / DECODE) * WEIGHTS[model]
}

/// What a batch of so many slows each of them to.
pub fn batch(running: usize) -> f64 {
    1.0 / (1.0 + 0.2 * (running.max(1) as f64 - 1.0))
}

pub fn model_name(model: usize) -> String {
    format!("model{model}:latest")
}

/// Turns of a session on average.
fn mean_turns() -> f64 {
    let chat: f64 = (0..MOST_TURNS).map(|turn| (1.0 - LAST_TURN_CHANCE).powi(turn as i32)).sum();
    (1.0 - CHAT_SHARE) + CHAT_SHARE * chat
}

/// The sessions that begin before `until`, at this share of what the scenario's servers can do.
pub fn sessions(scenario: &Scenario, load: f64, seed: u64, until: f64) -> Vec<Session> {
    let mut random = Random::new(seed.wrapping_mul(7919) + 13);
    let rate = scenario.capacity * load / mean_turns();
    let weights: Vec<f64> = (0..CLIENTS).map(|client| 1.0 / ((client + 1) as f64).sqrt()).collect();
    let total: f64 = weights.iter().sum();
    let mut sessions = Vec::new();
    let mut now = 0.0;
    while now < until {
        now += random.exponential(1.0 / rate);
        let at = random.uniform() * total;
        let client = pick(&weights, at);
        let at = random.uniform();
        let model = if scenario.one_model { 0 } else { pick(&POPULARITY, at) };
        let chat = random.uniform() < CHAT_SHARE;
        let mut count = 1;
        while chat && count < MOST_TURNS && random.uniform() > LAST_TURN_CHANCE {
            count += 1;
        }
        let turns = (0..count).map(|turn| random.turn(chat, turn)).collect();
        // A draw that nothing uses, or the same seed would give other sessions than those whose results the tests know.
        random.uniform();
        sessions.push(Session { conversation: sessions.len() as u32, begins: now, client, model, chat, turns });
    }
    sessions
}

/// Where in the weights a point lies.
fn pick(weights: &[f64], mut at: f64) -> usize {
    let mut index = 0;
    while index + 1 < weights.len() && at > weights[index] {
        at -= weights[index];
        index += 1;
    }
    index
}

// === impl Random ===

impl Random {
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03);
        for _ in 0..8 {
            random.next();
        }
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In (0, 1).
    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.uniform() * bound as f64) as usize
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.uniform().ln()
    }

    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (2.0 * std::f64::consts::PI * self.uniform()).cos()
    }

    fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }

    fn turn(&mut self, chat: bool, turn: usize) -> Turn {
        let (median, sigma) = match (chat, turn) {
            (false, _) => (1000.0, 0.8),
            (true, 0) => (300.0, 0.9),
            (true, _) => (50.0, 1.0),
        };
        Turn {
            prompt: self.lognormal(median, sigma).clamp(10.0, 6000.0).round(),
            output: self.lognormal(180.0, 0.9).clamp(5.0, 2048.0).round(),
            think: self.lognormal(12.0, 0.8).clamp(1.0, 120.0),
        }
    }
}

// === impl ServerSpec ===

impl ServerSpec {
    fn new(speed: f64, slots: usize, most_loaded: usize, bandwidth: f64, models: &[usize]) -> Self {
        let mut disk = [false; MODELS];
        for model in models {
            disk[*model] = true;
        }
        Self { speed, slots, most_loaded, bandwidth, disk }
    }

    /// Seconds.
    pub fn load_time(&self, model: usize) -> f64 {
        LOAD_FLOOR + GIGABYTES[model] / self.bandwidth
    }
}

// === impl Scenario ===

impl Scenario {
    /// Eight equal servers, one model.
    pub fn h1() -> Self {
        let all = [0, 1, 2, 3, 4, 5];
        Self {
            name: "H1",
            servers: vec![ServerSpec::new(2.2, 3, 3, 1.5, &all); 8],
            capacity: 2.869,
            one_model: true,
            brownout: None,
            report_delay: 0.0,
        }
    }

    /// Eight unlike servers, six models.
    pub fn a() -> Self {
        Self {
            name: "A",
            servers: vec![
                ServerSpec::new(1.0, 1, 1, 0.5, &[0, 1, 2]),
                ServerSpec::new(1.0, 2, 1, 0.5, &[0, 1, 3]),
                ServerSpec::new(1.5, 2, 2, 1.0, &[0, 1, 2, 3]),
                ServerSpec::new(2.0, 2, 2, 1.0, &[0, 2, 3, 4]),
                ServerSpec::new(2.0, 4, 2, 1.0, &[0, 1, 2, 5]),
                ServerSpec::new(3.0, 2, 2, 2.0, &[0, 1, 3, 4, 5]),
                ServerSpec::new(3.0, 4, 3, 2.0, &[0, 1, 2, 3, 4, 5]),
                ServerSpec::new(4.0, 4, 3, 2.0, &[0, 1, 2, 3, 4, 5]),
            ],
            capacity: 1.948,
            one_model: false,
            brownout: None,
            report_delay: 0.0,
        }
    }

    /// A, where reports come a second late.
    pub fn delayed() -> Self {
        Self { name: "A, reports 1 s late", report_delay: 1.0, ..Self::a() }
    }

    /// A, with its fastest server at quarter speed for two minutes of fifteen.
    pub fn brownout() -> Self {
        let brownout = Brownout { server: 7, factor: 0.25, lasts: 120.0, every: 900.0 };
        Self { name: "A, brownouts", brownout: Some(brownout), ..Self::a() }
    }

    /// When which server changes its speed, and to which part of its own.
    pub fn speed_changes(&self, span: Span) -> Vec<(f64, usize, f64)> {
        let Some(brownout) = self.brownout else { return Vec::new() };
        let beginnings = (0..).map(|nth| span.warm_up + f64::from(nth) * brownout.every);
        beginnings
            .take_while(|begins| *begins < span.end)
            .flat_map(|begins| {
                [(begins, brownout.server, brownout.factor), (begins + brownout.lasts, brownout.server, 1.0)]
            })
            .collect()
    }
}

// === impl Span ===

impl Span {
    pub fn counts(&self, at: f64) -> bool {
        (self.warm_up..self.end).contains(&at)
    }
}
