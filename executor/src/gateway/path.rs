//! The two ways of a request: what the protocols need of them.

use super::failure::Failure;
use super::message::{Answer, Call};
use async_trait::async_trait;
use schemas::status::{InstanceState, InstanceStatus, ModelSignature};
use std::collections::BTreeMap;

/// A prediction service that may be asked for, as configured.
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    /// Its name: the model's name to clients.
    pub name: String,
    /// Model file.
    pub model: String,
    /// Model version.
    pub version: String,
    /// Backend, or `auto`.
    pub backend: String,
    /// Latency objective, milliseconds.
    pub slo_ms: f64,
}

/// A version of a model as a path sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) version: String,
    /// Backend that runs it.
    pub(crate) backend: String,
    /// Absent: configured, and nobody holds it.
    pub(crate) state: Option<InstanceState>,
    /// Why it failed.
    pub(crate) error: Option<String>,
    pub(crate) signature: Option<ModelSignature>,
}

impl Model {
    /// True while it takes requests.
    pub(crate) fn is_ready(&self) -> bool {
        self.state == Some(InstanceState::Ready)
    }
}

/// How requests reach an executor.
#[async_trait]
pub(crate) trait Path: Send + Sync {
    /// `direct` or `kafka`, for people.
    fn name(&self) -> &'static str;

    /// Why requests cannot be served now, if so.
    fn not_ready(&self) -> Option<String>;

    /// One inference. Dropping the future gives the request up.
    async fn infer(&self, call: Call) -> Result<Answer, Failure>;

    /// Instances that are known.
    fn instances(&self) -> Vec<InstanceStatus>;

    /// Makes an executor hold the model; resolves when it serves.
    async fn load(&self, served: &Served, wish: LoadWish) -> Result<(), Failure>;

    /// Makes an executor let go of it.
    async fn unload(&self, service: &str) -> Result<(), Failure>;
}

/// What a client may say about a model that it wants to be loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LoadWish {
    /// Workers; 1 when absent.
    pub(crate) workers: Option<u32>,
    /// Rows that are run at once; 1 when absent.
    pub(crate) max_batch: Option<u32>,
}

/// Best first: what serves, then what may soon, then what does not.
fn rank(state: InstanceState) -> u8 {
    match state {
        InstanceState::Ready => 0,
        InstanceState::Loaded => 1,
        InstanceState::Cached => 2,
        InstanceState::Loading => 3,
        InstanceState::Cold => 4,
        InstanceState::Draining => 5,
        InstanceState::Failed => 6,
        InstanceState::Stopped => 7,
    }
}

/// One entry for each model and version, by the best of its instances; configured models that nobody holds, too.
pub(crate) fn models(instances: Vec<InstanceStatus>, configured: &[Served]) -> Vec<Model> {
    let mut best: BTreeMap<(String, String), InstanceStatus> = BTreeMap::new();
    for instance in instances.into_iter().filter(|i| i.state != InstanceState::Stopped) {
        let key = (instance.service.clone(), instance.version.clone());
        let better = best.get(&key).is_none_or(|other| rank(instance.state) < rank(other.state));
        if better {
            best.insert(key, instance);
        }
    }
    let mut models: Vec<Model> = best
        .into_values()
        .map(|i| Model {
            name: i.service,
            version: i.version,
            backend: i.backend,
            state: Some(i.state),
            error: i.error,
            signature: i.signature,
        })
        .collect();
    for served in configured {
        if !models.iter().any(|m| m.name == served.name && m.version == served.version) {
            models.push(Model {
                name: served.name.clone(),
                version: served.version.clone(),
                backend: served.backend.clone(),
                state: None,
                error: None,
                signature: None,
            });
        }
    }
    models.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    models
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(version: &str, state: InstanceState) -> InstanceStatus {
        InstanceStatus {
            service: "a".to_owned(),
            version: version.to_owned(),
            backend: "tract".to_owned(),
            state,
            workers: 1,
            planned_workers: 1,
            load_ms: None,
            error: None,
            signature: None,
        }
    }

    #[test]
    fn the_best_instance_speaks_for_a_version_and_configured_ones_are_listed() {
        let served = |name: &str| Served {
            name: name.to_owned(),
            model: String::new(),
            version: "1".to_owned(),
            backend: "auto".to_owned(),
            slo_ms: 1.0,
        };
        let instances = vec![
            instance("1", InstanceState::Failed),
            instance("1", InstanceState::Ready),
            instance("1", InstanceState::Loading),
            instance("2", InstanceState::Loading),
            instance("3", InstanceState::Stopped),
        ];
        let models = models(instances, &[served("a"), served("b")]);
        let told: Vec<_> = models.iter().map(|m| (m.name.as_str(), m.version.as_str(), m.state)).collect();
        assert_eq!(
            told,
            [("a", "1", Some(InstanceState::Ready)), ("a", "2", Some(InstanceState::Loading)), ("b", "1", None)]
        );
    }
}
