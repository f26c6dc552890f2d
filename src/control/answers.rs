//! What the node answers to the command line: a path for each thing that can be asked.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{
    Candidate, Changed, ErrorView, ForgetRequest, Handles, IdView, ImportRequest, InvitationRequest, InviteRequest,
    InviteView, InvitedView, KeepRequest, Keeping, PeerRequest, StatusView, Stopping, TrustRequest, Unresolved,
    VouchRequest, VouchView, candidates, models, no_vouch, resolve, revoke_advice,
};
use crate::digests::Holder;
use crate::id::{Id, NodeName, ParseNameError};
use crate::pairing::Invitation;
use crate::pairing::invitation::InvitationError;
use crate::route::ModelName;
use crate::trust::{Forgotten, Trust, TrustError, Vouch};

/// A request is a few hundred bytes.
const MAX_BODY: usize = 64 * 1024;
/// A list of whom to trust: some 200 bytes for each of tens of thousands.
const MAX_LIST: usize = 8 * 1024 * 1024;
const PATHS: [&str; 22] = [
    "/status",
    "/peers",
    "/unusable",
    "/models",
    "/requests",
    "/id",
    "/resolve",
    "/keep",
    "/pair",
    "/deny",
    "/trust",
    "/revoke",
    "/forget",
    "/trusted",
    "/import",
    "/invite",
    "/invitations",
    "/uninvite",
    "/vouch",
    "/vouches",
    "/unvouch",
    "/stop",
];

/// Characters of an invitation's ID that are typed at least: fewer look like the number of another.
const MIN_NUMBER: usize = 4;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The answer to a request.
pub(super) async fn answer(handles: &Handles, request: Request<Incoming>) -> Response<Body> {
    granted(handles, request).await.unwrap_or_else(Failure::into_response)
}

async fn granted(handles: &Handles, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    let (head, body) = request.into_parts();
    match (&head.method, head.uri.path()) {
        (&Method::GET, "/status") => json(&StatusView::of(handles.mesh.as_ref())),
        (&Method::GET, "/peers") => json(&handles.mesh.peers()),
        (&Method::GET, "/unusable") => json(&handles.mesh.unusable()),
        (&Method::GET, "/models") => json(&models(handles.mesh.as_ref())),
        (&Method::GET, "/requests") => json(&handles.mesh.requests()),
        (&Method::GET, "/id") => {
            let info = handles.mesh.info();
            json(&IdView { id: info.id, name: info.name })
        }
        (&Method::POST, "/resolve") => json(&find(handles, &read::<PeerRequest>(body).await?.peer)?),
        (&Method::POST, "/pair") => pair(handles, &read::<PeerRequest>(body).await?.peer),
        (&Method::POST, "/deny") => {
            handles.desk.deny(find_or_stranger(handles, &read::<PeerRequest>(body).await?.peer)?.id);
            json(&())
        }
        (&Method::POST, "/keep") => keep(handles, read(body).await?).await,
        (&Method::POST, "/trust") => trust(handles, read(body).await?).await,
        (&Method::POST, "/invite") => invite(handles, read(body).await?).await,
        (&Method::GET, "/invitations") => json(&invitations(handles).await?),
        (&Method::POST, "/uninvite") => uninvite(handles, read(body).await?).await,
        (&Method::POST, "/vouch") => vouch(handles, read(body).await?).await,
        (&Method::GET, "/vouches") => {
            json(&handles.book.snapshot().vouches().iter().map(VouchView::from).collect::<Vec<_>>())
        }
        (&Method::POST, "/unvouch") => unvouch(handles, read(body).await?).await,
        (&Method::GET, "/trusted") => json(&handles.book.export()),
        (&Method::POST, "/import") => import(handles, read_up_to(body, MAX_LIST).await?).await,
        (&Method::POST, "/forget") => forget(handles, read(body).await?).await,
        (&Method::POST, "/revoke") => revoke(handles, read(body).await?).await,
        (&Method::POST, "/stop") => {
            handles.stop.cancel();
            json(&Stopping { pid: std::process::id(), drain_s: handles.drain.as_secs() })
        }
        (_, path) if PATHS.contains(&path) => {
            Err(Failure::new(StatusCode::METHOD_NOT_ALLOWED, format!("{path} does not take {}", head.method)))
        }
        (_, path) => Err(Failure::new(
            StatusCode::NOT_FOUND,
            format!(
                "this node (version {}) has no {path}; is the command line of another version?",
                env!("CARGO_PKG_VERSION")
            ),
        )),
    }
}

