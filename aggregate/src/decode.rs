//! `telemetry.vehicle` values to Arrow record batches.
//!
//! Invariants: the columns of table `telemetry` are the fields of [`VehicleEvent`] under their own names; times lose
//! the suffix `_ms` because their type (Timestamp in milliseconds, UTC) says it; `attrs` is JSON text. Rows keep the
//! order of the log, one builder a partition.
//!
//! A record that is not such a message is counted by reason and left out. It is not dead-lettered: the topic is our
//! own, `ingest` already sent what could not be understood to `telemetry.rejected`, so this can only be a foreign
//! writer or a newer major version.
//!
//! Left out: a scanner that knows the schema and skips unused fields; typed serde is about three times slower and
//! enough for tens of thousands of messages a second.

use crate::sql::Stream;
use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch, StringBuilder, TimestampMillisecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use schemas::telemetry::{Source, VehicleEvent};
use schemas::{EpochMs, Message};
use std::sync::{Arc, LazyLock};

/// Name of the table in SQL.
pub const TABLE: &str = "telemetry";
/// Column with our receive time.
const RECEIVED_AT: &str = "received_at";
const N_COLUMNS: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Int,
    Float,
    Bool,
    Time,
}

impl Kind {
    fn data_type(self) -> DataType {
        match self {
            Kind::Text => DataType::Utf8,
            Kind::Int => DataType::Int64,
            Kind::Float => DataType::Float64,
            Kind::Bool => DataType::Boolean,
            Kind::Time => DataType::Timestamp(TimeUnit::Millisecond, None),
        }
    }
}

/// Name, type, and whether it may be null; in the order of [`cells`].
const COLUMNS: [(&str, Kind, bool); N_COLUMNS] = [
    ("source", Kind::Text, false),
    ("operator", Kind::Text, false),
    ("vehicle", Kind::Text, false),
    ("event", Kind::Text, false),
    ("journey_type", Kind::Text, false),
    ("temporal", Kind::Text, true),
    ("mode", Kind::Text, true),
    ("route", Kind::Text, true),
    ("direction", Kind::Int, true),
    ("headsign", Kind::Text, true),
    ("start_time", Kind::Text, true),
    ("operating_day", Kind::Text, true),
    ("next_stop", Kind::Text, true),
    ("event_time", Kind::Time, false),
    (RECEIVED_AT, Kind::Time, false),
    ("line_label", Kind::Text, true),
    ("trip_operator", Kind::Int, true),
    ("lat", Kind::Float, true),
    ("lon", Kind::Float, true),
    ("speed_mps", Kind::Float, true),
    ("heading_deg", Kind::Float, true),
    ("acceleration_mps2", Kind::Float, true),
    ("odometer_m", Kind::Int, true),
    ("schedule_deviation_s", Kind::Int, true),
    ("doors_open", Kind::Bool, true),
    ("location_source", Kind::Text, true),
    ("stop", Kind::Int, true),
    ("occupancy_pct", Kind::Int, true),
    ("journey", Kind::Int, true),
    ("line", Kind::Int, true),
    ("scheduled_arrival", Kind::Time, true),
    ("scheduled_departure", Kind::Time, true),
];

/// Column of what has no column of its own, as JSON text.
const ATTRS: &str = "attrs";

/// One value of a row.
#[derive(Debug, Clone, Copy)]
enum Cell<'a> {
    Text(Option<&'a str>),
    Int(Option<i64>),
    Float(Option<f64>),
    Bool(Option<bool>),
    Time(Option<EpochMs>),
}

fn cells(event: &VehicleEvent) -> [Cell<'_>; N_COLUMNS] {
    fn text(value: &Option<String>) -> Cell<'_> {
        Cell::Text(value.as_deref())
    }
    [
        Cell::Text(Some(source_name(event.source))),
        Cell::Text(Some(&event.operator)),
        Cell::Text(Some(&event.vehicle)),
        Cell::Text(Some(&event.event)),
        Cell::Text(Some(&event.journey_type)),
        text(&event.temporal),
        text(&event.mode),
        text(&event.route),
        Cell::Int(event.direction.map(i64::from)),
        text(&event.headsign),
        text(&event.start_time),
        text(&event.operating_day),
        text(&event.next_stop),
        Cell::Time(Some(event.event_time_ms)),
        Cell::Time(Some(event.received_at_ms)),
        text(&event.line_label),
        Cell::Int(event.trip_operator),
        Cell::Float(event.lat),
        Cell::Float(event.lon),
        Cell::Float(event.speed_mps),
        Cell::Float(event.heading_deg),
        Cell::Float(event.acceleration_mps2),
        Cell::Int(event.odometer_m),
        Cell::Int(event.schedule_deviation_s),
        Cell::Bool(event.doors_open),
        text(&event.location_source),
        Cell::Int(event.stop),
        Cell::Int(event.occupancy_pct),
        Cell::Int(event.journey),
        Cell::Int(event.line),
        Cell::Time(event.scheduled_arrival_ms),
        Cell::Time(event.scheduled_departure_ms),
    ]
}

