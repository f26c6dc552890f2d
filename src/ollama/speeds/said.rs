//! What the end of an answer says of how long it took.
//!
//! Ollama's own API gives durations in nanoseconds in the last object, as the last of its fields, so that the end of an
//! answer is enough: `{…,"done":true,…,"total_duration":…,"load_duration":…,"prompt_eval_count":…,…}`. llama-server gives
//! `timings` in milliseconds. The APIs under `/v1` count tokens in `usage` and say nothing of time.
//!
//! Only the tail is there: if it does not hold the last object from its beginning, the last `"name":` is looked for. No text that a model has
//! said can be taken for one, since a quotation mark within a JSON string has a backslash before it. The arguments of a
//! tool's call can, where nothing comes after them; whoever uses this compares with a clock of its own.

use memchr::memmem;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// What one answer said, in seconds and tokens. Nothing is taken for true.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(in crate::ollama) struct Said {
    /// From the request to the end.
    pub(in crate::ollama) total: Option<f64>,
    /// Until a runner with the model was there; some 30 ms if it was there already.
    pub(in crate::ollama) load: Option<f64>,
    /// Tokens of the prompt, those that were in the cache perhaps included.
    pub(in crate::ollama) prompt: Option<f64>,
    /// Time to evaluate those of them that were not in the cache.
    pub(in crate::ollama) prompt_time: Option<f64>,
    /// Tokens of the answer.
    pub(in crate::ollama) output: Option<f64>,
    /// Time from the first of them to the last.
    pub(in crate::ollama) output_time: Option<f64>,
    /// Whether nothing was asked for but that the model is loaded. It says no durations.
    pub(in crate::ollama) only_loads: bool,
}

/// The end of an answer of Ollama's own API: `api.Metrics` in its source. Every field is left out where it is zero.
#[derive(Deserialize)]
struct Metrics {
    total_duration: f64,
    load_duration: Option<f64>,
    prompt_eval_count: Option<f64>,
    prompt_eval_duration: Option<f64>,
    eval_count: Option<f64>,
    eval_duration: Option<f64>,
}

/// llama-server's; `prompt_n` are those that were evaluated.
#[derive(Deserialize)]
struct Timings {
    prompt_n: Option<f64>,
    prompt_ms: Option<f64>,
    predicted_n: Option<f64>,
    predicted_ms: Option<f64>,
}

/// Of chat completions, and of responses and messages.
#[derive(Deserialize)]
struct Usage {
    #[serde(alias = "input_tokens")]
    prompt_tokens: Option<f64>,
    #[serde(alias = "output_tokens")]
    completion_tokens: Option<f64>,
}

// === impl Said ===

impl Said {
    /// Reads the end of an answer.
    pub(in crate::ollama) fn read(tail: &[u8]) -> Self {
        const NANOSECOND: f64 = 1e-9;
        let whole = tail.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let whole = serde_json::from_slice::<Metrics>(whole).ok();
        if let Some(metrics) = whole.or_else(|| last::<Metrics>(tail, b"\"total_duration\":", true)) {
            let time = |duration: Option<f64>| duration.map(|duration| duration * NANOSECOND);
            return Self {
                total: Some(metrics.total_duration * NANOSECOND),
                load: time(metrics.load_duration),
                prompt: metrics.prompt_eval_count,
                prompt_time: time(metrics.prompt_eval_duration),
                output: metrics.eval_count,
                output_time: time(metrics.eval_duration),
                ..Self::default()
            };
        }
        let time = |ms: Option<f64>| ms.map(|ms| ms / 1e3);
        if let Some(timings) = last::<Timings>(tail, b"\"timings\":{", false) {
            return Self {
                prompt: timings.prompt_n,
                prompt_time: time(timings.prompt_ms),
                output: timings.predicted_n,
                output_time: time(timings.predicted_ms),
                ..Self::default()
            };
        }
        if let Some(usage) = last::<Usage>(tail, b"\"usage\":{", false) {
            return Self { prompt: usage.prompt_tokens, output: usage.completion_tokens, ..Self::default() };
        }
        Self { only_loads: memmem::rfind(tail, b"\"done_reason\":\"load\"").is_some(), ..Self::default() }
    }

    /// Nothing of it if it says that it took longer than it can have.
    pub(super) fn within(self, elapsed: f64) -> Self {
        /// What two clocks and a network differ by.
        const SLACK: f64 = 0.05;
        let most = elapsed * 1.05 + SLACK;
        let times = [self.total, self.load, self.prompt_time, self.output_time];
        let plausible = |value: &f64| (0.0..=most).contains(value);
        let parts: f64 = times.iter().skip(1).flatten().sum();
        let counts = [self.prompt, self.output].iter().flatten().all(|count| (0.0..1e8).contains(count));
        let all = times.iter().flatten().all(plausible) && plausible(&parts) && counts;
        if all { self } else { Self::default() }
    }
}