async fn trust(handles: &Handles, wanted: TrustRequest) -> Result<Response<Body>, Failure> {
    let peer = find_or_stranger(handles, &wanted.peer)?;
    let TrustRequest { scope, use_, voucher, .. } = wanted;
    let (name, address) = (peer.plain_name(), peer.address.clone());
    handles.book.trust_voucher(peer.id, name, address, scope, use_, voucher).await?;
    handles.desk.confirm(peer.id);
    json(&Changed { peer: refreshed(handles, peer), advice: None })
}

/// A model's name stands for what this node has, from now on.
async fn keep(handles: &Handles, wanted: KeepRequest) -> Result<Response<Body>, Failure> {
    let info = handles.mesh.info();
    let own = info.name.is(&wanted.peer) || wanted.peer.parse() == Ok(info.id);
    let (id, peer) = match own {
        true => (info.id, info.name),
        false => find(handles, &wanted.peer).map(|peer| (peer.id, peer.name))?,
    };
    let model = ModelName::new(&wanted.model);
    let catalogs = handles.mesh.catalogs().into_iter().filter(|catalog| catalog.id == id);
    let mut listed = catalogs.flat_map(|catalog| catalog.models);
    let Some((name, info)) = listed.find(|(name, info)| ModelName::new(name) == model && !info.digest.is_empty())
    else {
        let error =
            format!("{peer} has no model {:?} to share now; `ollana models` shows the nodes that do", wanted.model);
        return Err(Failure::new(StatusCode::NOT_FOUND, error));
    };
    handles.digests.keep(&model, &info.digest, Holder { id, name: peer.clone() });
    handles.digests.save().await;
    json(&Keeping { model: name, digest: info.digest, peer })
}

async fn revoke(handles: &Handles, wanted: PeerRequest) -> Result<Response<Body>, Failure> {
    let peer = find_or_stranger(handles, &wanted.peer)?;
    handles.book.revoke(peer.id).await?;
    handles.digests.forget(&peer.id);
    let advice = Some(revoke_advice(&handles.policy, &peer));
    json(&Changed { peer: refreshed(handles, peer), advice })
}

async fn forget(handles: &Handles, wanted: ForgetRequest) -> Result<Response<Body>, Failure> {
    let gone = match wanted {
        ForgetRequest::Name(name) => handles.book.forget_name(name_of(&name)?).await,
        ForgetRequest::Peer(peer) => {
            // Of several peers with one name the connected one is not meant.
            let known = everyone(handles);
            let away: Vec<Candidate> = known.iter().filter(|peer| !peer.connected).cloned().collect();
            let peer = match resolve(&peer, &away) {
                found @ (Ok(_) | Err(Unresolved::Ambiguous { .. })) => found?,
                Err(_) => resolve(&peer, &known)?,
            };
            if handles.book.snapshot().pin(&peer.id).is_some_and(|pin| pin.trust != Trust::Vouched) {
                handles.book.forget(peer.id).await
            } else if peer.connected {
                Err(TrustError::StillConnected { id: peer.id, name: peer.name })
            } else {
                // Seen in this run, and in no book.
                handles.mesh.forget(vec![peer.id]).await;
                Ok(Forgotten { forgotten: vec![peer.pin()], ..Forgotten::default() })
            }
        }
    };
    let gone = match gone {
        Ok(gone) => gone,
        Err(error @ TrustError::NotKnown(_)) => return Err(Failure::new(StatusCode::NOT_FOUND, error.to_string())),
        Err(error @ (TrustError::StaysRevoked { .. } | TrustError::StillConnected { .. })) => {
            return Err(Failure::new(StatusCode::CONFLICT, error.to_string()));
        }
        Err(error) => return Err(error.into()),
    };
    gone.forgotten.iter().for_each(|pin| handles.digests.forget(&pin.id));
    handles.mesh.forget(gone.forgotten.iter().map(|pin| pin.id).collect()).await;
    json(&gone)
}

