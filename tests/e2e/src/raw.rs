//! A client without manners: it says on the wire what it is told to.
//!
//! What it writes may be refused before it is all written, so failed writes are left to the answer
//! to explain.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use millstream_proto::frame::{Assembler, Frame, FrameKind, ProducePrefix, frame_header};
use millstream_proto::message::{
    Ack, OpenProducer, OpenSubscription, ProducerOpened, Request, Response, StreamOpen,
};
use millstream_proto::version::Hello;
use millstream_proto::{ErrorCode, PartitionId, ProducerEpoch, ProducerId, TopicName, WireError};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;

use crate::broker::TestBroker;
use crate::pki::Subject;

/// A connection on which nothing is done by itself.
pub struct RawConnection {
    connection: Connection,
    /// Drives the connection for as long as it lives.
    _endpoint: Endpoint,
}

impl RawConnection {
    /// Connects with these settings of TLS. That the broker accepts the certificate is not known
    /// yet when this returns.
    ///
    /// # Errors
    /// When the client's side of the handshake fails.
    pub async fn dial(
        broker: &TestBroker,
        tls: rustls::ClientConfig,
    ) -> Result<Self, ConnectionError> {
        let crypto = QuicClientConfig::try_from(tls).expect("TLS 1.3 with AES-128");
        let config = quinn::ClientConfig::new(Arc::new(crypto));
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let endpoint = Endpoint::client(any).expect("there is a free port");
        let connecting = endpoint.connect_with(config, broker.addr(), "localhost");
        let connection = connecting.expect("the settings are right").await?;
        Ok(Self {
            connection,
            _endpoint: endpoint,
        })
    }

    /// Connects as `spiffe://test.local/<tenant>/<name>` and says hello. The control stream comes
    /// with it.
    pub async fn connect(broker: &TestBroker, tenant: &str, name: &str) -> (Self, RawStream) {
        let connection = Self::mute(broker, tenant, name).await;
        let hello = StreamOpen::Control(Hello::new("raw"));
        let (control, _) = connection
            .open(&hello)
            .await
            .expect("the broker says hello");
        (connection, control)
    }

    /// Connects and says nothing.
    pub async fn mute(broker: &TestBroker, tenant: &str, name: &str) -> Self {
        let identity = broker.pki().client(&Subject::of(tenant, name));
        let tls = identity
            .tls_config()
            .expect("the certificates are well-made");
        Self::dial(broker, tls).await.expect("the broker is there")
    }

    /// A stream on which nothing has been said.
    pub async fn stream(&self) -> RawStream {
        let (send, recv) = self
            .connection
            .open_bi()
            .await
            .expect("streams can be opened");
        RawStream {
            send,
            recv,
            assembler: Assembler::default(),
            piece: Bytes::new(),
        }
    }

    /// A stream that begins with `open`, and the broker's first answer.
    ///
    /// # Errors
    /// What the broker says when it refuses the stream.
    pub async fn open(&self, open: &StreamOpen) -> Result<(RawStream, Frame), WireError> {
        let mut stream = self.stream().await;
        stream.message(FrameKind::Open, 0, open).await;
        let frame = stream.expect().await?;
        assert_eq!(frame.kind, FrameKind::Opened);
        Ok((stream, frame))
    }

    /// A producer's stream.
    ///
    /// # Errors
    /// What the broker says when it refuses the stream.
    pub async fn producer(
        &self,
        topic: &TopicName,
        producer: ProducerId,
        epoch: u16,
    ) -> Result<(RawStream, ProducerOpened), WireError> {
        let (topic, epoch) = (topic.clone(), ProducerEpoch(epoch));
        let open = OpenProducer {
            topic,
            producer,
            epoch,
        };
        let (stream, frame) = self.open(&StreamOpen::Producer(open)).await?;
        let opened = frame.message().expect("the answer to a producer");
        Ok((stream, opened))
    }

