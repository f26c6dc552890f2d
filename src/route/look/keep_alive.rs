//! How long a request wants its model to stay: only whether it wants it gone.

/// What is known of the top level's `keep_alive`.
#[derive(Debug, Default)]
pub(super) struct KeepAlive {
    zero: bool,
    /// Of a number under way: whether a digit before the exponent was not 0.
    something: bool,
    exponent: bool,
}

// === impl KeepAlive ===

impl KeepAlive {
    /// The key was read.
    pub(super) fn begin(&mut self) {
        *self = Self::default();
    }

    /// Whether it says zero, as Ollama's `api.Duration` reads numbers and texts. (Fractions of a nanosecond, which are
    /// nothing to it as well, count as something here.)
    pub(super) fn is_zero(&self) -> bool {
        self.zero
    }

    /// A byte between strings; of a number, its digits matter.
    pub(super) fn digit(&mut self, byte: u8) {
        match byte {
            b'e' | b'E' => self.exponent = true,
            b'1'..=b'9' => self.something |= !self.exponent,
            _ => {}
        }
    }

    /// The value turned out to be a number. (A negative zero is a zero.)
    pub(super) fn number(&mut self) {
        self.zero = !self.something;
    }

    /// The value is a text, such as `"0"`, `"-0s"` or `"0h0.0m"`; nothing if it was too long to be any.
    pub(super) fn string(&mut self, text: Option<&str>) {
        let text = text.unwrap_or_default();
        let number = text.strip_prefix(['-', '+']).unwrap_or(text);
        let of_zeros = number.contains('0') && number.chars().all(|c| "0.hmnsu\u{b5}\u{3bc}".contains(c));
        self.zero = number == "0" || of_zeros && !number.ends_with(['0', '.']);
    }
}
