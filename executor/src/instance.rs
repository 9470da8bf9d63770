//! One loaded model on a node and its states. Pure.
//!
//! ```text
//!                            ┌──────────────rest─────────────────┐
//!                            ▼                                   │
//! cold ─load▶ loading ─▶ cached ─loaded▶ loaded ─serve▶ ready ─drain▶ draining ─drained▶ stopped
//!                │         │                              │ ▲            │  │
//!                └────┬────┘                              │ └cancel drain┘  │
//!                load failed                            broke             broke
//!                     └──────────────▶ failed ◀───────────┴─────────────────┘
//! ```
//!
//! (*rest* leads to `loaded`; what is failed is loaded again; a drain of what does not serve leads to stopped at once.)
//!
//! A loaded instance is a standby: it costs memory and no core, and serves as soon as the plan gives it workers.
//!
//! Invariant: no other transition exists; asking for one is an error and changes nothing.

use schemas::EpochMs;
use schemas::allocation::InstanceAllocation;
use schemas::status::InstanceState;

/// Which instance: a node holds at most one of each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceKey {
    /// Prediction service.
    pub service: String,
    /// Model version.
    pub version: String,
    /// Model file, as configured.
    pub model: String,
    /// Backend.
    pub backend: String,
}

impl InstanceKey {
    /// The key of an entry of a plan.
    pub fn of(allocation: &InstanceAllocation) -> Self {
        InstanceKey {
            service: allocation.service.clone(),
            version: allocation.version.clone(),
            model: allocation.model.clone(),
            backend: allocation.backend.clone(),
        }
    }
}

impl std::fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{} on {}", self.service, self.version, self.backend)
    }
}

/// What happens to an instance.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Its model begins to load.
    Load,
    /// The model's file is in memory.
    Cached,
    /// The model is loaded; milliseconds since the order.
    Loaded(f64),
    /// It gets workers.
    Serve,
    /// It could not be loaded, and why.
    LoadFailed(String),
    /// It takes no new work and finishes what it has.
    Drain,
    /// It is wanted again.
    CancelDrain,
    /// Nothing is left of its work, and it is not wanted.
    Drained,
    /// Nothing is left of its work, and it is wanted as a standby.
    Rest,
    /// It cannot go on, and why.
    Broke(String),
}

/// A transition that does not exist.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("an instance in state {state:?} cannot take {event:?}")]
pub struct IllegalTransition {
    /// State it is in.
    pub state: InstanceState,
    /// What it was told.
    pub event: Event,
}

/// The state after an event; `None` when there is no such transition.
pub fn next(state: InstanceState, event: &Event) -> Option<InstanceState> {
    use InstanceState::{Cached, Cold, Draining, Failed, Loaded, Loading, Ready, Stopped};
    Some(match (state, event) {
        (Cold | Failed, Event::Load) => Loading,
        (Loading, Event::Cached) => Cached,
        (Loading | Cached, Event::Loaded(_)) => Loaded,
        (Loading | Cached, Event::LoadFailed(_)) => Failed,
        (Loaded, Event::Serve) => Ready,
        (Ready, Event::Drain) => Draining,
        (Cold | Loading | Cached | Loaded | Failed, Event::Drain) => Stopped,
        (Draining, Event::Rest) => Loaded,
        (Draining, Event::CancelDrain) => Ready,
        (Draining, Event::Drained) => Stopped,
        (Ready | Draining, Event::Broke(_)) => Failed,
        _ => return None,
    })
}

/// An instance as the node's books have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    /// What the plan last said of it.
    pub plan: InstanceAllocation,
    state: InstanceState,
    since_ms: EpochMs,
    load_ms: Option<f64>,
    error: Option<String>,
}

impl Instance {
    /// A cold instance.
    pub fn new(plan: InstanceAllocation, now_ms: EpochMs) -> Self {
        Instance { plan, state: InstanceState::Cold, since_ms: now_ms, load_ms: None, error: None }
    }

