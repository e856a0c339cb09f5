//! An upload's stream: a component in chunks, then its fate.
//!
//! The component is held in memory whole, so the number of uploads at a time is bounded, and so
//! is the time that one may take. Nothing is stored that is not a plugin that can run here.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::frame::FrameKind;
use millstream_proto::limits::{MAX_PLUGIN_BYTES, MAX_UPLOAD_CHUNK_BYTES};
use millstream_proto::message::{Digest, OpenUpload, PluginVersion};
use millstream_proto::{ErrorCode, WireError};
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use crate::catalog::NewPlugin;
use crate::limits::{MAX_UPLOADS, UPLOAD_TIMEOUT};
use crate::session::{Peer, refuse, shutting_down};
use crate::stream::{FrameReader, FrameWriter};

/// First bytes reserved before more has come: a claimed size alone allocates nothing.
const FIRST_RESERVE: usize = 256 << 10;
/// When to try again if too many uploads are under way.
const RETRY_MS: u32 = 1000;

/// Serves the stream to its end.
pub(crate) async fn run(
    peer: Peer,
    open: OpenUpload,
    mut reader: FrameReader,
    mut writer: FrameWriter,
) {
    match receive(&peer, &open, &mut reader).await {
        Ok((turn, wasm)) => {
            // A task, so that a version is not left half-made when the connection goes.
            let making = tokio::spawn(async move {
                let _turn = turn;
                make(&peer, open, wasm).await
            });
            match making.await.unwrap_or_else(|_| Err(shutting_down())) {
                Ok(version) => {
                    if writer.message(FrameKind::Opened, 0, &version).await.is_ok() {
                        writer.finish().await;
                    }
                }
                Err(error) => refuse(&mut reader, writer, &error).await,
            }
        }
        Err(Some(error)) => refuse(&mut reader, writer, &error).await,
        Err(None) => {}
    }
}

fn rejected(open: &OpenUpload, why: &str) -> WireError {
    WireError::new(
        ErrorCode::UploadRejected,
        format!("upload of {}: {why}", open.plugin),
    )
}

/// Whether the upload may begin.
fn admit(peer: &Peer, open: &OpenUpload) -> Result<OwnedSemaphorePermit, WireError> {
    let name = open.plugin.as_str();
    peer.broker.access.check(
        &peer.principal,
        Operation::Upload,
        ResourceKind::Plugin,
        name,
    )?;
    if open.size == 0 {
        return Err(rejected(open, "it is empty; expected a component"));
    }
    if open.size > MAX_PLUGIN_BYTES as u64 {
        let why = format!(
            "it has {} bytes; at most {MAX_PLUGIN_BYTES} are allowed. Build with opt-level 3, lto \
             and strip",
            open.size
        );
        return Err(rejected(open, &why));
    }
    peer.broker.catalog.upload_turn().ok_or_else(|| {
        let text = format!("{MAX_UPLOADS} uploads are under way, and that is the limit; try again");
        WireError::new(ErrorCode::Overloaded, text).retry_after_ms(RETRY_MS)
    })
}

/// The whole component; `Err(None)` when the peer is gone.
async fn receive(
    peer: &Peer,
    open: &OpenUpload,
    reader: &mut FrameReader,
) -> Result<(OwnedSemaphorePermit, Bytes), Option<WireError>> {
    let turn = admit(peer, open).map_err(Some)?;
    let received = tokio::select! {
        received = tokio::time::timeout(UPLOAD_TIMEOUT, chunks(open, reader)) => received,
        () = peer.broker.gate.closing() => return Err(Some(shutting_down())),
    };
    let late = |_| {
        Some(rejected(
            open,
            &format!("it did not come within {UPLOAD_TIMEOUT:?}"),
        ))
    };
    Ok((turn, received.map_err(late)??))
}

async fn chunks(open: &OpenUpload, reader: &mut FrameReader) -> Result<Bytes, Option<WireError>> {
    let mut pieces = Pieces::new(open);
    loop {
        let frame = reader.next().await.map_err(|e| e.to_wire())?.ok_or(None)?;
        match frame.kind {
            FrameKind::Chunk => pieces.push(&frame.payload).map_err(Some)?,
            FrameKind::End => return pieces.finish().map_err(Some),
            other => {
                let text = format!("an upload has chunks and an end, no {other:?} frames");
                return Err(Some(WireError::new(ErrorCode::UnexpectedFrame, text)));
            }
        }
    }
}

/// The part of an upload that has come.
struct Pieces<'a> {
    open: &'a OpenUpload,
    bytes: BytesMut,
}

impl<'a> Pieces<'a> {
    fn new(open: &'a OpenUpload) -> Self {
        let reserve = usize::try_from(open.size)
            .unwrap_or(FIRST_RESERVE)
            .min(FIRST_RESERVE);
        Self {
            open,
            bytes: BytesMut::with_capacity(reserve),
        }
    }

