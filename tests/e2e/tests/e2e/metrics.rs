//! Figures for whoever watches: that they are right while the broker works, and who may read them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use millstream::{Client, ErrorCode, PipelineName, RequestError, TopicName};
use millstream_broker::config::MetricsConfig;
use millstream_broker::metrics::{FAMILIES, Family, Kind};
use millstream_broker::{Broker, Clock, Config, StartError};
use millstream_e2e::{
    MetricsPage, Pki, Subject, TestBroker, eventually, partitions, produce, read, topic, upload,
    using,
};
use millstream_guests::BAD_FILTER;
use millstream_proto::pipeline::{ErrorPolicy, PipelineSpec};
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: broker\r\n\r\n";

fn on(config: &mut Config, addr: &str) {
    config.metrics = Some(MetricsConfig::new(addr.parse().unwrap()));
}

fn on_loopback(config: &mut Config) {
    on(config, "127.0.0.1:0");
}

fn everywhere(config: &mut Config) {
    on(config, "0.0.0.0:0");
}

/// An answer: its status line and header lines, and what follows them.
struct Answer {
    head: String,
    body: String,
}

/// Sends a request as it is; none if there was no answer.
async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Option<Answer> {
    // The broker may have hung up already; reading tells.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some(Answer {
        head: head.to_lowercase(),
        body: body.to_owned(),
    })
}

async fn ask_at(addr: SocketAddr, request: &str) -> Answer {
    let stream = TcpStream::connect(addr).await.unwrap();
    ask(stream, request).await.expect("an answer")
}

fn page(answer: &Answer) -> MetricsPage {
    assert!(answer.head.starts_with("http/1.1 200 "), "{}", answer.head);
    let kind = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(answer.head.contains(kind), "{}", answer.head);
    MetricsPage::parse(&answer.body).unwrap_or_else(|why| panic!("{why}\n{}", answer.body))
}

async fn scrape(broker: &TestBroker) -> MetricsPage {
    page(&ask_at(broker.metrics_addr().unwrap(), GET).await)
}

/// Nothing that counts has become less, and nothing has gone away.
fn has_grown(before: &MetricsPage, after: &MetricsPage) {
    let now = after.totals();
    for (name, value) in before.totals() {
        assert!(now.get(&name).is_some_and(|now| *now >= value), "{name:?}");
    }
}

/// What is on the page is what is on the list, with these labels and no others.
fn is_the_list(page: &MetricsPage) {
    let mut listed = BTreeSet::new();
    for family in FAMILIES {
        let name = family.name();
        let shown = page
            .families
            .get(&name)
            .unwrap_or_else(|| panic!("no {name}"));
        let unit = family.unit.map_or("", |unit| unit.name());
        assert_eq!(
            (shown.kind.as_str(), shown.unit.as_str()),
            (family.kind.name(), unit)
        );
        assert_eq!(shown.help, family.help);
        for (suffix, labels, _) in &shown.samples {
            let mut labels: Vec<&str> = labels.keys().map(String::as_str).collect();
            labels.retain(|label| (family.kind, *label) != (Kind::Histogram, "le"));
            assert_eq!(labels, sorted(family), "{name}{suffix}");
        }
        listed.insert(name);
    }
    let shown: BTreeSet<String> = page.families.keys().cloned().collect();
    assert_eq!(shown, listed);
}

fn sorted(family: &Family) -> Vec<&'static str> {
    let mut labels = family.labels.to_vec();
    labels.sort_unstable();
    labels
}

fn values(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("value {n}")).collect()
}

async fn create(client: &Client, names: &[&str]) -> Vec<TopicName> {
    let mut topics = Vec::new();
    for name in names {
        let name = topic(name);
        client
            .create_topic(name.clone(), partitions(2))
            .await
            .unwrap();
        topics.push(name);
    }
    topics
}

async fn attach(client: &Client, to: &TopicName, mode: &str) {
    let bad = using("acme", BAD_FILTER, &[("mode", mode)], ErrorPolicy::Skip);
    client.attach(to.clone(), bad).await.unwrap();
}

const ACME: &[(&str, &str)] = &[("tenant", "acme")];

