//! A made-up city whose vehicles publish HFP v2 as the real ones do, seeded and pure.
//!
//! Routes are polylines of stops around a centre; each vehicle runs trips back and forth by a timetable, late or early
//! as its driver and the traffic make it, and says what happens at stops in HFP's events ([`vehicle`]). Faults are as
//! frequent as in recorded data: duplicates, clock skew, missing positions; and a few malformed messages, which the
//! real feed does not have.
//!
//! Invariants: pure and seeded, the same steps give the same messages; messages of a vehicle come in the order of
//! their events, a copy right after its original; every valid message is accepted by ingest's decoder (tested).
//! HFP's `dl` is negative when late.
//!
//! Left out: streets, transfers, passengers; vehicles do not see each other.

mod message;
mod network;
mod vehicle;

pub use message::{Kind, MqttMessage};

use network::Network;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::EpochMs;
use vehicle::{Step, Vehicle};

/// A longer pause between two steps is a new beginning, seconds.
const LONGEST_STEP_S: f64 = 60.0;

/// What the city is like.
#[derive(Debug, Clone, PartialEq)]
pub struct CityConfig {
    /// Vehicles in all; how many are in service depends on the hour.
    pub vehicles: usize,
    /// Seed of everything.
    pub seed: u64,
    /// Share of messages that come twice.
    pub duplicates: f64,
    /// Share of messages without position and speed.
    pub null_positions: f64,
    /// Share of messages that cannot be decoded.
    pub malformed: f64,
}

impl Default for CityConfig {
    fn default() -> Self {
        CityConfig { vehicles: 100, seed: 1, duplicates: 0.005, null_positions: 0.03, malformed: 0.001 }
    }
}

/// The city at an instant.
#[derive(Debug)]
pub struct City {
    config: CityConfig,
    vehicles: Vec<Vehicle>,
    network: Network,
    rng: ChaCha8Rng,
    last_ms: Option<EpochMs>,
}

impl City {
    /// A city before its first second.
    pub fn new(config: CityConfig) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let network = Network::new(&mut rng);
        let vehicles = (0..config.vehicles).map(|n| Vehicle::new(n, &network, &mut rng)).collect();
        City { vehicles, network, rng, last_ms: None, config }
    }

    /// Vehicles in service at `now_ms`.
    pub fn in_service(&self, now_ms: EpochMs) -> usize {
        (self.vehicles.len() as f64 * daily_rhythm(now_ms)).round() as usize
    }

    /// What the vehicles publish at `now_ms`, by the simulated calendar. Ask once for each second of simulated time;
    /// a longer step moves the vehicles as far.
    pub fn step(&mut self, now_ms: EpochMs) -> Vec<MqttMessage> {
        self.step_at(now_ms, now_ms)
    }

    /// As [`City::step`] with the daily rhythm of another time than that of the vehicles' clocks: a demo runs through
    /// a day in minutes while device times stay true.
    pub fn step_at(&mut self, now_ms: EpochMs, calendar_ms: EpochMs) -> Vec<MqttMessage> {
        let elapsed_s = self.last_ms.map(|last| (now_ms - last).max(0) as f64 / 1000.0);
        // After a long pause, as at the very beginning, vehicles are somewhere on their routes.
        let anew = elapsed_s.is_none_or(|elapsed_s| elapsed_s > LONGEST_STEP_S);
        self.last_ms = Some(now_ms);
        let active = self.in_service(calendar_ms);
        let rush = ((daily_rhythm(calendar_ms) - 0.6) / 0.4).clamp(0.0, 1.0);
        let step = Step { now_ms, elapsed_s: if anew { 1.0 } else { elapsed_s.unwrap_or(1.0) }, rush };
        let mut messages = Vec::new();
        for (n, vehicle) in self.vehicles.iter_mut().enumerate() {
            match (n < active, vehicle.in_depot()) {
                (true, _) if anew => vehicle.place(&self.network, now_ms, &mut self.rng),
                (true, true) => vehicle.sign_on(now_ms, &mut self.rng),
                (false, _) => vehicle.sign_off(),
                (true, false) => {}
            }
            for report in vehicle.step(&self.network, step, &mut self.rng) {
                let without_position = self.rng.random_bool(self.config.null_positions);
                let message = message::encode(vehicle, &self.network, report, now_ms, without_position);
                let copy = self.rng.random_bool(self.config.duplicates);
                let broken = self.rng.random_bool(self.config.malformed);
                let extra = [
                    copy.then(|| MqttMessage { kind: Kind::Duplicate, ..message.clone() }),
                    broken.then(|| message::malformed(&message, &mut self.rng)),
                ];
                messages.push(message);
                messages.extend(extra.into_iter().flatten());
            }
        }
        messages
    }
}