/// A name as it is typed.
fn name_of(text: &str) -> Result<NodeName, Failure> {
    text.parse().map_err(|error: ParseNameError| Failure::new(StatusCode::BAD_REQUEST, error.to_string()))
}

/// Tells what happens while a person waits for the other side. The body holds the wish: hyper drops it when the command
/// line has gone.
fn pair(handles: &Handles, peer: &str) -> Result<Response<Body>, Failure> {
    let peer = find_or_stranger(handles, peer)?;
    let wish = handles.desk.wish(peer.id).map_err(|refusal| Failure::new(StatusCode::CONFLICT, refusal.to_string()))?;
    let lines = futures_util::stream::unfold(wish, |mut wish| async move {
        let news = wish.next().await?;
        let mut line = serde_json::to_vec(&news).unwrap_or_default();
        line.push(b'\n');
        Some((Ok(Frame::data(Bytes::from(line))), wish))
    });
    let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/x-ndjson"));
    Ok(response)
}

/// A key may be spoken of before it was ever met, if it is given whole.
fn find_or_stranger(handles: &Handles, text: &str) -> Result<Candidate, Failure> {
    match find(handles, text) {
        Err(Failure { unknown: Some(id), .. }) => Ok(Candidate::stranger(id)),
        found => found,
    }
}

/// The peer with what the book says of it now.
fn refreshed(handles: &Handles, mut peer: Candidate) -> Candidate {
    peer.stands_in(&handles.book.snapshot());
    peer
}

fn find(handles: &Handles, text: &str) -> Result<Candidate, Failure> {
    if text.parse() == Ok(handles.mesh.info().id) {
        return Err(Failure::new(StatusCode::BAD_REQUEST, "that is the ID of this node itself".to_owned()));
    }
    Ok(resolve(text, &everyone(handles))?)
}

fn everyone(handles: &Handles) -> Vec<Candidate> {
    candidates(&handles.mesh.peers(), handles.book.snapshot().pins())
}

async fn invite(handles: &Handles, wanted: InviteRequest) -> Result<Response<Body>, Failure> {
    let info = handles.mesh.info();
    let mut addresses = wanted.addresses;
    if addresses.is_empty() {
        addresses = handles.mesh.addresses().iter().map(ToString::to_string).collect();
    }
    let unclear = |error: InvitationError| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let invitation = Invitation::new(info.name, info.id, addresses);
    let kept = invitation.kept(wanted.scope, wanted.use_, wanted.uses, wanted.until).map_err(unclear)?;
    handles.book.invite(kept).await?;
    json(&InviteView { text: invitation.to_text().map_err(unclear)? })
}

async fn invitations(handles: &Handles) -> Result<Vec<InvitedView>, Failure> {
    let (invitations, book) = (handles.book.invitations().await?, handles.book.snapshot());
    Ok(invitations.iter().map(|invited| InvitedView::of(invited, &book)).collect())
}

