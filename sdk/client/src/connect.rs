//! The connection: one per client, shared by all its streams, made anew once for
//! all of them when it is lost.
//!
//! There is no session resumption and no 0-RTT: both would let a revoked
//! certificate live on.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::Shared;
use millstream_proto::message::StreamOpen;
use millstream_proto::version::{Hello, HelloOk};
use millstream_proto::{ErrorClass, Principal};
use quinn::{Connection, Endpoint, VarInt};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use crate::ambient::random_u64;
use crate::config::{Checked, ClientConfig, Target};
use crate::control::Control;
use crate::error::ConnectError;
use crate::liveness;
use crate::retry::Attempts;
use crate::stream::{self, StreamError};

/// How long [`Client::close`] waits for its goodbye to go out.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection to a broker. Cheap to clone; all clones share it.
///
/// Must be used inside a tokio runtime.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Inner>,
}

struct Inner {
    config: ClientConfig,
    checked: Checked,
    endpoints: Mutex<Endpoints>,
    state: Mutex<State>,
    closed: watch::Sender<bool>,
}

#[derive(Default)]
struct Endpoints {
    v4: Option<Endpoint>,
    v6: Option<Endpoint>,
}

type Dialing = Shared<oneshot::Receiver<Result<Arc<Link>, ConnectError>>>;

#[derive(Default)]
struct State {
    link: Option<Arc<Link>>,
    dialing: Option<Dialing>,
    principal: Option<Principal>,
    server: String,
}

/// One live connection with its control stream.
pub(crate) struct Link {
    pub(crate) connection: Connection,
    pub(crate) control: Control,
    hello: HelloOk,
    watch: AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        // The watch holds the connection, which would otherwise not end with us.
        self.watch.abort();
    }
}

impl Link {
    fn is_alive(&self) -> bool {
        self.connection.close_reason().is_none() && !self.control.is_lost()
    }
}

/// A panic while one of these locks is held leaves plain data behind.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Connects, trying until the configuration's connect deadline.
    ///
    /// # Errors
    /// Any [`ConnectError`]: an unusable configuration at once, a refusal of
    /// either side's certificate at once, an unreachable broker at the deadline.
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        let checked = config.check()?;
        let deadline = config.connect_deadline;
        let client = Self {
            shared: Arc::new(Inner {
                config,
                checked,
                endpoints: Mutex::default(),
                state: Mutex::default(),
                closed: watch::Sender::new(false),
            }),
        };
        client.link_within(deadline).await?;
        Ok(client)
    }

    /// Who the broker takes this client for.
    #[must_use]
    pub fn principal(&self) -> Principal {
        lock(&self.shared.state)
            .principal
            .clone()
            .expect("a client exists only after the broker's hello")
    }

    /// Name and version of the broker's software.
    #[must_use]
    pub fn server(&self) -> String {
        lock(&self.shared.state).server.clone()
    }

    /// The configuration it was made with.
    #[must_use]
    pub fn config(&self) -> &ClientConfig {
        &self.shared.config
    }

    /// Closes the connection. Producers should be closed first: what they have
    /// not sent by now fails.
    pub async fn close(&self) {
        self.shared.closed.send_replace(true);
        let link = lock(&self.shared.state).link.take();
        if let Some(link) = link {
            link.connection.close(VarInt::from_u32(0), b"done");
        }
        let endpoints = {
            let mut endpoints = lock(&self.shared.endpoints);
            [endpoints.v4.take(), endpoints.v6.take()]
        };
        for endpoint in endpoints.into_iter().flatten() {
            // The peer may be gone; its idle timeout then ends the connection.
            let _ = timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await;
        }
    }

    /// Resolves once the client is closed.
    pub(crate) async fn closed(&self) {
        let mut closed = self.shared.closed.subscribe();
        // The sender lives as long as `self`.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    /// The live connection, or a new one within the reconnect deadline.
    pub(crate) async fn link(&self) -> Result<Arc<Link>, ConnectError> {
        self.link_within(self.shared.config.reconnect_deadline)
            .await
    }

    async fn link_within(&self, deadline: Duration) -> Result<Arc<Link>, ConnectError> {
        let dialing = {
            let mut state = lock(&self.shared.state);
            if self.shared.is_closed() {
                return Err(ConnectError::Closed);
            }
            match &state.link {
                Some(link) if link.is_alive() => return Ok(Arc::clone(link)),
                _ => state.link = None,
            }
            let dialing = state.dialing.take();
            // One that has ended without a link is of no use to a newcomer.
            let dialing = dialing
                .filter(|d| d.peek().is_none())
                .unwrap_or_else(|| self.start_dialing(deadline));
            state.dialing = Some(dialing.clone());
            dialing
        };
        match dialing.await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::Closed),
        }
    }

    /// Dials in a task of its own, so that nobody who stops waiting stops it for
    /// the others.
    fn start_dialing(&self, deadline: Duration) -> Dialing {
        let (tell, told) = oneshot::channel();
        let inner = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let result = inner.dial(deadline).await;
            let result = inner.install(result);
            // Nobody may be waiting any more.
            let _ = tell.send(result);
        });
        told.shared()
    }
}

