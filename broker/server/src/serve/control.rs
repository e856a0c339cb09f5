//! The control stream: requests in, answers out, each with its request's tag.
//!
//! What is answered from memory is answered at once, one at a time, so that a stream never holds
//! more than one large answer. What changes something or reads the store runs as a task of its
//! own, and its answer may overtake others: whoever needs an order waits for the answer. Such a
//! task runs to its end even if the connection goes, for a change must not stop between being
//! durable and being seen.
//!
//! One file for each family of requests: `topic`, `offset`, `plugin`, `pipeline`, `acl`.

mod acl;
mod offset;
mod pipeline;
mod plugin;
mod topic;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use millstream_proto::frame::{Frame, FrameKind, message_frame, put_message};
use millstream_proto::message::{Request, Response};
use millstream_proto::{ErrorCode, WireError};
use serde::Serialize;
use tokio::task::JoinHandle;

use crate::backup::job;
use crate::check;
use crate::limits::{CONTROL_IN_FLIGHT, PAGE_BYTES};
use crate::metrics::Counters;
use crate::session::{Peer, refuse, shutting_down};
use crate::status;
use crate::stream::{FrameReader, FrameWriter};

/// Serves the stream to its end.
pub(crate) async fn run(peer: Peer, mut reader: FrameReader, mut writer: FrameWriter) {
    let mut working = FuturesUnordered::new();
    let ending = loop {
        let answer = tokio::select! {
            Some(answer) = working.next() => answered(answer),
            frame = reader.next(), if working.len() < CONTROL_IN_FLIGHT => match frame {
                Ok(Some(frame)) if frame.kind == FrameKind::Request => {
                    match begin(&peer, &frame) {
                        Begun::Answer(answer) => Some(answer),
                        Begun::Task(task) => {
                            working.push(task);
                            None
                        }
                    }
                }
                Ok(Some(frame)) if frame.kind == FrameKind::End => break None,
                Ok(Some(frame)) => {
                    let text = format!("a control stream has no {:?} frames", frame.kind);
                    break Some(WireError::new(ErrorCode::UnexpectedFrame, text));
                }
                Ok(None) => break None,
                Err(e) => break e.to_wire(),
            },
            () = peer.broker.gate.closing() => break Some(shutting_down()),
        };
        if let Some(answer) = answer
            && writer.bytes(answer).await.is_err()
        {
            break None;
        }
    };
    // What has begun is finished and answered, if anybody still listens.
    while let Some(answer) = working.next().await {
        if let Some(answer) = answered(answer) {
            let _ = writer.bytes(answer).await;
        }
    }
    match ending {
        Some(error) => refuse(&mut reader, writer, &error).await,
        None => writer.finish().await,
    }
}

/// What becomes of a request: an answer as a frame, now or later.
enum Begun {
    Answer(Bytes),
    Task(JoinHandle<Bytes>),
}

/// The answer of a task; none if the task was ended by the runtime.
fn answered(answer: Result<Bytes, tokio::task::JoinError>) -> Option<Bytes> {
    answer
        .inspect_err(|e| tracing::error!("a request was not answered: {e}"))
        .ok()
}

fn begin(peer: &Peer, frame: &Frame) -> Begun {
    let tag = frame.tag;
    let request = match frame.message::<Request>() {
        Ok(request) => request,
        // The frame itself was whole, so the stream goes on.
        Err(e) => return Begun::Answer(to_frame(&peer.broker.counters, tag, Err(e.into()))),
    };
    match at_once(peer, request) {
        Ok(answer) => Begun::Answer(to_frame(&peer.broker.counters, tag, answer)),
        Err(request) => {
            let peer = peer.clone();
            Begun::Task(tokio::spawn(async move {
                let answer = later(peer.clone(), request).await;
                to_frame(&peer.broker.counters, tag, answer)
            }))
        }
    }
}

