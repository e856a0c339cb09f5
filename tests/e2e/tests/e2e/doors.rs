//! Who is let in, and what those hear who are not.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use millstream::transport::crypto_provider;
use millstream::{
    Client, ConnectError, ErrorCode, Identity, Record, RequestError, StartAt, TopicConfig,
};
use millstream_e2e::{
    Pki, Purpose, RawConnection, Subject, TestBroker, allow, partitions, produce, topic, upload,
    using,
};
use millstream_guests::FILTER_FIELD;
use millstream_proto::acl::{Effect, Operation, ResourceKind};
use millstream_proto::pipeline::{ErrorPolicy, PipelineSpec, PluginUse};
use millstream_proto::topic::TopicChange;
use millstream_proto::{Offset, PartitionId, WireError};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// TLS alerts, as QUIC numbers them.
const NO_CERTIFICATE: u64 = 0x100 + 116;
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;

async fn refused(broker: &TestBroker, identity: Identity) -> ConnectError {
    match broker.connect(identity).await {
        Ok(client) => panic!("{} was let in", client.principal()),
        Err(e) => e,
    }
}

fn app() -> Subject {
    Subject::of("acme", "app")
}

#[tokio::test]
async fn every_wrong_certificate_has_an_error_of_its_own() {
    let tune = |config: &mut millstream_broker::Config| {
        config.tls.revocation_lists = vec![config.data_dir.with_file_name("crl.pem")];
    };
    let mut broker = TestBroker::set_up().tuned(tune).start().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Pki::new(elsewhere.path());
    let mut texts = HashSet::new();
    let mut hear = |e: ConnectError| {
        assert!(texts.insert(e.to_string()), "said twice: {e}");
        e
    };

    let foreign = Identity {
        ca: broker.pki().ca().into(),
        ..other.client(&app())
    };
    let e = hear(refused(&broker, foreign).await);
    assert!(matches!(e, ConnectError::UnknownAuthority { .. }), "{e:?}");

    let distrustful = Identity {
        ca: other.ca().into(),
        ..broker.pki().client(&app())
    };
    let e = hear(refused(&broker, distrustful).await);
    assert!(matches!(e, ConnectError::BrokerUntrusted { .. }), "{e:?}");

    let of = |subject: Subject| refused(&broker, broker.pki().client(&subject));
    let expired = Subject {
        expired: true,
        ..app()
    };
    let e = hear(of(expired).await);
    assert!(
        matches!(e, ConnectError::CertificateExpired { .. }),
        "{e:?}"
    );
    let revoked = Subject {
        revoked: true,
        ..app()
    };
    let e = hear(of(revoked).await);
    assert!(
        matches!(e, ConnectError::CertificateRevoked { .. }),
        "{e:?}"
    );
    for purpose in [Purpose::Code, Purpose::Unsaid] {
        let e = of(Subject { purpose, ..app() }).await;
        assert!(matches!(e, ConnectError::BadCertificate { .. }), "{e:?}");
    }

    let two = [app().uris, Subject::of("acme", "other").uris].concat();
    let strange = vec!["https://test.local/acme/app".to_owned()];
    for (uris, part) in [(Vec::new(), "0"), (two, "2"), (strange, "https://")] {
        let e = hear(of(Subject { uris, ..app() }).await);
        let wire = e.wire().expect("the broker itself refuses it");
        assert_eq!(wire.code, ErrorCode::NoIdentity);
        assert!(wire.message.contains(part), "{part} in {wire}");
    }

    let identity = broker.pki().client(&app());
    let misled = broker.client_config(identity).server_name("elsewhere.test");
    let e = hear(Client::connect(misled).await.unwrap_err());
    assert!(
        matches!(e, ConnectError::BrokerNameMismatch { .. }),
        "{e:?}"
    );

    // Who is in order gets in all the while.
    let client = broker.client("acme", "app").await;
    assert_eq!(client.principal().as_str(), app().uris[0]);
    broker.stop().await;
}

