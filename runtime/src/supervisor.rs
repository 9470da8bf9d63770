//! Orderly shutdown: named tasks under one token. The first that fails ends all, and nobody outlives the deadline.

use std::future::Future;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How a supervised run ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A task returned an error; the others were shut down in order.
    #[error("{task}: {source:#}")]
    Failed {
        /// Name of the task.
        task: String,
        /// What it returned.
        source: anyhow::Error,
    },
    /// A task panicked: a bug.
    #[error("{task} panicked: {message}")]
    Panicked {
        /// Name of the task.
        task: String,
        /// The panic's message as tokio gives it.
        message: String,
    },
    /// Tasks were still running at the deadline and were aborted.
    #[error("not stopped within {deadline:?}: {}", tasks.join(", "))]
    Deadline {
        /// The deadline.
        deadline: Duration,
        /// Names of the tasks.
        tasks: Vec<String>,
    },
}

/// Owns the tasks of a process.
pub struct Supervisor {
    token: CancellationToken,
    tasks: JoinSet<(String, anyhow::Result<()>)>,
    names: std::collections::BTreeMap<tokio::task::Id, String>,
    deadline: Duration,
}

impl Supervisor {
    /// Tasks end when `token` is cancelled, and are aborted `deadline` after that.
    pub fn new(token: CancellationToken, deadline: Duration) -> Self {
        Supervisor { token, tasks: JoinSet::new(), names: Default::default(), deadline }
    }

    /// The token that ends everything.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Starts a task. When it ends before the token is cancelled, with or without an error, all end.
    pub fn spawn<E: Into<anyhow::Error>>(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let name = name.into();
        let label = name.clone();
        let handle = self.tasks.spawn(async move { (label, task.await.map_err(Into::into)) });
        self.names.insert(handle.id(), name);
    }

    /// Waits until the token is cancelled or a task ends, then ends all in order.
    pub async fn run(mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        let first = tokio::select! {
            () = self.token.cancelled() => None,
            joined = self.tasks.join_next_with_id() => joined,
        };
        if let Some(joined) = first {
            outcome = self.settle(joined, outcome);
        }
        self.token.cancel();
        let deadline = self.deadline;
        let drained = tokio::time::timeout(deadline, async {
            while let Some(joined) = self.tasks.join_next_with_id().await {
                outcome = self.settle(joined, std::mem::replace(&mut outcome, Ok(())));
            }
        })
        .await;
        if drained.is_err() {
            let tasks: Vec<String> = self.names.values().cloned().collect();
            self.tasks.shutdown().await;
            if outcome.is_ok() {
                outcome = Err(Error::Deadline { deadline, tasks });
            }
        }
        outcome
    }

    /// Keeps the first failure, logs the others.
    fn settle(
        &mut self,
        joined: Result<(tokio::task::Id, (String, anyhow::Result<()>)), tokio::task::JoinError>,
        outcome: Result<(), Error>,
    ) -> Result<(), Error> {
        let failure = match joined {
            Ok((id, (task, result))) => {
                self.names.remove(&id);
                match result {
                    Ok(()) => {
                        tracing::debug!(task, "task ended");
                        None
                    }
                    Err(source) => Some(Error::Failed { task, source }),
                }
            }
            Err(error) => {
                let task = self.names.remove(&error.id()).unwrap_or_default();
                (!error.is_cancelled()).then(|| Error::Panicked { task, message: error.to_string() })
            }
        };
        match (outcome, failure) {
            (Ok(()), Some(failure)) => Err(failure),
            (Err(first), Some(later)) => {
                tracing::error!(error = %later, "another task failed while stopping");
                Err(first)
            }
            (outcome, None) => outcome,
        }
    }
}

/// Resolves at SIGINT or SIGTERM; a second signal ends the process at once with exit code 1.
pub async fn signalled() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(1);
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn the_first_failure_ends_all_and_is_named() {
        let mut supervisor = Supervisor::new(CancellationToken::new(), Duration::from_secs(5));
        let token = supervisor.token();
        supervisor.spawn("waits", async move {
            token.cancelled().await;
            anyhow::Ok(())
        });
        supervisor.spawn("breaks", async { Err::<(), _>(anyhow::anyhow!("disk full")) });
        let error = supervisor.run().await.unwrap_err().to_string();
        assert_eq!(error, "breaks: disk full");
    }

    #[tokio::test]
    async fn a_task_that_does_not_stop_is_named_and_aborted() {
        let mut supervisor = Supervisor::new(CancellationToken::new(), Duration::from_millis(20));
        supervisor.spawn("stuck", std::future::pending::<anyhow::Result<()>>());
        supervisor.token().cancel();
        let error = supervisor.run().await.unwrap_err().to_string();
        assert!(error.contains("stuck"), "{error}");
    }

    #[tokio::test]
    async fn a_panic_is_a_failure() {
        let mut supervisor = Supervisor::new(CancellationToken::new(), Duration::from_secs(5));
        supervisor.spawn("bug", async {
            let nothing: Option<u8> = None;
            nothing.map(|_| ()).ok_or_else(|| panic!("boom")).map_err(|(): ()| anyhow::anyhow!("unreachable"))
        });
        let error = supervisor.run().await.unwrap_err();
        assert!(matches!(error, Error::Panicked { ref task, .. } if task == "bug"), "{error}");
    }
}
