//! The group members of a node: who reads a service, from joining to the end.
//!
//! Purpose: keep as many members as configured while an instance serves, and tell each what to do.
//!
//! Invariants:
//! - The number of a member's slot is free before another member gets it, so a transactional id has one writer.
//! - The transactions of a slot are opened before its group is joined: what an earlier writer left open is settled by then.
//! - One more member reads `prediction.batch.<service>` from the moment that the topic exists; when the service is to be
//!   drained it gives back at once what has not begun.
//! - A broker that is away is tried again until the member is told to go; every other error ends the node.
//!
//! Left out: reading, answering and committing (`crate::member`).

use super::{MemberHandle, Node, NodeEvent};
use crate::backend::panic_message;
use crate::config::Delivery;
use crate::error::Error;
use crate::member::{self, Intake, Mode, Service};
use futures::FutureExt;
use runtime::backoff::Backoff;
use runtime::ports::Kind;
use runtime::{Bus, PortError, Sink, SourceSpec};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often a node looks whether somebody has given its services background work for the first time.
const LOOK_FOR_TOPIC: Duration = Duration::from_secs(5);
/// Records between the broker's client and a member.
const BUFFER: usize = 1024;

/// What a member reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// The requests of its service.
    Requests,
    /// Its background work.
    Background,
}

impl Node {
    pub(super) fn steer_members(&mut self, name: &str, served: bool) {
        let Some(host) = self.hosts.get_mut(name) else { return };
        if host.members.is_empty() && !self.stopping {
            host.leaving = false;
        }
        let mode = match (host.leaving, served) {
            (true, _) => Mode::Leave,
            (false, true) => Mode::Run,
            (false, false) => Mode::Drain,
        };
        let background = if mode == Mode::Run { Mode::Run } else { Mode::Leave };
        for member in host.members.values() {
            // Told even if it is the same: a member that holds a record tries again.
            member.mode.send_replace(if member.reads == Reads::Background { background } else { mode });
        }
        if mode != Mode::Run {
            return;
        }
        for (reads, wanted) in [(Reads::Requests, self.config.members as usize), (Reads::Background, 1)] {
            let has = self.hosts.get(name).map_or(0, |host| host.members.values().filter(|m| m.reads == reads).count());
            for _ in has..wanted {
                self.spawn_member(name, reads);
            }
        }
    }

    fn spawn_member(&mut self, name: &str, reads: Reads) {
        self.next_member += 1;
        let id = self.next_member;
        let topics = self.context.bus.topics();
        let Some(host) = self.hosts.get_mut(name) else { return };
        let taken: Vec<usize> = host.members.values().filter(|m| m.reads == reads).map(|m| m.slot).collect();
        let slot = (0..).find(|slot| !taken.contains(slot)).unwrap_or(0);
        let (intake, topic, group, max_in_flight) = match reads {
            Reads::Requests => {
                let group = schemas::topics::executor_group(&topics.name(""), name);
                (Intake::Requests, topics.requests(name), group, self.config.max_in_flight)
            }
            Reads::Background => {
                let group = schemas::topics::batch_group(&topics.name(""), name);
                let intake = Intake::Background { scores_topic: topics.scores(name) };
                (intake, topics.batch(name), group, self.config.batch_in_flight)
            }
        };
        let transactional_id = (self.config.delivery == Delivery::ExactlyOnce).then(|| {
            let kind = if reads == Reads::Background { "batch" } else { "executor" };
            topics.name(&format!("barista.{kind}.{}.{name}.{slot}", self.id))
        });
        let options = member::Options {
            member: id,
            intake,
            rejected_topic: topics.name(schemas::topics::PREDICTION_REJECTED),
            max_in_flight,
            max_in_flight_bytes: self.config.max_in_flight_bytes,
            max_rows: self.config.max_rows,
            commit_interval: self.config.commit_interval.get(),
        };
        let spec = SourceSpec { buffer: BUFFER.min(max_in_flight), ..SourceSpec::group(vec![topic], group) };
        let (mode, receiver) = watch::channel(Mode::Run);
        let (bus, service, events) = (self.context.bus.clone(), host.service.clone(), self.events.clone());
        let task = tokio::spawn(async move {
            let name = service.name.clone();
            let life =
                AssertUnwindSafe(serve_member(bus, spec, transactional_id, service, options, receiver)).catch_unwind();
            let outcome = life.await.unwrap_or_else(|panic| {
                Err(Error::Bug(format!("a member of service {name} panicked: {}", panic_message(panic.as_ref()))))
            });
            // The node is gone: nobody needs to know.
            let _ = events.send(NodeEvent::MemberEnded { service: name, member: id, outcome });
        });
        host.members.insert(id, MemberHandle { reads, slot, mode, task });
    }

