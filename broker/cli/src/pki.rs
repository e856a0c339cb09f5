//! A small certificate authority: what mutual TLS needs, in one directory.
//!
//! ```text
//! <dir>/ca.pem ca.key                     the authority; SAN URI spiffe://<domain>
//! <dir>/server.pem server.key             the broker; DNS names and addresses
//! <dir>/clients/<tenant>/<name>.pem .key  one per principal; SAN URI spiffe://<domain>/<tenant>/<name>
//! ```
//!
//! Everything is ECDSA P-256, which every TLS 1.3 stack verifies fast. Directories are 0700 and
//! keys 0600. Nothing is ever overwritten: a key that somebody uses cannot be had back.
//!
//! Absent: revocation, renewal and keys outside of files. Whoever needs them has an authority of
//! their own; the broker takes its certificates just as well.

mod authority;
mod files;

use std::path::{Path, PathBuf};

use millstream_proto::Principal;

pub(crate) use authority::PkiError;
use authority::{Authority, Identity};
use files::{create_directory, write_new};

/// Tenant of the first administrator unless said otherwise.
pub(crate) const ADMIN_TENANT: &str = "ops";
/// Name of the first administrator unless said otherwise.
pub(crate) const ADMIN_NAME: &str = "admin";
/// Days that a client or server certificate is good for unless said otherwise.
pub(crate) const DEFAULT_DAYS: u32 = 365;
/// Days that an authority is good for.
const AUTHORITY_DAYS: u32 = 3650;
/// Names under which the broker is always reachable on its own machine.
const LOCAL_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Where the files of a directory are.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

/// A certificate and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// PEM.
    pub(crate) certificate: PathBuf,
    /// PEM, PKCS#8.
    pub(crate) key: PathBuf,
}

impl Layout {
    /// The layout under `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    fn pair(&self, stem: &Path) -> Pair {
        let file = |extension: &str| {
            let mut name = self.root.join(stem).into_os_string();
            name.push(extension);
            PathBuf::from(name)
        };
        Pair {
            certificate: file(".pem"),
            key: file(".key"),
        }
    }

    /// The authority.
    pub(crate) fn authority(&self) -> Pair {
        self.pair(Path::new("ca"))
    }

    /// The broker.
    pub(crate) fn server(&self) -> Pair {
        self.pair(Path::new("server"))
    }

    /// A principal's.
    pub(crate) fn client(&self, tenant: &str, name: &str) -> Pair {
        self.pair(&Path::new("clients").join(tenant).join(name))
    }
}

/// What [`init`] is asked for.
#[derive(Clone, Debug)]
pub(crate) struct InitRequest {
    /// The trust domain of all identities.
    pub(crate) domain: String,
    /// Tenant of the first administrator.
    pub(crate) tenant: String,
    /// Name of the first administrator.
    pub(crate) admin: String,
    /// Further host names and addresses of the broker.
    pub(crate) hosts: Vec<String>,
    /// Days that the broker's and the administrator's certificates are good for.
    pub(crate) days: u32,
}

/// Makes a directory with an authority, the broker's certificate and the first administrator's.
///
/// # Errors
/// [`PkiError`]; in particular when there is an authority in `dir` already.
pub(crate) fn init(dir: &Path, request: &InitRequest) -> Result<Principal, PkiError> {
    let admin = principal(&request.domain, &request.tenant, &request.admin)?;
    let layout = Layout::new(dir);
    create_directory(dir)?;
    for path in [
        layout.authority().key,
        layout.authority().certificate,
        layout.server().key,
    ] {
        if path.exists() {
            return Err(PkiError::Exists(path));
        }
    }
    let authority = Authority::create(&request.domain, AUTHORITY_DAYS)?;
    let hosts: Vec<String> = LOCAL_HOSTS
        .iter()
        .map(|&host| host.to_owned())
        .chain(request.hosts.iter().cloned())
        .collect();
    let server = authority.issue(&Identity::Server(hosts), request.days)?;
    let client = authority.issue(&Identity::Client(admin.clone()), request.days)?;
    let pair = layout.client(&request.tenant, &request.admin);
    create_client_directories(&layout, &pair)?;
    // The authority's own files come first: they are what a second init would run into.
    write_pair(
        &layout.authority(),
        &authority.certificate_pem(),
        &authority.key_pem(),
    )?;
    write_pair(&layout.server(), &server.certificate, &server.key)?;
    write_pair(&pair, &client.certificate, &client.key)?;
    Ok(admin)
}

/// Issues a client certificate by the authority in `dir`.
///
/// # Errors
/// [`PkiError`]; in particular when the principal has a certificate already.
pub(crate) fn issue(
    dir: &Path,
    tenant: &str,
    name: &str,
    days: u32,
) -> Result<(Principal, Pair), PkiError> {
    let layout = Layout::new(dir);
    let authority = open(&layout)?;
    let principal = principal(authority.domain(), tenant, name)?;
    let pair = layout.client(tenant, name);
    if let Some(path) = [&pair.certificate, &pair.key]
        .into_iter()
        .find(|path| path.exists())
    {
        return Err(PkiError::Exists(path.clone()));
    }
    let issued = authority.issue(&Identity::Client(principal.clone()), days)?;
    create_client_directories(&layout, &pair)?;
    write_pair(&pair, &issued.certificate, &issued.key)?;
    Ok((principal, pair))
}

/// The trust domain of the authority in `dir`.
///
/// # Errors
/// [`PkiError`] when there is no authority that this program made.
pub(crate) fn domain(dir: &Path) -> Result<String, PkiError> {
    let path = Layout::new(dir).authority().certificate;
    let pem = files::read(&path)?;
    authority::domain_of(&pem).map_err(|why| PkiError::NotAuthority { path, why })
}

fn open(layout: &Layout) -> Result<Authority, PkiError> {
    let pair = layout.authority();
    let (certificate, key) = (files::read(&pair.certificate)?, files::read(&pair.key)?);
    Authority::from_pem(&certificate, &key).map_err(|why| PkiError::NotAuthority {
        path: pair.certificate,
        why,
    })
}

/// Names are checked before they become paths: the alphabet has no slash, and a name does not
/// begin with a dot.
fn principal(domain: &str, tenant: &str, name: &str) -> Result<Principal, PkiError> {
    Ok(format!("spiffe://{domain}/{tenant}/{name}").parse::<Principal>()?)
}

fn create_client_directories(layout: &Layout, pair: &Pair) -> Result<(), PkiError> {
    create_directory(&layout.root.join("clients"))?;
    match pair.key.parent() {
        Some(parent) => create_directory(parent),
        None => Ok(()),
    }
}

fn write_pair(pair: &Pair, certificate: &str, key: &str) -> Result<(), PkiError> {
    write_new(&pair.key, key, files::PRIVATE)?;
    write_new(&pair.certificate, certificate, files::PUBLIC)
}

#[cfg(test)]
mod tests;
