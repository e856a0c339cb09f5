//! Why there is no connection: a variant for each cause that a person would
//! mend differently.

use millstream_proto::{ErrorClass, ErrorCode, WireError};
use quinn::ConnectionError;

use crate::config::ConfigError;

/// Why there is no connection to the broker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The host name has no address.
    #[error("cannot find the address of {addr}: {why}")]
    Resolve {
        /// What was looked up.
        addr: String,
        /// What the system said.
        why: String,
    },
    /// Nobody answers.
    #[error(
        "no answer from {addr} ({why}): check that the broker runs there and that UDP gets through"
    )]
    Unreachable {
        /// Where.
        addr: String,
        /// What happened.
        why: String,
    },
    /// The broker wants a client certificate and none was shown.
    #[error("the broker at {addr} requires a client certificate: configure one with its key")]
    CertificateRequired {
        /// Where.
        addr: String,
    },
    /// The broker does not know the authority of the client's certificate.
    #[error(
        "the broker at {addr} does not trust the authority of the client certificate: have it issued by the broker's CA"
    )]
    UnknownAuthority {
        /// Where.
        addr: String,
    },
    /// The client's certificate has expired or is not valid yet.
    #[error(
        "the client certificate has expired or is not valid yet, says the broker at {addr}: issue a new one, or set the clock"
    )]
    CertificateExpired {
        /// Where.
        addr: String,
    },
    /// The client's certificate was revoked.
    #[error("the client certificate has been revoked, says the broker at {addr}: issue a new one")]
    CertificateRevoked {
        /// Where.
        addr: String,
    },
    /// The client's certificate cannot be used for this.
    #[error(
        "the broker at {addr} cannot use the client certificate: it needs the purpose clientAuth and a valid encoding"
    )]
    BadCertificate {
        /// Where.
        addr: String,
    },
    /// The other side speaks another protocol.
    #[error(
        "what runs at {addr} does not speak the Millstream protocol of this client: check the address and the versions"
    )]
    NoCommonProtocol {
        /// Where.
        addr: String,
    },
    /// The broker's certificate comes from an authority that the client does not trust.
    #[error(
        "the certificate of the broker at {addr} is not from a trusted authority: configure the CA that issued it"
    )]
    BrokerUntrusted {
        /// Where.
        addr: String,
    },
    /// The broker's certificate has expired or is not valid yet.
    #[error(
        "the certificate of the broker at {addr} has expired or is not valid yet: renew it, or set the clock"
    )]
    BrokerCertificateExpired {
        /// Where.
        addr: String,
    },
    /// The broker's certificate carries another name.
    #[error(
        "the certificate of the broker at {addr} is not for the name {name:?}: set the server name to one that it carries"
    )]
    BrokerNameMismatch {
        /// Where.
        addr: String,
        /// The name that was expected.
        name: String,
    },
    /// Another failure of TLS.
    #[error("the TLS handshake with {addr} failed: {why}")]
    Tls {
        /// Where.
        addr: String,
        /// What the TLS library said.
        why: String,
    },
    /// The broker refused the connection.
    #[error("the broker refused the connection: {0}")]
    Refused(#[source] WireError),
    /// The connection was lost.
    #[error("the connection to {addr} was lost: {why}")]
    Lost {
        /// Where.
        addr: String,
        /// What happened.
        why: String,
    },
    /// The broker does not keep to the protocol.
    #[error("the broker at {addr} does not keep to the protocol: {why}")]
    Protocol {
        /// Where.
        addr: String,
        /// What it did.
        why: String,
    },
    /// This client was closed, or its runtime has ended.
    #[error("the client is closed")]
    Closed,
}

/// Name mismatch as rustls words it: the only trace of it that QUIC leaves.
const NAME_MISMATCH: &str = "not valid for name";