/// Settings of a client without a certificate that trusts the broker.
fn without_certificate(broker: &TestBroker) -> rustls::ClientConfig {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(broker.pki().ca()).unwrap();
    roots.add(ca).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(Arc::new(roots));
    let mut tls = tls.with_no_client_auth();
    tls.alpn_protocols = vec![millstream_proto::version::ALPN.to_vec()];
    tls
}

fn crypto_error(e: &quinn::ConnectionError) -> Option<u64> {
    match e {
        quinn::ConnectionError::ConnectionClosed(close) => Some(u64::from(close.error_code)),
        _ => None,
    }
}

#[tokio::test]
async fn without_a_certificate_or_the_protocol_nobody_gets_in() {
    let mut broker = TestBroker::start().await;
    let tls = without_certificate(&broker);
    let connection = RawConnection::dial(&broker, tls).await.unwrap();
    // The client's side of the handshake ends before the broker has looked for a certificate.
    let e = connection.closed().await;
    assert_eq!(crypto_error(&e), Some(NO_CERTIFICATE), "{e:?}");

    let mut tls = broker.pki().client(&app()).tls_config().unwrap();
    tls.alpn_protocols = vec![b"h3".to_vec(), b"millstream/0".to_vec()];
    let e = RawConnection::dial(&broker, tls).await.err().unwrap();
    assert_eq!(crypto_error(&e), Some(NO_APPLICATION_PROTOCOL), "{e:?}");
    broker.stop().await;
}

/// What a client asks about things of this name, and what it hears.
async fn ask_everything(client: &Client, name: &str) -> Vec<(&'static str, WireError)> {
    let topic = topic(name);
    let (plugin, pipeline) = (name.parse().unwrap(), name.parse().unwrap());
    let consumer: millstream::ConsumerName = "c".parse().unwrap();
    let spec = PipelineSpec {
        name: name.parse().unwrap(),
        input: topic.clone(),
        from_latest: false,
        steps: Vec::new(),
        outputs: vec![("out".into(), "acme/out".parse().unwrap())],
    };
    let rule = allow("evil", ResourceKind::Topic, name, &[Operation::Consume]);
    let mut heard = Vec::new();
    let mut hear = |what, e: Option<&WireError>| {
        let e = e.unwrap_or_else(|| panic!("{what} was not refused by the broker"));
        heard.push((what, e.clone()));
    };
    macro_rules! refused {
        ($($what:literal: $asked:expr;)*) => {
            $(hear($what, $asked.await.expect_err($what).wire());)*
        };
    }
    refused! {
        "produce": client.producer(topic.clone()).build();
        "consume": client.consumer(topic.clone()).build();
        "create": client.create_topic(topic.clone(), TopicConfig::default());
        "alter": client.alter_topic(topic.clone(), TopicChange::default());
        "delete": client.delete_topic(topic.clone());
        "describe": client.describe_topic(topic.clone());
        "commit": client.commit_offsets(topic.clone(), consumer.clone(), vec![(PartitionId(0), Offset(0))]);
        "fetch offsets": client.fetch_offsets(topic.clone(), consumer.clone());
        "find offsets": client.find_offsets(topic.clone(), StartAt::Earliest);
        "upload": client.upload_plugin(plugin, Bytes::from_static(FILTER_FIELD.wasm), |_| {});
        "delete plugin": client.delete_plugin(name.parse().unwrap(), None);
        "plugin log": client.plugin_log(name.parse().unwrap(), 0);
        "attach": client.attach(topic.clone(), PluginUse::new(name.parse().unwrap()));
        "detach": client.detach(topic.clone(), name.parse().unwrap());
        "apply": client.apply_pipeline(spec);
        "show": client.show_pipeline(pipeline);
        "pause": client.pause_pipeline(name.parse().unwrap());
        "resume": client.resume_pipeline(name.parse().unwrap());
        "delete pipeline": client.delete_pipeline(name.parse().unwrap());
        "grant": client.grant(rule.clone());
        "revoke": client.revoke(rule);
        "check access": client.check_access(
            "spiffe://test.local/acme/app".parse().unwrap(), Operation::Consume, ResourceKind::Topic, name);
        "status": client.status();
    }
    heard
}

