//! Requests about access rules.

use millstream_proto::acl::{AclRule, Operation, Pattern, ResourceKind};
use millstream_proto::message::Response;
use millstream_proto::{ErrorCode, Principal, WireError};

use crate::session::Peer;

pub(super) async fn grant(peer: &Peer, rule: AclRule) -> Result<Response, WireError> {
    peer.broker.access.grant(&peer.principal, rule).await?;
    Ok(Response::Done)
}

pub(super) async fn revoke(peer: &Peer, rule: AclRule) -> Result<Response, WireError> {
    peer.broker.access.revoke(&peer.principal, rule).await?;
    Ok(Response::Done)
}

/// The rules that the principal could revoke.
pub(super) fn list(peer: &Peer) -> Response {
    Response::Rules(peer.broker.access.visible_to(&peer.principal))
}

/// Everybody may ask about themselves; about others, whoever could grant it to them.
pub(super) fn check(
    peer: &Peer,
    who: &Principal,
    operation: Operation,
    resource: ResourceKind,
    name: &str,
) -> Result<Response, WireError> {
    let access = &peer.broker.access;
    let pattern: Pattern = name
        .parse()
        .map_err(|e: String| WireError::new(ErrorCode::InvalidName, e))?;
    if *who != peer.principal && !access.may_grant(&peer.principal, resource, &pattern) {
        let text = format!(
            "{} may not ask what others may do with {resource} {name}; that takes a rule that \
             allows `grant` for it, or an admin",
            peer.principal
        );
        return Err(WireError::new(ErrorCode::NotAuthorized, text));
    }
    let (allowed, rule) = access.explain(who, operation, resource, name);
    Ok(Response::Decision { allowed, rule })
}