impl ConnectError {
    /// Whether trying again can help.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            ConnectError::Resolve { .. }
            | ConnectError::Unreachable { .. }
            | ConnectError::Lost { .. } => ErrorClass::Retry,
            ConnectError::Refused(wire) => wire.class(),
            ConnectError::Protocol { .. } | ConnectError::Closed => ErrorClass::Fatal,
            ConnectError::Config(_)
            | ConnectError::CertificateRequired { .. }
            | ConnectError::UnknownAuthority { .. }
            | ConnectError::CertificateExpired { .. }
            | ConnectError::CertificateRevoked { .. }
            | ConnectError::BadCertificate { .. }
            | ConnectError::NoCommonProtocol { .. }
            | ConnectError::BrokerUntrusted { .. }
            | ConnectError::BrokerCertificateExpired { .. }
            | ConnectError::BrokerNameMismatch { .. }
            | ConnectError::Tls { .. } => ErrorClass::Fix,
        }
    }

    /// What the broker said, where it said something.
    #[must_use]
    pub fn wire(&self) -> Option<&WireError> {
        match self {
            ConnectError::Refused(wire) => Some(wire),
            _ => None,
        }
    }

    /// Makes sense of a connection that ended at `addr`, where a broker called
    /// `name` was expected.
    pub(crate) fn from_quic(error: &ConnectionError, addr: &str, name: &str) -> Self {
        let addr = addr.to_owned();
        match error {
            ConnectionError::ApplicationClosed(close) => {
                let text = String::from_utf8_lossy(&close.reason).into_owned();
                match u16::try_from(close.error_code.into_inner()) {
                    // Number 0 is a close in good order.
                    Ok(number) if number != 0 => {
                        Self::Refused(WireError::new(ErrorCode::from_number(number), text))
                    }
                    _ => Self::Lost {
                        addr,
                        why: "the broker closed it".to_owned(),
                    },
                }
            }
            ConnectionError::ConnectionClosed(close) => {
                let text = String::from_utf8_lossy(&close.reason).into_owned();
                match alert(u64::from(close.error_code)) {
                    Some(alert) => Self::from_peer_alert(alert, addr, text),
                    None => Self::Lost {
                        addr,
                        why: format!("{} {text}", close.error_code).trim().to_owned(),
                    },
                }
            }
            ConnectionError::TransportError(own) => match alert(u64::from(own.code)) {
                Some(alert) => Self::from_own_alert(alert, addr, name, own.reason.clone()),
                None => Self::Protocol {
                    addr,
                    why: own.to_string(),
                },
            },
            ConnectionError::VersionMismatch => Self::NoCommonProtocol { addr },
            ConnectionError::TimedOut => Self::Unreachable {
                addr,
                why: "timed out".to_owned(),
            },
            ConnectionError::Reset => Self::Lost {
                addr,
                why: "the broker has restarted".to_owned(),
            },
            ConnectionError::LocallyClosed => Self::Closed,
            ConnectionError::CidsExhausted => Self::Lost {
                addr,
                why: error.to_string(),
            },
        }
    }

    /// The broker's TLS refused the client.
    fn from_peer_alert(alert: u8, addr: String, why: String) -> Self {
        match alert {
            116 => Self::CertificateRequired { addr },
            // 51: another authority of the same name issued the certificate.
            48 | 51 => Self::UnknownAuthority { addr },
            45 => Self::CertificateExpired { addr },
            44 => Self::CertificateRevoked { addr },
            46 if let Some(said) = said(&why) => Self::Refused(said),
            42 | 43 | 46 => Self::BadCertificate { addr },
            120 => Self::NoCommonProtocol { addr },
            _ => Self::Tls {
                addr,
                why: format!("the broker sent alert {alert} {why}")
                    .trim()
                    .to_owned(),
            },
        }
    }

    /// The client's TLS refused the broker.
    fn from_own_alert(alert: u8, addr: String, name: &str, why: String) -> Self {
        match alert {
            48 | 51 => Self::BrokerUntrusted { addr },
            45 => Self::BrokerCertificateExpired { addr },
            _ if why.contains(NAME_MISMATCH) => Self::BrokerNameMismatch {
                addr,
                name: name.to_owned(),
            },
            120 => Self::NoCommonProtocol { addr },
            _ => Self::Tls { addr, why },
        }
    }
}

/// What the broker itself says of a certificate, in words that its TLS library has wrapped. No
/// alert says that a certificate names nobody.
fn said(why: &str) -> Option<WireError> {
    let code = ErrorCode::NoIdentity;
    let (_, text) = why.split_once(&format!("[{code}] "))?;
    let text = text.strip_suffix("))").unwrap_or(text);
    Some(WireError::new(code, text))
}

/// The TLS alert inside a QUIC error code, if it is one.
fn alert(code: u64) -> Option<u8> {
    code.checked_sub(0x100).and_then(|n| u8::try_from(n).ok())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use quinn::VarInt;

    use super::*;

    const ADDR: &str = "broker:1";

    fn closed_by_peer(alert: u8) -> ConnectError {
        let close = quinn::ConnectionClose {
            error_code: quinn::TransportErrorCode::crypto(alert),
            frame_type: None,
            reason: bytes::Bytes::new(),
        };
        ConnectError::from_quic(&ConnectionError::ConnectionClosed(close), ADDR, "broker")
    }

    #[test]
    fn each_alert_of_the_broker_has_its_own_words() {
        let alerts = [116, 48, 45, 42, 44, 120, 80];
        let texts: HashSet<String> = alerts.map(|a| closed_by_peer(a).to_string()).into();
        assert_eq!(texts.len(), alerts.len());
        assert!(texts.iter().all(|t| t.contains(ADDR)));
        for alert in alerts {
            assert_eq!(closed_by_peer(alert).class(), ErrorClass::Fix, "{alert}");
        }
    }

    #[test]
    fn what_the_broker_says_of_an_identity_is_its_own_error() {
        let words = "it has 2 URIs (of the form a(b))";
        let wrapped =
            format!("invalid peer certificate: Other(OtherError([NoIdentity (200)] {words}))");
        let expected = WireError::new(ErrorCode::NoIdentity, words);
        let error = |why: &str| ConnectError::from_peer_alert(46, ADDR.into(), why.into());
        assert_eq!(error(&wrapped), ConnectError::Refused(expected));
        assert!(matches!(error(""), ConnectError::BadCertificate { .. }));
    }

    #[test]
    fn a_close_with_a_code_is_the_brokers_own_error() {
        let close = |code: u32| {
            let close = quinn::ApplicationClose {
                error_code: VarInt::from_u32(code),
                reason: "too many".into(),
            };
            ConnectError::from_quic(&ConnectionError::ApplicationClosed(close), ADDR, "b")
        };
        let expected = WireError::new(ErrorCode::Overloaded, "too many");
        assert_eq!(close(703), ConnectError::Refused(expected));
        assert_eq!(close(703).class(), ErrorClass::Retry);
        assert_eq!(close(0).class(), ErrorClass::Retry);
        assert_eq!(close(200).class(), ErrorClass::Fatal);
    }
}
