//! Closed windows to records: rows of `transit.aggregates`, or prediction requests.
//!
//! Invariants: the record key is `<query>/<group key>`; a group key is the group columns joined by `/`, each
//! percent-encoded where it is not plain ASCII, null as `~`. A request's id is
//! `<query>/<group key>/<end of window, ms>`: a window that is emitted again after a crash repeats its ids.

use crate::config::{OnNull, Query, Sink};
use crate::window::{ClosedWindow, WindowPlan};
use arrow::array::{Array, ArrayRef, AsArray, Float32Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Float64Type, Int64Type, TimeUnit, TimestampMillisecondType, UInt64Type};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use runtime::OutRecord;
use schemas::aggregates::{WindowRow, WindowRowTag};
use schemas::message::EncodeError;
use schemas::prediction::{InferRequest, Parameters, Tensor, TensorError};
use schemas::{EpochMs, Topics};
use serde_json::Value;

/// A closed window could not be written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// A column cannot be converted.
    #[error("{0}")]
    Convert(#[from] ArrowError),
    /// The row cannot be written as JSON.
    #[error("{0}")]
    Encode(#[from] EncodeError),
    /// The request cannot be written as JSON.
    #[error("{0}")]
    Request(#[from] serde_json::Error),
    /// The request's tensor cannot be made.
    #[error("{0}")]
    Tensor(#[from] TensorError),
}

/// A query and a result that do not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("features: {0}")]
pub struct BadFeatures(String);

/// Records of one closed window.
#[derive(Debug, Default)]
pub struct Output {
    /// To be sent, in this order.
    pub records: Vec<OutRecord>,
    /// Rows for which no request was made because a feature was null or not finite.
    pub skipped: u64,
    /// Rows in which such a feature was replaced by zero.
    pub zeroed: u64,
}

/// Writes the rows of one query.
#[derive(Debug)]
pub struct Writer {
    query: String,
    group_columns: Vec<usize>,
    target: Target,
}

#[derive(Debug)]
enum Target {
    Aggregates { topic: String },
    Requests { topic: String, input: String, features: Vec<usize>, on_null: OnNull },
}

impl Writer {
    /// For `query` with the plan `plan`. Fails if a feature is not a numeric column of the result.
    pub fn new(query: &Query, plan: &WindowPlan, topics: &Topics) -> Result<Self, BadFeatures> {
        let target = match &query.sink {
            Sink::Aggregates => Target::Aggregates { topic: topics.name(schemas::topics::TRANSIT_AGGREGATES) },
            Sink::Predict(service) => Target::Requests {
                topic: topics.requests(service),
                input: query.input.clone(),
                features: query.features.iter().map(|name| feature(plan, name)).collect::<Result<_, _>>()?,
                on_null: query.on_null,
            },
        };
        Ok(Writer { query: query.name.clone(), group_columns: plan.group_columns().to_vec(), target })
    }

    /// Records for the rows of a closed window.
    pub fn write(&self, window: &ClosedWindow, rows: &RecordBatch) -> Result<Output, OutputError> {
        let keys = group_keys(rows, &self.group_columns)?;
        match &self.target {
            Target::Aggregates { topic } => self.aggregates(topic, window, rows, keys),
            Target::Requests { topic, input, features, on_null } => {
                let columns = features
                    .iter()
                    .map(|i| Ok(cast(rows.column(*i), &DataType::Float32)?.as_primitive::<Float32Type>().clone()))
                    .collect::<Result<Vec<Float32Array>, ArrowError>>()?;
                let mut output = Output::default();
                for (row, key) in keys.into_iter().enumerate() {
                    let Some(values) = features_of(&columns, row, *on_null, &mut output) else { continue };
                    let id = format!("{}/{key}/{}", self.query, window.end_ms);
                    let value = serde_json::to_vec(&request(id, input, &values)?)?;
                    output.records.push(OutRecord::new(topic.clone()).key(key).value(value));
                }
                Ok(output)
            }
        }
    }

    fn aggregates(
        &self,
        topic: &str,
        window: &ClosedWindow,
        rows: &RecordBatch,
        keys: Vec<String>,
    ) -> Result<Output, OutputError> {
        let columns = rows
            .schema()
            .fields()
            .iter()
            .zip(rows.columns())
            .map(|(field, column)| Ok((field.name().clone(), json_column(column)?)))
            .collect::<Result<Vec<(String, Vec<Value>)>, ArrowError>>()?;
        let mut output = Output::default();
        for (row, group_key) in keys.into_iter().enumerate() {
            let message = WindowRow {
                schema: WindowRowTag,
                query: self.query.clone(),
                group_key,
                window_start_ms: window.start_ms,
                window_end_ms: window.end_ms,
                columns: columns.iter().map(|(name, values)| (name.clone(), values[row].clone())).collect(),
            };
            output.records.push(OutRecord::message(topic, &message)?);
        }
        Ok(output)
    }
}

fn feature(plan: &WindowPlan, name: &str) -> Result<usize, BadFeatures> {
    let schema = plan.output_schema();
    let index = schema.index_of(name).map_err(|_| {
        let known: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        BadFeatures(format!("the result has no column `{name}`; it has {}", known.join(", ")))
    })?;
    let data_type = schema.field(index).data_type();
    if data_type.is_numeric() || *data_type == DataType::Boolean {
        Ok(index)
    } else {
        Err(BadFeatures(format!("column `{name}` is {data_type}, not a number")))
    }
}

/// The tensor of a row; `None` if the row is skipped.
fn features_of(columns: &[Float32Array], row: usize, on_null: OnNull, output: &mut Output) -> Option<Vec<f32>> {
    let mut missing = false;
    let values = columns
        .iter()
        .map(|column| {
            let value = if column.is_valid(row) { column.value(row) } else { f32::NAN };
            missing |= !value.is_finite();
            if value.is_finite() { value } else { 0.0 }
        })
        .collect();
    match (missing, on_null) {
        (false, _) => Some(values),
        (true, OnNull::Zero) => {
            output.zeroed += 1;
            Some(values)
        }
        (true, OnNull::Skip) => {
            output.skipped += 1;
            None
        }
    }
}

fn request(id: String, input: &str, values: &[f32]) -> Result<InferRequest, TensorError> {
    Ok(InferRequest {
        id: Some(id),
        parameters: Parameters::new(),
        inputs: vec![Tensor::fp32(input, vec![1, values.len()], values)?],
        outputs: Vec::new(),
    })
}

/// Group key of every row.
fn group_keys(rows: &RecordBatch, group_columns: &[usize]) -> Result<Vec<String>, ArrowError> {
    let options = FormatOptions::default();
    let formatters = group_columns
        .iter()
        .map(|i| Ok((rows.column(*i), ArrayFormatter::try_new(rows.column(*i), &options)?)))
        .collect::<Result<Vec<_>, ArrowError>>()?;
    let part = |(array, formatter): &(&ArrayRef, ArrayFormatter<'_>), row: usize| {
        if array.is_null(row) { Ok("~".to_owned()) } else { formatter.value(row).try_to_string().map(|t| escape(&t)) }
    };
    (0..rows.num_rows())
        .map(|row| Ok(formatters.iter().map(|f| part(f, row)).collect::<Result<Vec<_>, ArrowError>>()?.join("/")))
        .collect()
}

/// Percent-encodes what is not a letter, a digit or one of `-._:` in ASCII.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b':' => escaped.push(char::from(byte)),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

/// JSON values of a column: numbers, text and booleans as they are, timestamps as RFC 3339 in UTC, numbers that JSON
/// cannot carry as null, any other type as the engine prints it.
fn json_column(column: &ArrayRef) -> Result<Vec<Value>, ArrowError> {
    let each = |value: &dyn Fn(usize) -> Value| {
        (0..column.len()).map(|row| if column.is_null(row) { Value::Null } else { value(row) }).collect()
    };
    Ok(match column.data_type() {
        DataType::Boolean => each(&|row| column.as_boolean().value(row).into()),
        DataType::UInt64 => each(&|row| column.as_primitive::<UInt64Type>().value(row).into()),
        integer if integer.is_integer() => {
            let values = cast(column, &DataType::Int64)?;
            each(&|row| values.as_primitive::<Int64Type>().value(row).into())
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let values = cast(column, &DataType::Float64)?;
            each(&|row| values.as_primitive::<Float64Type>().value(row).into())
        }
        DataType::Timestamp(_, _) => {
            let values = cast(column, &DataType::Timestamp(TimeUnit::Millisecond, None))?;
            each(&|row| rfc_3339(values.as_primitive::<TimestampMillisecondType>().value(row)))
        }
        _ => {
            let options = FormatOptions::default();
            let formatter = ArrayFormatter::try_new(column, &options)?;
            each(&|row| formatter.value(row).to_string().into())
        }
    })
}

fn rfc_3339(ms: EpochMs) -> Value {
    jiff::Timestamp::from_millisecond(ms).map_or(Value::Null, |t| format!("{t:.3}").into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use arrow::array::{Float64Array, Int64Array, ListArray, StringArray, TimestampMillisecondArray};
    use arrow::datatypes::{Field, Schema};
    use serde_json::json;
    use std::sync::Arc;

    fn rows() -> RecordBatch {
        let schema = Schema::new(vec![
            Field::new("route", DataType::Utf8, true),
            Field::new("direction", DataType::Int64, true),
            Field::new("speed", DataType::Float64, true),
            Field::new("until", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        ]);
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec![Some("1004 4/x"), None])),
            Arc::new(Int64Array::from(vec![1, 2])),
            Arc::new(Float64Array::from(vec![Some(2.5), Some(f64::INFINITY)])),
            Arc::new(TimestampMillisecondArray::from(vec![1_500, 60_000])),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    fn window() -> ClosedWindow {
        ClosedWindow { start_ms: 0, end_ms: 60_000, rows: Ok(rows()) }
    }

    fn writer(target: Target) -> Writer {
        Writer { query: "q".into(), group_columns: vec![0, 1], target }
    }

    fn json_of(record: &OutRecord) -> Value {
        serde_json::from_slice(record.value.as_deref().unwrap()).unwrap()
    }

    #[test]
    fn rows_of_the_aggregates_topic() {
        let writer = writer(Target::Aggregates { topic: "transit.aggregates".into() });
        let output = writer.write(&window(), &rows()).unwrap();
        assert_eq!(output.records[0].key.as_deref(), Some(&b"q/1004%204%2Fx/1"[..]));
        assert_eq!(output.records[1].key.as_deref(), Some(&b"q/~/2"[..]));
        assert_eq!(
            json_of(&output.records[0]),
            json!({
                "schema": "transit.aggregates.v1", "query": "q", "group_key": "1004%204%2Fx/1",
                "window_start_ms": 0, "window_end_ms": 60_000,
                "columns": {"route": "1004 4/x", "direction": 1, "speed": 2.5, "until": "1970-01-01T00:00:01.500Z"},
            })
        );
        assert_eq!(json_of(&output.records[1])["columns"]["speed"], Value::Null, "infinite");
    }

    fn requests(on_null: OnNull) -> Output {
        let target = Target::Requests {
            topic: "prediction.requests.s".into(),
            input: "features".into(),
            features: vec![2, 1],
            on_null,
        };
        writer(target).write(&window(), &rows()).unwrap()
    }

    #[test]
    fn a_request_a_row_with_a_repeatable_id() {
        let output = requests(OnNull::Skip);
        assert_eq!((output.records.len(), output.skipped, output.zeroed), (1, 1, 0));
        assert_eq!(output.records[0].topic, "prediction.requests.s");
        assert_eq!(output.records[0].key.as_deref(), Some(&b"1004%204%2Fx/1"[..]));
        assert_eq!(
            json_of(&output.records[0]),
            json!({
                "id": "q/1004%204%2Fx/1/60000",
                "inputs": [{"name": "features", "shape": [1, 2], "datatype": "FP32", "data": [2.5, 1.0]}],
            })
        );
    }

    #[test]
    fn a_missing_feature_may_be_zero() {
        let output = requests(OnNull::Zero);
        assert_eq!((output.records.len(), output.skipped, output.zeroed), (2, 0, 1));
        assert_eq!(json_of(&output.records[1])["inputs"][0]["data"], json!([0.0, 2.0]));
    }

    #[test]
    fn other_types_are_written_as_the_engine_prints_them() {
        let list: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1), Some(2)])]));
        assert_eq!(json_column(&list).unwrap(), [json!("[1, 2]")]);
    }
}
