//! The handshake that opens every connection.
//!
//! The client's first frame on its first stream is [`Hello`], with the range of
//! protocol versions it speaks; the broker answers with the version it chose
//! and who it takes the client for, or with
//! [`ErrorCode::UnsupportedVersion`](crate::ErrorCode::UnsupportedVersion).

use serde::{Deserialize, Serialize};

use crate::name::Principal;

/// ALPN identifier; a connection that offers another is refused by TLS.
pub const ALPN: &[u8] = b"millstream/1";
/// Oldest protocol version that this build speaks.
pub const MIN_VERSION: u16 = 1;
/// Newest protocol version that this build speaks.
pub const MAX_VERSION: u16 = 1;

/// The client's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Oldest version the client speaks.
    pub min_version: u16,
    /// Newest version the client speaks.
    pub max_version: u16,
    /// Name and version of the client software, for the broker's log.
    pub client: String,
}

impl Hello {
    /// A hello with the versions of this build.
    pub fn new(client: impl Into<String>) -> Self {
        Self {
            min_version: MIN_VERSION,
            max_version: MAX_VERSION,
            client: client.into(),
        }
    }
}

/// The broker's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloOk {
    /// The version to speak from here on.
    pub version: u16,
    /// Name and version of the broker software.
    pub server: String,
    /// Who the broker takes the client for.
    pub principal: Principal,
}

/// The newest version inside both ranges, if there is one.
#[must_use]
pub fn choose(min: u16, max: u16) -> Option<u16> {
    let best = max.min(MAX_VERSION);
    (min <= max && best >= min.max(MIN_VERSION)).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_chosen() {
        assert_eq!(choose(1, 1), Some(1));
        assert_eq!(choose(1, 99), Some(MAX_VERSION));
        assert_eq!(choose(MAX_VERSION + 1, 99), None);
        assert_eq!(choose(0, 0), None);
        assert_eq!(choose(2, 1), None);
    }
}
