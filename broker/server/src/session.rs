//! One connection: its first stream says hello, each stream is a task of its own.

use std::sync::Arc;

use millstream_proto::frame::FrameKind;
use millstream_proto::message::StreamOpen;
use millstream_proto::version::{self, Hello, HelloOk};
use millstream_proto::{ErrorCode, Principal, WireError};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::broker::Broker;
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::listen::close;
use crate::metrics::StreamKind;
use crate::serve;
use crate::stream::{FrameReader, FrameWriter, STREAM_TAG};

/// What every stream of a connection needs to know.
#[derive(Clone)]
pub(crate) struct Peer {
    pub(crate) broker: Arc<Broker>,
    pub(crate) principal: Principal,
}

/// A connection whose principal is known.
pub(crate) struct Session {
    peer: Peer,
    connection: Connection,
    greeted: watch::Sender<bool>,
}

impl Session {
    pub(crate) fn new(
        broker: Arc<Broker>,
        connection: Connection,
        principal: Principal,
    ) -> Arc<Self> {
        let peer = Peer { broker, principal };
        Arc::new(Self {
            peer,
            connection,
            greeted: watch::Sender::new(false),
        })
    }

    /// Serves the connection until it closes or the broker shuts down.
    pub(crate) async fn run(self: Arc<Self>) {
        let from = self.connection.remote_address();
        tracing::info!(principal = %self.peer.principal, %from, "connected");
        let mut streams = JoinSet::new();
        let gate = self.peer.broker.gate.clone();
        loop {
            tokio::select! {
                stream = self.connection.accept_bi() => match stream {
                    Ok((send, recv)) => {
                        let session = Arc::clone(&self);
                        streams.spawn(async move { session.stream(send, recv).await });
                    }
                    Err(e) => {
                        tracing::info!(principal = %self.peer.principal, %from, "disconnected: {e}");
                        break;
                    }
                },
                Some(_) = streams.join_next() => {}
                () = gate.closing() => {
                    // Streams see the closing gate too and finish what they have begun.
                    while streams.join_next().await.is_some() {}
                    close(&self.connection, &shutting_down());
                    break;
                }
            }
        }
        // The connection is gone: whoever still waits on it finds out by itself,
        // and what was submitted is committed.
        while streams.join_next().await.is_some() {}
    }

    async fn stream(&self, send: SendStream, recv: RecvStream) {
        let (mut reader, writer) = (
            FrameReader::new(recv),
            FrameWriter::new(send, Arc::clone(&self.peer.broker.counters)),
        );
        let opened = tokio::select! {
            opened = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.open(&mut reader)) => opened,
            () = self.peer.broker.gate.closing() => Ok(Err(Some(shutting_down()))),
        };
        let refusal = match opened {
            Ok(Ok(open)) => return self.dispatch(open, reader, writer).await,
            Ok(Err(refusal)) => refusal,
            Err(_) => {
                let text =
                    format!("the stream's first frame did not come in {HANDSHAKE_TIMEOUT:?}");
                Some(WireError::new(ErrorCode::UnexpectedFrame, text))
            }
        };
        if let Some(error) = refusal {
            refuse(&mut reader, writer, &error).await;
        }
    }

    /// Reads the first frame and sees whether it may come now.
    async fn open(&self, reader: &mut FrameReader) -> Result<StreamOpen, Option<WireError>> {
        let frame = reader.next().await.map_err(|e| e.to_wire())?.ok_or(None)?;
        if frame.kind != FrameKind::Open {
            let text = format!("a stream begins with an Open frame, not {:?}", frame.kind);
            return Err(Some(WireError::new(ErrorCode::UnexpectedFrame, text)));
        }
        let open = frame
            .message::<StreamOpen>()
            .map_err(|e| Some(WireError::from(e)))?;
        if !matches!(open, StreamOpen::Control(_)) {
            // Streams may overtake one another; wait for the greeting.
            let mut greeted = self.greeted.subscribe();
            greeted.wait_for(|g| *g).await.map_err(|_| None)?;
        }
        Ok(open)
    }

    async fn dispatch(&self, open: StreamOpen, reader: FrameReader, writer: FrameWriter) {
        let peer = self.peer.clone();
        let kind = match &open {
            StreamOpen::Control(_) => StreamKind::Control,
            StreamOpen::Producer(_) => StreamKind::Producer,
            StreamOpen::Subscription(_) => StreamKind::Subscription,
            StreamOpen::Upload(_) => StreamKind::Upload,
        };
        let _present = self.peer.broker.counters.stream(kind);
        match open {
            StreamOpen::Control(hello) => self.control(&hello, reader, writer).await,
            StreamOpen::Producer(open) => serve::producer::run(peer, open, reader, writer).await,
            StreamOpen::Subscription(open) => {
                serve::subscription::run(peer, open, reader, writer).await;
            }
            StreamOpen::Upload(open) => serve::upload::run(peer, open, reader, writer).await,
        }
    }

    async fn control(&self, hello: &Hello, mut reader: FrameReader, mut writer: FrameWriter) {
        let Some(version) = version::choose(hello.min_version, hello.max_version) else {
            let text = format!(
                "the client speaks protocol versions {} to {}, this broker {} to {}: use a client of a matching version",
                hello.min_version,
                hello.max_version,
                version::MIN_VERSION,
                version::MAX_VERSION
            );
            let error = WireError::new(ErrorCode::UnsupportedVersion, text);
            return refuse(&mut reader, writer, &error).await;
        };
        let ok = HelloOk {
            version,
            server: concat!("millstream ", env!("CARGO_PKG_VERSION")).to_owned(),
            principal: self.peer.principal.clone(),
        };
        if writer.message(FrameKind::Opened, 0, &ok).await.is_err() {
            return;
        }
        self.greeted.send_replace(true);
        serve::control::run(self.peer.clone(), reader, writer).await;
    }
}

/// Ends a stream with an error about the whole of it.
pub(crate) async fn refuse(reader: &mut FrameReader, mut writer: FrameWriter, error: &WireError) {
    reader.stop(error.code);
    if writer.error(STREAM_TAG, error).await.is_ok() {
        writer.finish().await;
    }
}

pub(crate) fn shutting_down() -> WireError {
    let text = "the broker is shutting down; connect again in a moment";
    WireError::new(ErrorCode::ShuttingDown, text).retry_after_ms(500)
}
