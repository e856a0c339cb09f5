//! Plugins as things that are uploaded, listed, read about and deleted.

use bytes::Bytes;
use futures_util::future::select_all;
use millstream::{Client, ErrorCode, PluginUse, RequestError, UploadError};
use millstream_broker::Clock;
use millstream_broker::limits::MAX_UPLOADS;
use millstream_e2e::{
    RawConnection, TestBroker, allow, partitions, plugin, produce, topic, upload, using,
};
use millstream_guests::{
    BAD_FILTER, EARLY_PROCESSOR, FILTER_FIELD, FILTER_JSON, FOREIGN_IMPORTS, NO_EXPORTS,
    NOT_COMPONENTS, PEEK, ROUTE_BY_REGION, truncated,
};
use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::frame::FrameKind;
use millstream_proto::limits::{MAX_PLUGIN_BYTES, MAX_UPLOAD_CHUNK_BYTES};
use millstream_proto::message::{Digest, OpenUpload, PluginVersion, StreamOpen};
use millstream_proto::pipeline::{ErrorPolicy, PipelineSpec, PluginKind};
use millstream_proto::{PluginName, WireError};
use sha2::Digest as _;

fn code(e: &RequestError) -> Option<ErrorCode> {
    e.wire().map(|e| e.code)
}

fn digest(bytes: &[u8]) -> Digest {
    Digest(sha2::Sha256::digest(bytes).into())
}

async fn send(
    client: &Client,
    name: &str,
    wasm: &'static [u8],
) -> Result<PluginVersion, UploadError> {
    let name: PluginName = name.parse().unwrap();
    client
        .upload_plugin(name, Bytes::from_static(wasm), |_| {})
        .await
}

#[tokio::test]
async fn versions_are_counted_and_the_same_bytes_are_the_same_version() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let first = send(&client, "acme/p", FILTER_FIELD.wasm).await.unwrap();
    assert_eq!((first.version, first.kind), (1, PluginKind::Filter));
    assert_eq!(first.digest, digest(FILTER_FIELD.wasm));
    assert_eq!(first.size, FILTER_FIELD.wasm.len() as u64);
    assert_eq!(first.uploaded_by, client.principal());
    let second = send(&client, "acme/p", ROUTE_BY_REGION.wasm).await.unwrap();
    assert_eq!((second.version, second.kind), (2, PluginKind::Partitioner));
    let again = send(&client, "acme/p", FILTER_FIELD.wasm).await.unwrap();
    assert_eq!(again, first);
    // Another name begins anew, whatever the bytes.
    let other = send(&client, "acme/q", FILTER_FIELD.wasm).await.unwrap();
    assert_eq!((other.version, other.digest), (1, first.digest));
    let listed = vec![first.clone(), second.clone(), other];
    assert_eq!(client.list_plugins(None).await.unwrap(), listed);

    broker.restart().await;
    assert_eq!(client.list_plugins(None).await.unwrap(), listed);
    client
        .delete_plugin("acme/p".parse().unwrap(), Some(2))
        .await
        .unwrap();
    let third = send(&client, "acme/p", ROUTE_BY_REGION.wasm).await.unwrap();
    assert_eq!(third.version, 3, "a version is never used twice");
    client
        .delete_plugin("acme/p".parse().unwrap(), None)
        .await
        .unwrap();
    let left = client.list_plugins(None).await.unwrap();
    assert_eq!(left.len(), 1, "the bytes that another name uses stay");
    let gone = client
        .delete_plugin("acme/p".parse().unwrap(), None)
        .await
        .unwrap_err();
    assert_eq!(code(&gone), Some(ErrorCode::UnknownPlugin));
    let t = topic("acme/t");
    client.create_topic(t.clone(), partitions(1)).await.unwrap();
    let config = [("type", "u8"), ("op", ">"), ("value", "1")];
    let q = PluginUse {
        plugin: "acme/q".parse().unwrap(),
        ..using("acme", FILTER_FIELD, &config, ErrorPolicy::Stop)
    };
    client.attach(t, q).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn what_is_no_plugin_is_refused_with_what_was_expected() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let not_components = [
        ("empty", "empty"),
        ("garbage", "not WebAssembly"),
        ("core module", "core WebAssembly module"),
        ("header of a component and no more", "damaged component"),
        ("component of a version to come", "binary version"),
    ];
    let mut cases: Vec<(&str, &'static [u8], &str)> = Vec::new();
    for (what, bytes) in NOT_COMPONENTS {
        let (_, part) = not_components
            .into_iter()
            .find(|(known, _)| *known == what)
            .unwrap();
        cases.push((what, bytes, part));
    }
    cases.push(("half of one", truncated(FILTER_JSON), "damaged component"));
    cases.push((
        "foreign imports",
        FOREIGN_IMPORTS.wasm,
        "acme:vault/secrets",
    ));
    cases.push(("no plugin's exports", NO_EXPORTS.wasm, "greet"));
    cases.push(("a processor", EARLY_PROCESSOR.wasm, "processor"));
    for (what, wasm, part) in cases {
        let e = send(&client, "acme/p", wasm).await.unwrap_err();
        let wire = e.wire().unwrap_or_else(|| panic!("{what}: {e}"));
        assert_eq!(wire.code, ErrorCode::UploadRejected, "{what}: {e}");
        let says = |part: &str| wire.message.contains(part);
        assert!(
            says("acme/p") && says(part) && says("expected") | says("allowed") | says("damaged"),
            "{what}: {e}"
        );
    }
    let huge = Bytes::from(vec![0; MAX_PLUGIN_BYTES + 1]);
    let e = client
        .upload_plugin("acme/p".parse().unwrap(), huge, |_| {})
        .await
        .unwrap_err();
    assert!(matches!(e, UploadError::TooLarge { .. }), "{e}");
    // Nothing of it is left.
    assert_eq!(client.list_plugins(None).await.unwrap(), []);
    let version = send(&client, "acme/p", FILTER_JSON.wasm).await.unwrap();
    assert_eq!(version.version, 1);
    broker.stop().await;
}

