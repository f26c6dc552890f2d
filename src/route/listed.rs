//! Lists of models as servers write them, read field by field: a field or an entry that is not as it should be costs
//! nothing but itself.
//!
//! Nothing is built but what is kept: an entry is a slice of the text, and so is each of its fields. Of each list the first
//! [`MAX_ENTRIES`] entries are read, so memory is bounded by the text and that number.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// Entries that are read of one list. As many models as a report to a peer may have.
pub(crate) const MAX_ENTRIES: usize = 8192;

/// Fields of an entry that are used; the rest is not kept.
const KEYS: [&str; 17] = [
    "name",
    "model",
    "id",
    "digest",
    "size",
    "size_vram",
    "remote_host",
    "remote_model",
    "modified_at",
    "expires_at",
    "created",
    "owned_by",
    "status",
    "value",
    "aliases",
    "meta",
    "llamaswap",
];

/// Most texts of one field that are kept.
const MAX_TEXTS: usize = 32;

/// An answer to `/api/tags`, `/api/ps` or `/v1/models`.
#[derive(Debug, Default)]
pub(crate) struct Listing<'a> {
    /// Ollama's list.
    pub(crate) models: Option<List<'a>>,
    /// OpenAI's list.
    pub(crate) data: Option<List<'a>>,
    /// Whether it calls itself a list, as OpenAI's answers do.
    pub(crate) says_list: bool,
}

/// The entries of a list.
#[derive(Debug, Default)]
pub(crate) struct List<'a> {
    /// Those that are objects.
    pub(crate) entries: Vec<Entry<'a>>,
    /// Those that are none: `null`, a number, an object that ends in the middle of a word.
    pub(crate) odd: usize,
    /// Those beyond [`MAX_ENTRIES`].
    pub(crate) beyond: usize,
}

/// One entry, as the server wrote it.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// The text of it.
    pub(crate) raw: &'a str,
    fields: Vec<(&'static str, &'a RawValue)>,
}

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said<T> {
    /// Nothing: it is not there, or `null`.
    Nothing,
    /// Something of another type, or out of range.
    Odd,
    /// This.
    This(T),
}

// === impl Listing ===

impl<'a> Listing<'a> {
    /// Reads an answer. Where a key is doubled the last one counts, and what follows the value is ignored, as Go's reader
    /// does.
    ///
    /// # Errors
    /// If it is no JSON object.
    pub(crate) fn read(text: &'a str) -> Result<Self, serde_json::Error> {
        let text = text.trim_start_matches('\u{feff}');
        Self::deserialize(&mut serde_json::Deserializer::from_str(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Listing<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Listing<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of models")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut listing = Listing::default();
                while let Some(key) = map.next_key::<String>()? {
                    match &*key {
                        "models" => listing.models = List::of(map.next_value()?),
                        "data" => listing.data = List::of(map.next_value()?),
                        "object" => listing.says_list = map.next_value::<&RawValue>()?.get() == "\"list\"",
                        _ => drop(map.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(listing)
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

// === impl List ===

impl<'a> List<'a> {
    /// `null` is what Go writes for an empty list that was never made. A value that is no list is none.
    fn of(raw: &'a RawValue) -> Option<Self> {
        match raw.get() {
            "null" => Some(Self::default()),
            text => serde_json::from_str(text).ok(),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for List<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = List<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut list = List::default();
                while list.entries.len() < MAX_ENTRIES {
                    let Some(raw) = seq.next_element::<&RawValue>()? else { return Ok(list) };
                    match serde_json::from_str::<Fields<'de>>(raw.get()) {
                        Ok(Fields(fields)) => list.entries.push(Entry { raw: raw.get(), fields }),
                        Err(_) => list.odd += 1,
                    }
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    list.beyond += 1;
                }
                Ok(list)
            }
        }
        deserializer.deserialize_seq(Entries)
    }
}

/// The fields of an entry that anybody asks for.
struct Fields<'a>(Vec<(&'static str, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Known;
        impl<'de> Visitor<'de> for Known {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an entry")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields: Vec<(&'static str, &'de RawValue)> = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value::<&RawValue>()?;
                    let Some(key) = KEYS.into_iter().find(|known| *known == key) else { continue };
                    match fields.iter_mut().find(|(known, _)| *known == key) {
                        Some(field) => field.1 = value,
                        None => fields.push((key, value)),
                    }
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Known)
    }
}

// === impl Entry ===

impl<'a> Entry<'a> {
    fn value(&self, key: &str) -> Option<&'a str> {
        let (_, value) = self.fields.iter().find(|(known, _)| *known == key)?;
        Some(value.get()).filter(|value| *value != "null")
    }

    /// A field that should be a text.
    pub(crate) fn text(&self, key: &str) -> Said<Cow<'a, str>> {
        match self.value(key) {
            None => Said::Nothing,
            Some(value) => serde_json::from_str::<String>(value).map_or(Said::Odd, |text| Said::This(text.into())),
        }
    }

    /// The texts of a field that should be a list of them; at most [`MAX_TEXTS`].
    pub(crate) fn texts(&self, key: &str) -> Vec<String> {
        let values: Vec<serde_json::Value> =
            self.value(key).and_then(|value| serde_json::from_str(value).ok()).unwrap_or_default();
        let texts = values.into_iter().filter_map(|value| match value {
            serde_json::Value::String(text) => Some(text),
            _ => None,
        });
        texts.take(MAX_TEXTS).collect()
    }

    /// A field that should be a number of bytes. A whole number that is written as a fraction is one.
    pub(crate) fn bytes(&self, key: &str) -> Said<u64> {
        let Some(value) = self.value(key) else { return Said::Nothing };
        if let Ok(bytes) = serde_json::from_str::<u64>(value) {
            return Said::This(bytes);
        }
        match serde_json::from_str::<f64>(value) {
            // A whole number below 2⁵³ is exact.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            Ok(bytes) if bytes.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&bytes) => {
                Said::This(bytes as u64)
            }
            _ => Said::Odd,
        }
    }

