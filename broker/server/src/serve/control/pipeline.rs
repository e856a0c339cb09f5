//! Requests about pipelines. Rights are asked for by [`crate::pipeline`], which asks for them
//! again while a pipeline runs.

use millstream_proto::message::Response;
use millstream_proto::pipeline::PipelineSpec;
use millstream_proto::{PipelineName, Tenant, WireError};

use crate::session::Peer;

pub(super) async fn apply(peer: &Peer, spec: PipelineSpec) -> Result<Response, WireError> {
    Ok(Response::Pipeline(
        peer.broker.pipelines.apply(&peer.principal, spec).await?,
    ))
}

pub(super) fn list(
    peer: &Peer,
    tenant: Option<&Tenant>,
    after: Option<&PipelineName>,
) -> Result<Response, WireError> {
    Ok(Response::Pipelines(peer.broker.pipelines.list(
        &peer.principal,
        tenant,
        after,
    )?))
}

pub(super) fn show(peer: &Peer, name: &PipelineName) -> Result<Response, WireError> {
    Ok(Response::Pipeline(
        peer.broker.pipelines.show(&peer.principal, name)?,
    ))
}

pub(super) async fn pause(peer: &Peer, name: &PipelineName) -> Result<Response, WireError> {
    Ok(Response::Pipeline(
        peer.broker.pipelines.pause(&peer.principal, name).await?,
    ))
}

pub(super) async fn resume(peer: &Peer, name: &PipelineName) -> Result<Response, WireError> {
    Ok(Response::Pipeline(
        peer.broker
            .pipelines
            .resume_one(&peer.principal, name)
            .await?,
    ))
}

pub(super) async fn delete(peer: &Peer, name: &PipelineName) -> Result<Response, WireError> {
    peer.broker.pipelines.delete(&peer.principal, name).await?;
    Ok(Response::Done)
}
