//! The service around the decision: follows the topics, leads or stands by, publishes plans, lets the provider act.
//!
//! One task owns all state. It reads `executor.status`, `workload.*` and `allocation.control` whether it leads or not,
//! so a standby that takes over knows the load and the nodes. [`crate::leadership`] decides who leads; the one that
//! does decides every period, and at once when a node is lost or a load is above what the plan carries. A plan is one
//! transaction: its `fleet` record, then each changed node's share; only then are nodes ordered. A node that goes is
//! told to drain, and its key gets a tombstone when it has stopped.
//!
//! Invariants: nothing is done that was not published and committed; whatever fails to commit ends this planner's
//! epoch, and the next one starts from what the log says; orders are given only while no standby can have missed us.

mod control;
mod office;
mod planner;
mod publishing;

use crate::config::{Config, ServiceConfig};
use crate::error::Error;
use crate::leadership::{Action, Event};
use crate::model::ServiceProfile;
use crate::provider::{self, LocalSpec, Provider};
use planner::Planner;
use runtime::restore::{Restored, read_to_end};
use runtime::{Context, PortError, Record, Source, SourceEvent, SourceSpec, Start};
use schemas::profile::Profile;
use schemas::topics::{ALLOCATION_CONTROL, EXECUTOR_STATUS, WORKLOAD_FORECAST, WORKLOAD_OBSERVED};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// How often the service looks whether there is something to do.
const PULSE: Duration = Duration::from_millis(500);
/// Wait after a source or sink failed for now.
const RETRY: Duration = Duration::from_secs(1);
/// Time that a planner which ends has to say so.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs the planner with the configured provider; `local` says how nodes of the local one are started. Ends when
/// `shutdown` is cancelled, or with an error that a restart or an operator must fix.
pub async fn run(config: Config, local: LocalSpec, context: Context, shutdown: CancellationToken) -> Result<(), Error> {
    let provider = provider::build(&config.provider, local)?;
    run_with(config, provider, context, shutdown).await
}

/// The same with a provider of the caller's.
pub async fn run_with(
    config: Config,
    provider: Arc<dyn Provider>,
    context: Context,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let problems = crate::config::problems(&config.planner, &config.provider, &config.service, &config.flavor);
    if !problems.is_empty() {
        return Err(Error::Config(problems.join("; ")));
    }
    let profiles = load_profiles(&config.service)?;
    let readiness = context.readiness.clone();
    let mut planner = Planner::new(config, profiles, provider.clone(), context);
    let outcome = tokio::select! {
        outcome = serve(&mut planner) => outcome,
        () = shutdown.cancelled() => Ok(()),
    };
    readiness.set("planner", false, "stopped");
    if tokio::time::timeout(FAREWELL, planner.resign()).await.is_err() {
        tracing::warn!("could not say in time that this planner ends; a standby waits for silence");
    }
    provider.shutdown().await;
    outcome
}

/// Reads the profiles of each service that names some.
pub fn load_profiles(services: &[ServiceConfig]) -> Result<Vec<ServiceProfile>, Error> {
    let mut profiles = Vec::new();
    for service in services {
        let paths: Vec<&PathBuf> = service.profile.iter().chain(&service.profiles).collect();
        if paths.is_empty() {
            tracing::warn!(service = service.name, "no profile: the service gets no instances; run `barista profile`");
        }
        let mut of_backend: BTreeMap<String, &PathBuf> = BTreeMap::new();
        for path in paths {
            let error = |why: String| Error::Profile { service: service.name.clone(), path: path.clone(), why };
            let text = std::fs::read_to_string(path).map_err(|e| error(e.to_string()))?;
            let profile: Profile = serde_json::from_str(&text).map_err(|e| error(e.to_string()))?;
            let problems = profile.problems();
            if !problems.is_empty() {
                return Err(error(problems.join("; ")));
            }
            if let Some(other) = of_backend.insert(profile.backend.clone(), path) {
                return Err(error(format!(
                    "a second profile of backend {}, as is {}; name one a backend",
                    profile.backend,
                    other.display()
                )));
            }
            profiles.push(ServiceProfile { service: service.name.clone(), flavor: None, profile });
        }
    }
    Ok(profiles)
}

/// Follows, and leads while the planner has the office, until something fails for good.
async fn serve(planner: &mut Planner) -> Result<(), Error> {
    let bus = planner.bus();
    let names = bus.topics().clone();
    let Restored { newest, source: mut control } = read_to_end(bus.as_ref(), &names.name(ALLOCATION_CONTROL)).await?;
    let status = read_to_end(bus.as_ref(), &names.name(EXECUTOR_STATUS)).await?;
    let topics = vec![names.name(WORKLOAD_FORECAST), names.name(WORKLOAD_OBSERVED)];
    let mut workload = bus.source(SourceSpec::assign(topics, Start::End)).await?;
    planner.begin(&newest, &status.newest);
    let mut status = status.source;
    let mut pulse = tokio::time::interval(PULSE);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let wake = planner.wake_at();
        tokio::select! {
            // What was heard goes first: silence is measured after it.
            biased;
            record = next_record(&mut control) => if let Some(r) = record? { planner.on_control(&r) },
            () = tokio::time::sleep_until(wake) => planner.tell(Event::Tick),
            _ = pulse.tick() => planner.pulse().await?,
            record = next_record(&mut workload) => if let Some(r) = record? { planner.on_workload(&r) },
            record = next_record(&mut status) => if let Some(r) = record? { planner.on_status(&r) },
        }
        lead(planner, &mut control, &mut pulse).await?;
    }
}

/// Carries out what the change of leadership asks for.
async fn lead(planner: &mut Planner, control: &mut Box<dyn Source>, pulse: &mut Interval) -> Result<(), Error> {
    while let Some(action) = planner.next_action() {
        match action {
            Action::Claim => {
                if let Some(source) = planner.claim().await? {
                    *control = source;
                }
            }
            Action::Announce { epoch } => planner.announce(epoch).await?,
            Action::Lead { epoch } => {
                planner.lead(epoch).await?;
                pulse.reset_immediately();
            }
            Action::Beat => planner.beat().await?,
            Action::StepDown => planner.step_down(),
        }
    }
    Ok(())
}

/// The next record; `None` for other events and for failures that may pass, after a wait.
async fn next_record(source: &mut Box<dyn Source>) -> Result<Option<Record>, Error> {
    match source.next().await {
        Ok(SourceEvent::Record(record)) => Ok(Some(record)),
        Ok(_) => Ok(None),
        Err(PortError::Broker(error)) => {
            tracing::warn!(error, "cannot read for now");
            tokio::time::sleep(RETRY).await;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
