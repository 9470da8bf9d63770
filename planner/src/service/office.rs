//! The office of the active planner: [`crate::leadership`] decides, this carries it out.

use super::control::{Claim, Writer, decode, sign_of_life};
use super::planner::Planner;
use crate::error::Error;
use crate::leadership::{Action, Event, Found, Leadership, Role, step};
use runtime::ports::Kind;
use runtime::{OutRecord, PortError, Record, Source};
use schemas::EpochMs;
use schemas::allocation::{PLANNER_KEY, PlannerHeartbeat};
use schemas::topics::ALLOCATION_CONTROL;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;
use tokio::time::Instant;

/// Where this planner stands, and what it writes with.
pub(super) struct Office {
    /// Name of this process in its heartbeats.
    name: String,
    begun: Instant,
    leadership: Leadership,
    actions: VecDeque<Action>,
    /// Won, and not yet led with.
    claim: Option<Claim>,
    writer: Option<Writer>,
    since_ms: EpochMs,
    /// Offset after the last control record that was read.
    heard_to: i64,
}

impl Office {
    pub(super) fn new() -> Self {
        let seed = RandomState::new().build_hasher().finish();
        Office {
            name: format!("{}-{:08x}", std::process::id(), seed >> 32),
            begun: Instant::now(),
            leadership: Leadership::new(Found::Somebody, seed, 0),
            actions: VecDeque::new(),
            claim: None,
            writer: None,
            since_ms: 0,
            heard_to: 0,
        }
    }

