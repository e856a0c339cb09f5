//! The upload of one plugin: its bytes in chunks, then the broker's verdict.

use bytes::Bytes;
use millstream_proto::frame::{FrameKind, frame_header};
use millstream_proto::limits::MAX_UPLOAD_CHUNK_BYTES;
use millstream_proto::message::{PluginVersion, StreamOpen};
use quinn::SendStream;

use crate::error::UploadError;
use crate::stream::{self, FrameReader, StreamError};

/// Sends `component` on a stream of its own.
pub(crate) async fn run(
    connection: &quinn::Connection,
    open: &StreamOpen,
    component: Bytes,
    progress: impl FnMut(u64) + Send,
) -> Result<PluginVersion, UploadError> {
    let exchange = async {
        let first = millstream_proto::frame::message_frame(FrameKind::Open, 0, open)
            .map_err(StreamError::Refused)?;
        let (send, recv) = connection.open_bi().await?;
        let mut reader = FrameReader::new(recv);
        // A broker that refuses early stops reading: its answer counts then, not
        // the failed write.
        let sent = tokio::select! {
            biased;
            answer = reader.expect() => return stream::decode(&stream::accepted(answer?)?),
            sent = write(send, first, component, progress) => sent,
        };
        let answer = match (reader.expect().await, sent) {
            (Ok(frame), _) => frame,
            (Err(StreamError::Lost), Err(e)) | (Err(e), _) => return Err(e),
        };
        stream::decode(&stream::accepted(answer)?)
    };
    exchange.await.map_err(|e: StreamError| match e {
        StreamError::Lost => UploadError::Lost,
        StreamError::Refused(wire) => UploadError::Refused(wire),
        StreamError::Protocol(why) => UploadError::Protocol { why },
    })
}

/// Gives the stream back, so that it is not finished before the answer.
async fn write(
    mut send: SendStream,
    first: Bytes,
    component: Bytes,
    mut progress: impl FnMut(u64) + Send,
) -> Result<SendStream, StreamError> {
    send.write_chunk(first).await?;
    let mut rest = component;
    let mut done = 0;
    while !rest.is_empty() {
        let chunk = rest.split_to(rest.len().min(MAX_UPLOAD_CHUNK_BYTES));
        done += chunk.len() as u64;
        let header = frame_header(FrameKind::Chunk, 0, chunk.len());
        let mut pieces = [Bytes::copy_from_slice(&header), chunk];
        send.write_all_chunks(&mut pieces).await?;
        progress(done);
    }
    let end = frame_header(FrameKind::End, 0, 0);
    send.write_chunk(Bytes::copy_from_slice(&end)).await?;
    Ok(send)
}
