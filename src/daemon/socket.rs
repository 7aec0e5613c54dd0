//! The unix socket: 0600, ours alone, and who may speak on it. Where systemd holds it (`cricket.socket`), it is taken
//! over as it is, and stays when the daemon goes.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::DaemonError;
use crate::sys;

/// Whose the sockets are that systemd hands over (sd_listen_fds(3)).
const LISTEN_PID: &str = "LISTEN_PID";

/// Clients at once; the next one waits until one of them goes.
const CONNECTIONS: usize = 256;

/// Clients that may wait to be accepted; the kernel takes less where `net.core.somaxconn` is.
const BACKLOG: i32 = 1024;

/// A client says its first word within this time, or gives its place to another.
const FIRST_WORD_TIMEOUT: Duration = Duration::from_secs(10);
/// The same while somebody waits for a place.
const FIRST_WORD_TIMEOUT_IN_A_CROWD: Duration = Duration::from_secs(1);
/// How often a silent client is looked at for that.
const GLANCE: Duration = Duration::from_millis(250);

/// Pause after accept failed, so that a lack of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bound and listening; removed when dropped, unless it is systemd's.
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    of_systemd: bool,
}

impl Socket {
    /// Binds. The lock of the root is held, but another root's daemon may have been given the same socket: a socket
    /// on which somebody answers is left alone.
    pub fn bind(path: &Path) -> Result<Self, DaemonError> {
        let wrong = |problem: String| DaemonError::Socket { path: path.to_owned(), problem };
        if let Some(listener) = handed_over(path).map_err(wrong)? {
            return Ok(Self { path: path.to_owned(), listener, of_systemd: true });
        }
        if is_left_over(path).map_err(wrong)? {
            fs::remove_file(path).map_err(|e| wrong(format!("is left over and cannot be removed: {e}")))?;
        }
        let listener = listen(path).map_err(|e| wrong(format!("cannot listen: {e}")))?;
        listener.set_nonblocking(true).map_err(|e| wrong(format!("cannot listen: {e}")))?;
        Ok(Self { path: path.to_owned(), listener, of_systemd: false })
    }

    /// The connections of those who may speak here. Called inside the tokio runtime.
    pub fn connections(&self) -> Result<impl Stream<Item = io::Result<Connection>> + Send + use<>, DaemonError> {
        let listener = self.listener.try_clone().and_then(tokio::net::UnixListener::from_std);
        let listener = listener.map_err(DaemonError::io("listening"))?;
        let places = Arc::new(Places::new(CONNECTIONS, [FIRST_WORD_TIMEOUT, FIRST_WORD_TIMEOUT_IN_A_CROWD]));
        Ok(futures_util::stream::unfold((listener, places), |(listener, places)| async move {
            let connection = accept(&listener, &places).await;
            Some((Ok(connection), (listener, places)))
        }))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.of_systemd {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Ours alone from its first moment: its file takes the mode that the socket has when it is bound, and no mask is
/// touched.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// The socket that systemd started us with (sd_listen_fds(3)), which has to be the one that clients are told of.
fn handed_over(path: &Path) -> Result<Option<UnixListener>, String> {
    let mut handed = sd_notify::listen_fds().map_err(|e| format!("cannot be taken over from systemd: {e}"))?;
    let Some(fd) = handed.next() else { return Ok(None) };
    if handed.next().is_some() {
        return Err("systemd handed over more than one socket: leave one ListenStream= in cricket.socket".to_owned());
    }
    let socket = sys::descriptors::inherited(fd).map_err(|e| format!("cannot be taken over from systemd: {e}"))?;
    let listener = UnixListener::from(socket);
    let address = listener.local_addr().map_err(|e| format!("what systemd handed over is no unix socket: {e}"))?;
    if address.as_pathname() != Some(path) {
        return Err(format!("systemd handed over {address:?}: name the same in cricket.socket and the configuration"));
    }
    listener.set_nonblocking(true).map_err(|e| format!("cannot listen: {e}"))?;
    Ok(Some(listener))
}

/// Whether systemd started this process with a socket. Nothing is taken over.
fn is_handed_over() -> bool {
    let of = std::env::var(LISTEN_PID).ok().and_then(|pid| pid.parse::<u32>().ok());
    of == Some(std::process::id())
}

/// Refuses a socket on which somebody answers, and what is no socket. Nothing is changed. On one that systemd hands
/// over it is systemd who listens.
pub fn refuse_taken(path: &Path) -> Result<(), DaemonError> {
    if is_handed_over() {
        return Ok(());
    }
    let looked = is_left_over(path).map(|_| ());
    looked.map_err(|problem| DaemonError::Socket { path: path.to_owned(), problem })
}

/// Whether a daemon that was killed left it behind; false where there is nothing.
fn is_left_over(path: &Path) -> Result<bool, String> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(format!("cannot be looked at: {e}")),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err("is there and is not a socket: move it away, or name another with --socket".to_owned());
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err("somebody listens there already: end it, or name another with --socket".to_owned()),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(e) => Err(format!("is there and does not answer: {e}")),
    }
}

/// For clients, and whether one more would like to have one.
struct Places {
    free: Arc<Semaphore>,
    is_crowded: AtomicBool,
    /// With silent clients, usually and in a crowd.
    patience: [Duration; 2],
}

impl Places {
    fn new(count: usize, patience: [Duration; 2]) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), is_crowded: AtomicBool::new(false), patience }
    }

    async fn take(&self) -> OwnedSemaphorePermit {
        // The last place makes a crowd too: the next client is seen only once there is a place for it.
        self.is_crowded.store(self.free.available_permits() <= 1, Ordering::Relaxed);
        let place = Arc::clone(&self.free).acquire_owned().await.expect("the semaphore is never closed");
        self.is_crowded.store(self.free.available_permits() == 0, Ordering::Relaxed);
        place
    }

    fn patience(&self) -> Duration {
        self.patience[usize::from(self.is_crowded.load(Ordering::Relaxed))]
    }
}