/// Uploads chunks under a claim that need not be true.
async fn claim(raw: &RawConnection, size: u64, digest: Digest, chunks: &[&[u8]]) -> WireError {
    let open = OpenUpload {
        plugin: "acme/p".parse().unwrap(),
        size,
        digest,
    };
    let mut stream = raw.stream().await;
    stream
        .message(FrameKind::Open, 0, &StreamOpen::Upload(open))
        .await;
    for chunk in chunks {
        stream.frame(FrameKind::Chunk, 0, chunk).await;
    }
    stream.frame(FrameKind::End, 0, b"").await;
    stream
        .expect()
        .await
        .expect_err("the upload is not what it claims to be")
}

#[tokio::test]
async fn an_upload_that_is_not_what_it_claims_is_refused() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let wasm = FILTER_FIELD.wasm;
    let (size, right) = (wasm.len() as u64, digest(wasm));
    let wrong = digest(b"something else");
    let big_chunk = vec![0; MAX_UPLOAD_CHUNK_BYTES + 1];
    let big_size = big_chunk.len() as u64;
    let too_much = MAX_PLUGIN_BYTES as u64 + 1;
    for (e, part) in [
        (claim(&raw, size, wrong, &[wasm]).await, "was announced"),
        (claim(&raw, size + 1, right, &[wasm]).await, "announced"),
        (claim(&raw, size - 1, right, &[wasm]).await, "announced"),
        (
            claim(&raw, size, right, &[&wasm[..1000]]).await,
            "only 1000 came",
        ),
        (claim(&raw, 0, right, &[]).await, "empty"),
        (claim(&raw, too_much, right, &[]).await, "at most"),
        (claim(&raw, big_size, right, &[&big_chunk]).await, "chunk"),
    ] {
        assert_eq!(e.code, ErrorCode::UploadRejected, "{e}");
        assert!(
            e.message.contains(part) && e.message.contains("acme/p"),
            "{part} in {e}"
        );
    }
    assert_eq!(client.list_plugins(None).await.unwrap(), []);
    // The connection goes on, and pieces of any size make a whole.
    let open = OpenUpload {
        plugin: "acme/p".parse().unwrap(),
        size,
        digest: right,
    };
    let mut stream = raw.stream().await;
    stream
        .message(FrameKind::Open, 0, &StreamOpen::Upload(open))
        .await;
    for chunk in wasm.chunks(777) {
        stream.frame(FrameKind::Chunk, 0, chunk).await;
    }
    stream.frame(FrameKind::End, 0, b"").await;
    let answer: PluginVersion = stream.expect().await.unwrap().message().unwrap();
    assert_eq!(answer.digest, right);
    broker.stop().await;
}

#[tokio::test]
async fn a_plugin_in_use_is_not_deleted() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let (t, out) = (topic("acme/t"), topic("acme/out"));
    for name in [&t, &out] {
        client
            .create_topic(name.clone(), partitions(1))
            .await
            .unwrap();
    }
    upload(&client, "acme", FILTER_FIELD).await;
    let config = [("type", "u8"), ("op", ">"), ("value", "1")];
    let step = using("acme", FILTER_FIELD, &config, ErrorPolicy::Stop);
    let name = plugin("acme", FILTER_FIELD);
    client.attach(t.clone(), step.clone()).await.unwrap();
    let refused = async |by: &str| {
        for version in [None, Some(1)] {
            let e = client
                .delete_plugin(name.clone(), version)
                .await
                .unwrap_err();
            assert_eq!(code(&e), Some(ErrorCode::PluginInUse), "{e}");
            assert!(e.to_string().contains(by), "{e}");
        }
    };
    refused("topic acme/t").await;
    let spec = PipelineSpec {
        name: "acme/pipe".parse().unwrap(),
        input: t.clone(),
        from_latest: false,
        steps: vec![step],
        outputs: vec![("out".into(), out)],
    };
    client.apply_pipeline(spec).await.unwrap();
    client.detach(t.clone(), name.clone()).await.unwrap();
    refused("pipeline acme/pipe").await;
    // Paused is in use too.
    client
        .pause_pipeline("acme/pipe".parse().unwrap())
        .await
        .unwrap();
    refused("pipeline acme/pipe").await;
    client
        .delete_pipeline("acme/pipe".parse().unwrap())
        .await
        .unwrap();
    client.delete_plugin(name.clone(), None).await.unwrap();
    let e = client
        .attach(t.clone(), PluginUse::new(name.clone()))
        .await
        .unwrap_err();
    assert_eq!(code(&e), Some(ErrorCode::UnknownPlugin));
    let e = client.detach(t, name).await.unwrap_err();
    assert!(e.wire().is_some(), "{e}");
    broker.stop().await;
}

