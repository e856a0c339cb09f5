//! Certificates for tests: an authority, a server, and clients of every kind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream::Identity;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::UnixTime;

/// The serial number of the one certificate that is on every list of the authority's.
const REVOKED: u64 = 666;

/// The object identifier of common names.
const COMMON_NAME: [u64; 4] = [2, 5, 4, 3];

/// What a certificate says that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Clients.
    Client,
    /// Signed code.
    Code,
    /// Nothing: there is no such extension.
    Unsaid,
}

/// What a client's certificate says.
#[derive(Clone, Debug)]
pub struct Subject {
    /// SAN URIs.
    pub uris: Vec<String>,
    /// SAN DNS names.
    pub hosts: Vec<String>,
    /// SAN e-mail addresses.
    pub emails: Vec<String>,
    /// Common names, at most two.
    pub common_names: Vec<String>,
    /// What it may be used for.
    pub purpose: Purpose,
    /// Whether its time is over.
    pub expired: bool,
    /// Whether it is on the authority's list of revoked certificates.
    pub revoked: bool,
    /// Its serial number, if it is to have a certain one.
    pub serial: Option<u64>,
    /// How many seconds it is good for from now on, if not for long.
    pub seconds: Option<u64>,
}

impl Subject {
    /// `spiffe://test.local/<tenant>/<name>`, valid.
    #[must_use]
    pub fn of(tenant: &str, name: &str) -> Self {
        let uris = vec![format!("spiffe://test.local/{tenant}/{name}")];
        Self {
            uris,
            hosts: Vec::new(),
            emails: Vec::new(),
            common_names: Vec::new(),
            purpose: Purpose::Client,
            expired: false,
            revoked: false,
            serial: None,
            seconds: None,
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
        pki.publish(&[]);
        pki
    }

    /// Writes a list of revoked certificates, with these numbers and the one that is always on it.
    pub fn publish(&self, numbers: &[u64]) {
        let numbers = [&[REVOKED], numbers].concat();
        replace(&self.revocation_list(), self.revoked(&numbers).as_bytes());
    }

    /// Gives the server another key and certificate.
    pub fn renew_server(&self) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut server = CertificateParams::new(names).expect("the names are valid");
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let (cert, key) = self.sign(server);
        replace(&self.server_cert(), cert.as_bytes());
        replace(&self.server_key(), key.as_bytes());
    }

    /// A list of revoked certificates, as PEM.
    fn revoked(&self, numbers: &[u64]) -> String {
        let revoked = |number: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*number),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: numbers.iter().map(revoked).collect(),
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
        for host in &subject.hosts {
            let host = Ia5String::try_from(host.as_str()).expect("a host is ASCII");
            params.subject_alt_names.push(SanType::DnsName(host));
        }
        for email in &subject.emails {
            let email = Ia5String::try_from(email.as_str()).expect("an address is ASCII");
            params.subject_alt_names.push(SanType::Rfc822Name(email));
        }
        params.distinguished_name = DistinguishedName::new();
        // The library takes one value of each type, and does not know that these are the same.
        let types = [
            DnType::CommonName,
            DnType::CustomDnType(COMMON_NAME.to_vec()),
        ];
        for (kind, name) in types.into_iter().zip(&subject.common_names) {
            params.distinguished_name.push(kind, name.as_str());
        }
        params.extended_key_usages = match subject.purpose {
            Purpose::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Code => vec![ExtendedKeyUsagePurpose::CodeSigning],
            Purpose::Unsaid => Vec::new(),
        };
        let number = subject.serial.or(subject.revoked.then_some(REVOKED));
        params.serial_number = number.map(SerialNumber::from);
        if let Some(seconds) = subject.seconds {
            let now = UnixTime::now().as_secs();
            params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(now + seconds);
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

/// Writes a file in place of another, in one step.
fn replace(path: &Path, bytes: &[u8]) {
    let beside = path.with_extension("new");
    write(&beside, bytes);
    std::fs::rename(&beside, path).expect("a file can be renamed within its directory");
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
