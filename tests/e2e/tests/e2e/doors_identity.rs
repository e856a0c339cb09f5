//! Whom the broker takes a client for: one configured field of the certificate, and nothing else.

use millstream::{ConnectError, ErrorCode};
use millstream_broker::Config;
use millstream_broker::metrics::Refusal;
use millstream_broker::tls::{Identity, NamedField};
use millstream_e2e::{Purpose, RawConnection, Subject, TestBroker, eventually};

/// TLS alert `certificate_unknown`, as QUIC numbers it.
const CERTIFICATE_UNKNOWN: u64 = 0x100 + 46;

fn named(field: NamedField) -> Identity {
    // What stands in a configuration file is tested beside it; here the outcome counts.
    let text = |field: &str| {
        format!(
            "data_dir = \"d\"\n[tls]\ncert = \"c\"\nkey = \"k\"\nclient_ca = \"a\"\n\
             [identity]\nfield = \"{field}\"\nsuffix = \"clients.test\"\n\
             trust_domain = \"test.local\""
        )
    };
    let field = match field {
        NamedField::Dns => "dns",
        NamedField::Email => "email",
        NamedField::CommonName => "cn",
    };
    let config = Config::from_toml(&text(field), std::path::Path::new("/"));
    config.unwrap().tls.identity
}

/// A certificate with something of everything, for different people.
fn ambiguous() -> Subject {
    Subject {
        hosts: vec!["dns.acme.clients.test".into()],
        emails: vec!["email@acme.clients.test".into()],
        common_names: vec!["cn.acme.clients.test".into()],
        ..Subject::of("acme", "uri")
    }
}

async fn check(tune: fn(&mut Config), name: &str, nobody: Subject, several: Subject) {
    let mut broker = TestBroker::set_up().tuned(tune).start().await;
    let client = broker
        .connect(broker.pki().client(&ambiguous()))
        .await
        .unwrap();
    assert_eq!(
        client.principal().as_str(),
        format!("spiffe://test.local/acme/{name}")
    );
    for (subject, part) in [(nobody, "has 0"), (several, "has 2")] {
        let e = broker.connect(broker.pki().client(&subject)).await;
        let e = e.map(drop).unwrap_err();
        let wire = e.wire().expect("the broker's own words");
        assert_eq!(wire.code, ErrorCode::NoIdentity);
        assert!(wire.message.contains(part), "{wire}");
    }
    let counters = &broker.inner().counters;
    eventually("two refusals", async || {
        (counters.refused(Refusal::Identity) == 2).then_some(())
    })
    .await;
    broker.stop().await;
}

#[tokio::test]
async fn a_san_uri_says_who_it_is_unless_configured_otherwise() {
    let nobody = Subject {
        uris: Vec::new(),
        ..ambiguous()
    };
    let mut several = ambiguous();
    several.uris.push("spiffe://test.local/acme/other".into());
    check(|_| {}, "uri", nobody, several).await;
}

#[tokio::test]
async fn a_dns_name_says_who_it_is_where_it_is_configured() {
    let nobody = Subject {
        hosts: Vec::new(),
        ..ambiguous()
    };
    let mut several = ambiguous();
    several.hosts.push("other.acme.clients.test".into());
    let tune = |config: &mut Config| config.tls.identity = named(NamedField::Dns);
    check(tune, "dns", nobody, several).await;
}

#[tokio::test]
async fn an_email_address_says_who_it_is_where_it_is_configured() {
    let nobody = Subject {
        emails: Vec::new(),
        ..ambiguous()
    };
    let mut several = ambiguous();
    several.emails.push("other@acme.clients.test".into());
    let tune = |config: &mut Config| config.tls.identity = named(NamedField::Email);
    check(tune, "email", nobody, several).await;
}

#[tokio::test]
async fn a_common_name_says_who_it_is_where_it_is_configured() {
    let nobody = Subject {
        common_names: Vec::new(),
        ..ambiguous()
    };
    let mut several = ambiguous();
    several.common_names.push("other.acme.clients.test".into());
    let tune = |config: &mut Config| config.tls.identity = named(NamedField::CommonName);
    check(tune, "cn", nobody, several).await;
}

#[tokio::test]
async fn a_name_of_another_form_is_nobody_s() {
    let mut broker = TestBroker::set_up()
        .tuned(|config| config.tls.identity = named(NamedField::CommonName))
        .start()
        .await;
    let strange = Subject {
        common_names: vec!["spiffe://test.local/acme/cn".into()],
        ..ambiguous()
    };
    let e = broker.connect(broker.pki().client(&strange)).await;
    let e = e.map(drop).unwrap_err();
    assert_eq!(e.wire().unwrap().code, ErrorCode::NoIdentity);
    assert!(
        e.to_string().contains("<name>.<tenant>.clients.test"),
        "{e}"
    );
    broker.stop().await;
}

/// A client that is not ours hears it too: in the alert and in the reason beside it.
#[tokio::test]
async fn any_client_hears_why_and_a_counter_for_each_cause_counts() {
    let mut broker = TestBroker::start().await;
    let dial = async |subject: Subject| {
        let tls = broker.pki().client(&subject).tls_config().unwrap();
        let connection = RawConnection::dial(&broker, tls).await.unwrap();
        connection.closed().await
    };
    let app = || Subject::of("acme", "app");
    let nobody = Subject {
        uris: Vec::new(),
        ..app()
    };
    let quinn::ConnectionError::ConnectionClosed(close) = dial(nobody).await else {
        panic!("the broker closes it within TLS");
    };
    assert_eq!(u64::from(close.error_code), CERTIFICATE_UNKNOWN);
    let reason = String::from_utf8_lossy(&close.reason).into_owned();
    assert!(
        reason.contains("[NoIdentity (200)]") && reason.contains("has 0 SAN URIs"),
        "{reason}"
    );
    for purpose in [Purpose::Code, Purpose::Unsaid] {
        dial(Subject { purpose, ..app() }).await;
    }
    dial(Subject {
        expired: true,
        ..app()
    })
    .await;
    let counters = &broker.inner().counters;
    for (refusal, times) in [
        (Refusal::Identity, 1),
        (Refusal::Purpose, 2),
        (Refusal::Expired, 1),
        (Refusal::Revoked, 0),
        (Refusal::Authority, 0),
    ] {
        eventually(refusal.name(), async || {
            (counters.refused(refusal) == times).then_some(())
        })
        .await;
    }
    let e: Result<_, ConnectError> = broker.connect(broker.pki().client(&app())).await;
    assert!(e.is_ok());
    broker.stop().await;
}
