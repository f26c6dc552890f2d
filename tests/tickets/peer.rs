//! A gate as a user's node sees it, over one connection: the endpoint that the router gets. It keeps to the protocol as
//! `transport::remote` does.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream;
use http::header::RETRY_AFTER;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use ollana::internals::exchange::{
    self, Answer, Ask, Body, Endpoint, ExchangeError, Health, Load, ModelInfo, Pace, Place, REFUSAL_HEADER,
    REQUEST_HEADER, Report, ResetCode, Slot, Ticket, Turn,
};
use ollana::internals::id::{Id, NodeName, Scope, Use};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::gate::{Life, MODELS, SLOTS, Stream as GateStream, ToGate, ToUser};
use crate::ledger::{Holding, Ledger, Sending};
use crate::network::{Broken, In, Link, Out, Side};
use crate::pulse::Pulse;

/// The application's number of a request.
pub const JOB: &str = "x-job";
/// The number of the try that answered.
pub const RUN: &str = "x-run";
/// A gate acknowledges within this time, or is suspect.
const ACK_TIMEOUT: Duration = Duration::from_millis(500);

/// A gate over one connection.
pub struct Peer {
    name: NodeName,
    local: bool,
    pub link: Arc<Link>,
    /// The gate at the other end, if it is there.
    life: Weak<Life>,
    counted: Arc<AtomicU64>,
    opened: AtomicU64,
    report: watch::Sender<Arc<Report>>,
    load: watch::Sender<Arc<Load>>,
    pulse: Arc<Pulse>,
    ledger: Ledger,
}

/// The user's end of a stream.
struct Stream {
    out: Out<ToGate>,
    input: In<ToUser>,
    name: NodeName,
    link: Arc<Link>,
    pulse: Arc<Pulse>,
    ledger: Ledger,
}

// === impl Peer ===

impl Peer {
    /// A connection of a user's node to a gate that lives.
    pub fn connect(name: &str, link: Arc<Link>, life: &Arc<Life>, local: bool) -> Arc<Self> {
        let pace = Pace {
            slots: Some(SLOTS as u32),
            prefill: Some(1000.0),
            decode: Some(100.0),
            load: Some(0.6),
            prompt: Some(20.0),
            output: Some(25.0),
        };
        let info = ModelInfo { digest: "d1".to_owned(), size: 1_000_000_000, pace };
        let report = Report {
            provider: true,
            scope: if local { Scope::None } else { Scope::Infer },
            models: MODELS.iter().map(|model| ((*model).to_owned(), info.clone())).collect(),
            ..Report::default()
        };
        let (out, mut news) = link.pipe(Side::User);
        let counted = Arc::new(AtomicU64::new(0));
        let peer = Arc::new(Self {
            name: NodeName::lossy(name),
            local,
            link: link.clone(),
            life: Arc::downgrade(life),
            counted: counted.clone(),
            opened: AtomicU64::new(0),
            report: watch::Sender::new(Arc::new(report)),
            load: watch::Sender::new(Arc::new(life.load(0))),
            pulse: Arc::default(),
            ledger: life.ledger.clone(),
        });
        life.spawn(life.clone().reports(link, counted, out));
        let reader = Arc::downgrade(&peer);
        tokio::spawn(async move {
            while let Ok((draining, load)) = news.recv().await {
                let Some(peer) = reader.upgrade() else { return };
                peer.load.send_replace(Arc::new(load));
                peer.report.send_if_modified(|report| {
                    let changed = report.draining != draining;
                    if changed {
                        Arc::make_mut(report).draining = draining;
                    }
                    changed
                });
            }
        });
        peer
    }

    /// Nothing comes through for a while. Whoever owes is suspect, and for longer than 3 s it counts as gone.
    pub async fn freezes(self: Arc<Self>, lasts: Duration) {
        let (now, ms) = (Instant::now(), Duration::from_millis);
        self.link.freeze(now + lasts);
        if lasts > ms(3000) {
            sleep_until(now + ms(3000)).await;
            self.pulse.health.send_replace(Health::Gone);
        }
        sleep_until(now + lasts + ms(20)).await;
        if !self.link.is_cut() {
            self.pulse.spoke();
        }
    }