    /// A field that should be a number; one that stands in quotes is one too.
    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        self.value(key)?.trim_matches('"').parse::<f64>().ok().filter(|number| number.is_finite())
    }

    /// A field that should be an object.
    pub(crate) fn object(&self, key: &str) -> Said<Self> {
        match self.value(key) {
            None => Said::Nothing,
            Some(raw) => serde_json::from_str(raw).map_or(Said::Odd, |Fields(fields)| Said::This(Self { raw, fields })),
        }
    }

    /// The first of these fields that is a text with something in it.
    pub(crate) fn name(&self, keys: &[&str]) -> Option<Cow<'a, str>> {
        keys.iter().find_map(|key| self.text(key).this().filter(|name| !name.trim().is_empty()))
    }

    /// A field as it is written, if it is there.
    pub(crate) fn written(&self, key: &str) -> Option<&'a str> {
        self.value(key)
    }
}

// === impl Said ===

impl<T> Said<T> {
    /// The value, if it is as it should be.
    pub(crate) fn this(self) -> Option<T> {
        match self {
            Self::This(value) => Some(value),
            Self::Nothing | Self::Odd => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let listing = Listing::read(text).unwrap();
        let list = listing.models.unwrap();
        list.entries.iter().filter_map(|entry| entry.name(&["name", "model"])).map(Cow::into_owned).collect()
    }

    #[test]
    fn an_odd_entry_costs_only_itself() {
        let text = r#"{"models":[null,7,"x",[],{"name":"a"},{"model":"b"},{"name":"","model":"c"},{"name":{}},{},
            {"name":"d","name":"e"},{"name":"f","size":1e999,"digest":{"deep":[[[[]]]]}},{"name":"\ud800"}]}"#;
        assert_eq!(names(text), ["a", "b", "c", "e", "f"]);
        let listing = Listing::read(text).unwrap();
        assert_eq!(listing.models.map(|list| (list.odd, list.beyond)), Some((4, 0)));
        assert!(listing.data.is_none() && !listing.says_list);
    }

    #[test]
    fn each_field_is_read_for_itself() {
        let text =
            r#"{"data":[{"size":4000000,"size_vram":"0","digest":null,"status":{"value":"loaded"},"created":"5"}]}"#;
        let listing = Listing::read(text).unwrap();
        let list = listing.data.unwrap();
        let entry = &list.entries[0];
        assert_eq!((entry.bytes("size"), entry.bytes("size_vram")), (Said::This(4_000_000), Said::Odd));
        assert_eq!((entry.text("digest"), entry.text("size")), (Said::Nothing, Said::Odd));
        assert_eq!(entry.object("status").this().unwrap().text("value"), Said::This("loaded".into()));
        assert!(matches!(entry.object("size"), Said::Odd) && matches!(entry.object("digest"), Said::Nothing));
        assert_eq!((entry.number("created"), entry.number("size")), (Some(5.0), Some(4e6)));
        for (size, read) in [
            ("1.0", Said::This(1)),
            ("5e9", Said::This(5_000_000_000)),
            ("1.5", Said::Odd),
            ("-1", Said::Odd),
            ("1180591620717411303424", Said::Odd),
            ("\"4 GB\"", Said::Odd),
            ("null", Said::Nothing),
            ("true", Said::Odd),
        ] {
            let text = format!(r#"{{"models":[{{"size":{size}}}]}}"#);
            assert_eq!(Listing::read(&text).unwrap().models.unwrap().entries[0].bytes("size"), read, "{size}");
        }
    }

    #[test]
    fn a_list_of_texts_is_what_of_it_is_text() {
        let many = r#""a","#.repeat(3 * MAX_TEXTS);
        for (aliases, count) in [(r#"["a",7,null,"b"]"#, 2), ("7", 0), ("null", 0), (&format!("[{many}1]"), MAX_TEXTS)]
        {
            let text = format!(r#"{{"data":[{{"aliases":{aliases}}}]}}"#);
            assert_eq!(Listing::read(&text).unwrap().data.unwrap().entries[0].texts("aliases").len(), count);
        }
    }

    #[test]
    fn an_empty_list_has_several_spellings_and_no_list_is_none() {
        for empty in [r#"{"models":null}"#, r#"{"models":[]}"#, "\u{feff}{\"models\":[],\"x\":1} and more"] {
            assert!(Listing::read(empty).unwrap().models.unwrap().entries.is_empty(), "{empty}");
        }
        for none in [r#"{"models":7}"#, r#"{"models":{"a":1}}"#, "{}", r#"{"error":"no"}"#] {
            assert!(Listing::read(none).unwrap().models.is_none(), "{none}");
        }
        for broken in ["", "[]", "null", r#"{"models":["#, "<html>"] {
            assert!(Listing::read(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_list_without_end_is_bounded() {
        let text = format!(r#"{{"models":[{}{{}}]}}"#, r#"{"name":"a"},"#.repeat(3 * MAX_ENTRIES));
        let list = Listing::read(&text).unwrap().models.unwrap();
        assert_eq!((list.entries.len(), list.beyond), (MAX_ENTRIES, 2 * MAX_ENTRIES + 1));
    }
}
