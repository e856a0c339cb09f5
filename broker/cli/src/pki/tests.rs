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
    }
}

fn with_certificate<T>(path: &Path, look: impl FnOnce(&X509Certificate<'_>) -> T) -> T {
    let (_, pem) = parse_x509_pem(&fs::read(path).unwrap()).unwrap();
    look(&pem.parse_x509().unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
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
    let (principal, pair) = issue(&dir, "acme", "ingest", 7).unwrap();
    assert_eq!(principal.as_str(), "spiffe://example.org/acme/ingest");
    let authority = fs::read(Layout::new(&dir).authority().certificate).unwrap();
    let (_, authority) = parse_x509_pem(&authority).unwrap();
    let authority = authority.parse_x509().unwrap();
    with_certificate(&pair.certificate, |certificate| {
        assert_eq!(names(certificate), ["uri spiffe://example.org/acme/ingest"]);
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
    crate::clock::now_ms() / 1000
}

#[test]
fn the_server_is_known_by_its_names_and_only_a_server() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("pki");
    init(&dir, &request()).unwrap();
    with_certificate(&Layout::new(&dir).server().certificate, |certificate| {
        let found = names(certificate);
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
    issue(&dir, "acme", "ingest", 7).unwrap();
    assert!(matches!(
        issue(&dir, "acme", "ingest", 7),
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
        let outcome = issue(&dir, tenant, name, 7);
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