/// The last object in `tail` that `mark` begins: with its first field, or as the value of its name.
fn last<T: DeserializeOwned>(tail: &[u8], mark: &[u8], is_field: bool) -> Option<T> {
    let found = tail.get(memmem::rfind(tail, mark)?..)?;
    let object = match is_field {
        true => [b"{", found].concat(),
        false => found.get(mark.len() - 1..)?.to_vec(),
    };
    serde_json::Deserializer::from_slice(&object).into_iter().next()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last two pieces of a recorded answer of Ollama 0.24.0.
    fn recorded(name: &str) -> String {
        let line = include_str!("../../../tests/data/ollama-0.24.0.jsonl")
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .find(|exchange| exchange["name"] == name)
            .unwrap_or_else(|| panic!("{name} was recorded"));
        let pieces = line["response"]["pieces"].as_array().unwrap();
        pieces.iter().rev().take(2).rev().map(|piece| piece[1].as_str().unwrap()).collect()
    }

    fn numbers(said: Said) -> [Option<f64>; 6] {
        [said.total, said.load, said.prompt, said.prompt_time, said.output, said.output_time]
    }

    #[test]
    fn recorded_answers_of_ollama_say_their_durations() {
        for (name, expected) in [
            (
                "generate cold, streamed",
                [691_593_087.0, 373_476_328.0, 10.0, 169_780_521.0, 6.0, 144_677_257.0].map(Some),
            ),
            ("generate, not streamed", [217_151_059.0, 34_983_883.0, 10.0, 27_830_698.0, 6.0, 151_113_311.0].map(Some)),
            ("chat, streamed", [414_745_230.0, 25_409_284.0, 16.0, 213_813_368.0, 6.0, 172_453_432.0].map(Some)),
            ("embed", [Some(51_044_807.0), Some(16_738_409.0), Some(1.0), None, None, None]),
        ] {
            let mut said = numbers(Said::read(recorded(name).as_bytes()));
            for (index, value) in said.iter_mut().enumerate() {
                if ![2, 4].contains(&index) {
                    *value = value.map(|value| (value * 1e9).round());
                }
            }
            assert_eq!(said, expected, "{name}");
        }
    }

    #[test]
    fn recorded_answers_under_v1_say_their_tokens() {
        for (name, prompt, output) in [
            ("v1 chat", 16.0, 6.0),
            ("v1 chat, streamed, with usage", 16.0, 6.0),
            ("v1 responses", 10.0, 4.0),
            ("v1 responses, streamed", 10.0, 4.0),
            ("v1 messages", 16.0, 4.0),
            ("v1 messages, streamed", 16.0, 4.0),
        ] {
            let said = Said::read(recorded(name).as_bytes());
            let expected = Said { prompt: Some(prompt), output: Some(output), ..Said::default() };
            assert_eq!(said, expected, "{name}");
        }
        assert_eq!(Said::read(recorded("v1 completions, streamed").as_bytes()), Said::default());
    }

    #[test]
    fn a_recorded_answer_that_only_loads_says_so() {
        let said = Said::read(recorded("generate, empty prompt loads").as_bytes());
        assert_eq!(said, Said { only_loads: true, ..Said::default() });
        assert_eq!(Said::read(recorded("generate, keep_alive 0 unloads").as_bytes()), Said::default());
    }

    #[test]
    fn fields_in_another_order_are_read_where_the_object_is_whole() {
        let sorted =
            b"{\"done\":false}\n{\"done\":true,\"eval_count\":9,\"load_duration\":1e9,\"total_duration\":2e9}\n";
        let expected = Said { total: Some(2.0), load: Some(1.0), output: Some(9.0), ..Said::default() };
        assert_eq!(Said::read(sorted), expected);
    }

    #[test]
    fn llama_server_says_its_timings() {
        let tail = br#"data: {"choices":[],"usage":{"prompt_tokens":50,"completion_tokens":9},"timings":{"cache_n":30,
            "prompt_n":20,"prompt_ms":100.5,"prompt_per_second":199.0,"predicted_n":9,"predicted_ms":300.0}}

            data: [DONE]"#;
        let expected = [None, None, Some(20.0), Some(0.1005), Some(9.0), Some(0.3)];
        assert_eq!(numbers(Said::read(tail)), expected);
    }

    #[test]
    fn what_a_model_says_is_not_taken_for_a_duration() {
        let words = br#"{"response":"\"total_duration\":1,\"usage\":{\"prompt_tokens\":5}","done":false}"#;
        assert_eq!(Said::read(words), Said::default());
        let last = br#"{"arguments":{"total_duration":1,"eval_count":9}}]},"done":true,"total_duration":2000000000}"#;
        assert_eq!(Said::read(last), Said { total: Some(2.0), ..Said::default() });
        for broken in
            [&b"\"total_duration\":"[..], b"\"usage\":{", b"\"timings\":{\"prompt_n\":", b"", b"\xff\"usage\":{}"]
        {
            assert_eq!(Said::read(broken), Said::default());
        }
    }
}