    /// The connection is known to be over, first to one and a moment later to the other.
    pub async fn gone(&self, after: Duration, streams_first: bool) {
        if streams_first {
            self.link.lose(Side::User);
            sleep(after).await;
        }
        self.pulse.health.send_replace(Health::Gone);
        if !streams_first {
            sleep(after).await;
            self.link.lose(Side::User);
        }
    }

    fn open(&self) -> Stream {
        self.opened.fetch_add(1, Ordering::Relaxed);
        let (out, input) = self.link.pipe(Side::Gate);
        let (answers, answered) = self.link.pipe(Side::User);
        match self.life.upgrade() {
            Some(life) if !self.link.is_cut() => {
                let stream = GateStream { out: answers, input };
                life.spawn(life.clone().serve(self.link.clone(), self.counted.clone(), stream));
            }
            // Said into the void: nothing comes back, no reset either.
            _ => self.link.cut(),
        }
        Stream {
            out,
            input: answered,
            name: self.name.clone(),
            link: self.link.clone(),
            pulse: self.pulse.clone(),
            ledger: self.ledger.clone(),
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name.as_str())
    }
}

impl Endpoint for Peer {
    fn id(&self) -> Id {
        Id::of_spki(self.name.as_str().as_bytes())
    }

    fn label(&self) -> NodeName {
        self.name.clone()
    }

    fn is_local(&self) -> bool {
        self.local
    }

    fn use_(&self) -> Use {
        Use::Yes
    }

    fn report(&self) -> watch::Receiver<Arc<Report>> {
        self.report.subscribe()
    }

    fn load(&self) -> watch::Receiver<Arc<Load>> {
        self.load.subscribe()
    }

    fn opened(&self) -> Option<u64> {
        (!self.local).then(|| self.opened.load(Ordering::Relaxed))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.pulse.health.subscribe()
    }

    fn exchange(&self, request: Request<Body>) -> Answer {
        self.open().exchange(request, Duration::ZERO)
    }

    fn queue(&self, ask: Ask) -> Ticket {
        let (stream, holding) = (self.open(), self.ledger.holds(&ask.request, self.name.as_str()));
        let (places, place) = watch::channel(Place::default());
        let (ledger, request, gate) = (self.ledger.clone(), ask.request.clone(), self.name.clone());
        let turn = Box::pin(async move {
            let turn = stream.queue(ask, places, holding).await;
            if let Err(ExchangeError::Unreachable(_)) = turn {
                ledger.loses(&request, gate.as_str());
            }
            turn
        });
        Ticket { place, turn }
    }
}

// === impl Stream ===

impl Stream {
    /// What comes before any head: a peer that is gone sends none.
    async fn before_head(&mut self) -> Result<ToUser, Broken> {
        let mut health = self.pulse.health.subscribe();
        tokio::select! {
            biased;
            came = self.input.recv() => came,
            () = async { drop(health.wait_for(|health| *health == Health::Gone).await) } => Err(Broken::Lost),
        }
    }

    async fn acknowledged(&mut self) -> Result<(), Result<ToUser, Broken>> {
        let pulse = self.pulse.clone();
        let came = match timeout(ACK_TIMEOUT, self.before_head()).await {
            Ok(came) => came,
            Err(_) => {
                let owed = pulse.owes();
                let came = self.before_head().await;
                drop(owed);
                if came.is_ok() {
                    pulse.paid();
                }
                came
            }
        };
        match came {
            Ok(ToUser::Ack) => Ok(()),
            other => Err(other),
        }
    }

    /// What goes wrong before anything of a request was sent.
    fn not_sent(&self, came: Result<ToUser, Broken>) -> ExchangeError {
        match came {
            Err(Broken::Lost) => ExchangeError::Unreachable(self.name.clone()),
            other => self.not_taken(other),
        }
    }

