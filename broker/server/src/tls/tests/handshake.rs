//! Handshakes in memory: who gets in, and why the others do not.

use millstream_proto::Principal;
use rcgen::SanType;
use rcgen::{
    CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose, KeyIdMethod,
    RevocationReason, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Error, HandshakeKind, ServerConnection,
};

use super::*;

/// What a client shows.
type Shown = Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>;

/// A certificate of this authority for a client, changed by `change`.
fn issued(dir: &Dir, change: impl FnOnce(&mut CertificateParams)) -> Shown {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    let uri = "spiffe://d/acme/a".try_into().unwrap();
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, &dir.ca).unwrap();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Some((cert.der().clone(), key.into()))
}

fn client(dir: &Dir, shown: Shown, alpn: &[u8]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(dir.ca.der().clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match shown {
        Some((cert, key)) => config.with_client_auth_cert(vec![cert], key).unwrap(),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config
}

/// Passes messages to and fro: whom the server takes the client for, or what it objects to.
fn handshake(dir: &Dir, client: ClientConfig) -> Result<Principal, Error> {
    let server = server_config(&dir.files).unwrap();
    let (principal, kind) = between(dir, server, &Arc::new(client))?;
    assert_ne!(kind, HandshakeKind::Resumed);
    Ok(principal)
}

/// As [`handshake`], and whether the client's certificate was looked at.
fn between(
    dir: &Dir,
    server: rustls::ServerConfig,
    client: &Arc<ClientConfig>,
) -> Result<(Principal, HandshakeKind), Error> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets()?;
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    assert!(!server.is_handshaking() && server.alpn_protocol() == Some(ALPN));
    let suite = server.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
    let identity = &dir.files.identity;
    let principal = identity.principal(server.peer_certificates().unwrap());
    Ok((principal.unwrap(), server.handshake_kind().unwrap()))
}

/// What the server objects to in this certificate.
fn objection(dir: &Dir, shown: Shown) -> CertificateError {
    match handshake(dir, client(dir, shown, ALPN)).unwrap_err() {
        Error::InvalidCertificate(e) => e,
        other => panic!("{other}"),
    }
}

#[test]
fn a_client_of_the_authority_gets_in_as_its_principal() {
    let dir = good();
    let shown = issued(&dir, |_| ());
    let who = handshake(&dir, client(&dir, shown, ALPN)).unwrap();
    assert_eq!(who.as_str(), "spiffe://d/acme/a");
}

#[test]
fn nobody_gets_in_without_a_certificate_or_with_another_protocol() {
    let dir = good();
    let without = handshake(&dir, client(&dir, None, ALPN));
    assert_eq!(without, Err(Error::NoCertificatesPresented));
    let shown = issued(&dir, |_| ());
    let other = handshake(&dir, client(&dir, shown, b"h3"));
    assert_eq!(other, Err(Error::NoApplicationProtocol));
}

#[test]
fn certificates_of_others_expired_ones_and_those_of_servers_do_not_count() {
    let dir = good();
    let foreign = issued(&good(), |_| ());
    assert!(matches!(
        objection(&dir, foreign),
        CertificateError::UnknownIssuer | CertificateError::BadSignature
    ));
    let expired = issued(&dir, |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 2, 1);
    });
    assert!(matches!(
        objection(&dir, expired),
        CertificateError::ExpiredContext { .. }
    ));
    let of_server = vec![ExtendedKeyUsagePurpose::ServerAuth];
    for uses in [of_server, vec![ExtendedKeyUsagePurpose::Any], Vec::new()] {
        let shown = issued(&dir, |params| params.extended_key_usages = uses.clone());
        let e = objection(&dir, shown);
        assert!(
            matches!(
                e,
                CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. }
            ),
            "{uses:?}: {e}"
        );
    }
}

#[test]
fn who_a_client_is_decides_within_the_handshake() {
    let mut dir = good();
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let nobody = issued(&dir, |params| params.subject_alt_names = Vec::new());
    let e = objection(&dir, nobody).to_string();
    assert!(
        e.contains("[NoIdentity (200)] ") && e.contains("has 0"),
        "{e}"
    );
    let two = vec![uri("spiffe://d/acme/a"), uri("spiffe://d/acme/b")];
    let two = issued(&dir, |params| params.subject_alt_names = two);
    let e = objection(&dir, two).to_string();
    assert!(e.contains("has 2 SAN URIs"), "{e}");
    dir.files.identity = Identity::Uri {
        trust_domain: Some("other".into()),
    };
    let shown = issued(&dir, |_| ());
    let e = objection(&dir, shown).to_string();
    assert!(e.contains("spiffe://other/"), "{e}");
    let other = vec![uri("spiffe://other/acme/a")];
    let other = issued(&dir, |params| params.subject_alt_names = other);
    assert!(handshake(&dir, client(&dir, other, ALPN)).is_ok());
}

