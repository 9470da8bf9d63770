//! The models of all services that this process forecasts, and what of them is not yet written down.
//!
//! Purpose: the service's decisions without its I/O: which record is new, what to publish, whose state is due, and
//! which offsets may be committed.
//!
//! Invariants:
//! - An offset is committable only when every model that learned from an earlier record of its partition is saved.
//! - A record that a restored state contains is not taken again: it is before the state's `next_offset` and not
//!   after its last interval. (Both, since a recreated topic counts its offsets anew.)
//! - At most `max_services` models.
//!
//! Left out: reading and writing.

use crate::config::Config;
use crate::metrics::Metrics;
use crate::model::{Model, Observation, Rejection};
use runtime::TopicPartition;
use schemas::EpochMs;
use schemas::state::ForecasterState;
use schemas::workload::{ForecastError, ForecastPeak, ForecastStep, WorkloadForecast, WorkloadObserved};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;
use std::hash::{DefaultHasher, Hash, Hasher};

/// How far ahead of the clock an interval may be; beyond it, a clock is wrong, and taking the sample would make all
/// that follow look old.
const MOST_AHEAD_MS: i64 = 3_600_000;
/// A series without new samples is saved anyway when its partition is this many times `state_interval` rounds ahead,
/// so that it does not hold the offsets back.
const PATIENCE: i64 = 4;

/// What happened to a record.
#[derive(Debug, PartialEq)]
pub(crate) enum Taken {
    /// Learned; this is the new forecast.
    Forecast(Box<WorkloadForecast>),
    /// Learned, or remembered for lags; there is nothing to publish.
    Learned,
    /// Not taken, for this reason (a metrics label).
    Ignored {
        /// A metrics label.
        reason: &'static str,
        /// For a person; empty where nothing is wrong.
        detail: String,
    },
}

/// A model and where it stands in the log.
#[derive(Debug)]
struct Entry {
    model: Model,
    partition: TopicPartition,
    /// Offset after the newest record that the model has seen.
    next_offset: i64,
    /// Offset of the oldest record that is in the model and not in its saved state.
    unsaved_since: Option<i64>,
    /// Samples since the last save (or attempt).
    unsaved: u32,
    /// What the restored state contained: records before this offset that start no later.
    contained: Option<(i64, EpochMs)>,
    /// Changes with every sample that the model was shown; no two entries ever have the same.
    revision: u64,
}

/// A model to be maintained aside, and what it is a copy of.
#[derive(Debug)]
pub(crate) struct Upkeep {
    service: String,
    revision: u64,
    model: Model,
}

