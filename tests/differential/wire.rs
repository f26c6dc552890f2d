//! An application that speaks in raw bytes, and keeps what it hears byte by byte: nothing between it and the socket
//! could make two servers look alike.

use std::fmt;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// An answer that does not come is a finding, and is reported as one.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a server that owes nothing is listened to, where its silence is what is to be seen.
const QUIET: Duration = Duration::from_millis(400);

/// What one application does on one connection.
#[derive(Debug, Clone, Default)]
pub struct Script {
    pub steps: Vec<Step>,
    /// For each request whether it is a `HEAD`, whose answer has no body whatever it says.
    pub heads: Vec<bool>,
    pub after: After,
}

#[derive(Debug, Clone)]
pub enum Step {
    Send(Vec<u8>),
    /// Reads until all answers to the first `usize` requests are there.
    Answers(usize),
    /// Reads an interim answer; if a final one comes instead, the rest is not said.
    Continue,
    /// Says no more, and still listens.
    HalfClose,
}

/// How it is found out what the server does with the connection after the last answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum After {
    /// One more request is made: it is answered or it is not.
    #[default]
    Ask,
    /// The server is listened to only: what it was sent is not complete.
    Listen,
}

/// All that was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transcript {
    pub answers: Vec<Answer>,
    pub end: End,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub interim: Vec<String>,
    pub status: String,
    /// As they stand there: name, value.
    pub headers: Vec<(String, String)>,
    pub framing: Framing,
    /// The chunks, or all in one piece.
    pub pieces: Vec<Piece>,
    pub trailers: Vec<(String, String)>,
    /// Whether it came to its end.
    pub whole: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    None,
    Length,
    Chunked,
    Close,
}

#[derive(Debug, Clone)]
pub struct Piece {
    pub bytes: Vec<u8>,
    /// Since the first byte of its answer.
    pub at: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The next request was answered.
    KeptAlive,
    Closed,
    Reset,
    /// Neither closed nor answered.
    Silent,
    /// What came was no HTTP.
    Garbled(String),
}

// === impl Script ===

impl Script {
    /// Requests one behind the other, without waiting for an answer.
    pub fn pipelined(requests: &[Vec<u8>]) -> Self {
        let heads = requests.iter().map(|request| request.starts_with(b"HEAD ")).collect();
        Self { steps: vec![Step::Send(requests.concat())], heads, after: After::Ask }
    }

    pub fn one(request: impl Into<Vec<u8>>) -> Self {
        Self::pipelined(&[request.into()])
    }

    /// Requests one after the other, each when the answer to the one before is there.
    pub fn in_turn(requests: &[Vec<u8>]) -> Self {
        let mut script = Self::pipelined(requests);
        script.steps = requests
            .iter()
            .enumerate()
            .flat_map(|(i, request)| [Step::Send(request.clone()), Step::Answers(i + 1)])
            .collect();
        script
    }

    /// One request of which the rest is said when the server has said something.
    pub fn hesitant(head: impl Into<Vec<u8>>, body: impl Into<Vec<u8>>) -> Self {
        let mut script = Self::one(head);
        script.steps.extend([Step::Continue, Step::Send(body.into())]);
        script
    }

    pub fn then_listen(mut self) -> Self {
        self.after = After::Listen;
        self
    }

    /// Does it all, and hears it all.
    pub fn play(&self, at: SocketAddr) -> Transcript {
        let stream = TcpStream::connect(at).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut ear = Ear::new(&stream);
        let mut transcript = Transcript { answers: Vec::new(), end: End::Silent };
        let heard = self.converse(&stream, &mut ear, &mut transcript);
        transcript.end = match heard {
            Ok(()) => self.end(&stream, &mut ear, &transcript),
            Err(end) => end,
        };
        let _ = stream.shutdown(Shutdown::Both);
        transcript
    }

    /// What there is to hear where the server says this, and closes.
    pub fn hears(&self, said: &[u8]) -> Transcript {
        let (sender, heard) = channel();
        let _ = sender.send(Heard::Bytes(Instant::now(), said.to_vec()));
        let _ = sender.send(Heard::End(End::Closed));
        let mut ear = Ear { heard, buffer: Vec::new(), at: Instant::now(), patience: PATIENCE };
        let mut transcript = Transcript { answers: Vec::new(), end: End::Silent };
        let mut interim = Vec::new();
        transcript.end = self.hear_one(&mut ear, &mut transcript, &mut interim).err().unwrap_or(End::Closed);
        transcript
    }

