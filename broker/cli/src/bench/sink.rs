//! The far end of the QUIC floor: the same listener settings as the broker's, and nothing behind.
//!
//! A hidden command, so that it runs in a process of its own. Each stream begins with one byte:
//! `R` reads until the end and answers with the count, `W` and a length writes that many bytes,
//! `E` echoes messages of [`ECHO_BYTES`].

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use millstream::TransportSettings;
use millstream_broker::config::TlsFiles;
use millstream_broker::tls;
use quinn::{RecvStream, SendStream, ServerConfig};

use super::payload::random;
use crate::args::Global;
use crate::error::{CliError, Outcome};
use crate::pki::Layout;

/// Bytes of one echoed message: about what a record of 100 bytes takes on the wire.
pub(super) const ECHO_BYTES: usize = 200;
/// Bytes of one write.
pub(super) const CHUNK_BYTES: usize = 64 << 10;

/// Arguments of the hidden command.
#[derive(Clone, Debug, Args)]
pub(crate) struct SinkArgs {
    /// The directory of certificates.
    #[arg(long)]
    pki: PathBuf,
    /// Largest datagram.
    #[arg(long)]
    mtu: u16,
}

/// Serves until it is killed.
pub(crate) async fn run(global: &Global, args: SinkArgs) -> Outcome {
    let layout = Layout::new(&args.pki);
    let (server, authority) = (layout.server(), layout.authority());
    let files = TlsFiles::new(server.certificate, server.key, authority.certificate);
    let crypto = tls::quic_server_config(&files).map_err(CliError::failure)?;
    let settings = TransportSettings {
        mtu: args.mtu,
        ..TransportSettings::default()
    };
    let config = ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = settings
        .server_endpoint(SocketAddr::from(([127, 0, 0, 1], 0)), config)
        .map_err(CliError::failure)?;
    let addr = endpoint.local_addr().map_err(CliError::failure)?;
    global.output().line(&addr.to_string())?;
    while let Some(incoming) = endpoint.accept().await {
        let Ok(connection) = incoming.await else {
            continue;
        };
        tokio::spawn(async move {
            while let Ok((send, recv)) = connection.accept_bi().await {
                // A stream that breaks off ends with its client's run.
                tokio::spawn(async move { drop(serve(send, recv).await) });
            }
        });
    }
    Ok(())
}

type Broken = Box<dyn std::error::Error + Send + Sync>;

async fn serve(mut send: SendStream, mut recv: RecvStream) -> Result<(), Broken> {
    let mut op = [0];
    recv.read_exact(&mut op).await?;
    match op[0] {
        b'R' => {
            let mut total = 0;
            while let Some(chunk) = recv.read_chunk(usize::MAX, true).await? {
                total += chunk.bytes.len() as u64;
            }
            send.write_all(&total.to_le_bytes()).await?;
        }
        b'W' => {
            let mut len = [0; 8];
            recv.read_exact(&mut len).await?;
            let mut left = u64::from_le_bytes(len);
            let chunk = Bytes::from(random(CHUNK_BYTES));
            while left > 0 {
                let n = left.min(CHUNK_BYTES as u64);
                send.write_chunk(chunk.slice(..n as usize)).await?;
                left -= n;
            }
        }
        _ => {
            let mut message = [0; ECHO_BYTES];
            while recv.read_exact(&mut message).await.is_ok() {
                send.write_all(&message).await?;
            }
        }
    }
    send.finish()?;
    send.stopped().await?;
    Ok(())
}
