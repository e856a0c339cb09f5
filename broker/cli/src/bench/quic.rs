//! The near end of the QUIC floor.

use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::Connection;

use super::payload::random;
use super::sink::{CHUNK_BYTES, ECHO_BYTES};
use super::stage::SinkProcess;
use crate::error::{CliError, Outcome};

/// A connection to the sink.
pub(super) struct Floor {
    connection: Connection,
    _sink: SinkProcess,
}

impl Floor {
    pub(super) fn new(connection: Connection, sink: SinkProcess) -> Self {
        Self {
            connection,
            _sink: sink,
        }
    }

    /// Bytes per second that reach the sink.
    pub(super) async fn send(&self, bytes: u64) -> Outcome<f64> {
        let (mut send, mut recv) = self.connection.open_bi().await.map_err(CliError::failure)?;
        let chunk = Bytes::from(random(CHUNK_BYTES));
        let begun = Instant::now();
        send.write_all(b"R").await.map_err(CliError::failure)?;
        let mut left = bytes;
        while left > 0 {
            let n = left.min(CHUNK_BYTES as u64);
            send.write_chunk(chunk.slice(..n as usize))
                .await
                .map_err(CliError::failure)?;
            left -= n;
        }
        send.finish().map_err(CliError::failure)?;
        let mut total = [0; 8];
        recv.read_exact(&mut total)
            .await
            .map_err(CliError::failure)?;
        if u64::from_le_bytes(total) != bytes {
            return Err(CliError::failure("the sink did not get every byte"));
        }
        Ok(bytes as f64 / begun.elapsed().as_secs_f64())
    }

    /// Bytes per second that come from the sink.
    pub(super) async fn fetch(&self, bytes: u64) -> Outcome<f64> {
        let (mut send, mut recv) = self.connection.open_bi().await.map_err(CliError::failure)?;
        let begun = Instant::now();
        let request = [&b"W"[..], &bytes.to_le_bytes()].concat();
        send.write_all(&request).await.map_err(CliError::failure)?;
        let mut total = 0;
        while let Some(chunk) = recv
            .read_chunk(usize::MAX, true)
            .await
            .map_err(CliError::failure)?
        {
            total += chunk.bytes.len() as u64;
        }
        if total != bytes {
            return Err(CliError::failure("not every byte came from the sink"));
        }
        Ok(bytes as f64 / begun.elapsed().as_secs_f64())
    }

    /// Round trips of single messages, at the ticks of `ticks`.
    pub(super) async fn echo(&self, mut ticks: super::latency::Ticks) -> Outcome<Vec<Duration>> {
        let (mut send, mut recv) = self.connection.open_bi().await.map_err(CliError::failure)?;
        send.write_all(b"E").await.map_err(CliError::failure)?;
        let mut message = [7; ECHO_BYTES];
        let mut times = Vec::new();
        while ticks.next().await {
            let begun = Instant::now();
            send.write_all(&message).await.map_err(CliError::failure)?;
            recv.read_exact(&mut message)
                .await
                .map_err(CliError::failure)?;
            times.push(begun.elapsed());
        }
        Ok(times)
    }
}