    fn converse(&self, mut stream: &TcpStream, ear: &mut Ear, transcript: &mut Transcript) -> Result<(), End> {
        let mut interim = Vec::new();
        for step in &self.steps {
            match step {
                // A server that has said all it wants to may have closed: what it said is heard all the same.
                Step::Send(bytes) => drop(stream.write_all(bytes)),
                Step::HalfClose => drop(stream.shutdown(Shutdown::Write)),
                Step::Answers(count) => {
                    while transcript.answers.len() < *count {
                        self.hear_one(ear, transcript, &mut interim)?;
                    }
                }
                Step::Continue => {
                    let head = ear.head()?;
                    if head.starts_with("HTTP/1.1 1") || head.starts_with("HTTP/1.0 1") {
                        interim.push(head);
                    } else {
                        let is_head = self.is_head(transcript);
                        ear.answer(head, std::mem::take(&mut interim), is_head, &mut transcript.answers)?;
                        return Ok(());
                    }
                }
            }
        }
        while transcript.answers.len() < self.heads.len() {
            self.hear_one(ear, transcript, &mut interim)?;
        }
        Ok(())
    }

    fn is_head(&self, transcript: &Transcript) -> bool {
        self.heads.get(transcript.answers.len()).copied().unwrap_or_default()
    }

    fn hear_one(&self, ear: &mut Ear, transcript: &mut Transcript, interim: &mut Vec<String>) -> Result<(), End> {
        loop {
            let head = ear.head()?;
            if head.starts_with("HTTP/1.1 1") || head.starts_with("HTTP/1.0 1") {
                interim.push(head);
                continue;
            }
            let is_head = self.is_head(transcript);
            return ear.answer(head, std::mem::take(interim), is_head, &mut transcript.answers);
        }
    }

    fn end(&self, mut stream: &TcpStream, ear: &mut Ear, transcript: &Transcript) -> End {
        let closes = transcript.answers.last().is_some_and(|last| {
            let says = |token| last.values("connection").any(|value| value.eq_ignore_ascii_case(token));
            says("close") || (last.status.starts_with("HTTP/1.0") && !says("keep-alive"))
        });
        if self.after == After::Listen || closes {
            ear.patience = if closes { PATIENCE } else { QUIET };
            return match ear.byte() {
                Ok(byte) => End::Garbled(format!("{:?} behind the last answer", char::from(byte))),
                Err(end) => end,
            };
        }
        let _ = stream.write_all(b"HEAD / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        match ear.head() {
            Ok(head) if head.starts_with("HTTP/1.1 200 OK\r\n") => End::KeptAlive,
            Ok(head) => End::Garbled(format!("the next request was answered: {head}")),
            // Whether it was closed before we wrote, or with what we wrote unread, is a race that the server cannot help.
            Err(End::Reset) => End::Closed,
            Err(end) => end,
        }
    }
}

// === impl Answer ===

