//! The guest thread: a current-thread runtime of its own, so that no guest ever runs where the
//! network does.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;
use tokio::task;

use crate::limits::{GUEST_BLOCKING_THREADS, GUEST_NICENESS, GUEST_THREAD_STACK_BYTES};

/// The thread; it ends when the last handle is dropped. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct GuestThread {
    handle: Handle,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    stop: watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl GuestThread {
    /// Starts it.
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(GUEST_BLOCKING_THREADS)
            .thread_name("guest-blocking")
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, mut stopping) = watch::channel(false);
        let thread = std::thread::Builder::new()
            .name("guests".into())
            .stack_size(GUEST_THREAD_STACK_BYTES)
            .spawn(move || {
                give_way();
                runtime.block_on(async {
                    // An error means that every handle is gone.
                    let _ = stopping.wait_for(|stop| *stop).await;
                });
                // Tasks end where they wait. What reads the store or compiles is not waited for.
                runtime.shutdown_background();
            })?;
        let thread = Mutex::new(Some(thread));
        Ok(Self {
            handle,
            inner: Arc::new(Inner { stop, thread }),
        })
    }

    /// Starts a task on the thread.
    pub(crate) fn spawn<F>(&self, future: F) -> task::JoinHandle<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.handle.spawn(future)
    }

    /// Runs something that blocks, beside the thread.
    pub(crate) fn spawn_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> task::JoinHandle<T> {
        self.handle.spawn_blocking(work)
    }

    /// Ends every task where it waits, and the thread. Blocking; doing it again does nothing.
    pub(crate) fn stop(&self) {
        self.inner.stop();
    }
}

/// Has the system prefer other threads to this one, and to those that it starts. A plugin may
/// compute as much as its share allows; where cores are scarce, it must not be what the network and
/// the disk wait for.
fn give_way() {
    if let Err(error) = rustix::process::nice(GUEST_NICENESS) {
        tracing::warn!(%error, "plugins run with the priority of the network");
    }
}

impl Inner {
    fn stop(&self) {
        self.stop.send_replace(true);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(thread) = thread else { return };
        // The last handle may be dropped by a task, on the very thread to be joined.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("the guest thread panicked");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use super::*;

    #[test]
    fn tasks_run_on_the_thread_and_end_with_it() {
        let thread = GuestThread::start().unwrap();
        let name = || std::thread::current().name().map(str::to_owned);
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let told = sender.clone();
        thread.spawn(async move { told.send(name()) });
        assert_eq!(receiver.recv().unwrap().as_deref(), Some("guests"));
        let held = thread.clone();
        thread.spawn(async move {
            let _held = (held, sender);
            std::future::pending::<()>().await;
        });
        thread.stop();
        thread.stop();
        // The task is gone, and with it the last sender.
        assert!(receiver.recv().is_err());
    }

    #[test]
    fn the_last_handle_may_be_dropped_on_the_thread() {
        let thread = GuestThread::start().unwrap();
        let held = thread.clone();
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let (go, went) = tokio::sync::oneshot::channel::<()>();
        thread.spawn(async move {
            went.await.unwrap();
            drop(held);
            sender.send(()).unwrap();
        });
        drop(thread);
        go.send(()).unwrap();
        receiver.recv().unwrap();
    }
}
