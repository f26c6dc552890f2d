//! The gate as one more endpoint of this node's own balancer: its applications' requests stand in the same queue as a peer's.

use std::fmt;
use std::sync::Arc;

use http::Request;
use tokio::sync::watch;

use super::{Caller, Gate};
use crate::exchange::{Answer, Ask, Body, Endpoint, Health, Load, Report, Ticket};
use crate::id::{Id, NodeName, Use};

struct Local {
    gate: Arc<Gate>,
    id: Id,
    name: NodeName,
    caller: Caller,
    /// Never changes: whether the Ollama behind is healthy stands in the report.
    health: watch::Sender<Health>,
}

pub(super) fn endpoint(gate: Arc<Gate>, id: Id, name: NodeName, caller: Caller) -> Arc<dyn Endpoint> {
    Arc::new(Local { gate, id, name, caller, health: watch::Sender::new(Health::Healthy) })
}

// === impl Local ===

impl Endpoint for Local {
    fn id(&self) -> Id {
        self.id
    }

    fn label(&self) -> NodeName {
        self.name.clone()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn use_(&self) -> Use {
        Use::Yes
    }

    fn report(&self) -> watch::Receiver<Arc<Report>> {
        match self.caller {
            Caller::Owner => self.gate.own_report(),
            Caller::Guest | Caller::Peer { .. } => self.gate.report(),
        }
    }

    fn load(&self) -> watch::Receiver<Arc<Load>> {
        self.gate.load()
    }

    fn opened(&self) -> Option<u64> {
        // Whatever is opened here is counted at once.
        None
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn exchange(&self, request: Request<Body>) -> Answer {
        Box::pin(self.gate.serve(self.caller.clone(), request))
    }

    fn queue(&self, ask: Ask) -> Ticket {
        let caller = self.caller.clone();
        self.gate.queue(move || caller.clone(), &ask)
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Local").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}