impl Answer {
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.headers.iter().filter(move |(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn body(&self) -> Vec<u8> {
        self.pieces.iter().flat_map(|piece| piece.bytes.iter().copied()).collect()
    }
}

// === impl Piece ===

impl PartialEq for Piece {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Piece {}

/// What comes in, with its moment, from a thread that does nothing but read.
struct Ear {
    heard: Receiver<Heard>,
    buffer: Vec<u8>,
    at: Instant,
    patience: Duration,
}

enum Heard {
    Bytes(Instant, Vec<u8>),
    End(End),
}

// === impl Ear ===

impl Ear {
    fn new(stream: &TcpStream) -> Self {
        let mut stream = stream.try_clone().unwrap();
        let (sender, heard) = channel();
        // Ends with the connection, which `play` shuts down.
        std::thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            loop {
                let said = match stream.read(&mut buffer) {
                    Ok(0) => Heard::End(End::Closed),
                    Ok(n) => Heard::Bytes(Instant::now(), buffer[..n].to_vec()),
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(_) => Heard::End(End::Reset),
                };
                let over = matches!(said, Heard::End(_));
                if sender.send(said).is_err() || over {
                    return;
                }
            }
        });
        Self { heard, buffer: Vec::new(), at: Instant::now(), patience: PATIENCE }
    }

    fn fill(&mut self) -> Result<(), End> {
        match self.heard.recv_timeout(self.patience) {
            Ok(Heard::Bytes(at, bytes)) => {
                self.at = at;
                self.buffer.extend(bytes);
                Ok(())
            }
            Ok(Heard::End(end)) => Err(end),
            Err(RecvTimeoutError::Timeout) => Err(End::Silent),
            Err(RecvTimeoutError::Disconnected) => Err(End::Closed),
        }
    }

    fn byte(&mut self) -> Result<u8, End> {
        while self.buffer.is_empty() {
            self.fill()?;
        }
        Ok(self.buffer[0])
    }

    /// Up to and with `mark`.
    fn until(&mut self, mark: &[u8]) -> Result<Vec<u8>, End> {
        let mut from = 0;
        loop {
            let found = self.buffer[from..].windows(mark.len()).position(|window| window == mark);
            if let Some(found) = found {
                return Ok(self.buffer.drain(..from + found + mark.len()).collect());
            }
            from = self.buffer.len().saturating_sub(mark.len());
            self.fill().map_err(|end| self.in_the_middle(end))?;
        }
    }

    fn in_the_middle(&self, end: End) -> End {
        if self.buffer.is_empty() { end } else { End::Garbled(format!("{end:?} after {:?}", lossy(&self.buffer))) }
    }

    fn head(&mut self) -> Result<String, End> {
        let head = self.until(b"\r\n\r\n")?;
        let head = lossy(&head);
        if head.starts_with("HTTP/1.") { Ok(head) } else { Err(End::Garbled(head)) }
    }

    fn exactly(&mut self, length: usize, into: &mut Vec<u8>) -> Result<(), End> {
        while into.len() < length {
            if self.buffer.is_empty() {
                self.fill()?;
            }
            let take = self.buffer.len().min(length - into.len());
            into.extend(self.buffer.drain(..take));
        }
        Ok(())
    }

    /// Reads what follows `head`. What of it came is kept in any case.
    fn answer(&mut self, head: String, interim: Vec<String>, is_head: bool, to: &mut Vec<Answer>) -> Result<(), End> {
        let (status, fields) = head.split_once("\r\n").unwrap();
        let headers = fields_of(fields);
        let mut answer = Answer {
            interim,
            status: status.to_owned(),
            headers,
            framing: Framing::None,
            pieces: Vec::new(),
            trailers: Vec::new(),
            whole: false,
        };
        let length = answer.values("content-length").next().map(|length| length.parse::<usize>());
        let chunked = answer.values("transfer-encoding").any(|coding| coding.eq_ignore_ascii_case("chunked"));
        let code = status.split(' ').nth(1).unwrap_or_default();
        answer.framing = match length {
            _ if is_head || code == "204" || code == "304" => Framing::None,
            _ if chunked => Framing::Chunked,
            Some(_) => Framing::Length,
            None => Framing::Close,
        };
        let begun = self.at;
        let read = match (answer.framing, length) {
            (Framing::None, _) => Ok(()),
            (Framing::Chunked, _) => self.chunks(begun, &mut answer),
            (_, Some(Ok(length))) => {
                let mut bytes = Vec::new();
                let read = self.exactly(length, &mut bytes);
                answer.pieces.push(Piece { bytes, at: self.at.saturating_duration_since(begun) });
                read
            }
            (_, Some(Err(_))) => Err(End::Garbled("a length that is no number".to_owned())),
            (_, None) => {
                let end = loop {
                    if let Err(end) = self.fill() {
                        break end;
                    }
                };
                let bytes = std::mem::take(&mut self.buffer);
                answer.pieces.push(Piece { bytes, at: Duration::ZERO });
                answer.whole = end == End::Closed;
                to.push(answer);
                return Err(end);
            }
        };
        answer.whole = read.is_ok();
        to.push(answer);
        read
    }

    fn chunks(&mut self, begun: Instant, answer: &mut Answer) -> Result<(), End> {
        loop {
            let line = self.until(b"\r\n")?;
            let line = lossy(&line);
            let size = usize::from_str_radix(line.trim(), 16).map_err(|_| End::Garbled(format!("chunk {line:?}")))?;
            if size == 0 {
                break;
            }
            let mut bytes = Vec::new();
            let read = self.exactly(size, &mut bytes);
            answer.pieces.push(Piece { bytes, at: self.at.saturating_duration_since(begun) });
            read?;
            if self.until(b"\r\n")?.len() != 2 {
                return Err(End::Garbled("a chunk longer than it says".to_owned()));
            }
        }
        let mut trailers = String::new();
        while !trailers.ends_with("\r\n\r\n") && trailers != "\r\n" {
            trailers.push_str(&lossy(&self.until(b"\r\n")?));
        }
        answer.trailers = fields_of(&trailers);
        Ok(())
    }
}

fn fields_of(fields: &str) -> Vec<(String, String)> {
    let lines = fields.split("\r\n").filter(|line| !line.is_empty());
    lines
        .map(|line| line.split_once(": ").unwrap_or((line, "(no colon)")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// One character a byte, so that nothing is lost.
pub fn lossy(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

// === to show ===

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            match step {
                Step::Send(bytes) => writeln!(f, "    > {}", shown(bytes))?,
                other => writeln!(f, "    > ({other:?})")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Transcript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for answer in &self.answers {
            for interim in &answer.interim {
                writeln!(f, "    {interim:?}")?;
            }
            writeln!(f, "    {}", answer.status)?;
            for (name, value) in answer.headers.iter().chain(&answer.trailers) {
                writeln!(f, "    {name}: {value}")?;
            }
            let whole = if answer.whole { "" } else { ", broken off" };
            writeln!(f, "    ({:?}, {} pieces{whole})", answer.framing, answer.pieces.len())?;
            for piece in &answer.pieces {
                writeln!(f, "      {}", shown(&piece.bytes))?;
            }
        }
        writeln!(f, "    ({:?})", self.end)
    }
}

/// As a string of Rust, cut where it is long.
fn shown(bytes: &[u8]) -> String {
    const MOST: usize = 200;
    let text = bytes.iter().take(MOST).flat_map(|byte| std::ascii::escape_default(*byte)).map(char::from);
    let text: String = text.collect();
    if bytes.len() > MOST { format!("{text}… ({} bytes)", bytes.len()) } else { text }
}