fn near(page: &MetricsPage, name: &str, labels: &[(&str, &str)], expected: u64) {
    let found = page.sum(name, labels);
    assert!(
        found.is_some_and(|v| (v - expected as f64).abs() < 0.5),
        "{name} {labels:?}: {found:?}, not {expected}"
    );
}

#[tokio::test]
async fn figures_agree_with_what_was_done_while_it_is_done() {
    let broker = TestBroker::set_up().tuned(on_loopback).start().await;
    let client = broker.tenant("acme").await;
    let names = create(&client, &["acme/t", "acme/out"]).await;
    let first = scrape(&broker).await;
    is_the_list(&first);
    near(&first, "millstream_topics", ACME, 2);
    near(&first, "millstream_partitions", ACME, 4);
    near(&first, "millstream_shut_partitions", ACME, 0);
    near(&first, "millstream_storage_trouble", &[("shard", "0")], 0);
    let working = async {
        for _ in 0..5 {
            produce(&client, &names[0], values(200)).await;
        }
    };
    let watching = async {
        let mut before = first.clone();
        for _ in 0..10 {
            let after = scrape(&broker).await;
            has_grown(&before, &after);
            before = after;
        }
    };
    tokio::join!(working, watching);
    assert_eq!(read(&client, &names[0]).await.len(), 1000);

    let last = scrape(&broker).await;
    is_the_list(&last);
    near(&last, "millstream_produced_records", ACME, 1000);
    near(&last, "millstream_consumed_records", ACME, 1000);
    let sum = |name: &str| last.sum(name, &[]).unwrap();
    let produced = sum("millstream_produced_bytes");
    assert!(produced > 5000.0, "{produced}");
    assert!(sum("millstream_consumed_bytes") > produced);
    assert!(sum("millstream_storage_appended_bytes") >= produced);
    assert!(sum("millstream_storage_hot_written_bytes") > sum("millstream_storage_appended_bytes"));
    assert!(sum("millstream_storage_opening_seconds") > 0.0);
    assert!(sum("millstream_cpu_seconds") > 0.0);
    assert!(sum("millstream_sessions") >= 1.0);
    assert!(sum("millstream_admitted_connections") >= sum("millstream_sessions"));
    let commits = last.families["millstream_commit_duration_seconds"]
        .samples
        .iter();
    let commits: f64 = commits
        .filter(|(s, _, _)| s == "_count")
        .map(|(_, _, n)| n)
        .sum();
    assert!(commits >= 5.0, "{commits}");
}

#[tokio::test]
async fn refusals_are_counted_by_their_reasons() {
    let broker = TestBroker::set_up().tuned(on_loopback).start().await;
    let client = broker.tenant("acme").await;
    create(&client, &["acme/t"]).await;
    let stranger = broker.client("other", "x").await;
    let refused = &[("code", "NotAuthorized")];
    near(
        &scrape(&broker).await,
        "millstream_refused_requests",
        refused,
        0,
    );
    // As a request, and as a stream.
    match stranger.describe_topic(topic("acme/t")).await {
        Err(RequestError::Refused(e)) => assert_eq!(e.code, ErrorCode::NotAuthorized),
        other => panic!("{other:?}"),
    }
    near(
        &scrape(&broker).await,
        "millstream_refused_requests",
        refused,
        1,
    );
    assert!(stranger.producer(topic("acme/t")).build().await.is_err());
    near(
        &scrape(&broker).await,
        "millstream_refused_requests",
        refused,
        2,
    );

    let expired = Subject {
        expired: true,
        ..Subject::of("acme", "app")
    };
    assert!(broker.connect(broker.pki().client(&expired)).await.is_err());
    eventually("the refused handshake to be counted", async || {
        let page = scrape(&broker).await;
        page.sum("millstream_refused_handshakes", &[])
            .filter(|n| *n >= 1.0)
    })
    .await;
}