impl Inner {
    fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    fn install(&self, result: Result<Link, ConnectError>) -> Result<Arc<Link>, ConnectError> {
        let mut state = lock(&self.state);
        state.dialing = None;
        let link = Arc::new(result?);
        if self.is_closed() {
            link.connection.close(VarInt::from_u32(0), b"done");
            return Err(ConnectError::Closed);
        }
        state.principal = Some(link.hello.principal.clone());
        state.server.clone_from(&link.hello.server);
        state.link = Some(Arc::clone(&link));
        Ok(link)
    }

    async fn dial(&self, deadline: Duration) -> Result<Link, ConnectError> {
        let mut attempts = Attempts::new(self.config.backoff, deadline);
        loop {
            let error = match self.dial_each().await {
                Ok(link) => return Ok(link),
                Err(e) if e.class() == ErrorClass::Retry => e,
                Err(e) => return Err(e),
            };
            let hint = error.wire().and_then(|w| w.retry_after_ms);
            let Some(delay) = attempts.failed(Instant::now(), hint, random_u64()) else {
                return Err(error);
            };
            tracing::debug!(?delay, "cannot connect, trying again: {error}");
            tokio::time::sleep(delay).await;
            if self.is_closed() {
                return Err(ConnectError::Closed);
            }
        }
    }

    /// Tries every address once; the last error stands for all.
    async fn dial_each(&self) -> Result<Link, ConnectError> {
        let mut last = ConnectError::Closed;
        for target in &self.checked.targets {
            let resolved = tokio::net::lookup_host(&target.addr).await;
            let addrs: Vec<SocketAddr> = match resolved {
                Ok(addrs) => addrs.collect(),
                Err(e) => {
                    last = ConnectError::Resolve {
                        addr: target.addr.clone(),
                        why: e.to_string(),
                    };
                    continue;
                }
            };
            for addr in addrs {
                let attempt = self.attempt(target, addr);
                last = match timeout(self.config.attempt_timeout, attempt).await {
                    Ok(Ok(link)) => return Ok(link),
                    Ok(Err(e)) => e,
                    Err(_) => ConnectError::Unreachable {
                        addr: addr.to_string(),
                        why: format!("nothing within {:?}", self.config.attempt_timeout),
                    },
                };
            }
        }
        Err(last)
    }

    async fn attempt(&self, target: &Target, addr: SocketAddr) -> Result<Link, ConnectError> {
        let name = &target.server_name;
        let shown = target.addr.as_str();
        let unreachable = |why: String| ConnectError::Unreachable {
            addr: addr.to_string(),
            why,
        };
        let endpoint = self
            .endpoint(addr)
            .map_err(|e| unreachable(format!("no local socket: {e}")))?;
        let connection = endpoint
            .connect_with(self.checked.quic.clone(), addr, name)
            .map_err(|e| unreachable(e.to_string()))?
            .await
            .map_err(|e| ConnectError::from_quic(&e, shown, name))?;
        self.greet(connection.clone()).await.map_err(|e| {
            // The broker verifies the certificate after the client's side of the
            // handshake has ended: its verdict shows here.
            let closed = match e {
                StreamError::Refused(wire) => return ConnectError::Refused(wire),
                StreamError::Protocol(why) if connection.close_reason().is_none() => {
                    return ConnectError::Protocol {
                        addr: shown.to_owned(),
                        why,
                    };
                }
                StreamError::Lost | StreamError::Protocol(_) => connection.close_reason(),
            };
            match closed {
                Some(reason) => ConnectError::from_quic(&reason, shown, name),
                None => ConnectError::Lost {
                    addr: shown.to_owned(),
                    why: "the broker ended the control stream".to_owned(),
                },
            }
        })
    }

    /// Opens the control stream.
    async fn greet(&self, connection: Connection) -> Result<Link, StreamError> {
        let hello = StreamOpen::Control(Hello::new(&self.config.software));
        let (send, reader, frame) = stream::open(&connection, &hello).await?;
        let hello: HelloOk = stream::decode(&frame)?;
        let watch = tokio::spawn(liveness::watch(connection.clone())).abort_handle();
        Ok(Link {
            connection,
            control: Control::start(send, reader),
            hello,
            watch,
        })
    }

    fn endpoint(&self, to: SocketAddr) -> std::io::Result<Endpoint> {
        let mut endpoints = lock(&self.endpoints);
        let (slot, any) = match to {
            SocketAddr::V4(_) => (&mut endpoints.v4, SocketAddr::from(([0, 0, 0, 0], 0))),
            SocketAddr::V6(_) => (&mut endpoints.v6, SocketAddr::from(([0u16; 8], 0))),
        };
        if let Some(endpoint) = slot {
            return Ok(endpoint.clone());
        }
        let endpoint = self.config.transport.client_endpoint(any)?;
        *slot = Some(endpoint.clone());
        Ok(endpoint)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("addrs", &self.shared.config.addrs)
            .finish_non_exhaustive()
    }
}
