//! Who finds out that the broker was killed, and when.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millstream::TransportSettings;
use millstream_crash::child::Storage;
use millstream_crash::rig::Rig;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};

use crate::PROGRAM;

/// How often the connection shows that it lives; the answer to that is what ends it.
const KEEP_ALIVE: Duration = Duration::from_millis(100);

async fn connect(rig: &Rig) -> (Endpoint, Connection) {
    let settings = TransportSettings {
        keep_alive: KEEP_ALIVE,
        ..TransportSettings::default()
    };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let endpoint = settings.client_endpoint(any).unwrap();
    let tls = rig.identity().tls_config().unwrap();
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    config.transport_config(settings.transport_config());
    let connecting = endpoint.connect_with(config, rig.addr(), "localhost");
    (endpoint, connecting.unwrap().await.unwrap())
}

/// Without a word from the next broker it would be over only when the silence has lasted too long,
/// which is another reason.
#[tokio::test]
async fn the_next_broker_ends_the_connections_of_the_one_that_was_killed() {
    let mut rig = Rig::start(PROGRAM, Storage::Usual, None).await;
    let (_endpoint, connection) = connect(&rig).await;
    rig.kill();
    rig.revive().await;
    assert_eq!(connection.closed().await, ConnectionError::Reset);
    // It takes new ones.
    connect(&rig).await;
}
