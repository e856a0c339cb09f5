//! What happens to those who are inside when certificates, lists or settings change outside.

use std::time::Duration;

use millstream::{ConnectError, ErrorCode, Identity, ProduceError, Record};
use millstream_e2e::{
    Pki, RawConnection, Subject, TestBroker, eventually, partitions, produce, topic,
};
use quinn::ConnectionError;
use tokio::time::{Instant, timeout};

/// Within which a connection must end whose certificate is not good any more.
const CUT: Duration = Duration::from_secs(5);

fn with_list(config: &mut millstream_broker::Config) {
    config.tls.revocation_lists = vec![config.data_dir.with_file_name("crl.pem")];
}

async fn start() -> TestBroker {
    TestBroker::set_up().tuned(with_list).start().await
}

fn numbered(name: &str, serial: u64) -> Subject {
    Subject {
        serial: Some(serial),
        ..Subject::of("acme", name)
    }
}

/// A connection with this certificate, let in.
async fn inside(broker: &TestBroker, identity: &Identity) -> RawConnection {
    let before = broker.inner().sessions.count();
    let tls = identity.tls_config().unwrap();
    let connection = RawConnection::dial(broker, tls).await.unwrap();
    eventually("the connection to be let in", async || {
        (broker.inner().sessions.count() > before).then_some(())
    })
    .await;
    connection
}

/// The code and the words with which the broker ended a connection.
fn said(e: &ConnectionError) -> (ErrorCode, String) {
    let ConnectionError::ApplicationClosed(close) = e else {
        panic!("the broker did not end it: {e}");
    };
    let number = u16::try_from(close.error_code.into_inner()).unwrap();
    let text = String::from_utf8_lossy(&close.reason).into_owned();
    (ErrorCode::from_number(number), text)
}

/// Ends within `limit`, rejected for the certificate, in words with `part`.
async fn cut(connection: &RawConnection, limit: Duration, part: &str) {
    let e = timeout(limit, connection.closed()).await.unwrap();
    let (code, text) = said(&e);
    assert_eq!(code, ErrorCode::CertificateRejected, "{text}");
    assert!(text.contains(part), "{text}");
}

#[tokio::test]
async fn a_revoked_certificate_ends_what_was_opened_with_it() {
    let mut broker = start().await;
    let owner = broker.tenant("acme").await;
    let name = topic("acme/t");
    owner
        .create_topic(name.clone(), partitions(1))
        .await
        .unwrap();
    let taken = broker.pki().client(&numbered("app", 7));
    let kept = broker.pki().client(&numbered("app", 8));
    let raw = inside(&broker, &taken).await;
    let client = broker.connect(taken.clone()).await.unwrap();
    let producer = client.producer(name.clone()).build().await.unwrap();
    let sent = producer.send(&Record::value(b"before")).await.unwrap();
    sent.await.unwrap();
    let other = broker.connect(kept).await.unwrap();

    broker.pki().publish(&[7]);
    cut(&raw, CUT, "revoked").await;
    // The producer tries to come back, is refused, and says why.
    let outcome = timeout(CUT, async {
        match producer.send(&Record::value(b"after")).await {
            Ok(sent) => sent.await.map(drop),
            Err(e) => Err(e),
        }
    });
    let e: ProduceError = outcome.await.unwrap().unwrap_err();
    assert!(e.to_string().contains("revoked"), "{e}");
    let e = broker.connect(taken).await.map(drop).unwrap_err();
    assert!(matches!(e, ConnectError::CertificateRevoked { .. }), "{e}");
    // Somebody else with the same name has a certificate of his own.
    produce(&other, &name, ["other"]).await;
    assert_eq!(broker.inner().credentials.ended(), 2);
    let told = broker.admin().await.door().await.unwrap();
    assert_eq!((told.ended, told.reloads, told.trouble), (2, 1, None));
    assert!(
        told.refused.iter().any(|(why, _)| why == "revoked"),
        "{:?}",
        told.refused
    );
    broker.stop().await;
}

#[tokio::test]
async fn a_certificate_that_runs_out_ends_what_was_opened_with_it() {
    const GOOD: u64 = 6;
    let mut broker = start().await;
    let subject = Subject {
        seconds: Some(GOOD),
        ..Subject::of("acme", "short")
    };
    let started = Instant::now();
    let short = broker.pki().client(&subject);
    let raw = inside(&broker, &short).await;
    let long = inside(&broker, &broker.pki().client(&numbered("long", 9))).await;
    cut(&raw, Duration::from_secs(GOOD) + CUT, "expired").await;
    assert!(started.elapsed() > Duration::from_secs(GOOD - 1));
    let e = broker.connect(short).await.map(drop).unwrap_err();
    assert!(matches!(e, ConnectError::CertificateExpired { .. }), "{e}");
    assert!(timeout(Duration::ZERO, long.closed()).await.is_err());
    broker.stop().await;
}

