//! A small certificate authority: what mutual TLS needs, in one directory.
//!
//! ```text
//! <dir>/ca.pem ca.key                     the authority; SAN URI spiffe://<domain>
//! <dir>/server.pem server.key             the broker; DNS names and addresses
//! <dir>/clients/<tenant>/<name>.pem .key  one per principal; SAN URI spiffe://<domain>/<tenant>/<name>
//! <dir>/index.json                        what was issued and what was taken back
//! <dir>/crl.pem                           the list of revoked certificates, for brokers
//! <dir>/revoked/<serial>.pem .key         what was taken back
//! <dir>/superseded/<serial>.pem .key      what was renewed
//! ```
//!
//! Keys are ECDSA P-256, which every TLS 1.3 stack verifies fast, or Ed25519. Directories are 0700
//! and keys 0600; an authority's key that others may read is not used. No key is ever overwritten:
//! one that somebody uses cannot be had back.
//!
//! Absent: keys outside of files, and intermediates. Whoever needs them has an authority of their
//! own; the broker takes its certificates just as well.

mod authority;
mod files;
mod index;

use std::fs::File;
use std::path::{Path, PathBuf};

use millstream_proto::Principal;

use crate::clock;
use authority::Authority;
pub(crate) use authority::{Identity, KeyKind, PkiError, hex, names, with};
use files::{create_directory, set_aside, write_new};
pub(crate) use index::{Entry, Index, Kind, Reason, Revoked, State};

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

    /// The directory itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The list of revoked certificates.
    pub(crate) fn revocations(&self) -> PathBuf {
        self.root.join("crl.pem")
    }

    fn index(&self) -> PathBuf {
        self.root.join("index.json")
    }

    fn lock(&self) -> PathBuf {
        self.root.join("index.lock")
    }

    fn clients(&self) -> PathBuf {
        self.root.join("clients")
    }

    /// Where a certificate goes that is not to be used any more.
    fn aside(&self, why: Aside, serial: &str) -> Pair {
        let dir = match why {
            Aside::Revoked => "revoked",
            Aside::Superseded => "superseded",
        };
        self.pair(&Path::new(dir).join(serial))
    }

    /// A principal's.
    pub(crate) fn client(&self, tenant: &str, name: &str) -> Pair {
        self.pair(&Path::new("clients").join(tenant).join(name))
    }
}

#[derive(Clone, Copy)]
enum Aside {
    Revoked,
    Superseded,
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
    /// The kind of all keys.
    pub(crate) keys: KeyKind,
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
    let _lock = files::lock(&layout.lock())?;
    let authority = Authority::create(&request.domain, AUTHORITY_DAYS, request.keys)?;
    let names = Identity::Server(with_local(&request.hosts));
    let server = authority.issue(&names, request.days, request.keys)?;
    let client = authority.issue(&Identity::Client(admin.clone()), request.days, request.keys)?;
    let pair = layout.client(&request.tenant, &request.admin);
    create_client_directories(&layout, &pair)?;
    // The authority's own files come first: they are what a second init would run into.
    write_pair(
        &layout.authority(),
        &authority.certificate_pem(),
        &authority.key_pem(),
    )?;
    let mut register = Register {
        layout,
        authority,
        index: Index::new(),
        _lock,
    };
    register.add(&register.layout.server(), &server)?;
    register.add(&pair, &client)?;
    register.publish()?;
    Ok(admin)
}

fn with_local(hosts: &[String]) -> Vec<String> {
    let mut all = LOCAL_HOSTS.map(str::to_owned).to_vec();
    for host in hosts {
        if !all.contains(host) {
            all.push(host.clone());
        }
    }
    all
}

/// What is to be issued.
#[derive(Clone, Debug)]
pub(crate) struct IssueRequest {
    /// For whom.
    pub(crate) to: To,
    /// Days that it is good for.
    pub(crate) days: u32,
    /// The kind of its key; the authority's unless said.
    pub(crate) keys: Option<KeyKind>,
    /// Whether it takes the place of one that there is.
    pub(crate) renew: bool,
}

/// Who gets a certificate.
#[derive(Clone, Debug)]
pub(crate) enum To {
    /// The broker, with these names beside the local ones; none means those of its present
    /// certificate.
    Server(Vec<String>),
    /// A principal.
    Client {
        /// Its tenant.
        tenant: String,
        /// Its name.
        name: String,
    },
}