    /// A subscription's stream.
    ///
    /// # Errors
    /// What the broker says when it refuses the stream.
    pub async fn subscription(&self, open: OpenSubscription) -> Result<RawStream, WireError> {
        let (stream, _) = self.open(&StreamOpen::Subscription(open)).await?;
        Ok(stream)
    }

    /// The certificate that the broker shows.
    ///
    /// # Panics
    /// When it shows none.
    #[must_use]
    pub fn certificate(&self) -> Vec<u8> {
        let shown = self.connection.peer_identity();
        let shown = shown.and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
        shown.expect("the broker shows a certificate")[0].to_vec()
    }

    /// Why the connection ended, once it has.
    pub async fn closed(&self) -> ConnectionError {
        self.connection.closed().await
    }
}

/// A stream on which anything can be said.
pub struct RawStream {
    send: SendStream,
    recv: RecvStream,
    assembler: Assembler,
    piece: Bytes,
}

impl RawStream {
    /// Writes bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) {
        // The answer tells why, if the broker does not want it.
        drop(self.send.write_all(bytes).await);
    }

    /// Writes a frame.
    pub async fn frame(&mut self, kind: FrameKind, tag: u64, payload: &[u8]) {
        self.write(&frame_header(kind, tag, payload.len())).await;
        self.write(payload).await;
    }

    /// Writes a frame with a message.
    pub async fn message<M: serde::Serialize>(&mut self, kind: FrameKind, tag: u64, message: &M) {
        let frame = millstream_proto::frame::message_frame(kind, tag, message);
        self.write(&frame.expect("the message is small")).await;
    }

    /// Says that nothing more will come.
    pub fn finish(&mut self) {
        drop(self.send.finish());
    }

    /// The next frame; `None` when the broker has said all, or dropped the stream.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            while !self.piece.is_empty() {
                let frame = self.assembler.feed(&mut self.piece);
                if let Some(frame) = frame.expect("the broker sends frames") {
                    return Some(frame);
                }
            }
            self.piece = self.recv.read_chunk(1 << 20, true).await.ok()??.bytes;
        }
    }

    /// The next frame, which is no error.
    ///
    /// # Errors
    /// The error that the broker sent, or `Unknown(0)` when the stream ended without a word.
    pub async fn expect(&mut self) -> Result<Frame, WireError> {
        match self.next().await {
            Some(frame) if frame.kind == FrameKind::Error => {
                Err(frame.message().expect("an error frame holds an error"))
            }
            Some(frame) => Ok(frame),
            None => Err(WireError::new(ErrorCode::Unknown(0), "the stream ended")),
        }
    }

    /// Asks something on a control stream.
    ///
    /// # Errors
    /// What the broker says when it refuses.
    pub async fn request(&mut self, tag: u64, request: &Request) -> Result<Response, WireError> {
        self.message(FrameKind::Request, tag, request).await;
        let frame = self.expect().await?;
        assert_eq!((frame.kind, frame.tag), (FrameKind::Response, tag));
        Ok(frame.message().expect("a response"))
    }

    /// Sends a batch, or what stands in for one.
    pub async fn produce(&mut self, tag: u64, partition: Option<u32>, batch: &[u8]) {
        let partition = partition.map(PartitionId);
        let prefix = ProducePrefix { partition }.encode();
        let payload = [&prefix[..], batch].concat();
        self.frame(FrameKind::Produce, tag, &payload).await;
    }

    /// The answer to a batch and the tag it carries.
    pub async fn answer(&mut self) -> (u64, Result<Ack, WireError>) {
        let Some(frame) = self.next().await else {
            let ended = WireError::new(ErrorCode::Unknown(0), "the stream ended");
            return (u64::MAX, Err(ended));
        };
        let answer = match frame.kind {
            FrameKind::Ack => Ok(frame.message().expect("an acknowledgement")),
            FrameKind::Error => Err(frame.message().expect("an error")),
            other => panic!("a {other:?} frame in answer to a batch"),
        };
        (frame.tag, answer)
    }
}
