//! What both protocols share: who may ask, how much at once, for how long, and what is known of models.

use super::config::Config;
use super::failure::{Code, Failure};
use super::message::{Answer, Call};
use super::metrics::{InferLabel, Metrics, ProtocolLabel};
use super::path::{LoadWish, Model, Path, Served, models};
use runtime::SharedClock;
use schemas::status::InstanceState;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Which protocol a request came by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Grpc,
}

impl Protocol {
    pub(crate) fn label(self) -> ProtocolLabel {
        ProtocolLabel {
            protocol: match self {
                Protocol::Http => "http",
                Protocol::Grpc => "grpc",
            },
        }
    }
}

/// Counts of one model since the gateway began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) success: u64,
    pub(crate) success_ns: u64,
    pub(crate) fail: u64,
    pub(crate) fail_ns: u64,
    /// Time of the last success; 0: none.
    pub(crate) last_ms: u64,
}

/// A request's share of the limits; gives it back when dropped.
pub(crate) struct Admission {
    gateway: Arc<Gateway>,
    protocol: Protocol,
    began: Instant,
    deadline: tokio::time::Instant,
    status: u16,
    _place: OwnedSemaphorePermit,
    bytes: Option<OwnedSemaphorePermit>,
}

impl Admission {
    /// When the gateway's limit of time is over.
    pub(crate) fn deadline(&self) -> tokio::time::Instant {
        self.deadline
    }

    /// A client that waits less long lowers the limit.
    pub(crate) fn lower_deadline(&mut self, after: Duration) {
        if let Some(at) = tokio::time::Instant::from_std(self.began).checked_add(after) {
            self.deadline = self.deadline.min(at);
        }
    }

    /// Takes `bytes` more of a body into account.
    pub(crate) fn take_bytes(&mut self, bytes: usize) -> Result<(), Failure> {
        let limits = &self.gateway.config;
        let held = self.bytes.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if held + bytes > limits.max_body {
            return Err(too_large(limits.max_body));
        }
        let wanted = u32::try_from(bytes).unwrap_or(u32::MAX);
        let taken = self.gateway.bytes.clone().try_acquire_many_owned(wanted).map_err(|_| {
            let message = format!("the bodies in flight fill {} bytes, try again later", limits.max_in_flight_bytes);
            Failure::new(Code::TooMany, message)
        })?;
        self.gateway.metrics.in_flight_bytes.inc_by(taken.num_permits() as i64);
        match &mut self.bytes {
            Some(held) => held.merge(taken),
            None => self.bytes = Some(taken),
        }
        Ok(())
    }

    /// Bytes of one request at most.
    pub(crate) fn max_body(&self) -> usize {
        self.gateway.config.max_body
    }

    /// Takes into account that the body is `bytes` long by now, as far as it was not yet.
    pub(crate) fn take_bytes_up_to(&mut self, bytes: usize) -> Result<(), Failure> {
        let held = self.bytes.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        self.take_bytes(bytes.saturating_sub(held))
    }

    /// Notes how the request ended, for the metrics.
    pub(crate) fn ended<T>(&mut self, outcome: &Result<T, Failure>) {
        self.status = outcome.as_ref().map_or_else(|failure| failure.code.status(), |_| 200);
    }
}

/// A body beyond the limit.
pub(crate) fn too_large(limit: usize) -> Failure {
    Failure::new(Code::TooLarge, format!("too-large: the request has more than {limit} bytes (gateway.max_body)"))
}

impl Drop for Admission {
    fn drop(&mut self) {
        let metrics = &self.gateway.metrics;
        metrics.in_flight.dec();
        let held = self.bytes.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        metrics.in_flight_bytes.dec_by(held as i64);
        let label = self.protocol.label();
        metrics.seconds.get_or_create(&label).observe(self.began.elapsed().as_secs_f64());
        metrics.inferences.get_or_create(&InferLabel { protocol: label.protocol, status: self.status }).inc();
    }
}

/// HTTP status that stands for a client that went away, in the metrics only.
const CLIENT_GONE: u16 = 499;