#[tokio::test]
async fn a_plugins_log_is_its_owners_and_bounded() {
    // Time stands still, so that the rate of lines allows one burst and no more.
    let clock = Clock::fixed(1_000_000);
    let mut broker = TestBroker::set_up().clock(clock.clone()).start().await;
    let client = broker.tenant("acme").await;
    let t = topic("acme/t");
    client.create_topic(t.clone(), partitions(1)).await.unwrap();
    let name = plugin("acme", BAD_FILTER);
    upload(&client, "acme", BAD_FILTER).await;
    let flood = using(
        "acme",
        BAD_FILTER,
        &[("mode", "flood-logs")],
        ErrorPolicy::Skip,
    );
    client.attach(t.clone(), flood).await.unwrap();
    produce(&client, &t, ["v"]).await;
    let lines = client.plugin_log(name.clone(), 0).await.unwrap();
    let written: usize = lines.iter().map(|line| line.message.len()).sum();
    assert!((1..=200).contains(&lines.len()), "{} lines", lines.len());
    assert!(written < 64 << 10, "{written} bytes");
    let line = &lines[0];
    assert_eq!(
        (line.version, line.level.as_str(), line.time_ms),
        (1, "info", 1_000_000)
    );
    assert!(line.place.contains("topic acme/t"), "{}", line.place);
    assert!(line.message.starts_with("all work and no play"));
    assert!(lines.iter().map(|line| line.sequence).is_sorted());
    let later = client
        .plugin_log(name.clone(), lines[1].sequence)
        .await
        .unwrap();
    assert_eq!(later[..], lines[1..]);
    // More when time goes on.
    clock.set(1_001_000);
    produce(&client, &t, ["v"]).await;
    let more = client.plugin_log(name.clone(), 0).await.unwrap();
    assert!(more.last().unwrap().sequence > lines.last().unwrap().sequence);

    // Whoever may use it may not read what it says.
    let guest = broker.client("guest", "app").await;
    let rule = allow(
        "guest",
        ResourceKind::Plugin,
        "acme/*",
        &[Operation::Attach, Operation::Describe],
    );
    client.grant(rule).await.unwrap();
    assert_eq!(guest.list_plugins(None).await.unwrap().len(), 1);
    let e = guest.plugin_log(name, 0).await.unwrap_err();
    assert_eq!(code(&e), Some(ErrorCode::NotAuthorized));
    broker.stop().await;
}

#[tokio::test]
async fn a_plugin_finds_nothing_of_the_broker() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let t = topic("acme/t");
    client.create_topic(t.clone(), partitions(1)).await.unwrap();
    upload(&client, "acme", PEEK).await;
    client
        .attach(t.clone(), PluginUse::new(plugin("acme", PEEK)))
        .await
        .unwrap();
    produce(&client, &t, ["v"]).await;
    let lines = client.plugin_log(plugin("acme", PEEK), 0).await.unwrap();
    let said: Vec<_> = lines.iter().map(|line| line.message.as_str()).collect();
    assert!(
        said.contains(&"found 0") && said.contains(&"time passes: false"),
        "{said:?}"
    );
    broker.stop().await;
}

#[tokio::test]
async fn too_many_uploads_at_once_wait_for_their_turn() {
    let mut broker = TestBroker::start().await;
    let client = broker.tenant("acme").await;
    let (raw, _control) = RawConnection::connect(&broker, "acme", "raw").await;
    let mut begun = Vec::new();
    let open = OpenUpload {
        plugin: "acme/p".parse().unwrap(),
        size: 1000,
        digest: digest(b""),
    };
    let open = StreamOpen::Upload(open);
    // Streams may overtake one another: one of them is told that it is one too many.
    for _ in 0..=MAX_UPLOADS {
        let mut stream = raw.stream().await;
        stream.message(FrameKind::Open, 0, &open).await;
        begun.push(stream);
    }
    let answers = begun.iter_mut().map(|stream| Box::pin(stream.expect()));
    let (answer, told, _) = select_all(answers).await;
    let e = answer.unwrap_err();
    assert_eq!(e.code, ErrorCode::Overloaded, "{e}");
    assert!(
        e.retry_after_ms.is_some() && e.message.contains(&format!("{MAX_UPLOADS} uploads")),
        "{e:?}"
    );
    drop(begun.swap_remove(told));
    // The client's own library keeps trying, and gets its turn once one of them gives up.
    let uploading = tokio::spawn(async move { send(&client, "acme/p", FILTER_FIELD.wasm).await });
    drop(begun);
    assert_eq!(uploading.await.unwrap().unwrap().version, 1);
    broker.stop().await;
}