#[tokio::test]
async fn plugins_and_pipelines_are_counted_on_their_tenants_account() {
    let broker = TestBroker::set_up().tuned(on_loopback).start().await;
    let client = broker.tenant("acme").await;
    let names = create(&client, &["acme/in", "acme/out", "acme/loud"]).await;
    upload(&client, "acme", BAD_FILTER).await;
    attach(&client, &names[0], "trap-on-poison").await;
    attach(&client, &names[2], "flood-logs").await;
    produce(&client, &names[0], ["poison"]).await;
    produce(&client, &names[2], ["x"]).await;
    let spec = PipelineSpec {
        name: "acme/p".parse::<PipelineName>().unwrap(),
        input: names[0].clone(),
        from_latest: false,
        steps: Vec::new(),
        outputs: vec![("out".to_owned(), names[1].clone())],
    };
    client.apply_pipeline(spec.clone()).await.unwrap();
    produce(&client, &names[0], values(10)).await;
    let page = eventually("the pipeline to catch up", async || {
        let page = scrape(&broker).await;
        let lag = page.sum("millstream_pipeline_lag_records", ACME)?;
        (lag < 0.5).then_some(page)
    })
    .await;
    let sum = |name: &str, labels| page.sum(name, labels).unwrap();
    assert!(sum("millstream_plugin_calls", ACME) >= 3.0);
    assert!(sum("millstream_plugin_records", ACME) >= 12.0);
    assert!(sum("millstream_plugin_starts", ACME) >= 2.0);
    assert!(sum("millstream_plugin_cpu_seconds", ACME) > 0.0);
    assert!(sum("millstream_plugin_dropped_log_lines", ACME) > 1000.0);
    near(
        &page,
        "millstream_plugin_failures",
        &[("tenant", "acme"), ("reason", "trap")],
        1,
    );
    near(&page, "millstream_plugin_failures", ACME, 1);
    near(
        &page,
        "millstream_pipelines",
        &[("tenant", "acme"), ("state", "running")],
        1,
    );

    client.pause_pipeline(spec.name).await.unwrap();
    produce(&client, &names[0], values(7)).await;
    let page = scrape(&broker).await;
    near(
        &page,
        "millstream_pipelines",
        &[("tenant", "acme"), ("state", "running")],
        0,
    );
    near(
        &page,
        "millstream_pipelines",
        &[("tenant", "acme"), ("state", "paused")],
        1,
    );
    near(&page, "millstream_pipeline_lag_records", ACME, 7);
}

#[tokio::test]
async fn nothing_but_the_figures_is_answered() {
    let broker = TestBroker::set_up().tuned(on_loopback).start().await;
    let addr = broker.metrics_addr().unwrap();
    assert!(addr.ip().is_loopback());
    // One that says nothing holds nobody up.
    let idle = TcpStream::connect(addr).await.unwrap();
    let many = format!(
        "GET /metrics HTTP/1.1\r\nHost: b\r\n{}\r\n",
        "a: b\r\n".repeat(100)
    );
    let long = format!(
        "GET /metrics HTTP/1.1\r\nHost: b\r\na: {}\r\n\r\n",
        "b".repeat(20_000)
    );
    for (request, status, text) in [
        ("GET / HTTP/1.1\r\nHost: b\r\n\r\n", "404", "/metrics"),
        (
            "GET /metrics/ HTTP/1.1\r\nHost: b\r\n\r\n",
            "404",
            "/metrics",
        ),
        ("DELETE /metrics HTTP/1.1\r\nHost: b\r\n\r\n", "405", "read"),
        (
            "POST /metrics HTTP/1.1\r\nHost: b\r\nContent-Length: 9\r\n\r\nabc",
            "405",
            "read",
        ),
        ("MILLSTREAM\r\n\r\n", "400", ""),
        (&many, "431", ""),
        (&long, "431", ""),
    ] {
        let answer = ask_at(addr, request).await;
        let expected = format!("http/1.1 {status} ");
        assert!(
            answer.head.starts_with(&expected),
            "{request:.40}: {}",
            answer.head
        );
        assert!(answer.body.contains(text), "{}", answer.body);
    }
    let head = ask_at(addr, "HEAD /metrics HTTP/1.1\r\nHost: b\r\n\r\n").await;
    assert!(head.head.starts_with("http/1.1 200 ") && head.body.is_empty());
    drop(idle);
}

