//! The door: accepts connections, bounds handshakes, finds out who came.

use std::sync::Arc;

use millstream_proto::{ErrorCode, WireError};
use quinn::{Connection, Endpoint, Incoming, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::Semaphore;

use crate::broker::Broker;
use crate::limits::{HANDSHAKE_TIMEOUT, MAX_HANDSHAKES};
use crate::session::Session;
use crate::tls;

/// Accepts until shutdown begins.
pub(crate) async fn accept(broker: Arc<Broker>, endpoint: Endpoint) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let most = broker.config.transport.max_connections as usize;
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = broker.gate.closing() => return,
        };
        let Some(incoming) = incoming else { return };
        if endpoint.open_connections() >= most {
            incoming.refuse();
            continue;
        }
        // Made-up sender addresses must not keep everybody else out: when turns get scarce, only
        // whoever answers from his address gets one.
        if handshakes.available_permits() <= MAX_HANDSHAKES / 2 && incoming.may_retry() {
            if let Err(e) = incoming.retry() {
                e.into_incoming().refuse();
            }
            continue;
        }
        let Ok(turn) = Arc::clone(&handshakes).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let Some(inside) = broker.gate.enter() else {
            return;
        };
        let broker = Arc::clone(&broker);
        tokio::spawn(async move {
            let connection = handshake(incoming).await;
            drop(turn);
            if let Some(connection) = connection {
                admit(broker, connection).await;
            }
            drop(inside);
        });
    }
}

async fn handshake(incoming: Incoming) -> Option<Connection> {
    let from = incoming.remote_address();
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(e)) => {
            tracing::info!(%from, "handshake failed: {e}");
            None
        }
        Err(_) => {
            tracing::info!(%from, "handshake not finished in {HANDSHAKE_TIMEOUT:?}");
            None
        }
    }
}

async fn admit(broker: Arc<Broker>, connection: Connection) {
    let certificates = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let principal = tls::principal(certificates.as_deref().map_or(&[], Vec::as_slice));
    match principal {
        Ok(principal) => Session::new(broker, connection, principal).run().await,
        Err(e) => {
            let from = connection.remote_address();
            tracing::warn!(%from, "refused: {e}");
            close(
                &connection,
                &WireError::new(ErrorCode::NoIdentity, e.to_string()),
            );
        }
    }
}

/// Closes a connection with an error's code and text.
pub(crate) fn close(connection: &Connection, error: &WireError) {
    let code = VarInt::from_u32(u32::from(error.code.number()));
    connection.close(code, error.message.as_bytes());
}