async fn uninvite(handles: &Handles, wanted: InvitationRequest) -> Result<Response<Body>, Failure> {
    let mut fitting: Vec<InvitedView> = invitations(handles).await?;
    match fitting.iter().find(|invited| wanted.number == invited.place.to_string()) {
        Some(listed) => fitting = vec![listed.clone()],
        None => fitting.retain(|invited| {
            wanted.number.len() >= MIN_NUMBER && invited.number.starts_with(&wanted.number.to_ascii_lowercase())
        }),
    }
    match (fitting.pop(), fitting.is_empty()) {
        (Some(invited), true) => {
            handles.book.uninvite(invited.number.clone()).await?;
            json(&invited)
        }
        (None, _) => Err(Failure::new(
            StatusCode::NOT_FOUND,
            format!("no invitation {:?} is open; `ollana invite --list` shows those that are", wanted.number),
        )),
        _ => Err(Failure::new(
            StatusCode::CONFLICT,
            "that fits several invitations; give one of the numbers that `ollana invite --list` shows".to_owned(),
        )),
    }
}

async fn import(handles: &Handles, wanted: ImportRequest) -> Result<Response<Body>, Failure> {
    let me = handles.mesh.info().id;
    json(&handles.book.import(wanted.list, Some(me), wanted.replace).await?)
}

/// By its whole ID, which is in the book.
async fn vouch(handles: &Handles, wanted: VouchRequest) -> Result<Response<Body>, Failure> {
    let peer = find_or_stranger(handles, &wanted.peer)?;
    let until = match handles.book.vouch(Vouch { id: peer.id, until: wanted.until }).await {
        Ok(until) => until,
        Err(error @ (TrustError::NotTrusted { .. } | TrustError::TooManyVouches)) => {
            return Err(Failure::new(StatusCode::CONFLICT, error.to_string()));
        }
        Err(error) => return Err(error.into()),
    };
    json(&VouchView { name: peer.name, id: peer.id, address: peer.address, until })
}

async fn unvouch(handles: &Handles, wanted: PeerRequest) -> Result<Response<Body>, Failure> {
    let peer = find_or_stranger(handles, &wanted.peer)?;
    match handles.book.unvouch(peer.id).await? {
        true => json(&()),
        false => Err(Failure::new(StatusCode::NOT_FOUND, no_vouch(&peer))),
    }
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Failure> {
    read_up_to(body, MAX_BODY).await
}

async fn read_up_to<T: DeserializeOwned>(body: Incoming, most: usize) -> Result<T, Failure> {
    let bytes = Limited::new(body, most)
        .collect()
        .await
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("the request cannot be read: {error}")))?
        .to_bytes();
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("the request is not understood: {error}")))
}

fn json<T: Serialize>(value: &T) -> Result<Response<Body>, Failure> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(with_body(StatusCode::OK, bytes))
}

fn with_body(status: StatusCode, bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Full::new(bytes.into()).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// A request that was not granted.
struct Failure {
    status: StatusCode,
    view: ErrorView,
    /// Whom it meant, if that is settled although nobody knows them.
    unknown: Option<Id>,
}

impl Failure {
    fn new(status: StatusCode, error: String) -> Self {
        Self { status, view: ErrorView { error, candidates: Vec::new() }, unknown: None }
    }

    fn into_response(self) -> Response<Body> {
        with_body(self.status, serde_json::to_vec(&self.view).unwrap_or_default())
    }
}

impl From<Unresolved> for Failure {
    fn from(error: Unresolved) -> Self {
        let text = error.to_string();
        match error {
            Unresolved::Ambiguous { candidates, .. } => {
                Self { view: ErrorView { error: text, candidates }, ..Self::new(StatusCode::CONFLICT, String::new()) }
            }
            Unresolved::UnknownId(id) => Self { unknown: Some(id), ..Self::new(StatusCode::NOT_FOUND, text) },
            Unresolved::Unknown { .. } => Self::new(StatusCode::NOT_FOUND, text),
            Unresolved::Slip(_) | Unresolved::ShortPrefix(_) => Self::new(StatusCode::BAD_REQUEST, text),
        }
    }
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}
