//! The page for people.

use std::fmt::{self, Write as _};

use crate::control::{Mesh, ModelView, StatusView, models, not_peers, trust_text};
use crate::exchange::Unusable;
use crate::id::Use;
use crate::peers::{PeerState, PeerView};

const STYLE: &str = include_str!("page.css");

/// The page as it is now.
pub(super) fn render(mesh: &dyn Mesh) -> String {
    let mut html = String::with_capacity(8 * 1024);
    // Writing to a String cannot fail.
    let _ = write_page(&mut html, &StatusView::of(mesh), &mesh.peers(), &models(mesh));
    html
}

fn write_page(html: &mut String, status: &StatusView, peers: &[PeerView], models: &[ModelView]) -> fmt::Result {
    let info = &status.info;
    write!(
        html,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <meta http-equiv=refresh content=5><meta name=color-scheme content=\"light dark\">\
         <title>{name} · Ollana</title><style>{STYLE}</style>\
         <header><h1>{name}</h1><p>Ollana {version} · {mode} · up {uptime}</p></header><main>",
        name = Escaped(info.name.as_str()),
        version = Escaped(&info.version),
        mode = Escaped(&info.mode),
        uptime = Span(info.uptime_s),
    )?;
    for conflict in &status.conflicts {
        write!(html, "<p class=alarm>{}</p>", Escaped(conflict))?;
    }
    write_facts(html, status)?;
    write_peers(html, peers, &status.unusable)?;
    write_models(html, models)?;
    html.push_str(
        "</main><footer><a href=/status.json>status.json</a> <a href=/peers.json>peers.json</a> \
         <a href=/metrics>metrics</a></footer></html>",
    );
    Ok(())
}

fn write_facts(html: &mut String, status: &StatusView) -> fmt::Result {
    let ollama = &status.ollama;
    let (class, health) = match (ollama.healthy, ollama.lent) {
        (true, true) => ("good", "shared"),
        (true, false) => ("good", "not shared"),
        (false, _) => ("idle", "not shared"),
    };
    let not_lent = ollama.not_lent.as_ref().filter(|_| ollama.healthy);
    let not_lent = match (not_lent, &ollama.problem) {
        (Some(why), _) => format!("<br>it {}", Escaped(why)),
        (None, Some(problem)) => format!("<br>{}", Escaped(problem)),
        (None, None) => String::new(),
    };
    let listen = status.info.applications().unwrap_or_else(|| "off".to_owned());
    write!(
        html,
        "<dl><dt>Applications</dt><dd><code>{}</code></dd><dt>Peers</dt><dd><code>{}</code></dd>\
         <dt>Ollama here</dt><dd><b class={class}>{health}</b> {} <code>{}</code>{not_lent}</dd>\
         <dt>ID</dt><dd><code>{}</code></dd></dl>",
        Escaped(&listen),
        Escaped(&status.info.mesh.to_string()),
        Escaped(ollama.version.as_deref().unwrap_or_default()),
        Escaped(&ollama.url),
        status.info.id,
    )
}

fn write_peers(html: &mut String, peers: &[PeerView], unusable: &[Unusable]) -> fmt::Result {
    html.push_str("<h2>Peers</h2>");
    let others = not_peers(peers, unusable);
    if peers.is_empty() && others.is_empty() {
        html.push_str("<p class=idle>No other node was seen yet.</p>");
        return Ok(());
    }
    html.push_str(
        "<div class=wide><table><tr><th>Name<th>State<th>Trust<th>Use<th title=\"what the peer may do \
         here\">Inbound<th title=\"what this node may do there\">Outbound<th class=n>Models<th class=n>In flight<th \
         class=n>RTT<th>Address</tr>",
    );
    for peer in peers {
        let class = match peer.state {
            PeerState::Connected => "good",
            PeerState::Connecting => "idle",
            PeerState::Unreachable | PeerState::Refused => "bad",
        };
        write!(
            html,
            "<tr><td title=\"{id}\">{name}<td><b class={class}>{state}</b><td>{trust}<td>{use_}<td>{scope}<td>{remote}<td \
             class=n title=\"{list}\">{models}<td class=n>{inflight}<td class=n>{rtt}<td><code>{address}</code></tr>",
            id = peer.id,
            name = Escaped(peer.name.as_str()),
            state = peer.state,
            trust = Escaped(&trust_text(peer.trust, peer.voucher, &peer.vouched_by)),
            use_ = peer.use_,
            scope = peer.scope,
            remote = peer.remote_scope.map(|scope| scope.to_string()).unwrap_or_default(),
            list = Escaped(&peer.models.join(", ")),
            models = peer.models.len(),
            inflight = peer.inflight,
            rtt = Millis(peer.rtt_us),
            address = Escaped(&peer.address.map(|address| address.to_string()).unwrap_or_default()),
        )?;
        if let Some(problem) = &peer.problem {
            write!(html, "<tr><td colspan=10 class=bad>{}</tr>", Escaped(problem))?;
        }
        if peer.use_ == Use::Pending && peer.provider {
            write!(html, "<tr><td colspan=10 class=idle>to use it: <code>ollana trust {}</code></tr>", peer.name)?;
        }
    }
    for node in others {
        write!(
            html,
            "<tr><td>{name}<td><b class=bad>{state}</b><td colspan=7><td><code>{address}</code></tr><tr><td colspan=10 \
             class=bad>{what}</tr>",
            name = Escaped(&node.node),
            state = PeerState::Unreachable,
            address = Escaped(node.address.as_deref().unwrap_or_default()),
            what = Escaped(&node.explanation()),
        )?;
    }
    html.push_str("</table></div>");
    Ok(())
}

fn write_models(html: &mut String, models: &[ModelView]) -> fmt::Result {
    html.push_str("<h2>Models</h2>");
    if models.is_empty() {
        html.push_str("<p class=idle>No models are available.</p>");
        return Ok(());
    }
    html.push_str("<div class=wide><table><tr><th>Model<th>Where (in memory: bold)<th>Digest</tr>");
    for model in models {
        write!(html, "<tr><td>{}<td>", Escaped(&model.name))?;
        for (i, node) in model.nodes.iter().enumerate() {
            let tag = if node.loaded { "b" } else { "span" };
            let comma = if i > 0 { ", " } else { "" };
            let name = Escaped(node.name.as_str());
            match node.use_ {
                Use::Yes => write!(html, "{comma}<{tag}>{name}</{tag}>")?,
                Use::Pending => {
                    write!(
                        html,
                        "{comma}<span class=idle>{name} (not usable: <code>ollana trust {name}</code>)</span>"
                    )?;
                }
                Use::No => write!(html, "{comma}<span class=idle>{name} (not used)</span>")?,
            }
        }
        let digest: String = model.digest.chars().take(12).collect();
        let conflict = if model.conflict { " <b class=bad>differs</b>" } else { "" };
        write!(html, "<td><code>{}</code>{conflict}</tr>", Escaped(&digest))?;
    }
    html.push_str("</table></div>");
    Ok(())
}

/// A text that a stranger may have chosen, as text and nothing else, in an element or in a quoted attribute.
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() => f.write_str("\u{fffd}")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Seconds as people say them.
struct Span(u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::control::span(self.0))
    }
}

/// Microseconds in milliseconds; nothing while there is no measurement.
struct Millis(u64);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            us => write!(f, "{}.{:02} ms", us / 1000, us % 1000 / 10),
        }
    }
}
