//! The node as a service: boots, follows the plan, and ends in order.
//!
//! Purpose: the loop around [`crate::node::Node`]: events in, ticks for the heartbeat and for scaling, and the end.
//!
//! Ends:
//! - the plan drains the node (`drain = true`, or a tombstone): everything is drained, `Ok(())`;
//! - the token is cancelled: the same;
//! - a part cannot go on: the same, then its error.
//!
//! Whatever the end, the last heartbeat says `stopped`.

use crate::backend::Backends;
use crate::config::Config;
use crate::control;
use crate::direct::Door;
use crate::error::Error;
use crate::node::{Node, NodeEvent};
use runtime::Context;
use schemas::status::NodeState;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// What a node that was told to leave has for its last writes and commits.
const LEAVE_GRACE: Duration = Duration::from_secs(3);
/// What the last heartbeat has.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs a node with the backends of this build.
pub async fn run(config: Config, context: Context, shutdown: CancellationToken) -> Result<(), Error> {
    let backends = Backends::available(config.onnxruntime.as_deref());
    run_with(config, context, shutdown, backends).await
}

/// Runs a node with given backends.
pub async fn run_with(
    config: Config,
    context: Context,
    shutdown: CancellationToken,
    backends: Backends,
) -> Result<(), Error> {
    run_behind(Door::new(), config, context, shutdown, backends).await
}

/// Runs a node that also takes requests at `door`.
pub async fn run_behind(
    door: Door,
    config: Config,
    context: Context,
    shutdown: CancellationToken,
    backends: Backends,
) -> Result<(), Error> {
    let mut problems = config.problems();
    let id = config.node_id().map_err(|problem| problems.push(problem)).unwrap_or_default();
    if !problems.is_empty() {
        return Err(Error::Config(problems));
    }
    // Unbounded in type; each instance, member and control record puts a bounded number of events in it.
    let (events, inbox) = mpsc::unbounded_channel();
    let node = Node::new(id, config, context, backends, events, door);
    tracing::info!(node = node.id(), cores = node.permits(), "node starts");
    let mut shell = Shell { node, inbox, shutdown };
    let outcome = shell.live().await;
    shell.node.farewell(FAREWELL).await;
    tracing::info!(node = shell.node.id(), "node ends");
    outcome
}

struct Shell {
    node: Node,
    inbox: mpsc::UnboundedReceiver<NodeEvent>,
    shutdown: CancellationToken,
}

impl Shell {
    async fn live(&mut self) -> Result<(), Error> {
        if !self.boot().await {
            return Ok(());
        }
        self.node.set_state(NodeState::Ready);
        let stop = CancellationToken::new();
        let control = self.follow_control(stop.clone());
        let outcome = self.serve().await;
        stop.cancel();
        if let Err(error) = control.await {
            return outcome.and(Err(Error::Bug(format!("reading the plan: {error}"))));
        }
        outcome
    }

    /// Waits until the machine has booted; false when it is to end before.
    async fn boot(&mut self) -> bool {
        let booted = tokio::time::sleep(Duration::from_millis(self.node.config().boot_ms));
        tokio::pin!(booted);
        let mut beats = ticks(self.node.config().status_interval.get());
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return false,
                () = &mut booted => return true,
                _ = beats.tick() => self.node.heartbeat(),
                () = self.node.published() => {}
            }
        }
    }

    fn follow_control(&self, stop: CancellationToken) -> JoinHandle<()> {
        let events = self.node.events();
        let (bus, id) = (self.node.bus(), self.node.id().to_owned());
        tokio::spawn(async move {
            let tell = |order| {
                // The node is gone: so is whom the order was for.
                let _ = events.send(NodeEvent::Order(order));
            };
            if let Err(error) = control::follow(bus, id, tell, stop).await {
                let _ = events.send(NodeEvent::ControlFailed(error));
            }
        })
    }

    async fn serve(&mut self) -> Result<(), Error> {
        let mut beats = ticks(self.node.config().status_interval.get());
        let mut scaling = ticks(self.node.config().vertical.interval.get());
        let mut leave_at: Option<tokio::time::Instant> = None;
        let mut abort_at: Option<tokio::time::Instant> = None;
        loop {
            tokio::select! {
                () = self.shutdown.cancelled(), if !self.node.is_stopping() => self.node.stop(),
                Some(event) = self.inbox.recv() => self.node.on_event(event).await,
                _ = beats.tick() => self.node.on_beat(),
                _ = scaling.tick() => self.node.scale(),
                () = self.node.published() => {}
                () = at(leave_at), if leave_at.is_some() => {
                    leave_at = None;
                    abort_at = Some(tokio::time::Instant::now() + LEAVE_GRACE);
                    tracing::warn!("executor.drain_timeout is over, what has not begun is given back");
                    self.node.leave();
                }
                () = at(abort_at), if abort_at.is_some() => {
                    tracing::error!("requests are still running; they stay uncommitted and another node serves them");
                    self.node.abort().await;
                    return self.node.outcome();
                }
            }
            if self.node.is_ending() {
                let drain = self.node.config().drain_timeout.get();
                if leave_at.is_none() && abort_at.is_none() {
                    leave_at = Some(tokio::time::Instant::now() + drain);
                }
                if self.node.is_empty() {
                    return self.node.outcome();
                }
            } else {
                (leave_at, abort_at) = (None, None);
            }
            self.node.beat_if_changed();
        }
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn at(instant: Option<tokio::time::Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}