/// Shows nothing when it is asked for a certificate.
#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Asks over TLS as `subject`, or with no certificate at all.
async fn ask_securely(broker: &TestBroker, subject: Option<&Subject>) -> Option<Answer> {
    let identity = broker
        .pki()
        .client(subject.unwrap_or(&Subject::of("ops", "admin")));
    let mut tls = identity.tls_config().unwrap();
    tls.alpn_protocols.clear();
    if subject.is_none() {
        tls.client_auth_cert_resolver = Arc::new(NoCertificate);
    }
    let port = broker.metrics_addr().unwrap().port();
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(name, stream)
        .await
        .ok()?;
    ask(stream, GET).await
}

#[tokio::test]
async fn off_the_machine_only_administrators_read_and_only_over_tls() {
    let broker = TestBroker::set_up().tuned(everywhere).start().await;
    let admin = Subject::of("ops", "admin");
    let answer = ask_securely(&broker, Some(&admin))
        .await
        .expect("an answer");
    is_the_list(&page(&answer));
    // Whoever may do everything else with his tenant's things may not see all tenants'.
    let app = Subject::of("acme", "app");
    let answer = ask_securely(&broker, Some(&app)).await.expect("an answer");
    assert!(answer.head.starts_with("http/1.1 403 "), "{}", answer.head);
    assert!(
        answer.body.contains("acme/app") && answer.body.contains("admins"),
        "{}",
        answer.body
    );
    assert!(!answer.body.contains("millstream_"), "{}", answer.body);

    assert!(ask_securely(&broker, None).await.is_none());
    let expired = Subject {
        expired: true,
        ..admin.clone()
    };
    assert!(ask_securely(&broker, Some(&expired)).await.is_none());
    let for_code = Subject {
        purpose: millstream_e2e::Purpose::Code,
        ..admin
    };
    assert!(ask_securely(&broker, Some(&for_code)).await.is_none());
    let port = broker.metrics_addr().unwrap().port();
    let plain = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    assert!(ask(plain, GET).await.is_none());
}

#[tokio::test]
async fn whoever_is_not_trusted_any_more_reads_no_more() {
    let broker = TestBroker::set_up().tuned(everywhere).start().await;
    let admin = Subject::of("ops", "admin");
    let answer = ask_securely(&broker, Some(&admin)).await;
    let before = page(&answer.expect("an answer"));
    near(&before, "millstream_reloads", &[], 0);
    near(&before, "millstream_stale_credentials", &[], 0);
    let expiry = before.sum("millstream_certificate_expiry_seconds", &[]);
    assert!(expiry.is_some_and(|at| at > 1e9), "{expiry:?}");
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Pki::new(elsewhere.path());
    std::fs::copy(stranger.ca(), broker.pki().ca()).unwrap();
    eventually("the other authority to be in force", async || {
        let answer = ask_securely(&broker, Some(&admin)).await;
        answer.is_none().then_some(())
    })
    .await;
}

async fn refused(config: Config) -> String {
    match Broker::start(config, Clock::system()).await {
        Err(e @ StartError::Metrics(_)) => e.to_string(),
        Err(e) => panic!("{e}"),
        Ok(_) => panic!("it has started"),
    }
}

#[tokio::test]
async fn nobody_listens_unless_told_to_and_what_cannot_be_done_ends_the_start() {
    let mut broker = TestBroker::start().await;
    assert_eq!(broker.metrics_addr(), None);
    broker.stop().await;
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = busy.local_addr().unwrap().to_string();
    let mut config = broker.config();
    on(&mut config, &taken);
    let error = refused(config.clone()).await;
    assert!(
        error.contains(&taken) && error.contains("metrics"),
        "{error}"
    );
    // Of a network that is there for examples only.
    on(&mut config, "192.0.2.1:9464");
    let error = refused(config.clone()).await;
    assert!(error.contains("192.0.2.1:9464"), "{error}");
    on(&mut config, "0.0.0.0:0");
    config.admins.clear();
    let error = refused(config).await;
    assert!(error.contains("`admins`"), "{error}");
    drop(busy);
    // Nothing of those that did not start is left.
    broker.restart().await;
}
