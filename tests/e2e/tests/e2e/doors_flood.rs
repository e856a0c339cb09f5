//! Thousands at the door who never come in, and one who wants to work meanwhile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millstream_broker::limits::MAX_HANDSHAKES;
use millstream_broker::metrics::Refusal;
use millstream_e2e::{Subject, TestBroker, eventually, partitions, produce, topic};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connecting, Endpoint};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Half-open handshakes of one address.
const HALF_OPEN: usize = 2500;
/// Time for one request of the good client's while it lasts.
const SERVED: Duration = Duration::from_secs(10);
/// Largest datagram.
const DATAGRAM: usize = 2048;

/// Passes on everything to the broker, and back only what asks for a proof of the address: whoever
/// connects through it proves where he is, and never finishes.
struct Swallow {
    addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Swallow {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Swallow {
    async fn between(inner: SocketAddr, outer: SocketAddr, broker: SocketAddr) -> Self {
        let near = UdpSocket::bind(inner).await.unwrap();
        let far = UdpSocket::bind(outer).await.unwrap();
        far.connect(broker).await.unwrap();
        let addr = near.local_addr().unwrap();
        let task = tokio::spawn(async move {
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
        });
        Self { addr, task }
    }
}

fn client(broker: &TestBroker) -> ClientConfig {
    let identity = broker.pki().client(&Subject::of("acme", "flood"));
    let crypto = QuicClientConfig::try_from(identity.tls_config().unwrap()).unwrap();
    ClientConfig::new(Arc::new(crypto))
}

/// Begins so many handshakes that never end.
fn begin(endpoint: &Endpoint, config: &ClientConfig, to: SocketAddr, n: usize) -> Vec<Connecting> {
    let begin = || endpoint.connect_with(config.clone(), to, "localhost");
    (0..n).map(|_| begin().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_handshakes_keep_nobody_else_out() {
    let mut broker = TestBroker::start().await;
    let good = broker.tenant("acme").await;
    let name = topic("acme/t");
    good.create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    let counters = &broker.inner().counters;

    // From another address than that of the good one, as it is on a network.
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], 0));
    let swallow = Swallow::between(any, elsewhere, broker.addr()).await;
    let endpoint = Endpoint::client(any).unwrap();
    let config = client(&broker);
    let mut half_open = Vec::new();
    for wave in 0..5 {
        half_open.extend(begin(&endpoint, &config, swallow.addr, HALF_OPEN / 5));
        // Who is inside is served, and who comes is let in, while it goes on.
        let served = timeout(SERVED, produce(&good, &name, ["v"])).await;
        assert!(served.is_ok(), "the good client waits in wave {wave}");
        let newcomer = timeout(SERVED, broker.client("acme", "newcomer")).await;
        newcomer.unwrap().close().await;
        let door = broker.admin().await.door().await.unwrap();
        assert!(door.handshakes <= MAX_HANDSHAKES as u64, "{door:?}");
    }
    eventually("the flood to be refused", async || {
        (counters.refused(Refusal::Address) > 0).then_some(())
    })
    .await;
    let stored = good.describe_topic(name).await.unwrap().partitions[0].end;
    assert_eq!(stored.0, 5);
    drop(half_open);
    broker.stop().await;
}

/// Many addresses with a share each: then the half-open ones push out one another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_handshakes_of_many_addresses_push_out_each_other() {
    const ADDRESSES: u8 = 8;
    let mut broker = TestBroker::start().await;
    let counters = &broker.inner().counters;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = client(&broker);
    let mut flood = Vec::new();
    for n in 0..ADDRESSES {
        let elsewhere = SocketAddr::from(([127, 0, 0, 10 + n], 0));
        let swallow = Swallow::between(any, elsewhere, broker.addr()).await;
        let endpoint = Endpoint::client(any).unwrap();
        let begun = begin(&endpoint, &config, swallow.addr, 150);
        flood.push((swallow, endpoint, begun));
    }
    eventually("one to be pushed out", async || {
        (counters.refused(Refusal::Pushed) > 0).then_some(())
    })
    .await;
    let newcomer = timeout(SERVED, broker.client("acme", "newcomer")).await;
    newcomer.unwrap().close().await;
    drop(flood);
    broker.stop().await;
}
