//! A registry of few words: what it answers is a function of the request; what it was asked is kept.

use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// First byte of a range.
    pub fn range_start(&self) -> usize {
        let range = self.header("range").and_then(|text| text.strip_prefix("bytes=")).unwrap_or("0-");
        range.split('-').next().and_then(|first| first.parse().ok()).unwrap_or(0)
    }
}

/// How a body comes.
#[derive(Debug, Clone)]
pub enum Body {
    Whole(Vec<u8>),
    /// The first bytes of it, then a reset.
    Reset(Vec<u8>, usize),
    /// The first bytes of it, then nothing.
    Stall(Vec<u8>, usize),
    /// Zeros, for as long as somebody reads; no length is said.
    Endless,
}

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Body,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: Body::Whole(body.into()) }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }
}

type Answer = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// Serves until it is dropped.
pub struct Mock {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Mock {
    pub async fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, record): (Answer, _) = (Arc::new(answer), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&answer), Arc::clone(&record)));
            }
        });
        Self { address, seen, task }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("no panic").clone()
    }

    /// How many requests have this in their path.
    pub fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path.contains(part)).count()
    }
}

async fn serve(stream: TcpStream, answer: Answer, record: Arc<Mutex<Vec<Seen>>>) {
    let _ = stream.set_nodelay(true);
    let mut stream = BufReader::new(stream);
    while let Some(seen) = read_request(&mut stream).await {
        record.lock().expect("no panic").push(seen.clone());
        let reply = answer(&seen);
        if !write_reply(&mut stream, &seen, reply).await {
            return;
        }
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    let mut words = lines.first()?.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let headers: Vec<_> = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut seen = Seen { method, path, headers, body: String::new() };
    if let Some(length) = seen.header("content-length").and_then(|text| text.parse().ok()) {
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        seen.body = String::from_utf8(body).ok()?;
    }
    Some(seen)
}

/// Whether the connection may go on.
async fn write_reply(stream: &mut BufReader<TcpStream>, seen: &Seen, reply: Reply) -> bool {
    let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let length = match &reply.body {
        Body::Whole(bytes) | Body::Reset(bytes, _) | Body::Stall(bytes, _) => Some(bytes.len()),
        Body::Endless => None,
    };
    if let Some(length) = length {
        head += &format!("content-length: {length}\r\n");
    }
    head += "\r\n";
    if stream.write_all(head.as_bytes()).await.is_err() || seen.method == "HEAD" {
        return seen.method == "HEAD";
    }
    match reply.body {
        Body::Whole(bytes) => stream.write_all(&bytes).await.is_ok(),
        Body::Reset(bytes, count) => {
            let _ = stream.write_all(&bytes[..count.min(bytes.len())]).await;
            let _ = stream.get_ref().set_zero_linger();
            false
        }
        Body::Stall(bytes, count) => {
            let _ = stream.write_all(&bytes[..count.min(bytes.len())]).await;
            let mut nothing = [0];
            let _ = stream.read(&mut nothing).await;
            false
        }
        Body::Endless => {
            while stream.write_all(&[0; 16384]).await.is_ok() {}
            false
        }
    }
}

/// Whether somebody listens there.
pub fn listens(address: SocketAddr) -> bool {
    StdTcpStream::connect_timeout(&address, Duration::from_millis(100)).is_ok()
}