#[tokio::test]
async fn a_broken_file_leaves_in_force_what_was_before() {
    let mut broker = start().await;
    let good = broker.pki().client(&numbered("app", 7));
    let raw = inside(&broker, &good).await;
    let list = broker.pki().revocation_list();
    let whole = std::fs::read(&list).unwrap();
    std::fs::write(&list, "broken").unwrap();
    let door = &broker.inner().credentials;
    let trouble = eventually("the broken file to be noticed", async || door.trouble()).await;
    assert!(trouble.contains("crl.pem"), "{trouble}");
    assert!(door.failures() >= 1);
    let e = broker.reload().await.unwrap_err();
    assert!(e.to_string().contains("crl.pem"), "{e}");
    let told = broker.admin().await.door().await.unwrap();
    assert!(told.trouble.is_some() && told.reload_failures >= 2);
    // The list of before still counts, and so does everything else.
    let revoked = Subject {
        revoked: true,
        ..Subject::of("acme", "app")
    };
    let e = broker.connect(broker.pki().client(&revoked)).await;
    let e = e.map(drop).unwrap_err();
    assert!(matches!(e, ConnectError::CertificateRevoked { .. }), "{e}");
    broker.connect(good).await.unwrap();
    assert!(timeout(Duration::ZERO, raw.closed()).await.is_err());

    std::fs::write(&list, whole).unwrap();
    eventually("the file to be mended", async || {
        door.trouble().is_none().then_some(())
    })
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn a_key_that_others_can_read_does_not_come_into_force() {
    use std::os::unix::fs::PermissionsExt;
    let mut broker = start().await;
    let key = broker.pki().server_key();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let e = broker.reload().await.unwrap_err().to_string();
    assert!(e.contains("chmod 600") && e.contains("server.key"), "{e}");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(broker.reload().await.unwrap().ended, 0);
    broker.stop().await;
}

#[tokio::test]
async fn another_authority_takes_the_place_of_the_first() {
    let mut broker = start().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let other = Pki::new(elsewhere.path());
    // It trusts the broker's authority, which stays as it is.
    let old = broker.pki().client(&numbered("old", 1));
    let new = Identity {
        ca: std::fs::read(broker.pki().ca()).unwrap().into(),
        ..other.client(&numbered("new", 1))
    };
    let e = broker.connect(new.clone()).await.map(drop).unwrap_err();
    assert!(matches!(e, ConnectError::UnknownAuthority { .. }), "{e}");
    let raw = inside(&broker, &old).await;
    std::fs::copy(other.ca(), broker.pki().ca()).unwrap();
    // Both have the same name: a list of the first would be taken for a forged one of the second.
    std::fs::copy(other.revocation_list(), broker.pki().revocation_list()).unwrap();
    assert_eq!(broker.reload().await.unwrap().ended, 1);
    cut(&raw, CUT, "authority").await;
    broker.connect(new).await.unwrap();
    let e = broker.connect(old).await.map(drop).unwrap_err();
    assert!(matches!(e, ConnectError::UnknownAuthority { .. }), "{e}");
    broker.stop().await;
}

#[tokio::test]
async fn the_broker_s_own_certificate_is_renewed_under_those_who_are_connected() {
    let mut broker = start().await;
    let app = broker.pki().client(&numbered("app", 3));
    let before = inside(&broker, &app).await;
    broker.pki().renew_server();
    eventually("the new certificate", async || {
        // Who asks too often is sent away for a while.
        let now = RawConnection::dial(&broker, app.tls_config().unwrap()).await;
        (now.ok()?.certificate() != before.certificate()).then_some(())
    })
    .await;
    assert!(timeout(Duration::ZERO, before.closed()).await.is_err());
    assert_eq!(broker.inner().credentials.ended(), 0);
    broker.stop().await;
}

#[tokio::test]
async fn what_of_the_configuration_can_change_does_and_the_rest_is_told() {
    let tune = |config: &mut millstream_broker::Config| {
        with_list(config);
        config.source = Some(config.data_dir.with_file_name("millstream.toml"));
    };
    let mut broker = TestBroker::set_up().tuned(tune).start().await;
    let text = |rest: &str| {
        format!(
            "data_dir = \"data\"\nadmins = [\"spiffe://test.local/ops/admin\"]\n\
             listen = \"127.0.0.1:0\"\n[tls]\ncert = \"server.pem\"\nkey = \"server.key\"\n\
             client_ca = \"ca.pem\"\ncrl = \"crl.pem\"\n{rest}"
        )
    };
    let file = broker.dir().join("millstream.toml");
    let write = |rest: &str| std::fs::write(&file, text(rest)).unwrap();
    // Another trust domain: whoever is inside is nobody any more.
    let app = broker.pki().client(&numbered("app", 3));
    let raw = inside(&broker, &app).await;
    write("[identity]\ntrust_domain = \"elsewhere.test\"");
    cut(&raw, 2 * CUT, "elsewhere.test").await;
    let e = broker.connect(app.clone()).await.map(drop).unwrap_err();
    assert_eq!(e.wire().unwrap().code, ErrorCode::NoIdentity);

    write("[transport]\nmax_connections = 1\n[storage]\ntail_mib = 5");
    let reloaded = broker.reload().await.unwrap();
    assert_eq!(reloaded.restart, ["storage"]);
    let raw = inside(&broker, &app).await;
    let hasty = broker.client_config(app.clone());
    let hasty = hasty.connect_deadline(Duration::ZERO);
    let e = millstream::Client::connect(hasty).await.map(drop);
    assert_eq!(e.unwrap_err().class(), millstream::ErrorClass::Retry);

    write("[transport]\nmax_conections = 1");
    let e = broker.reload().await.unwrap_err().to_string();
    assert!(e.contains("max_conections"), "{e}");
    assert!(timeout(Duration::ZERO, raw.closed()).await.is_err());
    broker.stop().await;
}
