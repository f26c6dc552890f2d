//! What changes behind the gate, made known on both sides of it: to the queue, and to whoever reads the reports.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::GateSettings;
use super::seats::Seats;
use crate::exchange::{ModelInfo, Pace, RefusalCode, Report};
use crate::id::Scope;
use crate::ollama::Ollama;

/// Shortest time between two reports: a server that comes says several things of itself one after the other.
const COALESCE: Duration = Duration::from_millis(20);

/// Tells the queue what is found out of the server, and that it is not lent any more.
pub(super) async fn keep_looking(
    ollama: Ollama,
    mut lend: watch::Receiver<bool>,
    seats: Arc<Seats>,
    settings: Arc<GateSettings>,
) {
    let (mut state, mut paces) = (ollama.state(), ollama.paces());
    let (mut direct, mut memory, mut looks) = (ollama.direct(), ollama.memory(), ollama.looks());
    loop {
        // Before what it saw, which may be of a later look then.
        let began = *looks.borrow_and_update();
        let now = state.borrow_and_update().clone();
        seats.look(began, &settings.found(&ollama, &now));
        if !*lend.borrow_and_update() {
            seats.close(RefusalCode::NotLent);
        } else if !now.healthy {
            // Who waits in vain here may have luck elsewhere; the owner's are told by the server itself.
            seats.close(RefusalCode::NoOllama);
        }
        // The line of what is not listed has no model.
        let slots = |model: &str| settings.slots(&ollama, &now, Some(model).filter(|model| !model.is_empty()));
        // What is not about which models are in memory is no look at that.
        loop {
            seats.beside(*direct.borrow_and_update(), memory.borrow_and_update().most_loaded(settings.max_loaded));
            tokio::select! {
                Ok(()) = state.changed() => break,
                Ok(()) = looks.changed() => break,
                Ok(()) = lend.changed() => break,
                Ok(()) = paces.changed() => seats.slots(slots),
                Ok(()) = direct.changed() => {}
                Ok(()) = memory.changed() => {}
                else => return,
            }
        }
    }
}

/// Publishes what changes, the first change at once.
pub(super) async fn keep_reporting(
    ollama: Ollama,
    settings: Arc<GateSettings>,
    mut lend: watch::Receiver<bool>,
    mut draining: watch::Receiver<bool>,
    publish: watch::Sender<Arc<Report>>,
    publish_own: watch::Sender<Arc<Report>>,
) {
    let (mut state, mut paces) = (ollama.state(), ollama.paces());
    loop {
        let (report, own) = {
            let state = state.borrow_and_update().clone();
            let provider = state.healthy && *lend.borrow_and_update();
            let paces = paces.borrow_and_update().clone();
            let measured = |(name, info): (&String, &ModelInfo)| {
                let slots = Some(settings.slots(&ollama, &state, Some(name)).at_once);
                let pace = Pace { slots, ..paces.get(name).copied().unwrap_or_default() };
                (name.clone(), ModelInfo { pace, ..info.clone() })
            };
            let own = Report {
                provider: state.healthy,
                scope: Scope::None,
                denial: None,
                draining: *draining.borrow_and_update(),
                version: state.version.clone(),
                api: state.kind,
                models: state.models.iter().map(measured).collect(),
            };
            let report = match provider {
                true => own.clone(),
                false => Report { provider, models: Default::default(), ..own.clone() },
            };
            (report, own)
        };
        for (publish, report) in [(&publish, report), (&publish_own, own)] {
            publish.send_if_modified(|known| {
                let changed = **known != report;
                if changed {
                    *known = Arc::new(report);
                }
                changed
            });
        }
        sleep(COALESCE).await;
        // Whoever stops publishing leaves things as they are.
        tokio::select! {
            Ok(()) = state.changed() => {}
            Ok(()) = paces.changed() => {}
            Ok(()) = lend.changed() => {}
            Ok(()) = draining.changed() => {}
            else => return,
        }
    }
}
