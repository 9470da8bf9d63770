//! `telemetry.vehicle`: one normalised event of a vehicle or sensor.

use crate::EpochMs;
use crate::message::Message;
use crate::tag::schema_tag;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

schema_tag!(/// `telemetry.vehicle.v1`
    VehicleEventTag = "telemetry.vehicle.v1");

/// Protocol that an event was decoded from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Source {
    /// HSL High-Frequency Positioning, topic version 2.
    #[serde(rename = "hfp.v2")]
    HfpV2,
    /// HSL High-Frequency Positioning, topic version 1.
    #[serde(rename = "hfp.v1")]
    HfpV1,
}

/// One event of one vehicle. Both clocks are kept: `event_time_ms` is the vehicle's, `received_at_ms` is ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VehicleEvent {
    /// Always `telemetry.vehicle.v1`.
    pub schema: VehicleEventTag,
    /// Protocol of the original message.
    pub source: Source,
    /// Operator of the topic (who owns the vehicle), as written there.
    pub operator: String,
    /// Vehicle number of the topic, as written there.
    pub vehicle: String,
    /// Event type, upper case: `VP`, `ARR`, `DEP`, …
    pub event: String,
    /// `journey`, `deadrun` or `signoff`.
    pub journey_type: String,
    /// `ongoing` or `upcoming`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temporal: Option<String>,
    /// `bus`, `tram`, `train`, `ferry`, `metro`, `ubus`, `robot`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Route id of the topic; may contain spaces and letters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Direction of travel, 1 or 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direction: Option<u8>,
    /// Destination shown to passengers; not ASCII.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headsign: Option<String>,
    /// Scheduled start of the trip, local `HH:mm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<String>,
    /// Operating day, `YYYY-MM-DD`; it ends about 04:30 of the next day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operating_day: Option<String>,
    /// Next stop of the topic: a stop id or `EOL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_stop: Option<String>,
    /// Time of the event by the vehicle's clock (`tst`).
    pub event_time_ms: EpochMs,
    /// Time at which ingest received the message.
    pub received_at_ms: EpochMs,
    /// Line label shown to passengers (`desi`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line_label: Option<String>,
    /// Operator that runs the trip (`oper`); may differ from `operator`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trip_operator: Option<i64>,
    /// WGS 84 latitude, degrees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lat: Option<f64>,
    /// WGS 84 longitude, degrees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lon: Option<f64>,
    /// Speed, metres per second; negative values of broken sensors are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_mps: Option<f64>,
    /// Heading, degrees clockwise from north, 0–360.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heading_deg: Option<f64>,
    /// Acceleration, m/s².
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceleration_mps2: Option<f64>,
    /// Odometer, metres since the start of the trip.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub odometer_m: Option<i64>,
    /// Deviation from the timetable, seconds, HFP's `dl`: negative = late, positive = early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule_deviation_s: Option<i64>,
    /// A door is open (`drst`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub doors_open: Option<bool>,
    /// Where the position came from: `GPS`, `ODO`, `MAN`, `DR`, `N/A`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location_source: Option<String>,
    /// Stop that the event is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<i64>,
    /// Occupancy, percent; outside some ferries only 0 (unknown) and 100 (full) occur.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub occupancy_pct: Option<i64>,
    /// Internal trip number (`jrn`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journey: Option<i64>,
    /// Internal line number (`line`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<i64>,
    /// Scheduled arrival at the stop (`ttarr`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_arrival_ms: Option<EpochMs>,
    /// Scheduled departure from the stop (`ttdep`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_departure_ms: Option<EpochMs>,
    /// Payload fields without a place above, as they came.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attrs: BTreeMap<String, serde_json::Value>,
}

impl Message for VehicleEvent {
    const SCHEMA: &'static str = VehicleEventTag::NAME;

    fn key(&self) -> String {
        format!("{}/{}", self.operator, self.vehicle)
    }
}