    fn push(&mut self, chunk: &[u8]) -> Result<(), WireError> {
        if chunk.len() > MAX_UPLOAD_CHUNK_BYTES {
            let why = format!(
                "a chunk has {} bytes; at most {MAX_UPLOAD_CHUNK_BYTES} are allowed",
                chunk.len()
            );
            return Err(rejected(self.open, &why));
        }
        let size = (self.bytes.len() + chunk.len()) as u64;
        if size > self.open.size {
            let why = format!("{} bytes were announced, and {size} came", self.open.size);
            return Err(rejected(self.open, &why));
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    fn finish(self) -> Result<Bytes, WireError> {
        let size = self.bytes.len() as u64;
        if size == self.open.size {
            return Ok(self.bytes.freeze());
        }
        let why = format!(
            "{} bytes were announced, and only {size} came",
            self.open.size
        );
        Err(rejected(self.open, &why))
    }
}

/// Checks, compiles and stores the component.
async fn make(peer: &Peer, open: OpenUpload, wasm: Bytes) -> Result<PluginVersion, WireError> {
    let hashed = wasm.clone();
    let hash = tokio::task::spawn_blocking(move || Digest(Sha256::digest(&hashed).into()));
    let digest = hash.await.map_err(|_| shutting_down())?;
    if digest != open.digest {
        let why = format!(
            "{:?} was announced, and {digest:?} came; send it again",
            open.digest
        );
        return Err(rejected(&open, &why));
    }
    let broker = Arc::clone(&peer.broker);
    let (_, kind) = broker
        .guests
        .inspect_and_compile(wasm.clone())
        .await
        .map_err(|e| WireError {
            message: format!("upload of {}: {}", open.plugin, e.message),
            ..e
        })?;
    let new = NewPlugin {
        plugin: open.plugin,
        kind,
        digest,
        wasm,
        by: peer.principal.clone(),
        now_ms: broker.clock.now_ms(),
    };
    Ok(broker.catalog.add_plugin(new).await?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use millstream_guests::{FILTER_JSON, FOREIGN_IMPORTS, NOT_COMPONENTS, SPLIT_ALERTS};
    use millstream_proto::pipeline::PluginKind;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::serve::control::tests::{ADMIN, STRANGER, peer, start};
    use crate::tls::tests::good;

    fn open(size: u64) -> OpenUpload {
        OpenUpload {
            plugin: "acme/p".parse().unwrap(),
            size,
            digest: Digest([0; 32]),
        }
    }

    fn whole(size: u64, chunks: &[Vec<u8>]) -> Result<Bytes, WireError> {
        let open = open(size);
        let mut pieces = Pieces::new(&open);
        chunks.iter().try_for_each(|chunk| pieces.push(chunk))?;
        pieces.finish()
    }

    fn refused(size: u64, chunks: &[Vec<u8>], expected: &str) {
        let e = whole(size, chunks).unwrap_err();
        assert_eq!(e.code, ErrorCode::UploadRejected);
        assert!(
            e.message.contains("acme/p") && e.message.contains(expected),
            "{e}"
        );
    }

    #[test]
    fn what_is_not_what_was_announced_is_refused() {
        refused(
            3,
            &[vec![1], vec![2]],
            "3 bytes were announced, and only 2 came",
        );
        refused(
            3,
            &[vec![1, 2], vec![3, 4]],
            "3 bytes were announced, and 4 came",
        );
        refused(
            1 << 20,
            &[vec![0; MAX_UPLOAD_CHUNK_BYTES + 1]],
            "a chunk has",
        );
    }

    async fn upload(peer: &Peer, wasm: &'static [u8]) -> Result<PluginVersion, WireError> {
        let digest = Digest(Sha256::digest(wasm).into());
        let open = OpenUpload {
            digest,
            ..open(wasm.len() as u64)
        };
        let turn = admit(peer, &open)?;
        let version = make(peer, open, Bytes::from_static(wasm)).await;
        drop(turn);
        version
    }

    #[tokio::test]
    async fn plugins_become_versions_and_all_else_is_refused_by_name() {
        let dir = good();
        let running = start(&dir).await;
        let admin = peer(&running, ADMIN);
        let first = upload(&admin, FILTER_JSON.wasm).await.unwrap();
        assert_eq!((first.version, first.kind), (1, PluginKind::Filter));
        assert_eq!(first.uploaded_by, admin.principal);
        let second = upload(&admin, SPLIT_ALERTS.wasm).await.unwrap();
        assert_eq!((second.version, second.kind), (2, PluginKind::Transform));
        assert_eq!(upload(&admin, FILTER_JSON.wasm).await.unwrap(), first);
        let stored = admin.broker.catalog.plugin_bytes(first.digest).unwrap();
        assert_eq!(&stored[..], FILTER_JSON.wasm);
        for (what, wasm) in NOT_COMPONENTS
            .into_iter()
            .chain([("foreign", FOREIGN_IMPORTS.wasm)])
        {
            let e = upload(&admin, wasm).await.unwrap_err();
            assert_eq!(e.code, ErrorCode::UploadRejected, "{what}: {e}");
            assert!(e.message.contains("acme/p"), "{what}: {e}");
        }
        let announced = OpenUpload {
            digest: first.digest,
            ..open(3)
        };
        let e = make(&admin, announced, Bytes::from_static(b"abc"))
            .await
            .unwrap_err();
        assert!(e.message.contains("was announced"), "{e}");
        running.shutdown().await;
    }

    #[tokio::test]
    async fn uploads_need_a_right_and_a_size_within_the_limit() {
        let dir = good();
        let running = start(&dir).await;
        let refused = |who, size| admit(&peer(&running, who), &open(size)).unwrap_err().code;
        assert_eq!(refused(STRANGER, 1), ErrorCode::NotAuthorized);
        assert_eq!(
            refused(ADMIN, MAX_PLUGIN_BYTES as u64 + 1),
            ErrorCode::UploadRejected
        );
        assert_eq!(refused(ADMIN, u64::MAX), ErrorCode::UploadRejected);
        running.shutdown().await;
    }

    proptest! {
        #[test]
        fn chunks_come_together_however_they_are_cut(chunks in vec(vec(any::<u8>(), 0..40), 0..9)) {
            let all = chunks.concat();
            prop_assert_eq!(&whole(all.len() as u64, &chunks).unwrap()[..], &all[..]);
        }
    }
}
