//! What is printed for people and for programs.

use std::io::{self, Write as _};

use serde::Serialize;

use super::Failure;

/// A narrower terminal breaks lines itself.
const NARROWEST: usize = 40;

/// Prints to stdout. That nobody reads on (`ollana peers | head -1`) is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints a value as indented JSON and a line end.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(error.to_string()))?;
    print(&format!("{text}\n"))
}

/// A text that a stranger may have chosen, without what could move the cursor, colour the screen or turn the writing
/// direction.
pub(super) fn shown(text: &str) -> String {
    let deceives = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if deceives(c) { '\u{fffd}' } else { c }).collect()
}

/// Columns of the terminal that is written to; nothing where a program or a file reads on.
pub(super) fn columns() -> Option<usize> {
    let out = rustix::stdio::stdout();
    let columns = rustix::termios::tcgetwinsize(out).ok()?.ws_col;
    (columns > 0).then(|| usize::from(columns).max(NARROWEST))
}

/// Breaks a text between words where a line would be longer than the terminal; what follows begins below `indent` spaces.
/// The first line begins there already.
pub(super) fn wrapped(text: &str, indent: usize, columns: Option<usize>) -> String {
    let Some(columns) = columns else { return text.to_owned() };
    let mut lines = String::new();
    let mut used = indent;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > indent && used + 1 + length > columns {
            lines += &format!("\n{:indent$}", "");
            used = indent;
        } else if used > indent {
            lines.push(' ');
            used += 1;
        }
        lines += word;
        used += length;
    }
    lines
}

/// Rows of text in columns.
pub(super) struct Table {
    /// Whether the column holds numbers, which stand to the right.
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these heads; one that begins with `>` is of a column of numbers.
    pub(super) fn new(heads: &[&str]) -> Self {
        let rows = vec![heads.iter().map(|head| head.trim_start_matches('>').to_owned()).collect()];
        Self { right: heads.iter().map(|head| head.starts_with('>')).collect(), rows }
    }

    /// A table without heads, all columns to the left.
    pub(super) fn plain() -> Self {
        Self { right: Vec::new(), rows: Vec::new() }
    }

    /// Adds a row. An empty cell is shown as a dash under a head.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        let dash = !self.right.is_empty();
        let cell = |cell: String| if dash && cell.is_empty() { "-".to_owned() } else { shown(&cell) };
        self.rows.push(cells.into_iter().map(cell).collect());
    }

    /// The table as text, two spaces between columns and none at a line's end.
    pub(super) fn render(&self) -> String {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            for (i, cell) in row.iter().enumerate() {
                let width = cell.chars().count();
                match widths.get_mut(i) {
                    Some(widest) => *widest = width.max(*widest),
                    None => widths.push(width),
                }
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (i, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let gap = if i > 0 { "  " } else { "" };
                if self.right.get(i).copied().unwrap_or(false) {
                    line += &format!("{gap}{cell:>width$}");
                } else {
                    line += &format!("{gap}{cell:<width$}");
                }
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_stand_to_the_right() {
        let mut table = Table::new(&["NAME", ">MODELS", "ADDRESS"]);
        table.row(["gpu1".to_owned(), "3".to_owned(), String::new()]);
        table.row(["a-longer-name".to_owned(), "12".to_owned(), "10.0.0.1:11435".to_owned()]);
        assert_eq!(
            table.render(),
            "NAME           MODELS  ADDRESS\ngpu1                3  -\na-longer-name      12  10.0.0.1:11435\n"
        );
    }

    #[test]
    fn long_lines_are_wrapped_at_the_terminals_width_only() {
        let text = "port 11434 is used by python3";
        assert_eq!(wrapped(text, 4, Some(20)), "port 11434 is\n    used by python3");
        assert_eq!(wrapped("averyveryverylongword and", 2, Some(10)), "averyveryverylongword\n  and");
        assert_eq!(wrapped(text, 4, None), text);
    }

    #[test]
    fn a_strangers_text_cannot_drive_the_terminal() {
        assert_eq!(shown("a\x1b[2Jb\u{202e}c\n"), "a\u{fffd}[2Jb\u{fffd}c\u{fffd}");
    }
}
