//! Whether the machine kept up: a bench that has no processor left measures itself.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use tokio_util::task::AbortOnDropHandle;

use super::figures::quantile;

/// Between two looks at how late a timer is.
const EVERY: Duration = Duration::from_millis(7);

/// What this process and the machine did since it was made.
pub struct Meters {
    began: Instant,
    own: Duration,
    machine: Option<Machine>,
    lateness: Arc<Mutex<Vec<f64>>>,
    _watch: AbortOnDropHandle<()>,
}

/// What they say.
#[derive(Debug, Clone, Copy)]
pub struct Strain {
    /// Processors that this process kept busy.
    pub own: f64,
    /// Share of all the machine's processors that anybody kept busy, where that is known.
    pub machine: Option<f64>,
    /// Seconds of real time by which a timer of tokio was late, of a hundred the second worst.
    pub late: f64,
}

#[derive(Clone, Copy)]
struct Machine {
    busy: u64,
    total: u64,
}

// === impl Meters ===

impl Meters {
    pub fn start() -> Self {
        let lateness = Arc::<Mutex<Vec<f64>>>::default();
        let noted = Arc::clone(&lateness);
        let watch = tokio::spawn(async move {
            loop {
                let due = Instant::now() + EVERY;
                tokio::time::sleep_until(due.into()).await;
                noted.lock().unwrap().push(due.elapsed().as_secs_f64());
            }
        });
        Self {
            began: Instant::now(),
            own: own(),
            machine: Machine::now(),
            lateness,
            _watch: AbortOnDropHandle::new(watch),
        }
    }

    pub fn read(&self) -> Strain {
        let mut late = self.lateness.lock().unwrap().clone();
        late.sort_by(f64::total_cmp);
        let machine = self
            .machine
            .zip(Machine::now())
            .map(|(before, now)| (now.busy - before.busy) as f64 / (now.total - before.total).max(1) as f64);
        let own = (own() - self.own).as_secs_f64() / self.began.elapsed().as_secs_f64();
        Strain { own, machine, late: quantile(&late, 0.99) }
    }
}

// === impl Machine ===

impl Machine {
    /// From the first line of `/proc/stat`.
    fn now() -> Option<Self> {
        let stat = std::fs::read_to_string("/proc/stat").ok()?;
        let ticks: Vec<u64> = stat.lines().next()?.split_whitespace().skip(1).map_while(|t| t.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guests are in user already.
        let total: u64 = ticks.iter().take(8).sum();
        Some(Self { busy: total - ticks.get(3)? - ticks.get(4)?, total })
    }
}

/// Processor time of this process.
fn own() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("every process may ask for its own");
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.unsigned_abs())
}

/// Resident memory of this process in MB, where `/proc` says it.
pub fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}
