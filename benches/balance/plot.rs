//! Curves as an image: which share of the requests had its first token after how long.
//!
//! Time is on a logarithmic axis. The share is on one of nines (0, 90, 99, 99.9 % are equally far apart), since the tail is
//! what policies differ in.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 240.0;
const TOP: f64 = 46.0;
const BOTTOM: f64 = 54.0;
/// Powers of ten, in seconds.
const DECADES: (i32, i32) = (-2, 3);
/// Nines that fit on the axis.
const NINES: f64 = 3.0;
const TICKS: [f64; 7] = [0.0, 0.5, 0.9, 0.95, 0.99, 0.995, 0.999];
const COLOURS: [&str; 6] = ["#000000", "#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd"];

/// One curve.
pub struct Curve {
    pub name: String,
    /// Sorted.
    pub seconds: Vec<f64>,
}

/// Writes the image.
pub fn draw(path: &Path, title: &str, curves: &[Curve]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, svg(title, curves).expect("memory"))
}

fn svg(title: &str, curves: &[Curve]) -> Result<String, std::fmt::Error> {
    let mut svg = String::new();
    let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="white"/>
<text x="{LEFT}" y="24" font-size="16">{}</text>
<text x="{}" y="{}" text-anchor="middle">seconds to the first token</text>"#,
        escaped(title),
        (LEFT + right) / 2.0,
        HEIGHT - 12.0,
    )?;
    for decade in DECADES.0..=DECADES.1 {
        let (at, label) = (x(10_f64.powi(decade)), 10_f64.powi(decade));
        writeln!(svg, r##"<path d="M{at:.1} {TOP}V{bottom}" stroke="#ddd"/>"##)?;
        writeln!(svg, r#"<text x="{at:.1}" y="{}" text-anchor="middle">{label}</text>"#, bottom + 20.0)?;
    }
    for share in TICKS {
        let at = y(share);
        writeln!(svg, r##"<path d="M{LEFT} {at:.1}H{right}" stroke="#ddd"/>"##)?;
        let label = format!("{} %", (share * 1000.0).round() / 10.0);
        writeln!(svg, r#"<text x="{}" y="{:.1}" text-anchor="end">{label}</text>"#, LEFT - 8.0, at + 4.0)?;
    }
    for (index, (curve, colour)) in curves.iter().zip(COLOURS.iter().cycle()).enumerate() {
        write!(svg, r#"<polyline fill="none" stroke="{colour}" stroke-width="2" points=""#)?;
        for (seconds, share) in thinned(&curve.seconds) {
            write!(svg, "{:.1},{:.1} ", x(seconds), y(share))?;
        }
        let at = TOP + 14.0 + 22.0 * index as f64;
        writeln!(svg, r#""/><path d="M{} {at}h24" stroke="{colour}" stroke-width="2"/>"#, right + 14.0)?;
        writeln!(svg, r#"<text x="{}" y="{}">{}</text>"#, right + 46.0, at + 4.0, escaped(&curve.name))?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// Some points of a curve, more of them in its tail.
fn thinned(sorted: &[f64]) -> Vec<(f64, f64)> {
    let count = sorted.len() as f64;
    let mut points = Vec::new();
    // Upwards is less.
    let mut last = f64::INFINITY;
    for (index, seconds) in sorted.iter().enumerate() {
        let share = index as f64 / count;
        if y(share) <= last - 0.5 {
            points.push((*seconds, share));
            last = y(share);
        }
    }
    points
}

fn x(seconds: f64) -> f64 {
    let (low, high) = (f64::from(DECADES.0), f64::from(DECADES.1));
    let part = (seconds.max(1e-9).log10().clamp(low, high) - low) / (high - low);
    LEFT + part * (WIDTH - RIGHT - LEFT)
}

fn y(share: f64) -> f64 {
    let nines = -(1.0 - share).max(1e-9).log10();
    HEIGHT - BOTTOM - nines.min(NINES) / NINES * (HEIGHT - BOTTOM - TOP)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