/// Answers what can be answered from memory; hands the rest back.
fn at_once(peer: &Peer, request: Request) -> Result<Result<Response, WireError>, Request> {
    Ok(match request {
        Request::DescribeTopic { topic } => topic::describe(peer, &topic),
        Request::ListTopics { tenant, after } => Ok(topic::list(peer, tenant, after)),
        Request::ListPlugins { tenant, after } => Ok(plugin::list(peer, tenant, after)),
        Request::PluginLog { plugin, from } => plugin::log(peer, &plugin, from),
        Request::ListPipelines { tenant, after } => {
            pipeline::list(peer, tenant.as_ref(), after.as_ref())
        }
        Request::ShowPipeline { pipeline } => pipeline::show(peer, &pipeline),
        Request::ListRules => Ok(acl::list(peer)),
        Request::CheckAccess {
            principal,
            operation,
            resource,
            name,
        } => acl::check(peer, &principal, operation, resource, &name),
        Request::Status => status::answer(peer),
        Request::Storage => status::storage(peer),
        Request::Door => status::door(peer),
        Request::Check(action) => check::answer(peer, action),
        Request::StartBackup => job::start(peer),
        Request::ShowBackup => job::state(peer),
        other => return Err(other),
    })
}

/// Answers what changes something or reads the store.
async fn later(peer: Peer, request: Request) -> Result<Response, WireError> {
    match request {
        Request::CreateTopic { topic, config } => topic::create(&peer, &topic, config).await,
        Request::AlterTopic { topic, change } => topic::alter(&peer, &topic, &change).await,
        Request::DeleteTopic { topic } => topic::delete(&peer, &topic).await,
        Request::CommitOffsets {
            topic,
            consumer,
            offsets,
        } => offset::commit(&peer, &topic, &consumer, &offsets).await,
        Request::ForgetConsumer { topic, consumer } => {
            offset::forget(&peer, &topic, &consumer).await
        }
        Request::FetchOffsets { topic, consumer } => offset::fetch(&peer, &topic, consumer).await,
        Request::FindOffsets { topic, at } => offset::find(&peer, &topic, at).await,
        Request::DeletePlugin { plugin, version } => plugin::delete(&peer, &plugin, version).await,
        Request::Attach { topic, plugin } => plugin::attach(&peer, &topic, plugin).await,
        Request::Detach { topic, plugin } => plugin::detach(&peer, &topic, &plugin).await,
        Request::ApplyPipeline(spec) => pipeline::apply(&peer, spec).await,
        Request::PausePipeline { pipeline } => pipeline::pause(&peer, &pipeline).await,
        Request::ResumePipeline { pipeline } => pipeline::resume(&peer, &pipeline).await,
        Request::DeletePipeline { pipeline } => pipeline::delete(&peer, &pipeline).await,
        Request::Grant(rule) => acl::grant(&peer, rule).await,
        Request::Revoke(rule) => acl::revoke(&peer, rule).await,
        Request::DescribeTopic { .. }
        | Request::ListTopics { .. }
        | Request::ListPlugins { .. }
        | Request::PluginLog { .. }
        | Request::ListPipelines { .. }
        | Request::ShowPipeline { .. }
        | Request::ListRules
        | Request::CheckAccess { .. }
        | Request::Status
        | Request::Storage
        | Request::Door
        | Request::Check(_)
        | Request::StartBackup
        | Request::ShowBackup => {
            let text = "a request that is answered at once was put off";
            Err(WireError::new(ErrorCode::Internal, text))
        }
    }
}

fn to_frame(counters: &Counters, tag: u64, answer: Result<Response, WireError>) -> Bytes {
    let framed = match answer {
        Ok(response) => message_frame(FrameKind::Response, tag, &response),
        Err(error) => Err(error),
    };
    framed.unwrap_or_else(|error| {
        counters.error(error.code);
        let mut out = BytesMut::new();
        // An error's text is bounded, so this frame always fits.
        let _ = put_message(&mut out, FrameKind::Error, tag, &error);
        out.freeze()
    })
}

/// As many items as fit one answer, at least one; the rest is asked for by page.
fn page<T: Serialize>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut bytes = 0usize;
    let fits = |item: &T| {
        let first = bytes == 0;
        let len = postcard::to_allocvec(item).map_or(PAGE_BYTES, |encoded| encoded.len());
        bytes = bytes.saturating_add(len);
        first || bytes <= PAGE_BYTES
    };
    items.into_iter().take_while(fits).collect()
}

#[cfg(test)]
pub(crate) mod tests;
