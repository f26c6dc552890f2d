//! Medians and ratios, as a table, as JSON and as an image.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::rows::{Figure, Row, quantile};
use super::systems::Kind;

const PANEL: (f64, f64) = (430.0, 138.0);
const BAR: f64 = 18.0;
const LABEL: f64 = 70.0;
const NUMBER: f64 = 70.0;
const COLUMNS: usize = 3;

/// Where it was measured and how.
pub struct Setting {
    pub machine: String,
    pub lines: Vec<String>,
}

/// What was measured: of each row and system one list of figures a round.
pub struct Results {
    rows: Vec<&'static Row>,
    kinds: Vec<Kind>,
    figures: BTreeMap<(usize, Kind), Vec<Vec<f64>>>,
    invalid: BTreeMap<(usize, Kind), Vec<String>>,
}

// === impl Setting ===

impl Setting {
    pub fn here(lines: Vec<String>) -> Self {
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let model = model.map_or("unknown processor", |(_, name)| name.trim());
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let said = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().ok()?;
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            (output.status.success() && !text.is_empty()).then_some(text)
        };
        let kernel = said("uname", &["-sr"]).unwrap_or_default();
        let date = said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]).unwrap_or_default();
        let commit = said("git", &["describe", "--always", "--dirty"]).unwrap_or_else(|| "unknown".to_owned());
        Self { machine: format!("{date}, commit {commit}, {cores} cores of {model}, {kernel}"), lines }
    }
}

// === impl Results ===

impl Results {
    pub fn new(rows: Vec<&'static Row>, kinds: Vec<Kind>) -> Self {
        Self { rows, kinds, figures: BTreeMap::new(), invalid: BTreeMap::new() }
    }

    pub fn note(&mut self, row: usize, kind: Kind, measured: Result<Vec<f64>, String>) {
        match measured {
            Ok(figures) => self.figures.entry((row, kind)).or_default().push(figures),
            Err(error) => self.invalid.entry((row, kind)).or_default().push(error),
        }
    }

    /// Whether every row of every system could be measured.
    pub fn is_valid(&self) -> bool {
        self.invalid.is_empty()
    }

    /// The median over the rounds; nothing if one of them was invalid or there is no such figure.
    pub fn median(&self, row: usize, figure: usize, kind: Kind) -> Option<f64> {
        if self.invalid.contains_key(&(row, kind)) {
            return None;
        }
        let values: Vec<f64> = self.figures.get(&(row, kind))?.iter().map(|figures| figures[figure]).collect();
        Some(quantile(&values, 0.5)).filter(|value| value.is_finite())
    }

    fn each(&self) -> impl Iterator<Item = (usize, usize, &'static Row, &'static Figure)> {
        let numbered = self.rows.iter().enumerate();
        numbered.flat_map(|(row, of)| of.figures.iter().enumerate().map(move |(figure, is)| (row, figure, *of, is)))
    }

    pub fn table(&self, setting: &Setting) -> String {
        let mut text = format!("{}\n", setting.machine);
        for line in &setting.lines {
            let _ = writeln!(text, "{line}");
        }
        let ratios: Vec<Kind> = [Kind::Nginx, Kind::Haproxy, Kind::Trial]
            .into_iter()
            .filter(|kind| self.kinds.contains(kind) && self.kinds.contains(&Kind::Ollana))
            .collect();
        let _ = write!(text, "\n| {:<54} | {:<20} |", "", "");
        for kind in &self.kinds {
            let _ = write!(text, " {:>8} |", kind.name());
        }
        for kind in &ratios {
            let _ = write!(text, " {:>9} |", format!("/ {}", kind.name()));
        }
        let _ = write!(text, "\n|{0:-<56}|{0:-<22}|", "");
        for _ in &self.kinds {
            let _ = write!(text, "{:->10}|", ":");
        }
        for _ in &ratios {
            let _ = write!(text, "{:->11}|", ":");
        }
        text.push('\n');
        for (row, figure, _, is) in self.each() {
            let _ = write!(text, "| {:<54} | {:<20} |", is.name, is.unit);
            for kind in &self.kinds {
                let shown = match self.median(row, figure, *kind) {
                    _ if self.invalid.contains_key(&(row, *kind)) => "invalid".to_owned(),
                    Some(value) => number(value),
                    None => "–".to_owned(),
                };
                let _ = write!(text, " {shown:>8} |");
            }
            for kind in &ratios {
                let ours = self.median(row, figure, Kind::Ollana);
                let ratio = ours.zip(self.median(row, figure, *kind)).map(|(ours, theirs)| ours / theirs);
                let shown =
                    ratio.filter(|ratio| ratio.is_finite()).map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
                let _ = write!(text, " {shown:>9} |");
            }
            text.push('\n');
        }
        for ((row, kind), errors) in &self.invalid {
            let _ = writeln!(text, "invalid: {} of {}: {}", self.rows[*row].name, kind.name(), errors.join("; "));
        }
        text
    }

