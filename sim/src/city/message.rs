//! HFP v2 topics and payloads of the made-up city.

use super::network::Network;
use super::vehicle::{Event, Report, Vehicle};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use schemas::EpochMs;
use serde_json::{Value, json};

/// What a message is; a consumer cannot tell from its form that it is a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Well formed.
    Valid,
    /// The copy of a valid one.
    Duplicate,
    /// Cannot be decoded.
    Malformed,
}

/// A message as a vehicle publishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttMessage {
    /// MQTT topic.
    pub topic: String,
    /// Payload.
    pub payload: String,
    /// What it is.
    pub kind: Kind,
}

fn iso(at_ms: EpochMs) -> String {
    Timestamp::from_millisecond(at_ms).map_or_else(|_| String::new(), |t| format!("{t:.3}"))
}

/// Operating day and local departure. The city keeps UTC; its day ends at 04:30.
fn schedule(trip_start_ms: EpochMs) -> (String, String) {
    let zoned = |ms: EpochMs| Timestamp::from_millisecond(ms).map(|t| t.to_zoned_datetime(TimeZone::UTC)).ok();
    let day = zoned(trip_start_ms - 16_200_000).map(|z| z.strftime("%Y-%m-%d").to_string()).unwrap_or_default();
    let start = zoned(trip_start_ms).map(|z| z.strftime("%H:%M").to_string()).unwrap_or_default();
    (day, start)
}

/// Geohash levels of HFP: degrees, then one level for each decimal of both coordinates.
fn geohash(lat: f64, lon: f64) -> String {
    let digits = |x: f64| format!("{:.3}", x.abs()).split('.').nth(1).unwrap_or("000").to_owned();
    let levels: Vec<String> = digits(lat).chars().zip(digits(lon).chars()).map(|(a, b)| format!("{a}{b}")).collect();
    format!("{};{}/{}", lat.trunc() as i64, lon.trunc() as i64, levels.join("/"))
}

/// The message of a report; `without_position` as when the receiver has no fix.
pub(super) fn encode(
    vehicle: &Vehicle,
    network: &Network,
    report: Report,
    now_ms: EpochMs,
    without_position: bool,
) -> MqttMessage {
    let route = &network.routes[vehicle.route];
    let (lat, lon, heading) = route.position(vehicle.direction, vehicle.along_m);
    let (day, start) = schedule(vehicle.trip_start_ms);
    let upcoming = vehicle.is_upcoming();
    let device_ms = now_ms + vehicle.skew_ms;
    let position = |value: Value| if without_position { Value::Null } else { value };
    // The real feed has neither deviation nor odometer before the trip.
    let on_trip = |value: i64| if upcoming { Value::Null } else { Value::from(value) };
    let round = |x: f64, digits: i32| (x * 10f64.powi(digits)).round() / 10f64.powi(digits);
    let mut body = json!({
        "desi": route.label, "dir": vehicle.direction.to_string(), "oper": vehicle.operator, "veh": vehicle.number,
        "tst": iso(device_ms), "tsi": device_ms.div_euclid(1000), "spd": position(json!(round(vehicle.speed_mps, 2))),
        "hdg": position(json!(heading.round() as i64 % 360)), "lat": position(json!(round(lat, 6))),
        "long": position(json!(round(lon, 6))), "acc": position(json!(round(vehicle.acceleration, 2))),
        "dl": on_trip(-(vehicle.late_s(now_ms).round() as i64)), "odo": on_trip(vehicle.along_m.round() as i64),
        "drst": i32::from(report.doors_open), "oday": day, "jrn": vehicle.trip, "line": 100 + vehicle.route,
        "start": start, "loc": if without_position { "N/A" } else { "GPS" },
        "stop": report.stop.map(|n| route.stop(vehicle.direction, n).id), "route": route.id, "occu": 0,
    });
    if let Some(stop) = report.stop.filter(|_| report.event != Event::Vp) {
        let due_ms = vehicle.trip_start_ms + (vehicle.timetable_s(network, stop) * 1000.0) as EpochMs;
        body["ttarr"] = iso(due_ms).into();
        body["ttdep"] = iso(due_ms).into();
    }
    let place = if without_position { "0////".to_owned() } else { format!("3/{}", geohash(lat, lon)) };
    let next_stop = match report.next_stop {
        n if n < route.stops.len() => route.stop(vehicle.direction, n).id.to_string(),
        _ => "EOL".to_owned(),
    };
    let topic = format!(
        "/hfp/v2/journey/{}/{}/{}/{:04}/{:05}/{}/{}/{}/{start}/{next_stop}/{place}",
        if upcoming { "upcoming" } else { "ongoing" },
        report.event.name().to_lowercase(),
        route.mode,
        vehicle.operator,
        vehicle.number,
        route.id,
        vehicle.direction,
        route.headsigns[usize::from(vehicle.direction - 1)],
    );
    MqttMessage { topic, payload: json!({report.event.name(): body}).to_string(), kind: Kind::Valid }
}

/// A broken relative of a valid message.
pub(super) fn malformed(message: &MqttMessage, rng: &mut ChaCha8Rng) -> MqttMessage {
    let payload = &message.payload;
    let (topic, payload) = match rng.random_range(0..6) {
        0 => (message.topic.clone(), payload.chars().take(payload.chars().count() / 2).collect()),
        1 => (message.topic.clone(), payload.replacen("\"tst\"", "\"tts\"", 1)),
        2 => ("/hfp/v2/journey/ongoing/vp".to_owned(), payload.clone()),
        3 => (message.topic.clone(), payload.replacen("\"drst\":", "\"drst\":7", 1)),
        4 => (message.topic.clone(), String::new()),
        _ => (message.topic.clone(), payload.replacen("\"tst\":\"", "\"tst\":\"yesterday ", 1)),
    };
    MqttMessage { topic, payload, kind: Kind::Malformed }
}
