//! The version that an application sees of the whole mesh: the lowest, since what is new in a later one may not be there
//! where its next request goes.

use std::cmp::Reverse;

/// Numbers in a version at most: those of `0.12.0`, and one more.
const NUMBERS: usize = 4;

/// A version as it is compared: its numbers, whether it is a release, and which of those before one.
type Version<'a> = ([u32; NUMBERS], bool, &'a str);

/// The lowest of these versions, each with whether its server is trusted: of those above 0.0.0 (which is what a build of
/// one's own says), trusted ones first; else always the same one. Nothing if no server says any.
pub(super) fn lowest<'a>(versions: impl Iterator<Item = (bool, &'a str)>) -> Option<&'a str> {
    let said = versions.filter(|(_, text)| !text.is_empty());
    let ranked = said.map(|(trusted, text)| {
        let version = parse(text);
        (version.is_none(), Reverse(trusted), version, text)
    });
    ranked.min().map(|(.., text)| text)
}

/// Nothing for what is no version, and for 0.0.0.
fn parse(text: &str) -> Option<Version<'_>> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let (text, _build) = text.split_once('+').unwrap_or((text, ""));
    let (text, before) = text.split_once('-').unwrap_or((text, ""));
    let mut numbers = [0; NUMBERS];
    let mut places = numbers.iter_mut();
    for number in text.split('.') {
        *places.next()? = number.parse().ok()?;
    }
    (numbers > [0; NUMBERS]).then_some((numbers, before.is_empty(), before))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_version_that_means_something_is_said() {
        let trusted = |texts: &[&'static str]| lowest(texts.iter().map(|text| (true, *text)));
        assert_eq!(trusted(&["0.33.0", "0.5.1", "0.24.0"]), Some("0.5.1"));
        assert_eq!(trusted(&["0.33.0", "0.9.10", "v0.9.9"]), Some("v0.9.9"));
        assert_eq!(trusted(&["0.12.0", "0.12.0-rc1"]), Some("0.12.0-rc1"));
        assert_eq!(trusted(&["0.12.0+own", "0.12.1"]), Some("0.12.0+own"));
        // A version that says nothing is no reason to believe that a client is too new.
        assert_eq!(trusted(&["0.0.0", "0.33.0", "", "b9000", "1.2.3.4.5", "1..2"]), Some("0.33.0"));
        assert_eq!(trusted(&["own", "0.0.0"]), Some("0.0.0"));
        assert_eq!(trusted(&["", ""]), None);
    }

    #[test]
    fn trusted_servers_come_first() {
        let said = [(false, "0.1.0"), (true, "0.24.0"), (true, "0.33.0"), (true, "0.0.0")];
        assert_eq!(lowest(said.into_iter()), Some("0.24.0"));
        assert_eq!(lowest(said.into_iter().rev()), Some("0.24.0"));
        let own = [(false, "0.1.0"), (true, "0.0.0")];
        assert_eq!(lowest(own.into_iter()), Some("0.1.0"));
    }
}