    /// All values of all rounds, not only their medians.
    pub fn json(&self, setting: &Setting) -> Value {
        let figures = self.each().map(|(row, figure, of, is)| {
            let values = self.kinds.iter().map(|kind| {
                let rounds = self.figures.get(&(row, *kind)).into_iter().flatten();
                let values: Vec<Option<f64>> = rounds.map(|all| Some(all[figure]).filter(|v| v.is_finite())).collect();
                let median = self.median(row, figure, *kind);
                let invalid = self.invalid.get(&(row, *kind));
                (kind.name().to_owned(), json!({ "median": median, "rounds": values, "invalid": invalid }))
            });
            json!({
                "row": of.name, "figure": is.name, "unit": is.unit, "more_is_better": is.more_is_better(),
                "systems": values.collect::<serde_json::Map<_, _>>(),
            })
        });
        json!({ "machine": setting.machine, "setting": setting.lines, "figures": figures.collect::<Vec<_>>() })
    }

    pub fn svg(&self, setting: &Setting) -> String {
        let panels: Vec<_> = self
            .each()
            .filter(|(row, figure, ..)| self.kinds.iter().any(|kind| self.median(*row, *figure, *kind).is_some()))
            .collect();
        let height = 50.0 + panels.len().div_ceil(COLUMNS) as f64 * PANEL.1;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"10\" y=\"24\" font-size=\"14\">{}</text>\n",
            PANEL.0 * COLUMNS as f64,
            escaped(&setting.machine)
        );
        for (nth, (row, figure, _, is)) in panels.into_iter().enumerate() {
            let (left, top) = ((nth % COLUMNS) as f64 * PANEL.0 + 10.0, 50.0 + (nth / COLUMNS) as f64 * PANEL.1);
            let better = if is.more_is_better() { "more is better" } else { "less is better" };
            let title = escaped(&format!("{}, {} ({better})", is.name, is.unit));
            let _ = writeln!(svg, "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{title}</text>", top + 12.0);
            let values: Vec<_> = self.kinds.iter().map(|kind| (kind, self.median(row, figure, *kind))).collect();
            let most = values.iter().filter_map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
            for (place, (kind, value)) in values.into_iter().enumerate() {
                let y = top + 20.0 + place as f64 * (BAR + 3.0);
                let width = value.unwrap_or(0.0) / most * (PANEL.0 - LABEL - NUMBER - 20.0);
                let _ = writeln!(
                    svg,
                    "<text x=\"{left}\" y=\"{:.1}\">{}</text><rect x=\"{:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
                     height=\"{BAR}\" fill=\"{}\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    y + 13.0,
                    kind.name(),
                    left + LABEL,
                    colour(*kind),
                    left + LABEL + width + 6.0,
                    y + 13.0,
                    value.map_or("–".to_owned(), number),
                );
            }
        }
        svg.push_str("</svg>\n");
        svg
    }
}

const fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Direct => "#bbbbbb",
        Kind::Nginx => "#2ca02c",
        Kind::Haproxy => "#1f77b4",
        Kind::Trial => "#9467bd",
        Kind::Ollana => "#d62728",
    }
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
