//! `ollana invite`.

use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode};

use super::output::{Table, print, print_json};
use super::trust::ScopeArg;
use super::{Failure, Place, block_on};
use crate::control::{InvitationRequest, InviteRequest, InviteView, InvitedView, span};
use crate::id::NodeName;

/// Nodes that one invitation may let in: a large fleet. Each use is kept by its ID.
const MAX_USES: u32 = 1000;
/// An invitation is a key to this node, and a vouch to others' prompts: a year at most.
const MAX_SPAN: Duration = Duration::from_secs(366 * 24 * 60 * 60);

const EXAMPLES: &str = "\
The invitation goes to standard output; a file there is made readable for you alone. Whoever has it may use it: keep \
it as you keep a key (chmod 600), or no node will start with it. A node that is started with it trusts this one, and is \
trusted by it, without anybody typing anything.

Examples:
  ollana invite > invitation             for one node, within 24 hours
  ollana invite --uses 50 --until 7d     for a fleet
  ollana serve --invitation-file invitation
                                         on the node that is invited
  ollana invite --list                   which are open, and who came
  ollana invite --revoke 1               take the first of them back";

/// Flags of `invite`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// How many nodes may use it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_USES)))]
    uses: u32,

    /// How long, such as 12h or 7d, or until when: 2026-12-31, or 2026-12-31T18:00:00Z
    #[arg(long, default_value = "24h", value_name = "DATE|DURATION")]
    until: String,

    /// What those who use it may do here
    #[arg(long, value_enum, default_value = "infer")]
    scope: ScopeArg,

    /// Send them prompts
    #[arg(long = "use")]
    use_: bool,

    /// Where they find this node, if not at the addresses of this machine. May be repeated
    #[arg(long, value_name = "HOST[:PORT]")]
    address: Vec<String>,

    /// Show which invitations are open, used up or expired, and who came
    #[arg(long, conflicts_with_all = ["uses", "until", "scope", "use_", "address", "revoke"])]
    list: bool,

    /// Take an invitation back, by its number in the list or the beginning of its ID; who has used it stays trusted
    #[arg(long, value_name = "NUMBER", conflicts_with_all = ["uses", "until", "scope", "use_", "address"])]
    revoke: Option<String>,

    /// Print JSON for programs, with --list
    #[arg(long, requires = "list")]
    json: bool,
}

/// Makes an invitation, shows those that are open, or takes one back.
pub(super) fn run(args: Args, place: &Place) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let until = end(&args.until, now).map_err(|error| Failure::usage(format!("--until {}: {error}", args.until)))?;
    block_on(async {
        let client = place.client().await?;
        if args.list {
            let invitations: Vec<InvitedView> = client.get("/invitations").await?;
            return if args.json { print_json(&invitations) } else { print(&render(&invitations, now.as_secs())) };
        }
        if let Some(number) = args.revoke {
            let invited: InvitedView = client.post("/uninvite", &InvitationRequest { number }).await?;
            return print(&format!(
                "invitation {} ({}) is taken back; {} have used it\n",
                invited.place,
                invited.number,
                invited.redeemed.len()
            ));
        }
        let request = InviteRequest {
            uses: args.uses,
            until,
            scope: args.scope.into(),
            use_: args.use_,
            addresses: args.address,
        };
        let invitation: InviteView = client.post("/invite", &request).await?;
        keep_private();
        print(&invitation.text)
    })
}

/// Where standard output is a file, nobody else may read it from here on: no node starts with an invitation that others may
/// read. A file system without permissions is left as it is.
fn keep_private() {
    let out = rustix::stdio::stdout();
    if let Ok(stat) = rustix::fs::fstat(out)
        && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
    {
        let _ = rustix::fs::fchmod(out, Mode::RUSR | Mode::WUSR);
    }
}

fn render(invitations: &[InvitedView], now: u64) -> String {
    if invitations.is_empty() {
        return "no invitation is open; `ollana invite` makes one\n".to_owned();
    }
    let mut table = Table::new(&["NUMBER", "STATE", ">USED", ">OF", "LEFT", "SCOPE", "USE", "USED BY", "ID"]);
    for invited in invitations {
        let used_up = invited.redeemed.len() >= usize::try_from(invited.uses).unwrap_or(usize::MAX);
        let state = match (invited.until <= now, used_up) {
            (true, _) => "expired",
            (false, true) => "used up",
            (false, false) => "open",
        };
        let names: Vec<&str> = invited.names.iter().map(NodeName::as_str).collect();
        table.row([
            invited.place.to_string(),
            state.to_owned(),
            invited.redeemed.len().to_string(),
            invited.uses.to_string(),
            if invited.until <= now { String::new() } else { span(invited.until - now) },
            invited.scope.to_string(),
            if invited.use_ { "yes" } else { "no" }.to_owned(),
            names.join(", "),
            invited.number.chars().take(8).collect(),
        ]);
    }
    table.render()
}

/// Seconds since 1970 at the end of a span that begins now, or at a date (UTC unless it says otherwise).
pub(super) fn end(text: &str, now: Duration) -> Result<u64, &'static str> {
    let end = match text.parse::<toml::value::Datetime>() {
        Ok(at) => seconds(&at).ok_or("that is no date")?,
        Err(_) => {
            now.as_secs() + duration(text).ok_or("not a date such as 2026-12-31, nor a length of time such as 7d")?
        }
    };
    match end {
        past if past <= now.as_secs() => Err("that has passed"),
        late if late > (now + MAX_SPAN).as_secs() => Err("more than a year is too long"),
        end => Ok(end),
    }
}

fn duration(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(seconds).filter(|total| *total <= 100 * MAX_SPAN.as_secs())
}

/// Days by Howard Hinnant's `days_from_civil` (<https://howardhinnant.github.io/date_algorithms.html>), for years from 1970.
fn seconds(at: &toml::value::Datetime) -> Option<u64> {
    let date = at.date?;
    let (year, month, day) = (u64::from(date.year), u64::from(date.month), u64::from(date.day));
    let year = if month <= 2 { year.checked_sub(1)? } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = (year * 365 + year / 4 - year / 100 + year / 400 + day_of_year).checked_sub(719_468)?;
    let time = at.time.map_or(0, |time| {
        u64::from(time.hour) * 3600 + u64::from(time.minute) * 60 + u64::from(time.second.unwrap_or(0))
    });
    let offset = match at.offset {
        Some(toml::value::Offset::Custom { minutes }) => i64::from(minutes) * 60,
        _ => 0,
    };
    (days * 86_400 + time).checked_add_signed(-offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_a_date_or_a_length_of_time() {
        // `date -u -d 2026-11-22 +%s`
        let now = Duration::from_secs(1_795_305_600);
        for (text, expected) in [
            ("7d", now.as_secs() + 7 * 86_400),
            ("90m", now.as_secs() + 5400),
            ("2026-11-23", now.as_secs() + 86_400),
            ("2027-03-01", now.as_secs() + 99 * 86_400),
            ("2026-11-22T12:00:00Z", now.as_secs() + 43_200),
            ("2026-11-22T12:00:00+02:00", now.as_secs() + 36_000),
        ] {
            assert_eq!(end(text, now), Ok(expected), "{text}");
        }
        for text in ["", "7", "d", "soon", "2026-11-21", "0s", "2028-01-01", "99999999999999999d", "12:00:00"] {
            assert!(end(text, now).is_err(), "{text}");
        }
    }
}