#[tokio::test]
async fn without_rights_one_learns_nothing() {
    let mut broker = TestBroker::start().await;
    let owner = broker.tenant("acme").await;
    for name in ["acme/is", "acme/out"] {
        owner
            .create_topic(topic(name), partitions(2))
            .await
            .unwrap();
    }
    let wasm = Bytes::from_static(FILTER_FIELD.wasm);
    let name = "acme/is".parse().unwrap();
    owner.upload_plugin(name, wasm, |_| {}).await.unwrap();
    let spec = PipelineSpec {
        name: "acme/is".parse().unwrap(),
        input: topic("acme/is"),
        from_latest: false,
        steps: Vec::new(),
        outputs: vec![("out".into(), topic("acme/out"))],
    };
    owner.apply_pipeline(spec).await.unwrap();
    produce(&owner, &topic("acme/is"), ["secret"]).await;

    let stranger = broker.client("evil", "eve").await;
    let there = ask_everything(&stranger, "acme/is").await;
    let not_there = ask_everything(&stranger, "acme/no").await;
    for ((what, there), (_, not_there)) in there.iter().zip(&not_there) {
        assert_eq!(there.code, ErrorCode::NotAuthorized, "{what}: {there}");
        assert!(
            there.message.contains("spiffe://test.local/evil/eve"),
            "{there}"
        );
        let same = there.message.replace("acme/is", "acme/no");
        assert_eq!(same, not_there.message, "{what} tells whether it exists");
    }
    assert_eq!(stranger.list_topics(None).await.unwrap(), []);
    assert_eq!(stranger.list_plugins(None).await.unwrap(), []);
    assert_eq!(stranger.list_pipelines(None).await.unwrap(), []);
    assert_eq!(stranger.list_rules().await.unwrap(), []);

    // None of it has changed anything.
    let info = owner.describe_topic(topic("acme/is")).await.unwrap();
    assert_eq!((info.chain, info.config.partitions), (vec![], 2));
    let ends: u64 = info.partitions.iter().map(|p| p.end.0).sum();
    assert_eq!(ends, 1);
    broker.stop().await;
}

#[tokio::test]
async fn a_right_opens_what_it_names_and_a_denial_closes_it() {
    let mut broker = TestBroker::start().await;
    let owner = broker.tenant("acme").await;
    let (public, private) = (topic("acme/public"), topic("acme/private"));
    for name in [&public, &private] {
        owner
            .create_topic(name.clone(), partitions(1))
            .await
            .unwrap();
    }
    let guest = broker.client("guest", "app").await;
    let read = allow(
        "guest",
        ResourceKind::Topic,
        "acme/p*",
        &[Operation::Consume],
    );
    let mut closed = allow(
        "guest",
        ResourceKind::Topic,
        "acme/private",
        &[Operation::Consume],
    );
    closed.effect = Effect::Deny;
    owner.grant(read.clone()).await.unwrap();
    owner.grant(closed).await.unwrap();
    guest.consumer(public.clone()).build().await.unwrap();
    let code = |e: Option<&WireError>| e.map(|e| e.code);
    let denied = guest.consumer(private).build().await.unwrap_err();
    assert_eq!(code(denied.wire()), Some(ErrorCode::NotAuthorized));
    let denied = guest.producer(public.clone()).build().await.unwrap_err();
    assert_eq!(code(denied.wire()), Some(ErrorCode::NotAuthorized));

    // Rules outlive a restart, and what is revoked is closed again.
    broker.restart().await;
    let guest = broker.client("guest", "app").await;
    guest.consumer(public.clone()).build().await.unwrap();
    let owner = broker.client("acme", "app").await;
    owner.revoke(read).await.unwrap();
    let denied = guest.consumer(public).build().await.unwrap_err();
    assert_eq!(code(denied.wire()), Some(ErrorCode::NotAuthorized));

    // Nobody grants what is not theirs.
    let beyond = allow(
        "acme",
        ResourceKind::Topic,
        "other/*",
        &[Operation::Consume],
    );
    let denied = owner.grant(beyond).await.unwrap_err();
    assert_eq!(code(denied.wire()), Some(ErrorCode::NotAuthorized));
    broker.stop().await;
}

