//! The QUIC settings of the listener.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::{EndpointConfig, MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::limits::{
    ALL_INCOMING_BYTES, CONNECTION_WINDOW, HANDSHAKE_BUFFER_BYTES, IDLE_TIMEOUT, INCOMING_BYTES,
    INITIAL_RTT, MAX_INCOMING, MAX_STREAMS, SEND_WINDOW, SOCKET_BUFFER_BYTES, STREAM_WINDOW,
};
use crate::reset::ResetKey;

/// Transport settings with datagrams of at most `mtu` bytes.
fn transport(mtu: u16) -> Arc<TransportConfig> {
    let mut t = TransportConfig::default();
    t.max_concurrent_bidi_streams(VarInt::from_u32(MAX_STREAMS));
    t.max_concurrent_uni_streams(VarInt::from_u32(0));
    t.stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
    t.receive_window(VarInt::from_u32(CONNECTION_WINDOW));
    t.send_window(SEND_WINDOW);
    t.datagram_receive_buffer_size(None);
    t.crypto_buffer_size(HANDSHAKE_BUFFER_BYTES);
    t.initial_rtt(INITIAL_RTT);
    t.max_idle_timeout(IDLE_TIMEOUT.try_into().ok());
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu);
    t.mtu_discovery_config(Some(discovery));
    Arc::new(t)
}

/// Adds to the settings of the listener all but its TLS.
pub(crate) fn listener(server: &mut ServerConfig, mtu: u16) {
    server
        .transport_config(transport(mtu))
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BYTES)
        .incoming_buffer_size_total(ALL_INCOMING_BYTES);
}

/// Endpoint settings that accept datagrams of at most `mtu` bytes, and end the
/// connections of the broker that ran here before.
pub(crate) fn endpoint_config(mtu: u16, reset: ResetKey) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    reset.install(&mut config);
    // The configuration allows only sizes that QUIC does.
    if config.max_udp_payload_size(mtu.max(1472)).is_err() {
        tracing::warn!(mtu, "the endpoint keeps its default datagram size");
    }
    config
}

/// A UDP socket with buffers for a gigabyte per second. A system that caps the
/// buffers lower is left at its cap.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) fn socket(addr: SocketAddr) -> std::io::Result<std::net::UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    for result in [
        socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES),
        socket.set_send_buffer_size(SOCKET_BUFFER_BYTES),
    ] {
        if let Err(e) = result {
            tracing::warn!("socket buffers stay at the system's size: {e}");
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}
