//! QUIC settings, and endpoints made from them.
//!
//! Public because a figure for the network alone, with no broker behind it, is
//! only worth something with the very settings that the client uses.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;

/// Smallest packet ceiling: what QUIC demands of every path.
pub const MIN_MTU: u16 = 1200;
/// Largest packet ceiling. Ten segments above it pass the 64 KiB that one
/// segmented send can carry, and throughput collapses.
pub const MAX_MTU: u16 = 6500;
/// Round trip assumed before the first measurement. quinn's own 333 ms makes a
/// client wait a second before it repeats a handshake packet that a restarting
/// broker missed.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Settings of a QUIC connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportSettings {
    /// Bytes the peer may send on one stream before they are read: what a
    /// consumer prefetches at most.
    pub stream_window: u32,
    /// Bytes the peer may send on all streams together before they are read.
    pub connection_window: u32,
    /// Bytes sent and not yet confirmed, over all streams.
    pub send_window: u64,
    /// Kernel buffer of the UDP socket in bytes, each way. The kernel may grant less.
    pub socket_buffer: usize,
    /// Largest packet that path discovery tries, in bytes, [`MIN_MTU`] to
    /// [`MAX_MTU`]. More than 1,452 helps on loopback and on jumbo frames.
    pub mtu: u16,
    /// Hand several packets to the kernel in one call.
    pub segmentation_offload: bool,
    /// How often an idle connection shows that it lives.
    pub keep_alive: Duration,
    /// Silence after which the peer counts as gone.
    pub idle_timeout: Duration,
}

impl Default for TransportSettings {
    fn default() -> Self {
        Self {
            stream_window: 2 << 20,
            connection_window: 32 << 20,
            send_window: 16 << 20,
            socket_buffer: 4 << 20,
            mtu: 1452,
            segmentation_offload: true,
            keep_alive: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(15),
        }
    }
}

impl TransportSettings {
    /// quinn's settings for a connection. An MTU outside its range counts as the
    /// nearest allowed, an idle timeout too long for QUIC as the longest.
    #[must_use]
    pub fn transport_config(&self) -> Arc<TransportConfig> {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(self.mtu.clamp(MIN_MTU, MAX_MTU));
        let idle = IdleTimeout::try_from(self.idle_timeout)
            .unwrap_or_else(|_| IdleTimeout::from(VarInt::MAX));
        let mut config = TransportConfig::default();
        config
            .stream_receive_window(VarInt::from_u32(self.stream_window))
            .receive_window(VarInt::from_u32(self.connection_window))
            .send_window(self.send_window)
            .mtu_discovery_config(Some(discovery))
            .enable_segmentation_offload(self.segmentation_offload)
            .keep_alive_interval(Some(self.keep_alive))
            .max_idle_timeout(Some(idle))
            .initial_rtt(INITIAL_RTT);
        Arc::new(config)
    }

    /// quinn's settings for an endpoint: packets as large as [`Self::mtu`] come in.
    #[must_use]
    pub fn endpoint_config(&self) -> EndpointConfig {
        let mut config = EndpointConfig::default();
        let least = config.get_max_udp_payload_size().max(u64::from(MIN_MTU));
        let wanted = u64::from(self.mtu.clamp(MIN_MTU, MAX_MTU)).max(least);
        let wanted = u16::try_from(wanted).unwrap_or(MAX_MTU);
        config
            .max_udp_payload_size(wanted)
            .expect("the size lies above QUIC's least");
        config
    }

    /// A UDP socket with [`Self::socket_buffer`].
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(&self, addr: SocketAddr) -> io::Result<std::net::UdpSocket> {
        let domain = socket2::Domain::for_address(addr);
        let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, None)?;
        // A kernel that grants less is slower, not broken.
        for granted in [
            socket.set_recv_buffer_size(self.socket_buffer),
            socket.set_send_buffer_size(self.socket_buffer),
        ] {
            if let Err(e) = granted {
                tracing::debug!(bytes = self.socket_buffer, "socket buffer not granted: {e}");
            }
        }
        socket.bind(&addr.into())?;
        Ok(socket.into())
    }

    /// An endpoint that opens connections. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be bound, or outside a runtime.
    pub fn client_endpoint(&self, bind: SocketAddr) -> io::Result<quinn::Endpoint> {
        self.endpoint(bind, None)
    }

    /// An endpoint that accepts connections, with [`Self::transport_config`] put
    /// into `config`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// As [`Self::client_endpoint`].
    pub fn server_endpoint(
        &self,
        bind: SocketAddr,
        mut config: quinn::ServerConfig,
    ) -> io::Result<quinn::Endpoint> {
        config.transport_config(self.transport_config());
        self.endpoint(bind, Some(config))
    }

    fn endpoint(
        &self,
        bind: SocketAddr,
        server: Option<quinn::ServerConfig>,
    ) -> io::Result<quinn::Endpoint> {
        let runtime = quinn::default_runtime()
            .ok_or_else(|| io::Error::other("no tokio runtime is running here"))?;
        let socket = self.bind(bind)?;
        quinn::Endpoint::new(self.endpoint_config(), server, socket, runtime)
    }
}

/// The cryptography of every connection: AES-128-GCM first, which is the fastest
/// where the processor helps, and the other TLS 1.3 suites behind it.
#[must_use]
pub fn crypto_provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // Stable: the library's order among the rest stays.
    provider
        .cipher_suites
        .sort_by_key(|s| s.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_cipher_comes_first() {
        let first = crypto_provider().cipher_suites[0].suite();
        assert_eq!(first, CipherSuite::TLS13_AES_128_GCM_SHA256);
    }

    #[test]
    fn an_mtu_outside_its_range_is_brought_into_it() {
        for (mtu, expected) in [(0, 1472), (1452, 1472), (6500, 6500), (u16::MAX, 6500)] {
            let settings = TransportSettings {
                mtu,
                ..TransportSettings::default()
            };
            let config = settings.endpoint_config();
            assert_eq!(config.get_max_udp_payload_size(), expected, "{mtu}");
            drop(settings.transport_config());
        }
    }

    #[tokio::test]
    async fn an_endpoint_is_made_from_the_settings() {
        let any = "127.0.0.1:0".parse().unwrap();
        let endpoint = TransportSettings::default().client_endpoint(any).unwrap();
        assert_ne!(endpoint.local_addr().unwrap().port(), 0);
    }
}
