//! What half-open handshakes cost a broker, measured from outside its process.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Endpoint};
use tokio::net::UdpSocket;

use super::World;

/// Half-open handshakes, over all addresses.
const HALF_OPEN: usize = 4000;
/// Addresses that they come from.
const ADDRESSES: u8 = 8;
/// What docs/security.md says that peers may take before they have proved who they are.
const BOUND: u64 = 64 << 20;
/// Largest datagram.
const DATAGRAM: usize = 2048;

/// Passes on everything to the broker, and back only what asks for a proof of the address.
async fn swallow(near: UdpSocket, far: UdpSocket) {
    let (mut up, mut down) = ([0; DATAGRAM], [0; DATAGRAM]);
    let mut client = None;
    loop {
        tokio::select! {
            Ok((n, from)) = near.recv_from(&mut up) => {
                client = Some(from);
                // What does not get through is lost, as datagrams are.
                let _ = far.send(&up[..n]).await;
            }
            Ok(n) = far.recv(&mut down) => {
                // A long header of the type Retry: RFC 9000, section 17.2.5.
                let retry = n > 0 && down[0] & 0xf0 == 0xf0;
                if let (true, Some(client)) = (retry, client) {
                    let _ = near.send_to(&down[..n], client).await;
                }
            }
            else => {}
        }
    }
}

fn config(pki: &Path) -> ClientConfig {
    let pair = pki.join("clients/ops/admin");
    let identity = millstream::Identity::new(
        pki.join("ca.pem"),
        pair.with_extension("pem"),
        pair.with_extension("key"),
    );
    let crypto = QuicClientConfig::try_from(identity.tls_config().unwrap()).unwrap();
    ClientConfig::new(Arc::new(crypto))
}

fn resident(world: &World) -> u64 {
    let status = world.json(&["status", "--context", "admin"]);
    status["resident_bytes"].as_u64().unwrap()
}

#[test]
fn memory_of_those_who_never_come_in_is_bounded() {
    let world = World::new();
    // What every handshake needs for the first time is there.
    resident(&world);
    let before = resident(&world);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let broker: SocketAddr = world.addr.parse().unwrap();
    let config = config(&world.home.path().join("pki"));
    let most = runtime.block_on(async {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut flood = Vec::new();
        for n in 0..ADDRESSES {
            let far = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 10 + n], 0)));
            let (near, far) = (UdpSocket::bind(any).await.unwrap(), far.await.unwrap());
            far.connect(broker).await.unwrap();
            let through = near.local_addr().unwrap();
            tokio::spawn(swallow(near, far));
            flood.push((Endpoint::client(any).unwrap(), through, Vec::new()));
        }
        let mut most = 0;
        for _ in 0..10 {
            for (endpoint, through, begun) in &mut flood {
                let begin = || endpoint.connect_with(config.clone(), *through, "localhost");
                let some = HALF_OPEN / 10 / usize::from(ADDRESSES);
                begun.extend((0..some).map(|_| begin().unwrap()));
            }
            // Each answer is also one to a good client that comes in the middle of it.
            most = most.max(resident(&world));
        }
        most
    });
    let door = &world.json(&["status", "--context", "admin"])["door"];
    let refused = door["refused"].as_array().unwrap();
    assert!(!refused.is_empty(), "the flood did not reach the broker");
    let grown = most.saturating_sub(before);
    assert!(grown < BOUND, "{grown} bytes more: {door}");
}