/// A plugin of a stranger is a stranger's, whoever the topic belongs to.
#[tokio::test]
async fn another_tenants_plugin_needs_a_right_of_its_own() {
    let mut broker = TestBroker::start().await;
    let (acme, other) = (broker.tenant("acme").await, broker.tenant("other").await);
    upload(&other, "other", FILTER_FIELD).await;
    let name = topic("acme/t");
    acme.create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    let config = [("type", "u8"), ("op", "<"), ("value", "5")];
    let theirs = using("other", FILTER_FIELD, &config, ErrorPolicy::Stop);
    let denied = |e: RequestError| e.wire().map(|e| e.code) == Some(ErrorCode::NotAuthorized);
    let e = acme.attach(name.clone(), theirs.clone()).await.unwrap_err();
    assert!(denied(e));
    let consumer = acme.consumer(name.clone()).plugin(theirs.clone());
    let e = consumer.build().await.unwrap_err();
    assert_eq!(e.wire().unwrap().code, ErrorCode::NotAuthorized);
    let lend = allow(
        "acme",
        ResourceKind::Plugin,
        "other/filter-field",
        &[Operation::Attach],
    );
    other.grant(lend).await.unwrap();
    let info = acme.attach(name, theirs).await.unwrap();
    assert_eq!(info.chain[0].version, Some(1));
    broker.stop().await;
}

#[tokio::test]
async fn connections_are_counted() {
    let tune = |config: &mut millstream_broker::Config| config.transport.max_connections = 2;
    let mut broker = TestBroker::set_up().tuned(tune).start().await;
    let first = broker.client("acme", "one").await;
    let second = broker.client("acme", "two").await;
    let identity = broker.pki().client(&Subject::of("acme", "three"));
    let hasty = broker.client_config(identity.clone());
    let hasty = hasty.connect_deadline(std::time::Duration::ZERO);
    let e = Client::connect(hasty).await.unwrap_err();
    assert_eq!(e.class(), millstream::ErrorClass::Retry, "{e}");
    first.close().await;
    // One has left: who keeps trying gets in.
    let third = broker.connect(identity).await.unwrap();
    drop((second, third));
    broker.stop().await;
}

/// A right that is taken away is gone at once, not at the next connection.
#[tokio::test]
async fn a_revoked_right_ends_what_is_open() {
    let mut broker = TestBroker::start().await;
    let owner = broker.tenant("acme").await;
    let name = topic("acme/t");
    owner
        .create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    let to = |operation| allow("guest", ResourceKind::Topic, "acme/t", &[operation]);
    let (read, write) = (to(Operation::Consume), to(Operation::Produce));
    owner.grant(read.clone()).await.unwrap();
    owner.grant(write.clone()).await.unwrap();
    let guest = broker.client("guest", "app").await;
    let producer = guest.producer(name.clone()).build().await.unwrap();
    let mut consumer = guest.consumer(name.clone()).build().await.unwrap();
    let sent = producer.send(&Record::value(b"mine")).await.unwrap();
    sent.await.unwrap();
    consumer.next_message().await.unwrap().unwrap();

    owner.revoke(read).await.unwrap();
    let e = consumer.next_message().await.unwrap().unwrap_err();
    assert_eq!(e.wire().unwrap().code, ErrorCode::NotAuthorized, "{e}");
    // The other right is still there, and then it is not.
    let sent = producer.send(&Record::value(b"still")).await.unwrap();
    sent.await.unwrap();
    owner.revoke(write).await.unwrap();
    let refused = match producer.send(&Record::value(b"too late")).await {
        Ok(sent) => sent.await.unwrap_err(),
        Err(e) => e,
    };
    assert_eq!(
        refused.wire().unwrap().code,
        ErrorCode::NotAuthorized,
        "{refused}"
    );
    let stored = owner.describe_topic(name).await.unwrap().partitions[0].end;
    assert_eq!(stored, Offset(2));
    broker.stop().await;
}