/// Issues a certificate by the authority in `dir`: what the index says of it, and where it is.
///
/// # Errors
/// [`PkiError`]; in particular when there is one already that is not to be renewed.
pub(crate) fn issue(dir: &Path, request: &IssueRequest) -> Result<(Entry, Pair), PkiError> {
    let mut register = Register::open(dir)?;
    let (identity, pair) = match &request.to {
        To::Server(hosts) => {
            let pair = register.layout.server();
            let hosts = match hosts.as_slice() {
                [] if pair.certificate.exists() => {
                    let pem = files::read(&pair.certificate)?;
                    with(&pem, names).map_err(|why| PkiError::Index {
                        path: pair.certificate.clone(),
                        why,
                    })?
                }
                hosts => with_local(hosts),
            };
            (Identity::Server(hosts), pair)
        }
        To::Client { tenant, name } => {
            let principal = principal(register.authority.domain(), tenant, name)?;
            let pair = register.layout.client(tenant, name);
            (Identity::Client(principal), pair)
        }
    };
    let present = [&pair.certificate, &pair.key]
        .into_iter()
        .find(|path| path.exists());
    if let Some(path) = present
        && !request.renew
    {
        return Err(PkiError::Exists(path.clone()));
    }
    let keys = request.keys.unwrap_or(register.authority.key_kind());
    let issued = register.authority.issue(&identity, request.days, keys)?;
    if present.is_some() {
        register.put_aside(&pair, Aside::Superseded)?;
    }
    create_client_directories(&register.layout, &pair)?;
    let entry = register.add(&pair, &issued)?;
    Ok((entry, pair))
}

/// Whose certificates are meant.
#[derive(Clone, Debug)]
pub(crate) enum Selection {
    /// The one with this number.
    Serial(String),
    /// All of a principal that can be used.
    Client {
        /// Its tenant.
        tenant: String,
        /// Its name.
        name: String,
    },
}

/// Takes certificates back: which ones, those that were taken back before included.
///
/// # Errors
/// [`PkiError`]; in particular when none was issued that can still be used.
pub(crate) fn revoke(
    dir: &Path,
    selection: &Selection,
    reason: Reason,
) -> Result<Vec<Entry>, PkiError> {
    let mut register = Register::open(dir)?;
    let chosen = register.choose(selection)?;
    let now_ms = clock::now_ms();
    let mut taken = Vec::new();
    for serial in chosen {
        let Some(entry) = register.index.of_serial(&serial) else {
            continue;
        };
        let revoked = Revoked {
            at_ms: now_ms,
            reason,
        };
        entry.revoked.get_or_insert(revoked);
        taken.push(serial);
    }
    register.index.list_number += 1;
    register.index.write(&register.layout)?;
    register.publish()?;
    // Only tidying up: whoever else has a copy is refused by the list.
    for serial in &taken {
        register.clear(serial)?;
    }
    let now = &mut register.index;
    Ok(taken
        .iter()
        .filter_map(|serial| now.of_serial(serial).cloned())
        .collect())
}

/// What was issued, in order.
///
/// # Errors
/// [`PkiError`] when there is no authority.
pub(crate) fn list(dir: &Path) -> Result<Vec<Entry>, PkiError> {
    domain(dir)?;
    Ok(Index::read(&Layout::new(dir))?.certificates)
}

/// What was issued to somebody, with the certificates themselves.
///
/// # Errors
/// [`PkiError`]; in particular when nothing was.
pub(crate) fn show(dir: &Path, selection: &Selection) -> Result<Vec<(Entry, String)>, PkiError> {
    let (layout, domain) = (Layout::new(dir), domain(dir)?);
    let wanted = |entry: &Entry| -> Result<bool, PkiError> {
        Ok(match selection {
            Selection::Serial(serial) => entry.serial == plain(serial),
            Selection::Client { tenant, name } => {
                entry.subject == principal(&domain, tenant, name)?.as_str()
            }
        })
    };
    let mut found = Vec::new();
    for entry in Index::read(&layout)?.certificates {
        if wanted(&entry)? {
            let pem = files::read(&layout.root.join(&entry.file))?;
            found.push((entry, pem));
        }
    }
    match found.is_empty() {
        true => Err(not_issued(selection)),
        false => Ok(found),
    }
}

