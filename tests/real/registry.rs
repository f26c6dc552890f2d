//! As much of a registry as `ollama pull` needs: the manifest and the blobs of a model that an Ollama has on its disk, as
//! slowly as a network brings them.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes sent at once, and the pause after them: some 40 MB a second on each connection.
const PIECE: usize = 2 * 1024 * 1024;
const PAUSE: Duration = Duration::from_millis(50);

/// Serves the model `smollm2` of these models, until the process ends.
pub fn serve(models: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let models = models.clone();
            // A client that goes away ends its thread with an error.
            std::thread::spawn(move || while answer(&stream, &models).is_ok_and(|()| true) {});
        }
    });
    address
}

fn answer(stream: &TcpStream, models: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut first = String::new();
    let mut range = None;
    if reader.read_line(&mut first)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some((from, to)) = line.strip_prefix("range: bytes=").and_then(|range| range.split_once('-')) {
            range = Some((from.parse::<u64>().unwrap(), to.parse::<u64>().ok()));
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let file = match path.rsplit_once('/') {
        Some(("/v2/library/m/manifests", "latest")) => {
            models.join("manifests/registry.ollama.ai/library/smollm2/latest")
        }
        // The blobs are at another host, as with the registry of Ollama, or `ollama` would not take them.
        Some(("/v2/library/m/blobs", digest)) if method == "GET" => {
            let at = format!("http://localhost:{}/blobs/{digest}", stream.local_addr()?.port());
            let mut stream = stream;
            return write!(stream, "HTTP/1.1 307 Elsewhere\r\nLocation: {at}\r\nContent-Length: 0\r\n\r\n");
        }
        Some(("/v2/library/m/blobs" | "/blobs", digest)) => models.join("blobs").join(digest.replace(':', "-")),
        _ => PathBuf::new(),
    };
    let mut stream = stream;
    let Ok(mut file) = File::open(file) else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let whole = file.metadata()?.len();
    let (from, to) = range.map_or((0, whole), |(from, to)| (from, to.map_or(whole, |to| (to + 1).min(whole))));
    let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n", to - from)?;
    write!(stream, "Content-Range: bytes {from}-{}/{whole}\r\n\r\n", to.saturating_sub(1))?;
    if method == "HEAD" {
        return Ok(());
    }
    file.seek(SeekFrom::Start(from))?;
    let mut rest = file.take(to - from);
    let mut piece = vec![0; PIECE];
    loop {
        match rest.read(&mut piece)? {
            0 => return Ok(()),
            read => stream.write_all(&piece[..read])?,
        }
        std::thread::sleep(PAUSE);
    }
}
