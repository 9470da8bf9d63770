//! HSL's High-Frequency Positioning, what both versions share: topic levels and payload fields.
//!
//! Topic: `/hfp/<version>/<journey_type>/<temporal>[/<event>]/<mode>/<operator>/<vehicle>/<route>/<direction>/
//! <headsign>/<HH:mm>/<next_stop>/<geohash_level>/<geohash, 4 levels>[/<sid>]`. The leading slash makes the first
//! level empty. A deadrun or signoff ends after the vehicle. Levels appended later are ignored.
//!
//! Payload: `{"<EVENT>": {…}}`. What the feed does that its documentation does not say (each a named test):
//! `tst` with or without milliseconds; `dir` is text; `acc` may be the integer 0; `spd` may be −1; `stop` is an
//! integer or text; `odo` is rarely not a number (kept in `attrs`); fields of metro trains are absent; `oper` of the
//! payload (who runs the trip) differs from the topic's operator (who owns the vehicle); missing coordinates are
//! null in the payload and empty levels in the topic.
//!
//! Fields without a place in the event go to `attrs` as they came. `tsi` and `veh` repeat what the event already
//! says and are dropped when they agree with it, kept in `attrs` when they do not.

use super::scalar::{Envelope, Scalar, bad_field, instant, integer, integer_in, number, number_in, text};
use super::{Reject, excerpt};
use schemas::EpochMs;
use schemas::headers::Reason;
use schemas::telemetry::{Source, VehicleEvent, VehicleEventTag};
use std::collections::BTreeMap;

/// What differs between versions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Version {
    /// Written into the event.
    pub(super) source: Source,
    /// The topic has an `<event>` level.
    pub(super) event_level: bool,
}

pub(super) fn decode(
    version: Version,
    topic: &str,
    payload: &[u8],
    received_at_ms: EpochMs,
) -> Result<VehicleEvent, Reject> {
    let topic = Topic::parse(version, topic)?;
    let envelope: Envelope<'_> =
        serde_json::from_slice(payload).map_err(|e| Reject::new(Reason::InvalidJson, format!("payload: {e}")))?;
    let mut event = topic.event(version, &envelope.event, received_at_ms)?;
    let mut rest = Rest::default();
    for (name, value) in envelope.fields.0 {
        apply(&mut event, &mut rest, &name, value)?;
    }
    rest.finish(&topic, &mut event)?;
    Ok(event)
}

/// The levels that are used.
struct Topic<'a> {
    journey_type: &'a str,
    temporal: &'a str,
    event: Option<&'a str>,
    mode: &'a str,
    operator: &'a str,
    vehicle: &'a str,
    trip: Option<Trip<'a>>,
}

/// Levels after the vehicle, of a journey only.
struct Trip<'a> {
    route: &'a str,
    direction: Option<u8>,
    headsign: &'a str,
    start_time: &'a str,
    next_stop: &'a str,
}

/// Levels of a journey after the vehicle: route, direction, headsign, start, next stop, geohash level, geohash (4).
const TRIP_LEVELS: usize = 10;

impl<'a> Topic<'a> {
    fn parse(version: Version, topic: &'a str) -> Result<Self, Reject> {
        let levels: Vec<&'a str> = topic.split('/').collect();
        let event_levels = usize::from(version.event_level);
        // "", "hfp", version, journey type, temporal, [event], mode, operator, vehicle
        let fixed = 8 + event_levels;
        if levels.len() < fixed {
            return Err(bad_topic(format!("{} levels, expected at least {fixed}", levels.len())));
        }
        let at = |i: usize| levels[i + event_levels];
        let parsed = Topic {
            journey_type: levels[3],
            temporal: levels[4],
            event: version.event_level.then(|| levels[5]),
            mode: at(5),
            operator: id("operator", at(6))?,
            vehicle: id("vehicle", at(7))?,
            trip: match levels[3] {
                "journey" => Some(Trip::parse(&levels[fixed..], levels.len())?),
                "deadrun" | "signoff" => None,
                other => {
                    let other = excerpt(other);
                    return Err(bad_topic(format!("journey type `{other}`, expected journey, deadrun or signoff")));
                }
            },
        };
        if !matches!(parsed.temporal, "ongoing" | "upcoming" | "") {
            return Err(bad_topic(format!(
                "temporal type `{}`, expected ongoing or upcoming",
                excerpt(parsed.temporal)
            )));
        }
        Ok(parsed)
    }