fn not_issued(selection: &Selection) -> PkiError {
    let what = match selection {
        Selection::Serial(serial) => format!("the serial number {serial}"),
        Selection::Client { tenant, name } => format!("{tenant}/{name}"),
    };
    PkiError::NotIssued { what }
}

/// A serial number without colons, in lower case.
fn plain(serial: &str) -> String {
    serial.replace(':', "").to_ascii_lowercase()
}

/// An authority that is about to issue or to revoke, alone.
struct Register {
    layout: Layout,
    authority: Authority,
    index: Index,
    _lock: File,
}

impl Register {
    fn open(dir: &Path) -> Result<Self, PkiError> {
        let layout = Layout::new(dir);
        let authority = open(&layout)?;
        let lock = files::lock(&layout.lock())?;
        let index = Index::read(&layout)?;
        Ok(Self {
            layout,
            authority,
            index,
            _lock: lock,
        })
    }

    /// The numbers of those that are meant.
    fn choose(&mut self, selection: &Selection) -> Result<Vec<String>, PkiError> {
        let now_ms = clock::now_ms();
        let chosen: Vec<String> = match selection {
            Selection::Serial(serial) => {
                let entry = self.index.of_serial(serial);
                entry.map(|e| e.serial.clone()).into_iter().collect()
            }
            Selection::Client { tenant, name } => {
                let who = principal(self.authority.domain(), tenant, name)?;
                let entries = self.index.certificates.iter();
                let usable = entries
                    .filter(|e| e.subject == who.as_str() && e.state(now_ms) == State::Valid);
                usable.map(|e| e.serial.clone()).collect()
            }
        };
        match chosen.is_empty() {
            true => Err(not_issued(selection)),
            false => Ok(chosen),
        }
    }

    /// Writes a new certificate down, and then to its place: one that is written down and not
    /// there harms nobody, the other way round it could not be revoked.
    fn add(&mut self, pair: &Pair, issued: &authority::Issued) -> Result<Entry, PkiError> {
        let entry = Entry {
            file: self.within(&pair.certificate),
            ..issued.entry.clone()
        };
        self.index.certificates.push(entry.clone());
        self.index.write(&self.layout)?;
        write_pair(pair, &issued.certificate, &issued.key)?;
        Ok(entry)
    }

    /// Writes the list of revoked certificates.
    fn publish(&self) -> Result<(), PkiError> {
        let (number, entries) = (self.index.list_number, &self.index.certificates);
        let list = self.authority.list(number, entries)?;
        files::replace(&self.layout.revocations(), &list, files::PUBLIC)
    }

    /// Moves what lies in the place of `pair` out of the way.
    fn put_aside(&mut self, pair: &Pair, why: Aside) -> Result<(), PkiError> {
        let place = self.within(&pair.certificate);
        let pem = files::read(&pair.certificate)?;
        let present = authority::describe(&pem).map_err(|why| PkiError::Index {
            path: pair.certificate.clone(),
            why,
        })?;
        let aside = self.layout.aside(why, &present.serial);
        if let Some(parent) = aside.key.parent() {
            create_directory(parent)?;
        }
        let to = self.within(&aside.certificate);
        if let Some(entry) = self.index.of_serial(&present.serial) {
            entry.file = to;
        } else {
            // Somebody put it there himself. Now it can be revoked.
            self.index.certificates.push(Entry {
                file: to,
                ..present
            });
        }
        self.index.write(&self.layout)?;
        if pair.key.exists() {
            set_aside(&pair.key, &aside.key)?;
        }
        set_aside(&self.layout.root.join(place), &aside.certificate)
    }

    /// Moves a revoked certificate out of the way, so that another can be issued.
    fn clear(&mut self, serial: &str) -> Result<(), PkiError> {
        let Some(entry) = self.index.of_serial(serial) else {
            return Ok(());
        };
        let certificate = self.layout.root.join(&entry.file);
        let pair = Pair {
            key: certificate.with_extension("key"),
            certificate,
        };
        let client = entry.kind == Kind::Client && entry.file.starts_with("clients");
        if client && pair.certificate.exists() {
            self.put_aside(&pair, Aside::Revoked)?;
        }
        Ok(())
    }

    fn within(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.layout.root)
            .unwrap_or(path)
            .to_owned()
    }
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
    let certificate = files::read(&pair.certificate)?;
    let key = files::read_key(&pair.key)?;
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
    create_directory(&layout.clients())?;
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
