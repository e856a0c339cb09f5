//! The door: accepts connections, bounds handshakes, finds out who came.

use std::sync::Arc;

use millstream_proto::{ErrorCode, WireError};
use quinn::{Connection, Endpoint, Incoming, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::door::{Answer, Turn};
use crate::limits::HANDSHAKE_TIMEOUT;
use crate::metrics::Refusal;
use crate::refusal;
use crate::session::Session;
use crate::sessions::{Chain, lost};

/// Accepts until shutdown begins.
pub(crate) async fn accept(broker: Arc<Broker>, endpoint: Endpoint) {
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = broker.gate.closing() => return,
        };
        let Some(incoming) = incoming else { return };
        let Some((incoming, turn)) = knock(&broker, incoming) else {
            continue;
        };
        let Some(inside) = broker.gate.enter() else {
            return;
        };
        let broker = Arc::clone(&broker);
        tokio::spawn(async move {
            // Before the handshake begins: it has at least the settings of this number.
            let generation = broker.credentials.generation();
            let connection = handshake(&broker, incoming, turn).await;
            if let Some(connection) = connection {
                admit(broker, connection, generation).await;
            }
            drop(inside);
        });
    }
}

/// Whether somebody may begin a handshake. Who may not has been answered.
fn knock(broker: &Broker, incoming: Incoming) -> Option<(Incoming, Turn)> {
    let limits = broker.credentials.now().door;
    let proved = incoming.remote_address_validated();
    let from = incoming.remote_address().ip();
    let answer = if broker.sessions.count() >= limits.connections {
        Answer::Refuse(Refusal::Connections)
    } else {
        broker.door.knock(from, proved, &limits, Instant::now())
    };
    match answer {
        Answer::Begin(turn) => return Some((incoming, turn)),
        Answer::Prove => {
            if let Err(e) = incoming.retry() {
                e.into_incoming().refuse();
            }
        }
        Answer::Refuse(why) => {
            broker.counters.refuse(why);
            incoming.refuse();
        }
    }
    None
}

async fn handshake(broker: &Broker, incoming: Incoming, mut turn: Turn) -> Option<Connection> {
    let from = incoming.remote_address();
    let ended = tokio::select! {
        ended = tokio::time::timeout(HANDSHAKE_TIMEOUT, incoming) => Some(ended),
        () = turn.taken() => None,
    };
    match ended {
        Some(Ok(Ok(connection))) => return Some(connection),
        Some(Ok(Err(e))) => {
            broker.counters.refuse(refusal::of(&e));
            tracing::info!(%from, "handshake failed: {e}");
        }
        Some(Err(_)) => {
            broker.counters.refuse(Refusal::Timeout);
            tracing::info!(%from, "handshake not finished in {HANDSHAKE_TIMEOUT:?}");
        }
        // No line for each: there are as many as somebody likes.
        None => broker.counters.refuse(Refusal::Pushed),
    }
    None
}

async fn admit(broker: Arc<Broker>, connection: Connection, generation: u64) {
    let shown = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let chain: Chain = shown.map_or_else(|| Arc::from([]), |shown| (*shown).into());
    // The handshake has found it already; it does not hand it on.
    let in_force = broker.credentials.now();
    let principal = match in_force.files.identity.principal(&chain) {
        Ok(principal) => principal,
        Err(e) => {
            broker.counters.refuse(Refusal::Identity);
            let from = connection.remote_address();
            tracing::warn!(%from, "refused: {e}");
            return close(&connection, &e.into());
        }
    };
    let most = in_force.door.connections;
    let entered = broker
        .sessions
        .enter(connection.clone(), chain, principal.clone(), most);
    let Some(known) = entered else {
        broker.counters.refuse(Refusal::Connections);
        let text = format!("the broker has {most} connections, its limit; try again later");
        let error = WireError::new(ErrorCode::Overloaded, text);
        return close(&connection, &error);
    };
    // Since the handshake began something else came into force, and whoever looked at all
    // connections then may have missed this one.
    if broker.credentials.generation() != generation {
        let verdict = broker.credentials.verify(&known.open.chain);
        if known.open.expel_unless(&verdict.map_err(|e| lost(&e))) {
            broker.credentials.count_ended(1);
            return;
        }
    }
    let counters = Arc::clone(&broker.counters);
    let _present = counters.session();
    Session::new(broker, connection, principal).run().await;
    drop(known);
}

/// Closes a connection with an error's code and text.
pub(crate) fn close(connection: &Connection, error: &WireError) {
    let code = VarInt::from_u32(u32::from(error.code.number()));
    connection.close(code, error.message.as_bytes());
}
