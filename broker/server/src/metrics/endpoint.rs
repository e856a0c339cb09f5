//! The door to the figures: HTTP/1.1, `GET /metrics` and nothing else.
//!
//! A thread of its own with a runtime of its own, so that nobody who reads figures, or pretends to,
//! holds up the network. On a loopback address it speaks plain HTTP: whoever is on the machine may
//! read. On any other it demands mutual TLS, with the certificates of the broker itself, and an
//! administrator at the other end. A connection carries one request, so that a certificate counts
//! for one answer only.

mod turns;

use std::convert::Infallible;
use std::future::ready;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::turns::Turns;
use super::gather;
use crate::broker::Broker;
use crate::config::{Config, TlsFiles};
use crate::credentials::Credentials;
use crate::limits::{
    METRICS_ACCEPT_PAUSE, METRICS_HANDSHAKE_TIMEOUT, METRICS_HEADER_BYTES, METRICS_HEADER_TIMEOUT,
    METRICS_HEADERS, METRICS_TIMEOUT,
};
use crate::tls::{self, TlsError};

/// Where the figures are.
const PATH: &str = "/metrics";
/// What they are.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What everything else is.
const PLAIN: &str = "text/plain; charset=utf-8";

/// Why metrics cannot be served. The broker does not start then.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr} for metrics: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// Elsewhere than on the machine itself only administrators may read, and there are none.
    #[error(
        "metrics on {addr} are for administrators, and the configuration names none: name one \
         under `admins`, or listen on 127.0.0.1"
    )]
    NoReader {
        /// The address.
        addr: SocketAddr,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The system has no thread to give.
    #[error("no thread for metrics: {0}")]
    Thread(#[source] io::Error),
}

/// An address that is bound, and not served yet.
pub(crate) struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
    tls: Option<Tls>,
}

impl Listener {
    /// Binds the address that the configuration names; none if it names none. Blocking, for a
    /// moment: reads certificates.
    pub(crate) fn bind(config: &Config) -> Result<Option<Self>, MetricsError> {
        let Some(metrics) = &config.metrics else {
            return Ok(None);
        };
        let addr = metrics.listen;
        let tls = match addr.ip().is_loopback() {
            true => None,
            false if config.admins.is_empty() => return Err(MetricsError::NoReader { addr }),
            false => Some(Tls::first(&config.tls)?),
        };
        let listening = |source| MetricsError::Listen { addr, source };
        let socket = TcpListener::bind(addr).map_err(listening)?;
        socket.set_nonblocking(true).map_err(listening)?;
        let addr = socket.local_addr().map_err(listening)?;
        Ok(Some(Self { socket, addr, tls }))
    }

    /// Serves until the endpoint is stopped or dropped.
    pub(crate) fn serve(self, broker: Arc<Broker>) -> Result<Endpoint, MetricsError> {
        let Self { socket, addr, tls } = self;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(MetricsError::Thread)?;
        let (stop, stopping) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("metrics".into())
            .spawn(move || runtime.block_on(accept(socket, tls, broker, stopping)))
            .map_err(MetricsError::Thread)?;
        tracing::info!(%addr, "metrics");
        Ok(Endpoint {
            addr,
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }
}

/// The side of TLS that waits for others, with the certificates that are in force.
struct Tls {
    acceptor: TlsAcceptor,
    generation: u64,
}

impl Tls {
    /// As of the broker's start. Blocking.
    fn first(files: &TlsFiles) -> Result<Self, TlsError> {
        Ok(Self {
            acceptor: acceptor(files)?,
            generation: 0,
        })
    }

    /// As of now. Blocking, for a moment, when others have come in force since the last time.
    fn now(&mut self, credentials: &Credentials) -> TlsAcceptor {
        let generation = credentials.generation();
        if self.generation != generation {
            self.generation = generation;
            match acceptor(&credentials.now().files) {
                Ok(acceptor) => self.acceptor = acceptor,
                Err(e) => tracing::error!("metrics stay with the certificates they had: {e}"),
            }
        }
        self.acceptor.clone()
    }
}

fn acceptor(files: &TlsFiles) -> Result<TlsAcceptor, TlsError> {
    let mut tls = tls::server_config(files)?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(tls)))
}

/// Metrics that are served. Dropping it ends that.
pub(crate) struct Endpoint {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Endpoint {
    /// The address it listens on.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends every answer where it is, and the thread.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let joined = tokio::task::spawn_blocking(move || thread.map(JoinHandle::join));
        if !matches!(joined.await, Ok(None | Some(Ok(())))) {
            tracing::error!("the thread of the metrics panicked");
        }
    }
}

