//! `barista city`: a synthetic fleet that publishes valid HFP v2.

use crate::failure::{Failure, Outcome};
use crate::output;
use ingest::config::BrokerAddress;
use runtime::{Clock, SystemClock};
use sim::city::{City, CityConfig};
use sim::clock::SpeedClock;
use sim::publish::Publisher;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A synthetic fleet.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Vehicles of the fleet; how many are in service depends on the hour.
    #[arg(long, default_value_t = 200)]
    vehicles: usize,
    /// MQTT broker.
    #[arg(long, default_value = "mqtt://127.0.0.1:1883")]
    mqtt: String,
    /// Seed: the same seed gives the same city.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How fast its calendar runs; vehicles report once a second of wall time whatever it is.
    #[arg(long, default_value_t = 1.0)]
    speed: f64,
    /// Stops after this time, such as `60s`.
    #[arg(long = "for", value_name = "DURATION")]
    duration: Option<runtime::config::ConfigDuration>,
    /// For a program.
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub async fn run(args: Args) -> Outcome {
    let address = BrokerAddress::parse(&args.mqtt).map_err(|e| Failure::Usage(format!("--mqtt: {e}")))?;
    if !(args.speed > 0.0 && args.speed.is_finite()) {
        return Err(Failure::Usage("--speed: must be positive".to_owned()));
    }
    let stop = CancellationToken::new();
    let signal = stop.clone();
    let limit = args.duration.map(|d| d.get());
    tokio::spawn(async move {
        let timer = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = runtime::supervisor::signalled() => {}
            () = timer => {}
        }
        signal.cancel();
    });
    let client = format!("barista-city-{}", std::process::id());
    let publisher = Publisher::connect(&address.host, address.port, &client, &CancellationToken::new());
    let city = City::new(CityConfig { vehicles: args.vehicles, seed: args.seed, ..CityConfig::default() });
    drive(city, &publisher, args.speed, &stop).await?;
    let published = publisher.published();
    let acknowledged = publisher.finish(Duration::from_secs(30)).await?;
    if args.json {
        output::print_json(&serde_json::json!({"published": published, "acknowledged": acknowledged}))
    } else {
        output::print_line(&format!("published {published}, acknowledged {acknowledged}"))
    }
}

/// Publishes the city's messages, one step a second of wall time, until stopped.
///
/// The city lives at wall-clock time, so that device clocks and receive times agree; `speed` moves only the hour of
/// its daily rhythm.
pub async fn drive(mut city: City, publisher: &Publisher, speed: f64, stop: &CancellationToken) -> Outcome {
    let wall = Arc::new(SystemClock);
    let calendar = SpeedClock::new(wall.clone(), wall.now_ms(), speed);
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        for message in city.step_at(wall.now_ms(), calendar.now_ms()) {
            match publisher.publish(message.topic, message.payload.into_bytes()).await {
                Ok(()) => {}
                Err(sim::publish::Error::Stopped) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