    pub(super) async fn on_member_ended(&mut self, service: &str, member: u64, outcome: Result<(), Error>) {
        let handle = self.hosts.get_mut(service).and_then(|host| host.members.remove(&member));
        if let Some(handle) = handle {
            // It sent this event as its last act.
            let _ = handle.task.await;
        }
        match outcome {
            Ok(()) => self.settle(),
            Err(error @ Error::Reopen(_)) => {
                tracing::warn!(%error, service, "a member begins again from what was committed");
                self.settle();
            }
            Err(error) => self.fail(error),
        }
    }
}

/// Joins the group and serves until told to go.
async fn serve_member(
    bus: Arc<dyn Bus>,
    spec: SourceSpec,
    transactional_id: Option<String>,
    service: Service,
    options: member::Options,
    mut mode: watch::Receiver<Mode>,
) -> Result<(), Error> {
    let sink: Arc<dyn Sink> = bus.sink();
    let (name, seed) = (service.name.clone(), options.member);
    if matches!(options.intake, Intake::Background { .. }) && !appears(bus.as_ref(), &spec.topics, &mut mode).await {
        return Ok(());
    }
    // Before joining: what an earlier writer left open would hide the committed offsets.
    let transactions = match &transactional_id {
        None => None,
        Some(id) => {
            let open = || bus.transactions(id);
            let opened = persist("opening the transactions", &name, seed, &mut mode, open).await?;
            let Some(opened) = opened else { return Ok(()) };
            Some(opened)
        }
    };
    let join = || bus.source(spec.clone());
    let Some(source) = persist("joining the group", &name, seed, &mut mode, join).await? else { return Ok(()) };
    let outcome = member::run(service, options, source, sink, transactions, mode.clone()).await;
    if matches!(outcome, Err(Error::Reopen(_))) {
        // Two nodes of one id would fence each other as fast as they can.
        let pause = Backoff::new(Duration::from_millis(500), Duration::from_secs(2), seed).next_delay();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = mode.wait_for(|mode| *mode != Mode::Run) => {}
        }
    }
    outcome
}

/// Waits until the topics exist; false when the member is to go before.
async fn appears(bus: &dyn Bus, topics: &[String], mode: &mut watch::Receiver<Mode>) -> bool {
    loop {
        let mut all = true;
        for topic in topics {
            // Absent, or the broker cannot be asked for now: looked for again either way.
            all &= bus.partitions(topic).await.is_ok();
        }
        if all {
            return *mode.borrow() == Mode::Run;
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_FOR_TOPIC) => {}
            left = mode.wait_for(|mode| *mode != Mode::Run) => {
                // The node is gone, or the member is to go.
                let _ = left;
                return false;
            }
        }
    }
}

/// Does `what` at the broker, trying again while it is away; `None` when the member is to go before.
async fn persist<T, F: Future<Output = Result<T, PortError>>>(
    what: &str,
    service: &str,
    seed: u64,
    mode: &mut watch::Receiver<Mode>,
    mut attempt: impl FnMut() -> F,
) -> Result<Option<T>, Error> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), seed);
    loop {
        if *mode.borrow() != Mode::Run {
            return Ok(None);
        }
        match attempt().await {
            Ok(done) => return Ok(Some(done)),
            Err(error) if error.kind() == Kind::Transient => {
                let delay = backoff.next_delay();
                tracing::warn!(%error, service, ?delay, "{what}: not possible for now");
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    _ = mode.changed() => {}
                }
            }
            Err(error) => return Err(Error::port(format!("{what} of service {service}"), error)),
        }
    }
}