/// As the message writes it.
fn source_name(source: Source) -> &'static str {
    match source {
        Source::HfpV2 => "hfp.v2",
        Source::HfpV1 => "hfp.v1",
    }
}

static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    let mut fields: Vec<Field> =
        COLUMNS.iter().map(|(name, kind, nullable)| Field::new(*name, kind.data_type(), *nullable)).collect();
    fields.push(Field::new(ATTRS, DataType::Utf8, true));
    Arc::new(Schema::new(fields))
});

/// Table `telemetry`.
pub fn telemetry() -> Stream {
    Stream { table: TABLE, schema: Arc::clone(&SCHEMA), received_at: Some(RECEIVED_AT) }
}

/// Why a record of our own topic could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BadRecord {
    /// No value.
    Tombstone,
    /// Not JSON.
    InvalidJson,
    /// JSON, but not a `telemetry.vehicle.v1` message.
    WrongMessage,
}

impl BadRecord {
    /// Label of the metric.
    pub fn as_str(self) -> &'static str {
        match self {
            BadRecord::Tombstone => "tombstone",
            BadRecord::InvalidJson => "invalid-json",
            BadRecord::WrongMessage => "wrong-message",
        }
    }
}

/// Reads one record's value. The error has the reason and what the parser says.
pub fn decode(value: Option<&[u8]>) -> Result<VehicleEvent, (BadRecord, String)> {
    let bytes = value.ok_or_else(|| (BadRecord::Tombstone, "no value".to_owned()))?;
    VehicleEvent::decode(bytes).map_err(|error| {
        let reason = if error.source.is_data() { BadRecord::WrongMessage } else { BadRecord::InvalidJson };
        (reason, error.to_string())
    })
}

enum Builder {
    Text(StringBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Bool(BooleanBuilder),
    Time(TimestampMillisecondBuilder),
}

impl Builder {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Text => Builder::Text(StringBuilder::new()),
            Kind::Int => Builder::Int(Int64Builder::new()),
            Kind::Float => Builder::Float(Float64Builder::new()),
            Kind::Bool => Builder::Bool(BooleanBuilder::new()),
            Kind::Time => Builder::Time(TimestampMillisecondBuilder::new()),
        }
    }

    /// A cell of another kind becomes null; the table above and [`cells`] are held together by a test.
    fn append(&mut self, cell: Cell<'_>) {
        match (self, cell) {
            (Builder::Text(b), Cell::Text(v)) => b.append_option(v),
            (Builder::Int(b), Cell::Int(v)) => b.append_option(v),
            (Builder::Float(b), Cell::Float(v)) => b.append_option(v),
            (Builder::Bool(b), Cell::Bool(v)) => b.append_option(v),
            (Builder::Time(b), Cell::Time(v)) => b.append_option(v),
            (Builder::Text(b), _) => b.append_null(),
            (Builder::Int(b), _) => b.append_null(),
            (Builder::Float(b), _) => b.append_null(),
            (Builder::Bool(b), _) => b.append_null(),
            (Builder::Time(b), _) => b.append_null(),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Builder::Text(b) => Arc::new(b.finish()),
            Builder::Int(b) => Arc::new(b.finish()),
            Builder::Float(b) => Arc::new(b.finish()),
            Builder::Bool(b) => Arc::new(b.finish()),
            Builder::Time(b) => Arc::new(b.finish()),
        }
    }
}

/// Rows of one partition that wait to become a batch.
pub struct BatchBuilder {
    columns: Vec<Builder>,
    attrs: StringBuilder,
    offsets: Vec<i64>,
}

/// Rows of one partition with their offsets, ascending.
#[derive(Debug, Clone)]
pub struct OffsetBatch {
    /// The rows.
    pub rows: RecordBatch,
    /// Offset of each row.
    pub offsets: Vec<i64>,
}

impl OffsetBatch {
    /// The rows at `offset` and after; `None` if there are none.
    pub fn from_offset(&self, offset: i64) -> Option<RecordBatch> {
        let skipped = self.offsets.partition_point(|o| *o < offset);
        (skipped < self.offsets.len()).then(|| self.rows.slice(skipped, self.offsets.len() - skipped))
    }
}

impl Default for BatchBuilder {
    fn default() -> Self {
        BatchBuilder {
            columns: COLUMNS.iter().map(|(_, kind, _)| Builder::new(*kind)).collect(),
            attrs: StringBuilder::new(),
            offsets: Vec::new(),
        }
    }
}

impl BatchBuilder {
    /// Adds a row.
    pub fn push(&mut self, offset: i64, event: &VehicleEvent) {
        for (builder, cell) in self.columns.iter_mut().zip(cells(event)) {
            builder.append(cell);
        }
        // A map of JSON values always serialises.
        let attrs = (!event.attrs.is_empty()).then(|| serde_json::to_string(&event.attrs).ok()).flatten();
        self.attrs.append_option(attrs);
        self.offsets.push(offset);
    }