/// Accepts until `stopping` says so, or whoever could say it is gone.
async fn accept(
    socket: TcpListener,
    mut tls: Option<Tls>,
    broker: Arc<Broker>,
    mut stopping: watch::Receiver<bool>,
) {
    let socket = match tokio::net::TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(e) => return tracing::error!("metrics are not served: {e}"),
    };
    let turns = Turns::default();
    let accepting = async {
        loop {
            let mut turn = turns.next().await;
            let (stream, from) = match socket.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!("a connection for metrics was not accepted: {e}");
                    tokio::time::sleep(METRICS_ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let tls = tls.as_mut().map(|tls| tls.now(&broker.credentials));
            // Who is on the machine has one address with everybody else there.
            if tls.is_some() && !turn.give(from.ip()) {
                tracing::info!(%from, "metrics are being read from that address often enough");
                continue;
            }
            let broker = Arc::clone(&broker);
            tokio::spawn(async move {
                let served = tokio::time::timeout(METRICS_TIMEOUT, serve(stream, tls, broker));
                match served.await {
                    Ok(Ok(())) => {}
                    Ok(Err(why)) => tracing::info!(%from, "metrics were not read: {why}"),
                    Err(_) => tracing::info!(%from, "metrics were not read in {METRICS_TIMEOUT:?}"),
                }
                drop(turn);
            });
        }
    };
    tokio::select! {
        () = accepting => {}
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}

/// One connection, to its end.
async fn serve(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    broker: Arc<Broker>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let Some(tls) = tls else {
        return Ok(converse(stream, broker, None).await?);
    };
    let stream = shake_hands(&tls, stream).await?;
    let (_, session) = stream.get_ref();
    let chain = session.peer_certificates().unwrap_or(&[]);
    // Again, with what is in force now: the handshake may have begun before.
    let refusal = match broker.credentials.verify(chain) {
        Ok(who) => {
            let allowed = broker.access.check_admin(&who, "metrics");
            allowed.err().map(|error| error.message)
        }
        Err(e) => Some(e.to_string()),
    };
    Ok(converse(stream, broker, refusal).await?)
}

/// The handshake, which whoever has no certificate does not get behind.
async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    tls: &TlsAcceptor,
    stream: S,
) -> io::Result<TlsStream<S>> {
    let shaken = tokio::time::timeout(METRICS_HANDSHAKE_TIMEOUT, tls.accept(stream));
    shaken.await.unwrap_or_else(|_| {
        let text = format!("no handshake in {METRICS_HANDSHAKE_TIMEOUT:?}");
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}

/// Reads a request and answers it; with `refusal`, if there is one.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    broker: Arc<Broker>,
    refusal: Option<String>,
) -> Result<(), hyper::Error> {
    let respond = service_fn(|request: Request<Incoming>| {
        let response = match &refusal {
            Some(why) => answer(StatusCode::FORBIDDEN, format!("{why}\n")),
            None => respond(&request, &broker),
        };
        ready(Ok::<_, Infallible>(response))
    });
    http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(METRICS_HEADER_BYTES)
        .max_headers(METRICS_HEADERS)
        .timer(TokioTimer::new())
        .header_read_timeout(METRICS_HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), respond)
        .await
}

fn respond(request: &Request<Incoming>, broker: &Arc<Broker>) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return answer(
            StatusCode::NOT_FOUND,
            format!("the metrics are at {PATH}\n"),
        );
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let text = "metrics can be read, and nothing else\n";
        let mut refused = answer(StatusCode::METHOD_NOT_ALLOWED, text.to_owned());
        let allowed = HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(ALLOW, allowed);
        return refused;
    }
    match gather::page(broker) {
        Ok(page) => {
            let mut page = answer(StatusCode::OK, page);
            let kind = HeaderValue::from_static(OPEN_METRICS);
            page.headers_mut().insert(CONTENT_TYPE, kind);
            page
        }
        Err(_) => {
            tracing::error!("a family of metrics is written as what it is not");
            let text = "the figures could not be put together; please report it\n";
            answer(StatusCode::INTERNAL_SERVER_ERROR, text.to_owned())
        }
    }
}

fn answer(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(PLAIN);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;
    use crate::tls::tests::good;

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_loses_the_connection_soon() {
        let dir = good();
        let tls = acceptor(&dir.files).unwrap();
        let (_client, server) = tokio::io::duplex(1 << 10);
        let begun = tokio::time::Instant::now();
        let e = shake_hands(&tls, server).await.unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        let took = begun.elapsed();
        let soon = METRICS_HANDSHAKE_TIMEOUT..METRICS_HEADER_TIMEOUT;
        assert!(soon.contains(&took), "{took:?}");
    }
}
