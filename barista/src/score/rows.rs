//! The input: rows of a Parquet file or records of a topic, as requests.
//!
//! A file is read on a thread of its own, row by row; what it holds is at most a row group's pages and a few rows.

use super::RowId;
use super::mapping::{Column, MapOption, Mapping};
use crate::failure::{Failure, Outcome, usage};
use anyhow::Context as _;
use parquet::basic::Repetition;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use runtime::{Bus, Headers, OutRecord, Source, SourceEvent, SourceSpec, Start, TopicPartition};
use schemas::headers;
use schemas::status::ModelSignature;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// Rows that are read ahead of their sending.
const AHEAD: usize = 256;

/// What is scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A Parquet file.
    Parquet(PathBuf),
    /// Inference requests in a topic, named without prefix.
    Topic(String),
}

impl std::str::FromStr for Input {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("topic:") {
            Some("") => Err("not FILE.parquet or topic:NAME".to_owned()),
            Some(name) => Ok(Input::Topic(name.to_owned())),
            None => Ok(Input::Parquet(PathBuf::from(text))),
        }
    }
}

/// Rows still to come, with the value of each request.
pub enum Rows {
    /// Of a file.
    File(mpsc::Receiver<Outcome<(RowId, OutRecord)>>),
    /// Of a topic, up to the end that it had when it was opened.
    Topic(Box<dyn Source>),
}

impl Rows {
    /// The next row as a record without its topic; `None` at the end. Cancel-safe.
    pub async fn next(&mut self) -> Outcome<Option<(RowId, OutRecord)>> {
        match self {
            Rows::File(rows) => rows.recv().await.transpose(),
            Rows::Topic(source) => loop {
                match source.next().await? {
                    SourceEvent::Record(record) => {
                        let row = RowId { partition: record.partition, number: record.offset };
                        let mut out = OutRecord { key: record.key, value: record.value, ..OutRecord::default() };
                        // Its time is over, or will be: background work has none of its own.
                        let kept = record.headers.0.into_iter().filter(|(name, _)| name != headers::DEADLINE_MS);
                        out.headers = Headers(kept.filter(|(name, _)| name != headers::SCORE_ROW).collect());
                        return Ok(Some((row, out)));
                    }
                    SourceEvent::CaughtUp => return Ok(None),
                    SourceEvent::Assigned(_) | SourceEvent::Revoked(..) => {}
                }
            },
        }
    }
}

/// Opens a topic behind what is done.
pub async fn of_topic(bus: &dyn Bus, name: &str, next: &BTreeMap<i32, i64>) -> Outcome<Rows> {
    let topic = bus.topics().name(name);
    if bus.partitions(&topic).await.is_err() {
        return usage(format!("--input: no topic `{topic}`; `barista topics list` shows them"));
    }
    let offsets = next.iter().map(|(p, offset)| (TopicPartition::new(topic.clone(), *p), *offset)).collect();
    let source = bus.source(SourceSpec::assign(vec![topic], Start::Offsets(offsets))).await?;
    Ok(Rows::Topic(source))
}

/// A Parquet file that can be read.
pub struct Table {
    path: PathBuf,
    reader: SerializedFileReader<File>,
}

impl Table {
    /// Opens a file.
    pub fn open(path: &Path) -> Outcome<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let reader = SerializedFileReader::new(file)
            .map_err(|e| Failure::Usage(format!("{}: no Parquet file: {e}", path.display())))?;
        Ok(Table { path: path.to_owned(), reader })
    }

    /// Its rows.
    pub fn rows(&self) -> u64 {
        u64::try_from(self.reader.metadata().file_metadata().num_rows()).unwrap_or(0)
    }

    /// Its columns.
    pub fn columns(&self) -> Vec<Column> {
        let schema = self.reader.metadata().file_metadata().schema();
        let column = |field: &parquet::schema::types::TypePtr| {
            let one = field.is_primitive() && field.get_basic_info().repetition() != Repetition::REPEATED;
            let is_number = one && {
                use parquet::basic::Type::{DOUBLE, FLOAT, INT32, INT64};
                matches!(field.get_physical_type(), DOUBLE | FLOAT | INT32 | INT64)
            };
            Column { name: field.name().to_owned(), is_number }
        };
        schema.get_fields().iter().map(column).collect()
    }

    /// Reads its rows from number `first` on a thread of its own.
    pub fn read(self, signature: &ModelSignature, options: &[MapOption], first: i64) -> Outcome<Rows> {
        let mapping = Mapping::new(signature, &self.columns(), options)
            .map_err(|why| Failure::Usage(format!("{}: {why}", self.path.display())))?;
        let (sender, rows) = mpsc::channel(AHEAD);
        let thread = std::thread::Builder::new().name("parquet".to_owned());
        thread.spawn(move || {
            let path = self.path.clone();
            if let Err(error) = self.feed(&mapping, first, &sender) {
                let error = anyhow::anyhow!("cannot read {}: {error}", path.display());
                // Whoever took the rows is gone: so is whom to tell.
                let _ = sender.blocking_send(Err(error.into()));
            }
        })?;
        Ok(Rows::File(rows))
    }

    fn feed(
        self,
        mapping: &Mapping,
        first: i64,
        sender: &mpsc::Sender<Outcome<(RowId, OutRecord)>>,
    ) -> Result<(), parquet::errors::ParquetError> {
        let mut begin = 0;
        for group in 0..self.reader.num_row_groups() {
            let end = begin + self.reader.metadata().row_group(group).num_rows();
            if end > first {
                let reader = self.reader.get_row_group(group)?;
                for (number, row) in (begin..).zip(reader.get_row_iter(None)?) {
                    let row = row?;
                    if number < first {
                        continue;
                    }
                    let id = RowId { partition: 0, number };
                    let value = mapping.request(&cells(&row)).to_string();
                    let record = OutRecord::default().key(number.to_string()).value(value);
                    if sender.blocking_send(Ok((id, record))).is_err() {
                        return Ok(());
                    }
                }
            }
            begin = end;
        }
        Ok(())
    }
}

fn cells(row: &Row) -> Vec<Value> {
    row.get_column_iter().map(|(_, field)| cell(field)).collect()
}

/// A cell as JSON; what JSON has no word for becomes text or null, and the node refuses it.
fn cell(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(x) => Value::from(u8::from(*x)),
        Field::Byte(x) => Value::from(*x),
        Field::Short(x) => Value::from(*x),
        Field::Int(x) => Value::from(*x),
        Field::Long(x) => Value::from(*x),
        Field::UByte(x) => Value::from(*x),
        Field::UShort(x) => Value::from(*x),
        Field::UInt(x) => Value::from(*x),
        Field::ULong(x) => Value::from(*x),
        Field::Float16(x) => Value::from(f32::from(*x)),
        Field::Float(x) => Value::from(*x),
        Field::Double(x) => Value::from(*x),
        Field::Str(x) => Value::from(x.as_str()),
        Field::ListInternal(list) => list.elements().iter().map(cell).collect(),
        Field::Group(row) => cells(row).into_iter().collect(),
        other => Value::from(other.to_string()),
    }
}
