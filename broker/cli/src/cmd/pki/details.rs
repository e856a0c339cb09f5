//! What is in a certificate, for people and programs.

use serde::Serialize;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;

use crate::clock;
use crate::pki::{self, Entry, State};
use crate::table::Table;

/// A certificate that was issued.
#[derive(Serialize)]
pub(super) struct Details {
    #[serde(flatten)]
    entry: Entry,
    state: State,
    names: Vec<String>,
    uses: Vec<&'static str>,
    key: String,
    sha256: String,
}

impl Details {
    /// Looks into it; in words why that cannot be done.
    pub(super) fn of(entry: Entry, pem: &str) -> Result<Self, String> {
        let state = entry.state(clock::now_ms());
        pki::with(pem, |parsed| {
            Ok(Self {
                state,
                names: pki::names(parsed)?,
                uses: uses(parsed)?,
                key: key(parsed),
                sha256: pki::hex(&Sha256::digest(parsed.as_raw())),
                entry,
            })
        })
    }

    /// For people.
    pub(super) fn table(&self) -> Table {
        let mut table = Table::new(&["CERTIFICATE", ""]);
        table.row(["serial", &self.entry.serial]);
        table.row(["for", &self.entry.subject]);
        table.row(["state", self.state.name()]);
        table.row(["from", &clock::rfc3339(self.entry.not_before_ms)]);
        table.row(["until", &clock::rfc3339(self.entry.not_after_ms)]);
        if let Some(revoked) = &self.entry.revoked {
            table.row(["revoked", &clock::rfc3339(revoked.at_ms)]);
        }
        table.row(["names", &self.names.join(" ")]);
        table.row(["uses", &self.uses.join(" ")]);
        table.row(["key", &self.key]);
        table.row(["sha256", &self.sha256]);
        table.row(["file", &self.entry.file.display().to_string()]);
        table
    }
}

fn uses(parsed: &X509Certificate<'_>) -> Result<Vec<&'static str>, String> {
    let uses = parsed.extended_key_usage().map_err(|e| e.to_string())?;
    let Some(uses) = uses else {
        return Ok(Vec::new());
    };
    let named = [
        (uses.value.client_auth, "clientAuth"),
        (uses.value.server_auth, "serverAuth"),
    ];
    Ok(named
        .into_iter()
        .filter_map(|(is, name)| is.then_some(name))
        .collect())
}

fn key(parsed: &X509Certificate<'_>) -> String {
    // Object identifiers of RFC 5480 and RFC 8410.
    match parsed
        .public_key()
        .algorithm
        .algorithm
        .to_id_string()
        .as_str()
    {
        "1.2.840.10045.2.1" => "ECDSA P-256".to_owned(),
        "1.3.101.112" => "Ed25519".to_owned(),
        other => other.to_owned(),
    }
}
