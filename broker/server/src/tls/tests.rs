#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose};

use super::*;

mod handshake;

/// A directory and the files in it.
pub(crate) struct Dir {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) files: TlsFiles,
    ca: CertifiedIssuer<'static, KeyPair>,
}

fn write_key(file: &Path, pem: &str, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(file, pem).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

/// A directory with everything as it should be.
pub(crate) fn good() -> Dir {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(vec!["localhost".into()]).unwrap();
    let cert = cert.signed_by(&key, &ca).unwrap();
    fs::write(path("ca.pem"), ca.pem()).unwrap();
    fs::write(path("server.pem"), cert.pem()).unwrap();
    write_key(&path("server.key"), &key.serialize_pem(), 0o600);
    let files = TlsFiles::new(path("server.pem"), path("server.key"), path("ca.pem"));
    Dir { dir, files, ca }
}

/// What `files` are refused with, in words.
fn refused(files: &TlsFiles) -> String {
    server_config(files).map(drop).unwrap_err().to_string()
}

#[test]
fn good_files_give_a_strict_configuration() {
    let Dir {
        dir: _dir, files, ..
    } = good();
    let config = server_config(&files).unwrap();
    assert_eq!(config.alpn_protocols, [ALPN]);
    assert_eq!(
        (config.send_tls13_tickets, config.max_early_data_size),
        (0, 0)
    );
    assert!(!config.ticketer.enabled() && !config.session_storage.can_cache());
    let suites = &config.crypto_provider().cipher_suites;
    assert_eq!(suites[0].suite(), CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert!(config.ignore_client_order && suites.iter().all(|s| s.tls13().is_some()));
    assert!(quic_server_config(&files).is_ok());
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_remedy() {
    let Dir { dir, files, .. } = good();
    let pem = fs::read_to_string(&files.key).unwrap();
    for mode in [0o644, 0o640, 0o604, 0o620] {
        let file = dir.path().join(format!("{mode:o}.key"));
        write_key(&file, &pem, mode);
        let e = refused(&TlsFiles {
            key: file,
            ..files.clone()
        });
        assert!(
            e.contains(&format!("{mode:o}")) && e.contains("chmod 600"),
            "{e}"
        );
    }
}

#[test]
fn every_wrong_file_is_named() {
    let Dir { dir, files, .. } = good();
    let junk = dir.path().join("junk.pem");
    write_key(&junk, "nothing here", 0o600);
    for path in [junk, dir.path().join("missing.pem")] {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let with = |change: fn(&mut TlsFiles, PathBuf)| {
            let mut files = files.clone();
            change(&mut files, path.clone());
            let e = refused(&files);
            assert!(e.contains(&name), "{e}");
        };
        with(|files, path| files.cert = path);
        with(|files, path| files.key = path);
        with(|files, path| files.client_ca = path);
        with(|files, path| files.revocation_lists = vec![path]);
    }
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let (one, other) = (good(), good());
    let e = refused(&TlsFiles {
        key: other.files.key,
        ..one.files
    });
    assert!(e.contains("cannot be used together"), "{e}");
}
