//! Requests of the passengers' app: `occupancy` asked at the rate of a demand.

use super::observer::Shared;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::{Context, OutRecord};
use schemas::prediction::{InferRequest, Parameters, Tensor};
use sim::load::{Arrivals, Demand};
use std::time::Duration;

/// Steps of the occupancy history that a request carries.
pub(super) const STEPS: usize = 48;
/// Features of each step.
pub(super) const FEATURES: usize = 8;
/// How often arrivals are taken from the demand.
const TICK: Duration = Duration::from_millis(10);

/// Sends until stopped. Then it only waits for the end of the process: the last answers are still to come.
pub(super) async fn run(
    context: Context,
    demands: Vec<(String, Demand)>,
    seed: u64,
    tokens: super::Tokens,
    shared: Shared,
) -> anyhow::Result<()> {
    let stop = tokens.sources.clone();
    tokio::select! {
        () = super::observer::serving(&shared, demands.iter().map(|(service, _)| service.clone()).collect()) => {}
        () = stop.cancelled() => {}
    }
    let now = context.clock.now_ms();
    let mut streams: Vec<(String, Arrivals)> = demands
        .into_iter()
        .enumerate()
        .map(|(i, (service, demand))| (service, Arrivals::new(demand, now, seed + i as u64)))
        .collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let sink = context.bus.sink();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut n = 0u64;
    while !stop.is_cancelled() {
        tokio::select! {
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        for (service, arrivals) in &mut streams {
            for _ in arrivals.until(context.clock.now_ms()) {
                n += 1;
                let request = request(n, &mut rng)?;
                let topic = context.bus.topics().requests(service);
                let record =
                    OutRecord::new(topic).key(format!("stop-{}", n % 997)).value(serde_json::to_vec(&request)?);
                let sent = sink.send(record);
                let failures = shared.clone();
                tokio::spawn(async move {
                    if let Err(error) = sent.await {
                        tracing::warn!(%error, "a request was not delivered to Kafka");
                        super::observer::lock(&failures).send_failures += 1;
                    }
                });
            }
        }
    }
    tokens.process.cancelled().await;
    Ok(())
}

/// A plausible history: occupancy that wanders, with its calendar features.
fn request(n: u64, rng: &mut ChaCha8Rng) -> anyhow::Result<InferRequest> {
    let mut level: f32 = rng.random_range(0.05..0.8);
    let mut data = Vec::with_capacity(STEPS * FEATURES);
    for step in 0..STEPS {
        level = (level + rng.random_range(-0.05..0.05f32)).clamp(0.0, 1.0);
        let phase = step as f32 / STEPS as f32 * std::f32::consts::TAU;
        data.push((level * 1000.0).round() / 1000.0);
        data.extend([phase.sin(), phase.cos(), 0.0, 1.0, 0.5, 0.25, 0.0].map(|x: f32| (x * 1000.0).round() / 1000.0));
    }
    Ok(InferRequest {
        id: Some(format!("app-{n}")),
        parameters: Parameters::new(),
        inputs: vec![Tensor::fp32("x", vec![1, STEPS, FEATURES], &data)?],
        outputs: Vec::new(),
    })
}