    /// What goes wrong before a gate has acknowledged it.
    fn not_taken(&self, came: Result<ToUser, Broken>) -> ExchangeError {
        match came {
            // Of whom we still listen to a gate resets no other stream.
            Err(Broken::Reset) => {
                self.ledger.saw("too late for its slot");
                ExchangeError::Reset(self.name.clone(), ResetCode::Late)
            }
            other => self.wrong(other),
        }
    }

    fn wrong(&self, came: Result<ToUser, Broken>) -> ExchangeError {
        match came {
            Ok(ToUser::Broken) => ExchangeError::Reset(self.name.clone(), ResetCode::Upstream),
            Err(Broken::Lost) => ExchangeError::Lost(self.name.clone()),
            Ok(_) | Err(_) => ExchangeError::Reset(self.name.clone(), ResetCode::Protocol),
        }
    }

    async fn queue(mut self, ask: Ask, places: watch::Sender<Place>, holding: Holding) -> Result<Turn, ExchangeError> {
        self.out.send(ToGate::Ticket { request: ask.request, model: ask.model, copies: ask.copies });
        self.acknowledged().await.map_err(|came| self.not_sent(came))?;
        loop {
            match self.before_head().await {
                Ok(ToUser::Place(ahead)) => drop(places.send_replace(Place { ahead })),
                Ok(ToUser::Turn) => {
                    drop(holding);
                    let dozes = self.link.dozes();
                    return Ok(Turn::Slot(Slot::new(move |request| self.exchange(request, dozes))));
                }
                Ok(ToUser::Refused(why)) => return Ok(Turn::Refused(refusal(why))),
                other => return Err(self.not_sent(other)),
            }
        }
    }

    /// Its sending is noted before this returns, also if it is sent a while later.
    fn exchange(mut self, request: Request<Body>, later: Duration) -> Answer {
        let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let job = header(JOB).unwrap().parse().unwrap();
        let id = header(REQUEST_HEADER.as_str()).unwrap();
        let (number, sending) = self.ledger.sends(job, &id, &self.link, self.pulse.health.subscribe());
        Box::pin(async move {
            let body = request.into_body().collect().await?.to_bytes();
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let model = json["model"].as_str().map(str::to_owned);
            if !later.is_zero() {
                sleep(later).await;
            }
            self.out.send(ToGate::Request { send: sending.send.clone(), number, model });
            self.acknowledged().await.map_err(|came| self.not_taken(came))?;
            match self.before_head().await {
                Ok(ToUser::Head { status, run }) => {
                    sending.send.answered(status);
                    let answer = Response::builder().status(status).header(RUN, run);
                    Ok(answer.body(self.body(status, sending)).unwrap())
                }
                Ok(ToUser::Refused(why)) => {
                    sending.send.answered(503);
                    Ok(refusal(why))
                }
                other => Err(self.wrong(other)),
            }
        })
    }

    /// The words of an answer, which may break off. Holds the stream to its end.
    fn body(self, status: u16, sending: Sending) -> Body {
        if status != 200 {
            return exchange::full(r#"{"error":"it failed"}"#);
        }
        let frames = stream::unfold(Some((self, sending)), |of| async {
            let (mut stream, sending) = of?;
            match stream.input.recv().await {
                Ok(ToUser::Word) => Some((Ok(Frame::data("word ".into())), Some((stream, sending)))),
                Ok(ToUser::End) => None,
                other => Some((Err(stream.wrong(other)), None)),
            }
        });
        StreamBody::new(Box::pin(frames)).boxed_unsync()
    }
}

fn refusal(why: &'static str) -> Response<Body> {
    let status = if why == "unknown" { 404 } else { 503 };
    let answer = Response::builder().status(status).header(REFUSAL_HEADER, why).header(RETRY_AFTER, 1);
    answer.body(exchange::full(format!(r#"{{"error":"{why}"}}"#))).unwrap()
}
