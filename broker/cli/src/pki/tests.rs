//! What the files are, read back with another library than the one that wrote them.
#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use super::*;

fn request() -> InitRequest {
    InitRequest {
        domain: "example.org".to_owned(),
        tenant: "ops".to_owned(),
        admin: "admin".to_owned(),
        hosts: vec!["broker.example.org".to_owned(), "10.0.0.7".to_owned()],
        days: 30,
        keys: KeyKind::P256,
    }
}

/// Issues a certificate to a client, good for a week.
fn issue_client(
    dir: &Path,
    tenant: &str,
    name: &str,
    renew: bool,
) -> Result<(Entry, Pair), PkiError> {
    let to = To::Client {
        tenant: tenant.to_owned(),
        name: name.to_owned(),
    };
    let request = IssueRequest {
        to,
        days: 7,
        keys: None,
        renew,
    };
    issue(dir, &request)
}

fn with_certificate<T>(path: &Path, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
    let (_, pem) = parse_x509_pem(&fs::read(path).unwrap()).unwrap();
    look(&pem.parse_x509().unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn kinds_of_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let names = certificate.subject_alternative_name().unwrap().unwrap();
    let show = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => format!("uri {uri}"),
        GeneralName::DNSName(host) => format!("dns {host}"),
        GeneralName::IPAddress(octets) => format!("ip {octets:?}"),
        other => format!("{other:?}"),
    };
    names.value.general_names.iter().map(show).collect()
}

#[test]
fn a_client_certificate_carries_its_principal_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("pki");
    init(&dir, &request()).unwrap();
    let (entry, pair) = issue_client(&dir, "acme", "ingest", false).unwrap();
    assert_eq!(entry.subject, "spiffe://example.org/acme/ingest");
    let authority = fs::read(Layout::new(&dir).authority().certificate).unwrap();
    let (_, authority) = parse_x509_pem(&authority).unwrap();
    let authority = authority.parse_x509().unwrap();
    with_certificate(&pair.certificate, |certificate| {
        assert_eq!(
            kinds_of_names(certificate),
            ["uri spiffe://example.org/acme/ingest"]
        );
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && !usage.server_auth && !usage.any);
        assert!(!certificate.is_ca());
        certificate
            .verify_signature(Some(authority.public_key()))
            .unwrap();
        let validity = certificate.validity();
        let days = (validity.not_after.timestamp() - clock_seconds()) / 86_400;
        assert!((6..=7).contains(&days), "{days}");
        assert!(validity.not_before.timestamp() < clock_seconds());
    });
}

fn clock_seconds() -> i64 {
    clock::now_ms() / 1000
}

#[test]
fn the_server_is_known_by_its_names_and_only_a_server() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("pki");
    init(&dir, &request()).unwrap();
    with_certificate(&Layout::new(&dir).server().certificate, |certificate| {
        let found = kinds_of_names(certificate);
        for expected in [
            "dns localhost",
            "dns broker.example.org",
            "ip [127, 0, 0, 1]",
            "ip [10, 0, 0, 7]",
            "ip [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]",
        ] {
            assert!(
                found.iter().any(|name| name == expected),
                "{expected} in {found:?}"
            );
        }
        let usage = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.server_auth && !usage.client_auth);
    });
}

#[test]
fn keys_are_for_their_owner_alone() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("pki");
    init(&dir, &request()).unwrap();
    let layout = Layout::new(&dir);
    for pair in [
        layout.authority(),
        layout.server(),
        layout.client("ops", "admin"),
    ] {
        assert_eq!(mode(&pair.key), 0o600, "{pair:?}");
        assert_eq!(mode(&pair.certificate), 0o644, "{pair:?}");
    }
    for directory in [dir.clone(), dir.join("clients"), dir.join("clients/ops")] {
        assert_eq!(mode(&directory), 0o700, "{directory:?}");
    }
}

#[test]
fn nothing_is_overwritten() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("pki");
    init(&dir, &request()).unwrap();
    let before = fs::read(Layout::new(&dir).authority().key).unwrap();
    assert!(matches!(init(&dir, &request()), Err(PkiError::Exists(_))));
    assert_eq!(fs::read(Layout::new(&dir).authority().key).unwrap(), before);
    issue_client(&dir, "acme", "ingest", false).unwrap();
    assert!(matches!(
        issue_client(&dir, "acme", "ingest", false),
        Err(PkiError::Exists(_))
    ));
}

