//! What may be seen of the node from outside: snapshots for the socket and the status page.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures_util::future::BoxFuture;
use http::Uri;
use tokio::sync::watch;

use super::lending::NotLent;
use crate::balance::Router;
use crate::control::{Catalog, Info, Mesh, OllamaView};
use crate::digests::{Digests, Kept};
use crate::exchange::{Account, Load, Numbers, Report, Unusable};
use crate::gate::Gate;
use crate::id::{Id, Use};
use crate::ollama::State;
use crate::peers::{Directory, PeerView, Reported};
use crate::route::ModelName;
use crate::trust::Window;

pub(super) struct View {
    pub(super) info: Info,
    pub(super) started: Instant,
    /// Nothing if this node lends none.
    pub(super) ollama: Option<watch::Receiver<Arc<State>>>,
    pub(super) ollama_url: Uri,
    pub(super) gate: Arc<Gate>,
    /// Why it lends none, as long as it lives.
    pub(super) why_not_lent: Option<String>,
    /// Why not at the moment.
    pub(super) not_now: watch::Receiver<Option<NotLent>>,
    pub(super) report: watch::Receiver<Arc<Report>>,
    pub(super) load: watch::Receiver<Arc<Load>>,
    pub(super) directory: Directory,
    pub(super) digests: Digests,
    /// Nothing if no application asks here.
    pub(super) router: Option<Router>,
    pub(super) clone_seen: watch::Receiver<Option<SocketAddr>>,
}

impl Mesh for View {
    fn info(&self) -> Info {
        Info { uptime_s: self.started.elapsed().as_secs(), ..self.info.clone() }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        let mesh = self.info.mesh;
        if !mesh.ip().is_unspecified() {
            return vec![mesh];
        }
        // What leads here from elsewhere: not loopback, and not what is good on one link only.
        let elsewhere = |ip: &IpAddr| {
            let link_local = match ip {
                IpAddr::V4(v4) => v4.is_link_local(),
                IpAddr::V6(v6) => v6.is_unicast_link_local() || mesh.is_ipv4(),
            };
            !ip.is_loopback() && !link_local
        };
        let found = if_addrs::get_if_addrs().unwrap_or_default().into_iter().map(|interface| interface.ip());
        found.filter(elsewhere).map(|ip| SocketAddr::new(ip, mesh.port())).collect()
    }

    fn ollama(&self) -> OllamaView {
        let state = self.ollama.as_ref().map(|state| state.borrow().clone()).unwrap_or_default();
        OllamaView {
            url: self.ollama_url.to_string(),
            healthy: state.healthy,
            version: (!state.version.is_empty()).then(|| state.version.clone()),
            api: state.healthy.then_some(state.kind),
            server: state.server.clone(),
            // The report follows the state a moment later, and the two are shown together.
            lent: state.healthy && self.report.borrow().provider,
            not_lent: self.not_now.borrow().as_ref().map(ToString::to_string),
            ignored: self.gate.ignored(),
            problem: self.why_not_lent.clone().or_else(|| state.problem.as_ref().map(ToString::to_string)),
            problem_code: state.problem.as_ref().map(|problem| problem.code().to_owned()),
            flaws: state.flaws.iter().map(str::to_owned).collect(),
        }
    }

    fn peers(&self) -> Vec<PeerView> {
        let mut views = self.directory.views();
        let mut caveats = self.router.as_ref().map(Router::caveats).unwrap_or_default();
        for view in &mut views {
            for (model, caveat) in caveats.remove(&view.id).unwrap_or_default() {
                view.numbers.entry(model).or_default().caveat = Some(caveat);
            }
        }
        views
    }

    fn unusable(&self) -> Vec<Unusable> {
        self.directory.unusable()
    }

    fn catalogs(&self) -> Vec<Catalog> {
        let report = self.report.borrow().clone();
        let own = report.provider.then(|| Catalog {
            name: self.info.name.clone(),
            id: self.info.id,
            local: true,
            use_: Use::Yes,
            api: report.api,
            models: report.models.clone(),
            loaded: self.load.borrow().loaded().map(str::to_owned).collect(),
        });
        let peers = self.directory.reports().into_iter();
        let peers = peers.map(|Reported { name, id, use_, report, load }| Catalog {
            name,
            id,
            local: false,
            use_,
            api: report.api,
            models: report.models.clone(),
            loaded: load.loaded().map(str::to_owned).collect(),
        });
        own.into_iter().chain(peers).collect()
    }

    fn kept(&self, model: &str) -> Option<Kept> {
        self.digests.of(&ModelName::new(model))
    }

    fn numbers(&self) -> BTreeMap<String, Numbers> {
        Numbers::of(&self.report.borrow(), &self.load.borrow())
    }

    fn load(&self) -> Arc<Load> {
        self.load.borrow().clone()
    }

    fn requests(&self) -> Vec<Account> {
        self.router.as_ref().map(Router::accounts).unwrap_or_default()
    }

    fn conflicts(&self) -> Vec<String> {
        let clone = self.clone_seen.borrow().map(|address| {
            format!(
                "a copy of this node runs at {address} with the same key, so neither shares its Ollama → on one of them \
                 stop ollana, delete identity.key from its state directory and start it again"
            )
        });
        clone.into_iter().chain(self.directory.conflicts()).collect()
    }

    fn first_use(&self) -> Window {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.directory.window(now.as_secs())
    }

    fn forget<'a>(&'a self, ids: Vec<Id>) -> BoxFuture<'a, ()> {
        Box::pin(self.directory.forget(ids))
    }
}