/// Share of the fleet in service by hour of the day (UTC): few at night, peaks in the morning and the afternoon.
pub(crate) fn daily_rhythm(now_ms: EpochMs) -> f64 {
    let hour = now_ms.rem_euclid(86_400_000) as f64 / 3_600_000.0;
    let peak = |at: f64, width: f64| (-0.5 * ((hour - at) / width).powi(2)).exp();
    (0.25 + 0.45 * peak(13.0, 4.5) + 0.45 * peak(7.5, 1.5) + 0.4 * peak(16.0, 2.0)).min(1.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use schemas::telemetry::VehicleEvent;
    use std::collections::BTreeMap;

    /// A Tuesday, 07:00 UTC.
    const MORNING_MS: EpochMs = 1_700_550_000_000;

    fn run(config: CityConfig, seconds: i64) -> Vec<MqttMessage> {
        let mut city = City::new(config);
        (0..seconds).flat_map(|s| city.step(MORNING_MS + s * 1000)).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_messages() {
        let config = CityConfig { vehicles: 20, ..CityConfig::default() };
        assert_eq!(run(config.clone(), 60), run(config.clone(), 60));
        assert_ne!(run(config.clone(), 60), run(CityConfig { seed: 2, ..config }, 60));
    }

    #[test]
    fn ingest_decodes_what_is_valid_and_rejects_what_is_not() {
        let config = CityConfig { vehicles: 60, malformed: 0.02, ..CityConfig::default() };
        let mut events: BTreeMap<String, u64> = BTreeMap::new();
        let (mut malformed, mut late) = (0u64, 0u64);
        for m in run(config, 1_200) {
            let decoded = ingest::decode::decode(&m.topic, m.payload.as_bytes(), MORNING_MS);
            match (m.kind, decoded) {
                (Kind::Malformed, Err(_)) => malformed += 1,
                (Kind::Malformed, Ok(event)) => panic!("accepted: {} {} {event:?}", m.topic, m.payload),
                (_, Ok(event)) => {
                    late += u64::from(event.schedule_deviation_s.is_some_and(|d| d < 0));
                    *events.entry(event.event).or_default() += 1;
                }
                (_, Err(reject)) => panic!("{reject:?}: {} {}", m.topic, m.payload),
            }
        }
        for event in ["VP", "DUE", "ARR", "ARS", "DOO", "DOC", "PDE", "DEP", "PAS"] {
            assert!(events.get(event).is_some_and(|n| *n > 0), "no {event} in {events:?}");
        }
        assert!(malformed > 100 && late > 100, "{malformed} malformed, {late} late");
    }

    #[test]
    fn faults_are_as_frequent_as_asked() {
        let all = run(CityConfig { vehicles: 60, ..CityConfig::default() }, 900);
        let valid = all.iter().filter(|m| m.kind == Kind::Valid).count() as f64;
        let share = |kind: Kind| all.iter().filter(|m| m.kind == kind).count() as f64 / valid;
        assert!((0.003..0.008).contains(&share(Kind::Duplicate)), "{}", share(Kind::Duplicate));
        assert!((0.0003..0.003).contains(&share(Kind::Malformed)), "{}", share(Kind::Malformed));
        let without = all.iter().filter(|m| m.payload.contains("\"lat\":null")).count() as f64 / valid;
        assert!((0.02..0.04).contains(&without), "{without}");
    }

    #[test]
    fn the_fleet_follows_the_day() {
        let mut city = City::new(CityConfig { vehicles: 100, ..CityConfig::default() });
        let night = city.in_service(MORNING_MS - 5 * 3_600_000);
        assert!(night < 40 && city.in_service(MORNING_MS) > 70, "{night}");
        // A compressed calendar over true device times: vehicles leave service and come back.
        let positions = |messages: Vec<MqttMessage>| {
            messages.iter().filter(|m| m.kind == Kind::Valid && m.topic.contains("/vp/")).count()
        };
        for (s, calendar_ms) in [MORNING_MS, MORNING_MS - 5 * 3_600_000, MORNING_MS].into_iter().enumerate() {
            let messages = city.step_at(MORNING_MS + s as i64 * 1000, calendar_ms);
            assert_eq!(positions(messages), city.in_service(calendar_ms), "one position a vehicle and second");
        }
    }

    /// Valid events in order, by vehicle.
    fn events(messages: Vec<MqttMessage>) -> BTreeMap<String, Vec<VehicleEvent>> {
        let mut by_vehicle: BTreeMap<String, Vec<VehicleEvent>> = BTreeMap::new();
        for m in messages.into_iter().filter(|m| m.kind == Kind::Valid) {
            let event = ingest::decode::decode(&m.topic, m.payload.as_bytes(), MORNING_MS).unwrap();
            by_vehicle.entry(event.vehicle.clone()).or_default().push(event);
        }
        by_vehicle
    }

    #[test]
    fn deviation_timetable_and_stop_events_agree() {
        let mut arrivals = 0;
        for (vehicle, events) in events(run(CityConfig { vehicles: 30, ..CityConfig::default() }, 1_500)) {
            // The vehicle's clock is off by a constant.
            let mut skews: Vec<f64> = Vec::new();
            for event in events.iter().filter(|e| matches!(e.event.as_str(), "ARS" | "DEP" | "PAS")) {
                let (due, dl) = (event.scheduled_arrival_ms.unwrap(), event.schedule_deviation_s.unwrap());
                skews.push((event.event_time_ms - due) as f64 / 1000.0 + dl as f64);
                arrivals += 1;
            }
            let (min, max) = skews.iter().fold((f64::MAX, f64::MIN), |(a, b), s| (a.min(*s), b.max(*s)));
            // Rounding of `dl`, and one step beyond a stop that is passed.
            assert!(max - min <= 4.0, "vehicle {vehicle}: {min} to {max}");
        }
        assert!(arrivals > 300, "{arrivals}");
    }

    #[test]
    fn a_vehicle_tells_its_story_in_order() {
        let mut trips = 0;
        for (vehicle, events) in events(run(CityConfig { vehicles: 30, ..CityConfig::default() }, 3_000)) {
            let names: Vec<&str> = events.iter().map(|e| e.event.as_str()).filter(|e| *e != "VP").collect();
            for pair in names.windows(2) {
                let follows = match pair[0] {
                    "DUE" => &["ARR", "PAS"][..],
                    "ARR" => &["ARS"],
                    "ARS" => &["DOO"],
                    "DOO" => &["DOC"],
                    // At the end of the trip the next event is the departure of the next one.
                    "DOC" => &["PDE"],
                    "PDE" => &["DEP"],
                    "DEP" | "PAS" => &["DUE"],
                    other => panic!("{other}"),
                };
                assert!(follows.contains(&pair[1]), "vehicle {vehicle}: {pair:?}");
            }
            for pair in events.windows(2) {
                assert!(pair[0].event_time_ms <= pair[1].event_time_ms, "vehicle {vehicle}");
                if pair[0].journey == pair[1].journey {
                    assert!(pair[0].odometer_m.unwrap_or(0) <= pair[1].odometer_m.unwrap_or(0), "vehicle {vehicle}");
                } else {
                    trips += 1;
                    assert_eq!(
                        pair[0].next_stop.as_deref(),
                        Some("EOL").filter(|_| pair[0].event == "VP").or(pair[0].next_stop.as_deref())
                    );
                    assert_ne!(pair[0].direction, pair[1].direction);
                }
                if pair[1].temporal.as_deref() == Some("upcoming") {
                    assert_eq!((pair[1].schedule_deviation_s, pair[1].odometer_m), (None, None));
                }
            }
        }
        assert!(trips > 30, "{trips}");
    }

    #[test]
    fn delays_return_to_the_mean_and_rush_hours_raise_them() {
        let mean_late_s = |calendar_ms: EpochMs| {
            let mut city = City::new(CityConfig { vehicles: 40, ..CityConfig::default() });
            let mut deviations: Vec<f64> = Vec::new();
            for step in 0..1_500 {
                let now_ms = MORNING_MS + step * 2_000;
                city.step_at(now_ms, calendar_ms);
                if step > 600 && step % 20 == 0 {
                    let driving = city.vehicles.iter().filter(|v| !v.in_depot() && !v.is_upcoming());
                    deviations.extend(driving.map(|v| v.late_s(now_ms)));
                }
            }
            deviations.sort_by(f64::total_cmp);
            assert!(deviations[deviations.len() / 100] > -120.0, "nobody is far ahead: {}", deviations[0]);
            assert!(deviations[deviations.len() * 99 / 100] < 1_200.0, "nor for ever late");
            deviations.iter().sum::<f64>() / deviations.len() as f64
        };
        // 07:30 against 21:00.
        let (rush, evening) = (mean_late_s(MORNING_MS + 1_800_000), mean_late_s(MORNING_MS + 14 * 3_600_000));
        assert!((-30.0..60.0).contains(&evening), "{evening}");
        assert!(rush > evening + 30.0, "{rush} against {evening}");
    }

    #[test]
    fn device_clocks_are_off_as_those_of_the_real_feed() {
        let mut city = City::new(CityConfig { vehicles: 2_000, ..CityConfig::default() });
        let messages = city.step(MORNING_MS);
        let mut delays: Vec<i64> =
            events(messages).into_values().flatten().map(|e| e.received_at_ms - e.event_time_ms).collect();
        delays.sort_unstable();
        let at = |q: f64| delays[(delays.len() as f64 * q) as usize];
        assert!((500..900).contains(&at(0.5)), "{}", at(0.5));
        assert!((8_000..54_000).contains(&at(0.99)), "{}", at(0.99));
        assert!((-4_400..-900).contains(&delays[0]), "{}", delays[0]);
    }
}