    /// Rows waiting.
    pub fn len(&self) -> usize {
        self.offsets.len()
    }

    /// No row waits.
    pub fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// The waiting rows as a batch; the builder is empty afterwards.
    pub fn finish(&mut self) -> Result<OffsetBatch, ArrowError> {
        let mut arrays: Vec<ArrayRef> = self.columns.iter_mut().map(Builder::finish).collect();
        arrays.push(Arc::new(self.attrs.finish()));
        let rows = RecordBatch::try_new(Arc::clone(&SCHEMA), arrays)?;
        Ok(OffsetBatch { rows, offsets: std::mem::take(&mut self.offsets) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Float64Type, TimestampMillisecondType};
    use serde_json::json;

    /// Every field set.
    fn full() -> serde_json::Value {
        json!({
            "schema": "telemetry.vehicle.v1", "source": "hfp.v2", "operator": "0018", "vehicle": "00423",
            "event": "VP", "journey_type": "journey", "temporal": "ongoing", "mode": "bus", "route": "1004 4",
            "direction": 2, "headsign": "Töölö", "start_time": "08:12", "operating_day": "2026-01-15",
            "next_stop": "EOL", "event_time_ms": 1_000, "received_at_ms": 1_700, "line_label": "4",
            "trip_operator": 6, "lat": 60.1, "lon": 24.9, "speed_mps": -1.0, "heading_deg": 12.0,
            "acceleration_mps2": 0.5, "odometer_m": 12, "schedule_deviation_s": -30, "doors_open": true,
            "location_source": "GPS", "stop": 1_140_447, "occupancy_pct": 100, "journey": 7, "line": 8,
            "scheduled_arrival_ms": 2_000, "scheduled_departure_ms": 3_000, "attrs": {"seq": 1},
        })
    }

    fn event(value: &serde_json::Value) -> VehicleEvent {
        decode(Some(value.to_string().as_bytes())).unwrap()
    }

    #[test]
    fn every_field_of_the_message_is_a_column_with_its_value() {
        let value = full();
        let mut builder = BatchBuilder::default();
        builder.push(41, &event(&value));
        let batch = builder.finish().unwrap();
        for name in value.as_object().unwrap().keys().filter(|name| *name != "schema") {
            let column = name.strip_suffix("_ms").unwrap_or(name);
            let array = batch.rows.column_by_name(column).unwrap_or_else(|| panic!("no column {column}"));
            assert!(array.is_valid(0), "{column} is null: its cell is of another kind");
        }
        assert_eq!(batch.rows.num_columns(), value.as_object().unwrap().len() - 1);
        let column = |name: &str| batch.rows.column_by_name(name).unwrap();
        assert_eq!(column("event_time").as_primitive::<TimestampMillisecondType>().value(0), 1_000);
        assert_eq!(column("speed_mps").as_primitive::<Float64Type>().value(0), -1.0);
        assert_eq!(column("source").as_string::<i32>().value(0), "hfp.v2");
        assert_eq!(column(ATTRS).as_string::<i32>().value(0), r#"{"seq":1}"#);
        assert!(builder.is_empty());
    }

    #[test]
    fn absent_fields_are_null() {
        let mut value = full();
        let required =
            ["schema", "source", "operator", "vehicle", "event", "journey_type", "event_time_ms", "received_at_ms"];
        value.as_object_mut().unwrap().retain(|name, _| required.contains(&name.as_str()));
        let mut builder = BatchBuilder::default();
        builder.push(0, &event(&value));
        let rows = builder.finish().unwrap().rows;
        let nulls = rows.columns().iter().filter(|c| c.is_null(0)).count();
        assert_eq!(nulls, rows.num_columns() - (required.len() - 1));
    }

    #[test]
    fn bad_records_are_told_apart() {
        let reason = |value: Option<&[u8]>| decode(value).unwrap_err().0;
        assert_eq!(reason(None), BadRecord::Tombstone);
        assert_eq!(reason(Some(b"{")), BadRecord::InvalidJson);
        assert_eq!(reason(Some(b"{}")), BadRecord::WrongMessage);
        assert_eq!(reason(Some(br#"{"schema":"telemetry.vehicle.v2"}"#)), BadRecord::WrongMessage);
    }

    #[test]
    fn rows_before_an_offset_are_skipped() {
        let mut builder = BatchBuilder::default();
        for offset in [3, 4, 9] {
            builder.push(offset, &event(&full()));
        }
        let batch = builder.finish().unwrap();
        let rows_from = |offset| batch.from_offset(offset).map_or(0, |b| b.num_rows());
        assert_eq!([0, 3, 4, 5, 9, 10].map(rows_from), [3, 3, 2, 1, 1, 0]);
    }
}