#[test]
fn a_name_cannot_leave_the_directory() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("pki");
    init(&dir, &request()).unwrap();
    for (tenant, name) in [
        ("..", "x"),
        ("acme", ".."),
        ("acme", "a/b"),
        ("", "x"),
        ("acme", "A"),
    ] {
        let outcome = issue_client(&dir, tenant, name, false);
        assert!(
            matches!(outcome, Err(PkiError::Name(_))),
            "{tenant}/{name}: {outcome:?}"
        );
    }
    let bad = InitRequest {
        domain: "a/b".to_owned(),
        ..request()
    };
    assert!(matches!(
        init(&home.path().join("other"), &bad),
        Err(PkiError::Name(_))
    ));
}

#[test]
fn a_directory_that_others_write_to_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("pki");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(init(&dir, &request()), Err(PkiError::Writable(_))));
}

#[test]
fn the_domain_is_read_from_the_authority() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("pki");
    init(&dir, &request()).unwrap();
    assert_eq!(domain(&dir).unwrap(), "example.org");
    // A certificate that is none of an authority's is not taken for one.
    let layout = Layout::new(&dir);
    fs::copy(
        layout.client("ops", "admin").certificate,
        layout.authority().certificate,
    )
    .unwrap();
    assert!(matches!(domain(&dir), Err(PkiError::NotAuthority { .. })));
}

#[test]
fn hosts_are_names_or_addresses() {
    let home = tempfile::tempdir().unwrap();
    let bad = InitRequest {
        hosts: vec!["no spaces".to_owned()],
        ..request()
    };
    assert!(matches!(
        init(&home.path().join("pki"), &bad),
        Err(PkiError::Host(_))
    ));
}

/// A directory with an authority, and a home to keep it.
fn made() -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("pki");
    init(&dir, &request()).unwrap();
    (home, dir)
}

fn ingest() -> Selection {
    Selection::Client {
        tenant: "acme".to_owned(),
        name: "ingest".to_owned(),
    }
}

/// The numbers on the list of revoked certificates, whose signature is right, and the list's own.
fn listed(dir: &Path) -> (Vec<String>, u64) {
    use x509_parser::prelude::{CertificateRevocationList, FromDer};
    let (_, pem) = parse_x509_pem(&fs::read(Layout::new(dir).revocations()).unwrap()).unwrap();
    let (_, list) = CertificateRevocationList::from_der(&pem.contents).unwrap();
    with_certificate(&Layout::new(dir).authority().certificate, |authority| {
        list.verify_signature(authority.public_key()).unwrap();
    });
    let revoked = list.iter_revoked_certificates();
    let number = list.crl_number().unwrap().try_into().unwrap();
    (revoked.map(|one| hex(one.raw_serial())).collect(), number)
}

#[test]
fn what_is_issued_is_listed_and_what_is_revoked_is_on_the_list() {
    let (_home, dir) = made();
    assert_eq!(listed(&dir), (vec![], 0));
    let (first, pair) = issue_client(&dir, "acme", "ingest", false).unwrap();
    let all = list(&dir).unwrap();
    let kinds: Vec<Kind> = all.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [Kind::Server, Kind::Client, Kind::Client]);
    assert_eq!(all[2], first);
    with_certificate(&pair.certificate, |certificate| {
        assert_eq!(hex(certificate.raw_serial()), first.serial);
        let until = certificate.validity().not_after.timestamp();
        assert_eq!(until * 1000, first.not_after_ms);
    });
    assert_eq!(first.state(clock::now_ms()), State::Valid);
    assert_eq!(first.state(first.not_after_ms), State::Expired);

    let taken = revoke(&dir, &ingest(), Reason::KeyCompromise).unwrap();
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].state(clock::now_ms()), State::Revoked);
    assert_eq!(listed(&dir), (vec![first.serial.clone()], 1));
    assert!(!pair.certificate.exists() && !pair.key.exists());
    assert!(dir.join(&taken[0].file).exists());
    // Nothing is left to revoke; by its number it can be done again, and changes nothing.
    let again = revoke(&dir, &ingest(), Reason::Unspecified);
    assert!(matches!(again, Err(PkiError::NotIssued { .. })));
    let number = Selection::Serial(first.serial.to_ascii_uppercase());
    assert_eq!(revoke(&dir, &number, Reason::Cessation).unwrap(), taken);
    assert_eq!(listed(&dir), (vec![first.serial.clone()], 2));
    // And the principal can have another one.
    let (second, _) = issue_client(&dir, "acme", "ingest", false).unwrap();
    assert_ne!(second.serial, first.serial);
    let shown = show(&dir, &ingest()).unwrap();
    let shown: Vec<&str> = shown.iter().map(|(e, _)| e.serial.as_str()).collect();
    assert_eq!(shown, [&first.serial, &second.serial]);
}