    /// Moves to the next state.
    pub fn apply(&mut self, event: Event, now_ms: EpochMs) -> Result<(), IllegalTransition> {
        let Some(state) = next(self.state, &event) else {
            return Err(IllegalTransition { state: self.state, event });
        };
        match event {
            Event::Load => self.error = None,
            Event::Loaded(ms) => self.load_ms = Some(ms),
            Event::LoadFailed(why) | Event::Broke(why) => self.error = Some(why),
            Event::Cached | Event::Serve | Event::Drain | Event::CancelDrain | Event::Drained | Event::Rest => {}
        }
        self.state = state;
        self.since_ms = now_ms;
        Ok(())
    }

    /// State.
    pub fn state(&self) -> InstanceState {
        self.state
    }

    /// When it came into its state.
    pub fn since_ms(&self) -> EpochMs {
        self.since_ms
    }

    /// Time from order to loaded; absent before.
    pub fn load_ms(&self) -> Option<f64> {
        self.load_ms
    }

    /// Why it failed; absent when it has not.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn allocation(service: &str, version: &str, workers: u32) -> InstanceAllocation {
        InstanceAllocation {
            service: service.to_owned(),
            model: format!("{service}-{version}.onnx"),
            version: version.to_owned(),
            backend: "fake".to_owned(),
            workers,
            max_batch: 1,
            slo_ms: 100.0,
            service_p95_ms: 1.0,
        }
    }

    #[test]
    fn the_whole_life_of_an_instance() {
        let mut instance = Instance::new(allocation("a", "1", 1), 0);
        let life = [
            (Event::Load, InstanceState::Loading),
            (Event::Cached, InstanceState::Cached),
            (Event::Loaded(12.0), InstanceState::Loaded),
            (Event::Serve, InstanceState::Ready),
            (Event::Drain, InstanceState::Draining),
            (Event::CancelDrain, InstanceState::Ready),
            (Event::Broke("out of memory".to_owned()), InstanceState::Failed),
            (Event::Load, InstanceState::Loading),
            (Event::Loaded(13.0), InstanceState::Loaded),
            (Event::Serve, InstanceState::Ready),
            (Event::Drain, InstanceState::Draining),
            (Event::Rest, InstanceState::Loaded),
            (Event::Serve, InstanceState::Ready),
            (Event::Drain, InstanceState::Draining),
            (Event::Drained, InstanceState::Stopped),
        ];
        for (at, (event, state)) in life.into_iter().enumerate() {
            instance.apply(event, at as i64).unwrap();
            assert_eq!((instance.state(), instance.since_ms()), (state, at as i64));
        }
        assert_eq!(instance.load_ms(), Some(13.0));
        assert_eq!(instance.error(), None, "loading again clears the old error");
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Load),
            Just(Event::Cached),
            Just(Event::Serve),
            Just(Event::Rest),
            (0f64..1e4).prop_map(Event::Loaded),
            "[a-z]{1,8}".prop_map(Event::LoadFailed),
            Just(Event::Drain),
            Just(Event::CancelDrain),
            Just(Event::Drained),
            "[a-z]{1,8}".prop_map(Event::Broke),
        ]
    }

    proptest! {
        #[test]
        fn refused_events_change_nothing_and_stopped_is_final(events in proptest::collection::vec(event(), 0..40)) {
            let mut instance = Instance::new(allocation("a", "1", 1), 0);
            for event in events {
                let before = instance.clone();
                match instance.apply(event, 1) {
                    Ok(()) => prop_assert_ne!(before.state(), InstanceState::Stopped),
                    Err(_) => prop_assert_eq!(&before, &instance),
                }
                if instance.state() == InstanceState::Failed {
                    prop_assert!(instance.error().is_some());
                }
                if matches!(instance.state(), InstanceState::Loaded | InstanceState::Ready) {
                    prop_assert!(instance.load_ms().is_some());
                }
            }
        }
    }
}
