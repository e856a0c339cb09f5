//! Nobody comes in on the strength of an earlier visit: no tickets, no resumed sessions, no data
//! before the handshake.

use std::net::SocketAddr;
use std::sync::Arc;

use millstream_e2e::{Subject, TestBroker, eventually};
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig};
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};
use rustls::client::Resumption;

/// TLS alert `certificate_revoked`, as QUIC numbers it.
const CERTIFICATE_REVOKED: u64 = 0x100 + 44;

/// A client that keeps tickets and would send data early.
struct Eager {
    endpoint: Endpoint,
    config: ClientConfig,
    to: SocketAddr,
}

impl Eager {
    fn new(broker: &TestBroker, subject: &Subject) -> Self {
        let mut tls = broker.pki().client(subject).tls_config().unwrap();
        tls.resumption = Resumption::in_memory_sessions(16);
        tls.enable_early_data = true;
        let crypto = QuicClientConfig::try_from(tls).unwrap();
        Self {
            endpoint: Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap(),
            config: ClientConfig::new(Arc::new(crypto)),
            to: broker.addr(),
        }
    }

    /// Connects; whether data could be sent early.
    async fn connect(&self) -> (Result<Connection, ConnectionError>, bool) {
        let connecting = self
            .endpoint
            .connect_with(self.config.clone(), self.to, "localhost")
            .unwrap();
        match connecting.into_0rtt() {
            Ok((connection, _)) => (Ok(connection), true),
            Err(connecting) => (connecting.await, false),
        }
    }
}

#[tokio::test]
async fn a_client_that_was_revoked_cannot_resume() {
    let tune = |config: &mut millstream_broker::Config| {
        config.tls.revocation_lists = vec![config.data_dir.with_file_name("crl.pem")];
    };
    let mut broker = TestBroker::set_up().tuned(tune).start().await;
    let subject = Subject {
        serial: Some(7),
        ..Subject::of("acme", "app")
    };
    let eager = Eager::new(&broker, &subject);
    // Twice, so that what the first visit might have left is used by the second.
    for _ in 0..2 {
        let (connection, early) = eager.connect().await;
        assert!(!early, "the client had something to send early data with");
        let connection = connection.unwrap();
        let data = connection.handshake_data().unwrap();
        assert!(data.downcast::<HandshakeData>().is_ok());
        // A ticket would come before an answer on a stream.
        eventually("the broker to let it in", async || {
            (broker.inner().sessions.count() == 1).then_some(())
        })
        .await;
        connection.close(0u32.into(), b"bye");
        eventually("the broker to see it go", async || {
            (broker.inner().sessions.count() == 0).then_some(())
        })
        .await;
    }
    broker.pki().publish(&[7]);
    broker.reload().await.unwrap();
    let (connection, early) = eager.connect().await;
    assert!(!early);
    let ConnectionError::ConnectionClosed(close) = connection.unwrap().closed().await else {
        panic!("the broker refuses it within TLS");
    };
    assert_eq!(u64::from(close.error_code), CERTIFICATE_REVOKED);
    broker.stop().await;
}