    /// An event with what the topic says; payload fields come on top.
    fn event(&self, version: Version, payload_event: &str, received_at_ms: EpochMs) -> Result<VehicleEvent, Reject> {
        if payload_event.is_empty()
            || !payload_event.bytes().all(|b| b.is_ascii_uppercase())
            || payload_event.len() > 16
        {
            let found = excerpt(payload_event);
            return Err(Reject::new(
                Reason::BadField,
                format!("event name `{found}`, expected upper-case letters, such as VP"),
            ));
        }
        if let Some(level) = self.event.filter(|level| !level.eq_ignore_ascii_case(payload_event)) {
            let level = excerpt(level);
            let detail = format!("payload holds event `{payload_event}` under the topic's event `{level}`");
            return Err(Reject::new(Reason::BadField, detail));
        }
        let trip = self.trip.as_ref();
        Ok(VehicleEvent {
            schema: VehicleEventTag,
            source: version.source,
            operator: self.operator.to_owned(),
            vehicle: self.vehicle.to_owned(),
            event: payload_event.to_owned(),
            journey_type: self.journey_type.to_owned(),
            temporal: some(self.temporal),
            mode: some(self.mode),
            route: trip.and_then(|t| some(t.route)),
            direction: trip.and_then(|t| t.direction),
            headsign: trip.and_then(|t| some(t.headsign)),
            start_time: trip.and_then(|t| some(t.start_time)),
            operating_day: None,
            next_stop: trip.and_then(|t| some(t.next_stop)),
            event_time_ms: 0,
            received_at_ms,
            line_label: None,
            trip_operator: None,
            lat: None,
            lon: None,
            speed_mps: None,
            heading_deg: None,
            acceleration_mps2: None,
            odometer_m: None,
            schedule_deviation_s: None,
            doors_open: None,
            location_source: None,
            stop: None,
            occupancy_pct: None,
            journey: None,
            line: None,
            scheduled_arrival_ms: None,
            scheduled_departure_ms: None,
            attrs: BTreeMap::new(),
        })
    }
}

impl<'a> Trip<'a> {
    fn parse(levels: &[&'a str], total: usize) -> Result<Self, Reject> {
        if levels.len() < TRIP_LEVELS {
            let expected = total - levels.len() + TRIP_LEVELS;
            return Err(bad_topic(format!("{total} levels, expected at least {expected} for a journey")));
        }
        let direction = match levels[1] {
            "" => None,
            "1" => Some(1),
            "2" => Some(2),
            other => return Err(bad_topic(format!("direction `{}`, expected 1 or 2", excerpt(other)))),
        };
        // Also what notices a headsign with a slash, which would shift the levels after it.
        let start_time = levels[3];
        if !start_time.is_empty() && !is_clock(start_time) {
            return Err(bad_topic(format!("start time `{}`, expected HH:mm", excerpt(start_time))));
        }
        Ok(Trip { route: levels[0], direction, headsign: levels[2], start_time, next_stop: levels[4] })
    }
}

fn bad_topic(detail: impl std::fmt::Display) -> Reject {
    Reject::new(Reason::BadTopic, format!("topic: {detail}"))
}

/// Operator and vehicle become the record key, so they must be plain.
fn id<'a>(what: &str, level: &'a str) -> Result<&'a str, Reject> {
    let plain = (1..=16).contains(&level.len()) && level.bytes().all(|b| b.is_ascii_alphanumeric());
    if plain {
        Ok(level)
    } else {
        Err(bad_topic(format!("{what} `{}`, expected 1 to 16 ASCII letters or digits", excerpt(level))))
    }
}

fn some(level: &str) -> Option<String> {
    (!level.is_empty()).then(|| level.to_owned())
}

fn is_pattern(text: &str, pattern: &str) -> bool {
    text.len() == pattern.len()
        && text.bytes().zip(pattern.bytes()).all(|(t, p)| if p == b'0' { t.is_ascii_digit() } else { t == p })
}

fn is_clock(text: &str) -> bool {
    is_pattern(text, "00:00")
}

/// Fields that are compared with the topic or with each other once all are read.
#[derive(Default)]
struct Rest {
    tst: Option<EpochMs>,
    tsi: Option<i64>,
    veh: Option<i64>,
    route: Option<String>,
    direction: Option<u8>,
    start: Option<String>,
}

