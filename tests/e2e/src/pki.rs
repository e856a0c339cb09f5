//! Certificates for tests: an authority, a server, and clients of every kind.

use std::path::{Path, PathBuf};

use millstream::Identity;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber, date_time_ymd,
};

/// The serial number of the one certificate that the authority has revoked.
const REVOKED: u64 = 666;

/// What a client's certificate says.
#[derive(Clone, Debug)]
pub struct Subject {
    /// SAN URIs.
    pub uris: Vec<String>,
    /// Whether it may be used by a client.
    pub client_auth: bool,
    /// Whether its time is over.
    pub expired: bool,
    /// Whether it is on the authority's list of revoked certificates.
    pub revoked: bool,
}

impl Subject {
    /// `spiffe://test.local/<tenant>/<name>`, valid.
    #[must_use]
    pub fn of(tenant: &str, name: &str) -> Self {
        let uris = vec![format!("spiffe://test.local/{tenant}/{name}")];
        Self {
            uris,
            client_auth: true,
            expired: false,
            revoked: false,
        }
    }
}

/// An authority with its files in a directory.
pub struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Pki {
    /// A new authority and a server certificate for `localhost`, written to `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        let key = KeyPair::generate().expect("a key can be made");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "test authority");
        let issuer =
            CertifiedIssuer::self_signed(params, key).expect("a certificate can be signed");
        let pki = Self {
            issuer,
            dir: dir.to_owned(),
        };
        write(&pki.ca(), issuer_pem(&pki.issuer).as_bytes());
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut server = CertificateParams::new(names).expect("the names are valid");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (cert, key) = pki.sign(server);
        write(&pki.server_cert(), cert.as_bytes());
        write(&pki.server_key(), key.as_bytes());
        write(&pki.revocation_list(), pki.revoked().as_bytes());
        pki
    }

    /// A list with one revoked certificate, as PEM.
    fn revoked(&self) -> String {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(REVOKED),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).expect("a list can be signed");
        list.pem().expect("a list can be written as PEM")
    }

    /// File of the authority's revocation list, which a broker heeds only if told to.
    #[must_use]
    pub fn revocation_list(&self) -> PathBuf {
        self.dir.join("crl.pem")
    }

    /// File of the authority's certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// File of the server's certificate.
    #[must_use]
    pub fn server_cert(&self) -> PathBuf {
        self.dir.join("server.pem")
    }

    /// File of the server's key.
    #[must_use]
    pub fn server_key(&self) -> PathBuf {
        self.dir.join("server.key")
    }

    /// An identity signed by this authority, which trusts it too.
    #[must_use]
    pub fn client(&self, subject: &Subject) -> Identity {
        let mut params = CertificateParams::default();
        for uri in &subject.uris {
            let uri = Ia5String::try_from(uri.as_str()).expect("a URI is ASCII");
            params.subject_alt_names.push(SanType::URI(uri));
        }
        if subject.client_auth {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        } else {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        }
        if subject.revoked {
            params.serial_number = Some(SerialNumber::from(REVOKED));
        }
        if subject.expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 2);
        }
        let (cert, key) = self.sign(params);
        Identity::new(
            issuer_pem(&self.issuer).into_bytes(),
            cert.into_bytes(),
            key.into_bytes(),
        )
    }

    fn sign(&self, mut params: CertificateParams) -> (String, String) {
        let key = KeyPair::generate().expect("a key can be made");
        params.use_authority_key_identifier_extension = true;
        let cert = params
            .signed_by(&key, &self.issuer)
            .expect("a certificate can be signed");
        (cert.pem(), key.serialize_pem())
    }
}

fn issuer_pem(issuer: &CertifiedIssuer<'static, KeyPair>) -> String {
    issuer.as_ref().pem()
}

/// Writes a file that only its owner can read.
fn write(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options
        .open(path)
        .expect("the test's directory can be written");
    file.write_all(bytes)
        .expect("the test's directory has room");
}