impl Upkeep {
    /// The costly part.
    pub(crate) fn done(mut self) -> Self {
        self.model.maintain();
        self
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Portfolio {
    config: Config,
    series: BTreeMap<String, Entry>,
    /// States read back whose series has not spoken yet.
    restorable: BTreeMap<String, ForecasterState>,
    /// Offset after the newest record seen, for each partition.
    positions: BTreeMap<TopicPartition, i64>,
    committed: BTreeMap<TopicPartition, i64>,
    /// Newest revision of any entry.
    revision: u64,
}

impl Portfolio {
    pub(crate) fn new(config: Config) -> Self {
        Portfolio {
            config,
            series: BTreeMap::new(),
            restorable: BTreeMap::new(),
            positions: BTreeMap::new(),
            committed: BTreeMap::new(),
            revision: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.series.len()
    }

    /// States read back; those of series in memory are older and are left.
    pub(crate) fn restore(&mut self, states: BTreeMap<String, ForecasterState>) {
        self.restorable = states;
        self.restorable.retain(|service, _| !self.series.contains_key(service));
    }

    /// A record that is no observation: it only moves the position.
    pub(crate) fn skip(&mut self, partition: &TopicPartition, offset: i64) {
        self.positions.insert(partition.clone(), offset + 1);
    }

    /// Takes an observation. Bounded time.
    pub(crate) fn take(
        &mut self,
        partition: &TopicPartition,
        offset: i64,
        observed: &WorkloadObserved,
        now_ms: EpochMs,
        metrics: &Metrics,
    ) -> Taken {
        self.skip(partition, offset);
        if observed.start_ms > now_ms.saturating_add(MOST_AHEAD_MS) {
            let detail = format!("start {} ms is more than an hour after the clock's {now_ms} ms", observed.start_ms);
            return Taken::Ignored { reason: "ahead_of_clock", detail };
        }
        self.revision += 1;
        let revision = self.revision;
        let entry = match self.entry(partition, observed, metrics) {
            Ok(entry) => entry,
            Err(ignored) => return ignored,
        };
        if entry.contained.is_some_and(|(next, last)| offset < next && observed.start_ms <= last) {
            return Taken::Ignored { reason: "already_in_state", detail: String::new() };
        }
        entry.next_offset = offset + 1;
        entry.revision = revision;
        let observation = match entry.model.observe(observed.start_ms, observed.rate_rps()) {
            Ok(observation) => observation,
            Err(rejection) => return refuse(rejection),
        };
        match observation {
            Observation::Duplicate => return Taken::Ignored { reason: "duplicate", detail: String::new() },
            Observation::TooOld => {
                let detail = format!("start {} ms is older than what is kept", observed.start_ms);
                return Taken::Ignored { reason: "too_old", detail };
            }
            Observation::AfterGap { missing } => {
                tracing::warn!(service = observed.service, missing, "intervals are missing in workload.observed");
            }
            Observation::Next | Observation::Filled | Observation::Corrected => {}
        }
        entry.unsaved_since.get_or_insert(offset);
        entry.unsaved = entry.unsaved.saturating_add(1);
        if !observation.is_new() || is_old_history(observed, now_ms) {
            return Taken::Learned;
        }
        entry.message(&observed.service).map_or(Taken::Learned, |message| Taken::Forecast(Box::new(message)))
    }

    /// The series' entry; a new one from its saved state, or cold.
    fn entry(
        &mut self,
        partition: &TopicPartition,
        observed: &WorkloadObserved,
        metrics: &Metrics,
    ) -> Result<&mut Entry, Taken> {
        let (service, new_ms) = (&observed.service, observed.interval_ms);
        if let Some(entry) = self.series.get(service) {
            let old_ms = entry.model.config().interval_ms;
            if old_ms != new_ms {
                tracing::warn!(service, old_ms, new_ms, "interval changed, the series starts anew");
                self.series.remove(service);
            }
        }
        let others = self.series.len();
        match self.series.entry(service.clone()) {
            MapEntry::Occupied(known) => Ok(known.into_mut()),
            MapEntry::Vacant(_) if others >= self.config.max_services => {
                let detail = format!("forecaster.max_services is {}", self.config.max_services);
                Err(Taken::Ignored { reason: "too_many_services", detail })
            }
            MapEntry::Vacant(new) => {
                let state = self.restorable.remove(service);
                Ok(new.insert(Entry::begin(&self.config, partition, observed, state, metrics)?))
            }
        }
    }

    /// Services whose state should be written now.
    pub(crate) fn due(&self) -> Vec<String> {
        let patience = PATIENCE * i64::from(self.config.state_interval) * self.series.len().max(1) as i64;
        let due = |entry: &Entry| {
            let Some(since) = entry.unsaved_since else { return false };
            let position = self.positions.get(&entry.partition).copied().unwrap_or(0);
            entry.unsaved >= self.config.state_interval || position - since > patience
        };
        self.names(due)
    }

    /// Services with anything unsaved in these partitions; in all if `None`.
    pub(crate) fn unsaved(&self, partitions: Option<&[TopicPartition]>) -> Vec<String> {
        self.names(|entry| {
            entry.unsaved_since.is_some() && partitions.is_none_or(|list| list.contains(&entry.partition))
        })
    }

    fn names(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<String> {
        self.series.iter().filter(|(_, entry)| wanted(entry)).map(|(service, _)| service.clone()).collect()
    }

    /// The state of a service to write; `None` if it has none.
    pub(crate) fn state(&self, service: &str) -> Option<Result<ForecasterState, crate::model::StateError>> {
        let entry = self.series.get(service)?;
        let last_start_ms = entry.model.last_start_ms()?;
        Some(entry.model.to_json().map(|model| ForecasterState {
            schema: Default::default(),
            service: service.to_owned(),
            last_start_ms,
            next_offset: Some(entry.next_offset),
            model_version: Model::VERSION,
            model,
        }))
    }

    /// The state that [`Portfolio::state`] gave is durable.
    pub(crate) fn saved(&mut self, service: &str) {
        if let Some(entry) = self.series.get_mut(service) {
            entry.unsaved_since = None;
            entry.unsaved = 0;
        }
    }

    /// The state could not be written: tried again after a quarter of the interval.
    pub(crate) fn postponed(&mut self, service: &str) {
        let interval = self.config.state_interval;
        if let Some(entry) = self.series.get_mut(service) {
            entry.unsaved = interval - interval.div_ceil(4);
        }
    }

    /// Offsets that may be committed and were not yet.
    pub(crate) fn committable(&self) -> Vec<(TopicPartition, i64)> {
        let mut offsets = self.positions.clone();
        for entry in self.series.values() {
            if let (Some(since), Some(offset)) = (entry.unsaved_since, offsets.get_mut(&entry.partition)) {
                *offset = (*offset).min(since);
            }
        }
        offsets.retain(|partition, offset| self.committed.get(partition) != Some(offset));
        offsets.into_iter().collect()
    }

    /// These offsets are committed.
    pub(crate) fn committed(&mut self, offsets: &[(TopicPartition, i64)]) {
        self.committed.extend(offsets.iter().cloned());
    }

    /// Forgets all of these partitions; returns the services that went.
    pub(crate) fn revoke(&mut self, partitions: &[TopicPartition]) -> Vec<String> {
        let gone = self.names(|entry| partitions.contains(&entry.partition));
        for service in &gone {
            self.series.remove(service);
        }
        for partition in partitions {
            self.positions.remove(partition);
            self.committed.remove(partition);
        }
        gone
    }

    /// True when [`Portfolio::upkeep`] would give something.
    pub(crate) fn is_upkeep_due(&self, service: &str) -> bool {
        self.series.get(service).is_some_and(|entry| entry.model.is_maintenance_due())
    }

    /// A copy of a series' model whose maintenance is due: [`Upkeep::done`] may run elsewhere meanwhile.
    pub(crate) fn upkeep(&self, service: &str) -> Option<Upkeep> {
        let entry = self.series.get(service).filter(|entry| entry.model.is_maintenance_due())?;
        Some(Upkeep { service: service.to_owned(), revision: entry.revision, model: entry.model.clone() })
    }

    /// Takes the maintained copy, unless a sample came in between: the model has then done the same work itself.
    pub(crate) fn upkept(&mut self, upkeep: Upkeep) {
        let entry = self.series.get_mut(&upkeep.service);
        if let Some(entry) = entry.filter(|entry| entry.revision == upkeep.revision) {
            entry.model = upkeep.model;
        }
    }

    /// Writes a series' gauges.
    pub(crate) fn report(&self, service: &str, metrics: &Metrics) {
        if let Some(entry) = self.series.get(service) {
            metrics.scored(service, entry.model.samples(), &self.config.levels, &entry.model.recent_error());
        }
    }
}

impl Entry {
    /// From `state` if there is one that can be used, else cold; `Ignored` if there can be no model at this interval.
    fn begin(
        config: &Config,
        partition: &TopicPartition,
        observed: &WorkloadObserved,
        state: Option<ForecasterState>,
        metrics: &Metrics,
    ) -> Result<Self, Taken> {
        let service = observed.service.as_str();
        let model = Model::new(config.model(observed.interval_ms))
            .map_err(|error| Taken::Ignored { reason: "bad_interval", detail: error.to_string() })?;
        let mut entry = Entry {
            model,
            partition: partition.clone(),
            next_offset: 0,
            unsaved_since: None,
            unsaved: stagger(service, config.state_interval),
            contained: None,
            revision: 0,
        };
        let restored = state.map(|state| (Model::from_json(entry.model.config().clone(), &state.model), state));
        match restored {
            Some((Ok(model), state)) => {
                tracing::info!(service, samples = model.samples(), "forecaster state restored");
                entry.model = model;
                entry.contained = state.next_offset.map(|next| (next, state.last_start_ms));
                entry.next_offset = state.next_offset.unwrap_or(0);
                return Ok(entry);
            }
            Some((Err(error), _)) => tracing::warn!(service, %error, "state cannot be used, the series starts cold"),
            None => tracing::info!(service, "series starts cold"),
        }
        metrics.cold_starts.inc();
        Ok(entry)
    }

    fn message(&self, service: &str) -> Option<WorkloadForecast> {
        let forecast = self.model.forecast()?;
        let error = self.model.recent_error();
        let steps = forecast.steps.iter().map(|step| ForecastStep {
            start_ms: forecast.start_ms(step.step),
            mean_rps: step.mean,
            quantiles_rps: step.quantiles.clone(),
        });
        let peaks = forecast.peaks.iter().map(|peak| ForecastPeak {
            steps: peak.steps,
            quantiles_rps: peak.quantiles.clone(),
            coverage: peak.coverage.clone(),
        });
        Some(WorkloadForecast {
            schema: Default::default(),
            service: service.to_owned(),
            origin_ms: forecast.origin_ms,
            interval_ms: forecast.interval_ms,
            levels: self.model.config().levels.clone(),
            steps: steps.collect(),
            peaks: peaks.collect(),
            last_observed_rps: forecast.last_value,
            weights: forecast.weights.iter().map(|(kind, weight)| (kind.name().to_owned(), *weight)).collect(),
            error: ForecastError { mae_rps: error.mae, mase: error.mase, coverage: error.coverage },
            samples: forecast.samples,
            cold_start: forecast.cold,
            shift: forecast.shift,
        })
    }
}

/// Made-up history is learned from without a word until it reaches the present: nobody asked for those forecasts.
fn is_old_history(observed: &WorkloadObserved, now_ms: EpochMs) -> bool {
    let end_ms = observed.start_ms.saturating_add_unsigned(observed.interval_ms);
    observed.simulated && end_ms.saturating_add_unsigned(2 * observed.interval_ms) < now_ms
}

fn refuse(rejection: Rejection) -> Taken {
    let reason = match rejection {
        Rejection::BadValue(_) => "bad_value",
        Rejection::BadInstant(_) => "bad_instant",
        Rejection::Covariates { .. } => "covariates",
        Rejection::OffGrid { .. } => "off_grid",
    };
    Taken::Ignored { reason, detail: rejection.to_string() }
}

/// Samples that a new series is taken to have behind it, so that not all states fall due in one step.
fn stagger(service: &str, state_interval: u32) -> u32 {
    let mut hasher = DefaultHasher::new();
    service.hash(&mut hasher);
    (hasher.finish() % u64::from(state_interval.max(1))) as u32
}

#[cfg(test)]
mod tests;