async fn accept(listener: &tokio::net::UnixListener, places: &Arc<Places>) -> Connection {
    loop {
        let place = places.take().await;
        match listener.accept().await {
            Ok((stream, _)) if may_speak(&stream) => return Connection::new(stream, place, Arc::clone(places)),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!("cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Only this user (in the node: its root) and root. Ids are seen through our user namespace, so a user who is not in
/// the node is never taken for one who is.
fn may_speak(stream: &tokio::net::UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == own || peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), pid = peer.pid(), "refused a client of another user");
            false
        }
        Err(error) => {
            tracing::warn!("refused a client: {error}");
            false
        }
    }
}

/// One client; its place is free when it goes.
pub struct Connection {
    stream: tokio::net::UnixStream,
    /// Until the client has said something.
    silence: Option<Silence>,
    _place: OwnedSemaphorePermit,
}

/// A client that has not said anything yet.
struct Silence {
    since: Instant,
    glance: Pin<Box<Sleep>>,
    places: Arc<Places>,
}

impl Silence {
    /// Ready when it has lasted too long.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.glance.as_mut().poll(cx).is_ready() {
            if self.since.elapsed() >= self.places.patience() {
                return Poll::Ready(());
            }
            self.glance.as_mut().reset(Instant::now() + GLANCE);
        }
        Poll::Pending
    }
}

impl Connection {
    fn new(stream: tokio::net::UnixStream, place: OwnedSemaphorePermit, places: Arc<Places>) -> Self {
        let glance = Box::pin(tokio::time::sleep(GLANCE));
        Self { stream, silence: Some(Silence { since: Instant::now(), glance, places }), _place: place }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &mut self.silence {
            Some(silence) if read.is_pending() => silence.poll_end(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
            _ => {
                self.silence = None;
                read
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("cricket-socket-{name}-{}.sock", std::process::id()))
    }

    #[test]
    fn a_socket_is_for_its_user_alone_and_goes_with_the_daemon() {
        let path = path("own");
        let socket = Socket::bind(&path).expect("bound");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(Socket::bind(&path).is_err(), "one that answers is left alone");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_left_over_is_replaced_and_another_file_is_not() {
        let path = path("stale");
        drop(UnixListener::bind(&path).expect("bound"));
        assert!(path.exists());
        drop(Socket::bind(&path).expect("replaced"));
        fs::write(&path, "not a socket").expect("written");
        assert!(Socket::bind(&path).is_err());
        assert!(path.exists());
        fs::remove_file(path).expect("removed");
    }

    /// Whether a client that says nothing is given up, while another waits.
    async fn gives_up(places: &Arc<Places>) {
        use tokio::io::AsyncReadExt;
        let (_speaks, place) = (places.take().await, places.take().await);
        let (_client, stream) = tokio::net::UnixStream::pair().expect("a pair");
        let mut connection = Connection::new(stream, place, Arc::clone(places));
        let silent = async move {
            let error = connection.read_u8().await.expect_err("nothing was said");
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        };
        let ((), _place) = tokio::join!(silent, places.take());
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_gives_its_place_to_another_and_in_a_crowd_soon() {
        let (never, soon) = (Duration::from_secs(3600), Duration::from_millis(1));
        gives_up(&Arc::new(Places::new(4, [soon, never]))).await;
        gives_up(&Arc::new(Places::new(2, [never, soon]))).await;
    }
}