/// What the handlers of both protocols answer from.
pub(crate) struct Gateway {
    pub(crate) config: Config,
    pub(crate) served: Vec<Served>,
    pub(crate) path: Arc<dyn Path>,
    pub(crate) metrics: Metrics,
    /// Cancelled when no more requests are taken.
    pub(crate) stop: CancellationToken,
    clock: SharedClock,
    tokens: Vec<[u8; 32]>,
    places: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    draining: AtomicBool,
    tallies: Mutex<BTreeMap<(String, String), Tally>>,
}

impl Gateway {
    pub(crate) fn new(
        config: Config,
        served: Vec<Served>,
        path: Arc<dyn Path>,
        metrics: Metrics,
        clock: SharedClock,
    ) -> Arc<Self> {
        Arc::new(Gateway {
            tokens: config.tokens.iter().map(|token| Sha256::digest(token.reveal().trim()).into()).collect(),
            places: Arc::new(Semaphore::new(config.max_in_flight)),
            bytes: Arc::new(Semaphore::new(config.max_in_flight_bytes)),
            draining: AtomicBool::new(false),
            stop: CancellationToken::new(),
            tallies: Mutex::default(),
            config,
            served,
            path,
            metrics,
            clock,
        })
    }

    /// From now on `ready` says no.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Why requests cannot be served now, if so.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if self.draining.load(Ordering::Acquire) {
            return Some("the gateway stops".to_owned());
        }
        self.path.not_ready()
    }

    /// Checks the `authorization` header, `Bearer <token>`.
    pub(crate) fn authorise(&self, header: Option<&[u8]>) -> Result<(), Failure> {
        if self.tokens.is_empty() {
            return Ok(());
        }
        let given = header.and_then(|value| {
            let (scheme, token) = (value.get(..7)?, value.get(7..)?);
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(token.trim_ascii())
        });
        let Some(given) = given else {
            return Err(Failure::new(Code::Unauthenticated, "authorization: a bearer token is needed"));
        };
        // Digests are compared, so the time tells nothing of the token.
        let digest: [u8; 32] = Sha256::digest(given).into();
        if self.tokens.contains(&digest) {
            Ok(())
        } else {
            Err(Failure::new(Code::Unauthenticated, "authorization: this token is not known"))
        }
    }

    /// A place for one more request for inference.
    pub(crate) fn admit(self: &Arc<Self>, protocol: Protocol) -> Result<Admission, Failure> {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            let label = protocol.label();
            let status = Code::TooMany.status();
            self.metrics.inferences.get_or_create(&InferLabel { protocol: label.protocol, status }).inc();
            let message = format!("{} requests are in flight, try again later", self.config.max_in_flight);
            return Err(Failure::new(Code::TooMany, message));
        };
        self.metrics.in_flight.inc();
        let began = Instant::now();
        Ok(Admission {
            gateway: self.clone(),
            protocol,
            began,
            deadline: tokio::time::Instant::from_std(began) + self.config.timeout.get(),
            status: CLIENT_GONE,
            _place: place,
            bytes: None,
        })
    }

    /// One inference, within the limit of time.
    pub(crate) async fn infer(&self, admission: &mut Admission, call: Call) -> Result<Answer, Failure> {
        let key = self.known(&call);
        let outcome = match &key {
            Err(failure) => Err(failure.clone()),
            Ok(_) => match tokio::time::timeout_at(admission.deadline, self.path.infer(call)).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    let waited = admission.began.elapsed().as_millis();
                    Err(Failure::new(Code::Timeout, format!("no answer within {waited} ms")))
                }
            },
        };
        if let Ok(key) = key {
            self.count(key, admission.began.elapsed(), outcome.is_ok());
        }
        admission.ended(&outcome);
        outcome
    }

    /// Model and version for the statistics; a failure when nobody knows such a service.
    fn known(&self, call: &Call) -> Result<(String, String), Failure> {
        let served = self.served.iter().find(|s| s.name == call.service);
        let version = call.version.clone().or_else(|| served.map(|s| s.version.clone()));
        match version {
            Some(version) if served.is_some() => Ok((call.service.clone(), version)),
            _ => self.model(&call.service, None).map(|model| (model.name, model.version)),
        }
    }

    fn count(&self, key: (String, String), took: Duration, success: bool) {
        // Versions that clients invent are bounded by what there is.
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        if !success && !tallies.contains_key(&key) && tallies.len() >= 16 * self.served.len().max(16) {
            return;
        }
        let tally = tallies.entry(key).or_default();
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        if success {
            tally.success += 1;
            tally.success_ns = tally.success_ns.saturating_add(ns);
            tally.last_ms = u64::try_from(self.clock.now_ms()).unwrap_or(0);
        } else {
            tally.fail += 1;
            tally.fail_ns = tally.fail_ns.saturating_add(ns);
        }
    }

    /// Counts of a version of a model.
    pub(crate) fn tally(&self, model: &Model) -> Tally {
        let key = (model.name.clone(), model.version.clone());
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied().unwrap_or_default()
    }

    /// All models and versions.
    pub(crate) fn models(&self) -> Vec<Model> {
        models(self.path.instances(), &self.served)
    }

    /// A model, by its version or the best of its versions.
    pub(crate) fn model(&self, name: &str, version: Option<&str>) -> Result<Model, Failure> {
        let all: Vec<Model> = self.models().into_iter().filter(|m| m.name == name).collect();
        if all.is_empty() {
            return Err(Failure::new(Code::NotFound, format!("request for unknown model: '{name}' is not found")));
        }
        let versions = all.iter().map(|m| format!("`{}`", m.version)).collect::<Vec<_>>().join(", ");
        let mut wanted = all.into_iter().filter(|m| version.is_none_or(|v| m.version == v)).collect::<Vec<_>>();
        wanted.sort_by_key(|m| !m.is_ready());
        wanted.into_iter().next().ok_or_else(|| {
            let version = version.unwrap_or_default();
            let message = format!("request for unknown model: '{name}' has no version '{version}', it has {versions}");
            Failure::new(Code::NotFound, message)
        })
    }

    /// Versions of a model that can be asked for.
    pub(crate) fn versions(&self, name: &str) -> Vec<String> {
        self.models().into_iter().filter(|m| m.name == name).map(|m| m.version).collect()
    }

    /// A model with its signature, for metadata.
    pub(crate) fn described(&self, name: &str, version: Option<&str>) -> Result<Model, Failure> {
        let model = self.model(name, version)?;
        if model.signature.is_some() {
            return Ok(model);
        }
        let message = format!("model '{name}' is not loaded: its inputs and outputs are not known yet");
        Err(Failure::new(Code::Unavailable, message))
    }

    /// Loads a configured model.
    pub(crate) async fn load(&self, name: &str, wish: LoadWish) -> Result<(), Failure> {
        let served = self.served.iter().find(|s| s.name == name);
        let served = served.ok_or_else(|| {
            Failure::new(Code::NotFound, format!("failed to load '{name}': no [[service]] of this name is configured"))
        })?;
        self.path.load(served, wish).await
    }

    /// Unloads a model that was loaded by [`Gateway::load`].
    pub(crate) async fn unload(&self, name: &str) -> Result<(), Failure> {
        self.model(name, None)?;
        self.path.unload(name).await
    }
}

/// State and reason of a model as the repository extension says them.
pub(crate) fn index_state(model: &Model) -> (&'static str, String) {
    match model.state {
        Some(InstanceState::Ready) => ("READY", String::new()),
        Some(InstanceState::Cold | InstanceState::Loading | InstanceState::Cached) => ("LOADING", String::new()),
        Some(InstanceState::Loaded) => ("UNAVAILABLE", "a standby: loaded, the plan gives it no workers".to_owned()),
        Some(InstanceState::Draining) => ("UNLOADING", String::new()),
        Some(InstanceState::Failed) => ("UNAVAILABLE", model.error.clone().unwrap_or_default()),
        Some(InstanceState::Stopped) | None => ("UNAVAILABLE", "no node holds it".to_owned()),
    }
}