    /// Monotonic, since the begin of this process.
    fn mono_ms(&self) -> i64 {
        i64::try_from(self.begun.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// Notes that this control record was read.
    pub(super) fn hear(&mut self, record: &Record) {
        self.heard_to = self.heard_to.max(record.offset + 1);
    }

    /// The epoch that it leads with.
    pub(super) fn epoch(&self) -> Option<u64> {
        match self.leadership.role() {
            Role::Active { epoch, .. } => Some(epoch),
            Role::Standby { .. } | Role::Claiming { .. } | Role::Elected { .. } => None,
        }
    }
}

impl Planner {
    /// Begins to follow with what the topics hold, and to stand by.
    pub(super) fn begin(&mut self, control: &BTreeMap<String, Record>, status: &BTreeMap<String, Record>) {
        self.remember(status);
        control.values().for_each(|record| self.office.hear(record));
        let last = control.get(PLANNER_KEY).and_then(decode::<PlannerHeartbeat>);
        let found = if last.as_ref().is_some_and(|h| !h.resigned) { Found::Somebody } else { Found::Nobody };
        let office = &mut self.office;
        let seed = RandomState::new().build_hasher().finish();
        office.leadership = Leadership::new(found, seed, office.mono_ms());
        self.context.readiness.set("planner", true, "stands by");
        tracing::info!(planner = office.name, ?found, "planner follows");
    }

    /// True from the first commit of its epoch until it steps down.
    pub(super) fn leads(&self) -> bool {
        self.office.writer.is_some()
    }

    /// Takes an event; what follows from it waits in [`Planner::next_action`].
    pub(super) fn tell(&mut self, event: Event) {
        let office = &mut self.office;
        let (state, actions) = step(office.leadership, office.mono_ms(), event);
        office.leadership = state;
        office.actions.extend(actions);
    }

    pub(super) fn next_action(&mut self) -> Option<Action> {
        self.office.actions.pop_front()
    }

    /// When [`Event::Tick`] is due.
    pub(super) fn wake_at(&self) -> Instant {
        let office = &self.office;
        office.begun + Duration::from_millis(office.leadership.wake_at_ms().unsigned_abs())
    }

    /// Claims the office. Gives the source to follow from now on, unless the claim is lost.
    pub(super) async fn claim(&mut self) -> Result<Option<Box<dyn Source>>, Error> {
        let begun = Instant::now();
        match Writer::claim(self.context.bus.as_ref()).await {
            Ok((claim, source)) => {
                // The topic has one partition, so offsets order all of it. Who has resigned acts no more.
                let newest = claim.newest.values().max_by_key(|record| record.offset);
                let resigned = newest.and_then(sign_of_life).is_some_and(|(_, resigned)| resigned);
                let unheard = !resigned && newest.is_some_and(|record| record.offset >= self.office.heard_to);
                let epochs = claim.newest.values().filter_map(sign_of_life).map(|(epoch, _)| epoch);
                let highest_epoch = epochs.max().unwrap_or(0);
                tracing::info!(highest_epoch, unheard, took = ?begun.elapsed(), "claimed the control topic");
                claim.newest.values().for_each(|record| self.office.hear(record));
                self.office.claim = Some(claim);
                self.office.since_ms = self.context.clock.now_ms();
                self.tell(Event::Claimed { highest_epoch, unheard });
                Ok(Some(source))
            }
            Err(error) => self.lost(error).map(|()| None),
        }
    }

    /// Shows itself with this epoch before it leads, so that no other one claims meanwhile.
    pub(super) async fn announce(&mut self, epoch: u64) -> Result<(), Error> {
        let record = self.heartbeat_of(epoch, false)?;
        let begun_ms = self.office.mono_ms();
        let Some(claim) = &self.office.claim else { return Ok(()) };
        match claim.writer.commit(vec![record]).await {
            Ok(()) => self.tell(Event::Committed { begun_ms }),
            Err(error) => self.lost(error)?,
        }
        Ok(())
    }

    /// Leads with this epoch: the first record that readers see of it is a heartbeat.
    pub(super) async fn lead(&mut self, epoch: u64) -> Result<(), Error> {
        let Some(claim) = self.office.claim.take() else { return Ok(()) };
        self.restore(&claim.newest, epoch);
        self.office.writer = Some(claim.writer);
        self.beat().await?;
        if self.leads() {
            tracing::info!(epoch, planner = self.office.name, "planner leads");
            self.metrics.leads.set(1);
            self.metrics.epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
        }
        Ok(())
    }

    /// Says that this planner lives.
    pub(super) async fn beat(&mut self) -> Result<(), Error> {
        let Some(record) = self.heartbeat_record(false)? else { return Ok(()) };
        self.commit(vec![record]).await.map(|_| ())
    }

    fn heartbeat_record(&self, resigned: bool) -> Result<Option<OutRecord>, Error> {
        let Some(epoch) = self.office.epoch().filter(|_| self.leads()) else { return Ok(None) };
        self.heartbeat_of(epoch, resigned).map(Some)
    }

    fn heartbeat_of(&self, epoch: u64, resigned: bool) -> Result<OutRecord, Error> {
        let heartbeat = PlannerHeartbeat {
            schema: Default::default(),
            planner: self.office.name.clone(),
            epoch,
            at_ms: self.context.clock.now_ms(),
            since_ms: self.office.since_ms,
            resigned,
        };
        Ok(OutRecord::message(self.context.bus.topics().name(ALLOCATION_CONTROL), &heartbeat)?)
    }

    /// Commits records to the control topic. False if this planner does not lead, now or any more.
    pub(super) async fn commit(&mut self, records: Vec<OutRecord>) -> Result<bool, Error> {
        let begun_ms = self.office.mono_ms();
        let Some(writer) = &self.office.writer else { return Ok(false) };
        match writer.commit(records).await {
            Ok(()) => {
                self.tell(Event::Committed { begun_ms });
                Ok(true)
            }
            Err(error) => {
                self.metrics.publish_errors.inc();
                self.lost(error).map(|()| false)
            }
        }
    }

    /// True if orders may be given now: no standby can have missed this planner. Shows itself first if it has to.
    pub(super) async fn may_act(&mut self) -> Result<bool, Error> {
        if !self.office.leadership.may_act(self.office.mono_ms()) {
            self.beat().await?;
        }
        Ok(self.leads() && self.office.leadership.may_act(self.office.mono_ms()))
    }

    /// An error that may pass costs the office; another one ends the planner.
    fn lost(&mut self, error: PortError) -> Result<(), Error> {
        if error.kind() != Kind::Transient {
            return Err(error.into());
        }
        tracing::warn!(%error, "the office is lost; this planner stands by");
        self.office.writer = None;
        self.office.claim = None;
        self.tell(Event::Lost);
        Ok(())
    }

    /// Drops the office. Nodes go on: the next planner decides about them.
    pub(super) fn step_down(&mut self) {
        self.office.writer = None;
        self.office.claim = None;
        self.metrics.leads.set(0);
        self.context.readiness.set("planner", true, "stands by");
        tracing::info!(planner = self.office.name, "planner stands by");
    }

    /// Says that this planner ends, so that no standby waits for silence.
    pub(super) async fn resign(&mut self) {
        let Ok(Some(record)) = self.heartbeat_record(true) else { return };
        let Some(writer) = self.office.writer.take() else { return };
        // A shutdown may have cut a transaction short.
        let farewell = match writer.abort().await {
            Ok(()) => writer.commit(vec![record]).await,
            Err(error) => Err(error),
        };
        match farewell {
            Ok(()) => tracing::info!(planner = self.office.name, "planner resigns"),
            Err(error) => tracing::warn!(%error, "could not say that this planner ends"),
        }
    }
}