#[test]
fn a_renewed_certificate_and_the_one_before_are_revoked_together() {
    let (_home, dir) = made();
    let (first, pair) = issue_client(&dir, "acme", "ingest", false).unwrap();
    let refused = issue_client(&dir, "acme", "ingest", false);
    assert!(matches!(refused, Err(PkiError::Exists(_))));
    let (second, _) = issue_client(&dir, "acme", "ingest", true).unwrap();
    with_certificate(&pair.certificate, |certificate| {
        assert_eq!(hex(certificate.raw_serial()), second.serial);
    });
    let old = show(&dir, &Selection::Serial(first.serial.clone())).unwrap();
    assert!(old[0].0.file.starts_with("superseded"));
    let taken = revoke(&dir, &ingest(), Reason::Unspecified).unwrap();
    assert_eq!(taken.len(), 2);
    assert_eq!(listed(&dir).0, [first.serial, second.serial]);
}

#[test]
fn a_broker_gets_a_new_certificate_with_the_same_names() {
    let (_home, dir) = made();
    let server = Layout::new(&dir).server().certificate;
    let before = with_certificate(&server, kinds_of_names);
    let mut renewal = IssueRequest {
        to: To::Server(Vec::new()),
        days: 5,
        keys: None,
        renew: true,
    };
    issue(&dir, &renewal).unwrap();
    assert_eq!(with_certificate(&server, kinds_of_names), before);
    renewal.to = To::Server(vec!["other.example.org".to_owned()]);
    let (entry, _) = issue(&dir, &renewal).unwrap();
    let after = with_certificate(&server, kinds_of_names);
    assert!(
        after.contains(&"dns other.example.org".to_owned()),
        "{after:?}"
    );
    assert!(
        !after.contains(&"dns broker.example.org".to_owned()),
        "{after:?}"
    );
    assert!(entry.subject.contains("127.0.0.1"), "{}", entry.subject);
}

#[test]
fn keys_are_of_the_kind_that_was_asked_for() {
    let home = tempfile::tempdir().unwrap();
    for (keys, oid) in [
        (KeyKind::P256, "1.2.840.10045.2.1"),
        (KeyKind::Ed25519, "1.3.101.112"),
    ] {
        let dir = home.path().join(oid);
        init(&dir, &InitRequest { keys, ..request() }).unwrap();
        issue_client(&dir, "acme", "ingest", false).unwrap();
        let layout = Layout::new(&dir);
        for pair in [
            layout.authority(),
            layout.server(),
            layout.client("ops", "admin"),
            layout.client("acme", "ingest"),
        ] {
            with_certificate(&pair.certificate, |certificate| {
                let kind = &certificate.public_key().algorithm.algorithm;
                assert_eq!(kind.to_id_string(), oid);
            });
        }
        revoke(&dir, &ingest(), Reason::Unspecified).unwrap();
        assert_eq!(listed(&dir).0.len(), 1);
    }
}

#[test]
fn an_authority_whose_key_others_can_read_issues_nothing() {
    let (_home, dir) = made();
    let key = Layout::new(&dir).authority().key;
    for mode in [0o640, 0o604, 0o660] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let e = issue_client(&dir, "acme", "ingest", false).unwrap_err();
        assert!(matches!(e, PkiError::OpenKey { .. }), "{e}");
    }
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    issue_client(&dir, "acme", "ingest", false).unwrap();
}

/// A directory of the time before there were indexes.
#[test]
fn certificates_without_an_index_can_be_revoked_too() {
    let (_home, dir) = made();
    let (issued, _) = issue_client(&dir, "acme", "ingest", false).unwrap();
    for file in ["index.json", "crl.pem"] {
        fs::remove_file(dir.join(file)).unwrap();
    }
    assert_eq!(list(&dir).unwrap().len(), 3);
    revoke(&dir, &ingest(), Reason::Unspecified).unwrap();
    assert_eq!(listed(&dir), (vec![issued.serial], 1));
    fs::write(dir.join("index.json"), "{}").unwrap();
    assert!(matches!(list(&dir), Err(PkiError::Index { .. })));
}

#[test]
fn a_crash_between_index_and_list_is_made_good_by_the_next_revocation() {
    let (_home, dir) = made();
    let (first, _) = issue_client(&dir, "acme", "ingest", false).unwrap();
    let empty = fs::read(dir.join("crl.pem")).unwrap();
    revoke(&dir, &ingest(), Reason::Unspecified).unwrap();
    fs::write(dir.join("crl.pem"), empty).unwrap();
    fs::write(dir.join("crl.pem.new"), "half").unwrap();
    let number = Selection::Serial(first.serial.clone());
    revoke(&dir, &number, Reason::Unspecified).unwrap();
    assert_eq!(listed(&dir).0, [first.serial]);
}