fn apply(event: &mut VehicleEvent, rest: &mut Rest, name: &str, value: Scalar<'_>) -> Result<(), Reject> {
    match name {
        "tst" => match instant(name, value)? {
            None => return Err(bad_field(name, &Scalar::Null, "an ISO 8601 time")),
            some => rest.tst = some,
        },
        "tsi" => rest.tsi = integer(name, value)?,
        "veh" => rest.veh = integer(name, value)?,
        "desi" => event.line_label = text(name, value)?,
        "dir" => rest.direction = direction(value)?,
        "oper" => event.trip_operator = integer(name, value)?,
        "spd" => event.speed_mps = number(name, value)?,
        "hdg" => event.heading_deg = number_in(name, value, 0.0, 360.0)?,
        "lat" => event.lat = number_in(name, value, -90.0, 90.0)?,
        "long" => event.lon = number_in(name, value, -180.0, 180.0)?,
        "acc" => event.acceleration_mps2 = number(name, value)?,
        "dl" => event.schedule_deviation_s = integer(name, value)?,
        "odo" => odometer(event, value),
        "drst" => event.doors_open = integer_in(name, value, 0, 1)?.map(|open| open == 1),
        "oday" => event.operating_day = shaped(name, value, "0000-00-00")?,
        "jrn" => event.journey = integer(name, value)?,
        "line" => event.line = integer(name, value)?,
        "start" => rest.start = shaped(name, value, "00:00")?,
        "loc" => event.location_source = text(name, value)?,
        "stop" => stop(event, value)?,
        "route" => rest.route = text(name, value)?,
        "occu" => event.occupancy_pct = integer_in(name, value, 0, 100)?,
        "ttarr" => event.scheduled_arrival_ms = instant(name, value)?,
        "ttdep" => event.scheduled_departure_ms = instant(name, value)?,
        unknown => {
            event.attrs.insert(unknown.to_owned(), value.into_value());
        }
    }
    Ok(())
}

/// Text of a fixed shape; a `0` of `shape` stands for any digit.
fn shaped(name: &str, value: Scalar<'_>, shape: &str) -> Result<Option<String>, Reject> {
    match text(name, value)? {
        Some(found) if !is_pattern(&found, shape) => {
            Err(bad_field(name, &Scalar::Text(found.into()), &format!("digits as in {shape}")))
        }
        checked => Ok(checked),
    }
}

/// `"1"` and `"2"` in the feed; the numbers are understood too.
fn direction(value: Scalar<'_>) -> Result<Option<u8>, Reject> {
    match &value {
        Scalar::Null => Ok(None),
        Scalar::Text(t) if t.is_empty() => Ok(None),
        Scalar::Text(t) if t == "1" => Ok(Some(1)),
        Scalar::Text(t) if t == "2" => Ok(Some(2)),
        Scalar::Int(1) => Ok(Some(1)),
        Scalar::Int(2) => Ok(Some(2)),
        _ => Err(bad_field("dir", &value, "\"1\" or \"2\"")),
    }
}

/// The feed's odometer is rarely not a number: that costs the odometer, not the message.
fn odometer(event: &mut VehicleEvent, value: Scalar<'_>) {
    match number("odo", value.clone()) {
        Ok(Some(metres)) if metres.abs() < 9e15 => event.odometer_m = Some(metres.round() as i64),
        Ok(None) => {}
        Ok(Some(_)) | Err(_) => {
            event.attrs.insert("odo".to_owned(), value.into_value());
        }
    }
}

/// An integer in the feed, text in the documentation; text that is no integer is kept as it came.
fn stop(event: &mut VehicleEvent, value: Scalar<'_>) -> Result<(), Reject> {
    match value {
        Scalar::Text(t) => match t.parse() {
            Ok(stop) => event.stop = Some(stop),
            Err(_) if t.is_empty() => {}
            Err(_) => {
                event.attrs.insert("stop".to_owned(), t.into_owned().into());
            }
        },
        other => event.stop = integer("stop", other)?,
    }
    Ok(())
}

impl Rest {
    fn finish(self, topic: &Topic<'_>, event: &mut VehicleEvent) -> Result<(), Reject> {
        let missing = || Reject::new(Reason::MissingField, "field `tst` is absent");
        event.event_time_ms = self.tst.ok_or_else(missing)?;
        if let Some(tsi) = self.tsi.filter(|tsi| (tsi.saturating_mul(1000).abs_diff(event.event_time_ms)) > 1000) {
            event.attrs.insert("tsi".to_owned(), tsi.into());
        }
        if let Some(veh) = self.veh.filter(|veh| topic.vehicle.parse() != Ok(*veh)) {
            event.attrs.insert("veh".to_owned(), veh.into());
        }
        // The topic wins where it speaks; what the payload says otherwise is kept.
        keep(&mut event.route, self.route, "route", &mut event.attrs);
        keep(&mut event.direction, self.direction, "dir", &mut event.attrs);
        keep(&mut event.start_time, self.start, "start", &mut event.attrs);
        Ok(())
    }
}

fn keep<T: PartialEq + Into<serde_json::Value>>(
    slot: &mut Option<T>,
    payload: Option<T>,
    name: &str,
    attrs: &mut BTreeMap<String, serde_json::Value>,
) {
    match (slot.as_ref(), payload) {
        (_, None) => {}
        (None, found) => *slot = found,
        (Some(topic), Some(found)) if *topic != found => {
            attrs.insert(name.to_owned(), found.into());
        }
        (Some(_), Some(_)) => {}
    }
}
