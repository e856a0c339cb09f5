//! The backup that a running broker makes on request: one at a time, on a thread of its own, so
//! that reading files and summing bytes never holds up the network.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::create::{CreateOptions, Created, create};
use super::error::CreateError;
use super::lock::{self, Work};
use super::progress::Progress;
use super::target::Target;
use crate::broker::Broker;
use crate::config::BackupConfig;
use crate::session::{Peer, shutting_down};
use millstream_proto::backup::{BackupOutcome, BackupPhase, BackupState};
use millstream_proto::message::Response;
use millstream_proto::{ErrorCode, WireError};

/// The backup under way, and how the last one ended.
#[derive(Debug, Default)]
pub struct Backups {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Never,
    Running {
        started_ms: i64,
        progress: Arc<Progress>,
    },
    Done {
        ended_ms: i64,
        created: Created,
    },
    Failed {
        ended_ms: i64,
        error: String,
    },
}

impl Backups {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, target: &str) -> BackupState {
        let phase = match &*self.state() {
            State::Never => BackupPhase::Never,
            State::Running {
                started_ms,
                progress,
            } => {
                let (done, total) = progress.read();
                BackupPhase::Running {
                    started_ms: *started_ms,
                    done,
                    total,
                }
            }
            State::Done { ended_ms, created } => BackupPhase::Done(BackupOutcome {
                id: created.id.to_string(),
                ended_ms: *ended_ms,
                bytes: created.bytes,
                copied_bytes: created.copied_bytes,
                segments: created.segments,
                copied_segments: created.copied_segments,
            }),
            State::Failed { ended_ms, error } => BackupPhase::Failed {
                ended_ms: *ended_ms,
                error: error.clone(),
            },
        };
        BackupState {
            target: target.to_owned(),
            phase,
        }
    }
}

/// What the operator configured; an error that says how, if nothing.
fn configured(broker: &Broker) -> Result<&BackupConfig, WireError> {
    broker.config.backup.as_ref().ok_or_else(|| {
        let text = "this broker's configuration names no place for backups: give it `target` \
                    under [backup] and restart it; `millstream backup create --data-dir` makes a \
                    backup while the broker is stopped";
        WireError::new(ErrorCode::InvalidConfig, text)
    })
}

fn check(peer: &Peer) -> Result<&BackupConfig, WireError> {
    // A backup holds what all tenants have stored.
    let (broker, who) = (&peer.broker, &peer.principal);
    broker.access.check_admin(who, "a backup")?;
    configured(broker)
}

/// Answers a request for a backup: begins one, unless one is under way.
pub(crate) fn start(peer: &Peer) -> Result<Response, WireError> {
    let config = check(peer)?;
    let broker = &peer.broker;
    begin(broker, config.clone(), peer.principal.as_str())?;
    state(peer)
}

/// Answers a request for how far it is.
pub(crate) fn state(peer: &Peer) -> Result<Response, WireError> {
    let config = check(peer)?;
    let state = peer.broker.backups.read(&config.target);
    Ok(Response::Backup(state))
}

fn begin(broker: &Arc<Broker>, config: BackupConfig, by: &str) -> Result<(), WireError> {
    // Shutdown waits for whoever is inside, for a while.
    let inside = broker.gate.enter().ok_or_else(shutting_down)?;
    let mut state = broker.backups.state();
    if matches!(*state, State::Running { .. }) {
        return Ok(());
    }
    let progress = Arc::<Progress>::default();
    let (working, watched) = (Arc::clone(broker), Arc::clone(&progress));
    let thread = std::thread::Builder::new().name("backup".into());
    let spawned = thread.spawn(move || {
        let made = run(&working, &config, &watched);
        let ended_ms = working.clock.now_ms();
        *working.backups.state() = match made {
            Ok(created) => {
                tracing::info!(id = %created.id, copied = created.copied_bytes, "backed up");
                State::Done { ended_ms, created }
            }
            Err(error) => {
                tracing::error!("no backup was made: {error}");
                State::Failed { ended_ms, error }
            }
        };
        drop((working, inside));
    });
    spawned.map_err(|error| {
        let text = format!("no thread for a backup: {error}");
        WireError::new(ErrorCode::Internal, text)
    })?;
    tracing::info!(%by, "backing up");
    *state = State::Running {
        started_ms: broker.clock.now_ms(),
        progress,
    };
    Ok(())
}

/// Why the broker made no backup.
#[derive(Debug, thiserror::Error)]
enum JobError {
    #[error("no runtime for it: {0}")]
    Runtime(std::io::Error),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error("the broker was stopped meanwhile")]
    Stopped,
}

fn run(
    broker: &Arc<Broker>,
    config: &BackupConfig,
    progress: &Progress,
) -> Result<Created, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let made = match runtime {
        Ok(runtime) => runtime.block_on(back_up(broker, config, progress)),
        Err(error) => Err(JobError::Runtime(error)),
    };
    made.map_err(|error| error.to_string())
}

async fn back_up(
    broker: &Arc<Broker>,
    config: &BackupConfig,
    progress: &Progress,
) -> Result<Created, JobError> {
    let options = CreateOptions {
        now_ms: broker.clock.now_ms(),
        bytes_per_second: Some(config.bytes_per_second),
        spool_dir: broker.config.data_dir.clone(),
    };
    let target = Target::open_or_create(&config.target).map_err(CreateError::from)?;
    let frozen = broker.store.freeze().map_err(CreateError::from)?;
    let store = frozen.store().to_string();
    tokio::select! {
        made = create(&target, frozen, &options, progress) => Ok(made?),
        () = broker.gate.closing() => {
            lock::abandon(&target, Work::Create, &store).await;
            Err(JobError::Stopped)
        }
    }
}