/// Puts the certificate with the number 7 on a list, which the broker is to heed.
fn revoke_seven(dir: &mut Dir) {
    let list = list_with_seven(&dir.ca);
    let file = dir.dir.path().join("revoked.pem");
    fs::write(&file, list).unwrap();
    dir.files.revocation_lists = vec![file];
}

/// A list of an authority, in PEM.
fn list_with_seven(ca: &CertifiedIssuer<'_, KeyPair>) -> String {
    let revoked = RevokedCertParams {
        serial_number: SerialNumber::from(7),
        revocation_time: date_time_ymd(2024, 1, 1),
        reason_code: Some(RevocationReason::KeyCompromise),
        invalidity_date: None,
    };
    // Run out long ago: what it revokes stays revoked.
    let list = CertificateRevocationListParams {
        this_update: date_time_ymd(2024, 1, 1),
        next_update: date_time_ymd(2024, 2, 1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: vec![revoked],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(ca).unwrap().pem().unwrap()
}

fn numbered(dir: &Dir, number: u64) -> Shown {
    issued(dir, |params| {
        params.serial_number = Some(SerialNumber::from(number));
    })
}

#[test]
fn a_revoked_certificate_is_refused_and_the_others_are_not() {
    let mut dir = good();
    revoke_seven(&mut dir);
    let seven = numbered(&dir, 7);
    assert_eq!(objection(&dir, seven), CertificateError::Revoked);
    let eight = numbered(&dir, 8);
    assert!(handshake(&dir, client(&dir, eight, ALPN)).is_ok());
}

#[test]
fn a_list_that_could_revoke_nothing_is_refused() {
    let mut dir = good();
    revoke_seven(&mut dir);
    // As the first authority and not with its key, or under another name.
    let other = |name: &str| {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap()
    };
    let (stranger, again) = (other("stranger"), other("stranger"));
    let file = dir.dir.path().join("stranger.crl");
    fs::write(&file, list_with_seven(&stranger)).unwrap();
    dir.files.revocation_lists.push(file.clone());
    let e = refused(&dir.files);
    let says = |part: &str| e.contains(part);
    assert!(
        says("stranger.crl") && says("CN=stranger") && says("ca.pem"),
        "{e}"
    );
    assert!(says("revoke nothing") && says("intermediate"), "{e}");

    let add = |ca: &CertifiedIssuer<'_, KeyPair>| {
        let before = fs::read_to_string(&dir.files.client_ca).unwrap();
        fs::write(&dir.files.client_ca, before + &ca.pem()).unwrap();
    };
    add(&again);
    let e = refused(&dir.files);
    let says = |part: &str| e.contains(part);
    assert!(
        says("stranger.crl") && says("no key") && says("ca.pem"),
        "{e}"
    );

    // One of two certificates with that name has the key.
    add(&stranger);
    server_config(&dir.files).unwrap();
    // Of several lists in a file each is looked at.
    let both = list_with_seven(&stranger) + &list_with_seven(&other("nobody"));
    fs::write(&file, both).unwrap();
    let e = refused(&dir.files);
    assert!(e.contains("CN=nobody"), "{e}");
}

/// What the absence of tickets is for: with them, a certificate is looked at once.
#[test]
fn a_ticket_does_not_stand_for_a_certificate() {
    let mut dir = good();
    let ticketer = aws_lc_rs::Ticketer::new().unwrap();
    let with_tickets = |dir: &Dir| {
        let mut config = server_config(&dir.files).unwrap();
        config.ticketer = Arc::clone(&ticketer);
        config.send_tls13_tickets = 2;
        config
    };
    let mut seven = client(&dir, numbered(&dir, 7), ALPN);
    seven.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let seven = Arc::new(seven);
    let (_, first) = between(&dir, with_tickets(&dir), &seven).unwrap();
    assert_ne!(first, HandshakeKind::Resumed);
    revoke_seven(&mut dir);
    // A server that gives tickets lets the revoked client in: the client does have one.
    let (_, second) = between(&dir, with_tickets(&dir), &seven).unwrap();
    assert_eq!(second, HandshakeKind::Resumed);
    // Ours looks at the certificate, whatever ticket comes with it.
    let refused = between(&dir, server_config(&dir.files).unwrap(), &seven);
    assert_eq!(
        refused.unwrap_err(),
        Error::InvalidCertificate(CertificateError::Revoked)
    );
}
