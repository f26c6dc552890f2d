//! As much of HTTP/1.1 as both ends of the measurement need: heads, lengths and chunks, with few system calls and copies.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use memchr::{memchr, memmem};
use tokio::net::TcpStream;

/// Enough for heads and tokens; a thousand of these are open at once.
pub const SMALL_BUFFER: usize = 16 * 1024;
pub const BULK_BUFFER: usize = 256 * 1024;

/// One end of a connection.
pub struct Wire {
    stream: Arc<TcpStream>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

/// The head of a request or an answer.
pub struct Head {
    pub first_line: String,
    length: Option<u64>,
    chunked: bool,
}

// === impl Wire ===

impl Wire {
    pub fn new(stream: TcpStream, buffer: usize) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream: Arc::new(stream), buffer: vec![0; buffer].into(), start: 0, end: 0 })
    }

    pub async fn connect(to: SocketAddr, buffer: usize) -> io::Result<Self> {
        Self::new(TcpStream::connect(to).await?, buffer)
    }

    /// For a thread that writes at its own times.
    pub fn stream(&self) -> Arc<TcpStream> {
        Arc::clone(&self.stream)
    }

    pub async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub async fn head(&mut self) -> io::Result<Head> {
        let length = self.until(b"\r\n\r\n").await?;
        let head = Head::parse(&self.buffer[self.start..self.start + length]);
        self.start += length;
        head
    }

    /// Reads the body that belongs to a head and hands out what it is made of; how long it was.
    pub async fn body(&mut self, head: &Head, mut sink: impl FnMut(&[u8])) -> io::Result<u64> {
        if !head.chunked {
            let length = head.length.unwrap_or(0);
            self.take(length, &mut sink).await?;
            return Ok(length);
        }
        let mut sum = 0;
        loop {
            let size = self.line(|line| {
                let text = std::str::from_utf8(line).ok()?;
                u64::from_str_radix(text.split(';').next()?.trim(), 16).ok()
            });
            let size = size.await?.ok_or_else(|| io::Error::other("no size of a chunk"))?;
            if size == 0 {
                // Trailers, perhaps.
                while !self.line(<[u8]>::is_empty).await? {}
                return Ok(sum);
            }
            self.take(size, &mut sink).await?;
            if !self.line(<[u8]>::is_empty).await? {
                return Err(io::Error::other("a chunk that does not end"));
            }
            sum += size;
        }
    }

    async fn line<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> io::Result<T> {
        let length = self.until(b"\r\n").await?;
        let value = read(&self.buffer[self.start..self.start + length - 2]);
        self.start += length;
        Ok(value)
    }

    async fn take(&mut self, length: u64, sink: &mut impl FnMut(&[u8])) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.start == self.end {
                self.fill().await?;
            }
            let now = usize::try_from(left).unwrap_or(usize::MAX).min(self.end - self.start);
            sink(&self.buffer[self.start..self.start + now]);
            self.start += now;
            left -= now as u64;
        }
        Ok(())
    }

    /// How much there is up to this mark and with it.
    async fn until(&mut self, mark: &[u8]) -> io::Result<usize> {
        loop {
            if let Some(at) = memmem::find(&self.buffer[self.start..self.end], mark) {
                return Ok(at + mark.len());
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            if self.start == 0 {
                return Err(io::Error::other("a head or a line too long"));
            }
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        loop {
            match self.stream.try_read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.end += read;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.stream.readable().await?,
                Err(error) => return Err(error),
            }
        }
    }
}

// === impl Head ===

impl Head {
    fn parse(mut bytes: &[u8]) -> io::Result<Self> {
        let mut head = Self { first_line: String::new(), length: None, chunked: false };
        while let Some(end) = memchr(b'\n', bytes) {
            let line = std::str::from_utf8(&bytes[..end]).map_err(io::Error::other)?.trim_end();
            bytes = &bytes[end + 1..];
            if head.first_line.is_empty() {
                line.clone_into(&mut head.first_line);
            } else if let Some((name, value)) = line.split_once(':') {
                if name.eq_ignore_ascii_case("content-length") {
                    head.length = Some(value.trim().parse().map_err(io::Error::other)?);
                } else if name.eq_ignore_ascii_case("transfer-encoding") {
                    head.chunked = value.trim().eq_ignore_ascii_case("chunked");
                }
            }
        }
        Ok(head)
    }

    /// The second word of the first line: the target of a request, the status of an answer.
    pub fn second(&self) -> &str {
        self.first_line.split(' ').nth(1).unwrap_or_default()
    }
}
