//! Answers to lines of the output. Pure.

use super::RowId;
use bytes::Bytes;
use runtime::Record;
use schemas::headers;
use serde_json::{Map, Value, json};

/// Value of the header that ties an answer to its row.
pub fn header(run: &str, row: RowId) -> String {
    format!("{run}/{}/{}", row.partition, row.number)
}

/// The row of this run that a record answers.
pub fn row_of(run: &str, record: &Record) -> Option<RowId> {
    let rest = record.headers.get_str(headers::SCORE_ROW)?.strip_prefix(run)?.strip_prefix('/')?;
    let (partition, number) = rest.split_once('/')?;
    Some(RowId { partition: partition.parse().ok()?, number: number.parse().ok()? })
}

/// The line of a row: `{"partition":…,"row":…,"outputs":{…}}`, or with `rejected` in the place of `outputs`.
pub fn line(row: RowId, record: &Record) -> String {
    let mut line = Map::new();
    line.insert("partition".to_owned(), row.partition.into());
    line.insert("row".to_owned(), row.number.into());
    let text = |name| record.headers.get_str(name).unwrap_or_default();
    let (name, value) = if record.headers.get(headers::REASON).is_some() {
        ("rejected", json!({"reason": text(headers::REASON), "detail": text(headers::DETAIL)}))
    } else {
        match outputs(record) {
            Ok(outputs) => ("outputs", outputs),
            Err(why) => ("rejected", json!({"reason": "bad-answer", "detail": why})),
        }
    };
    line.insert(name.to_owned(), value);
    Value::Object(line).to_string()
}

/// True for a line of a row that was rejected.
pub fn is_rejected(line: &Value) -> bool {
    line.get("rejected").is_some()
}

/// The row of a line.
pub fn row_of_line(line: &Value) -> Option<RowId> {
    let partition = i32::try_from(line.get("partition")?.as_i64()?).ok()?;
    Some(RowId { partition, number: line.get("row")?.as_i64()? })
}

/// Data of each output by its name; binary ones are little-endian 32-bit floats behind the JSON.
fn outputs(record: &Record) -> Result<Value, String> {
    let value = record.value.clone().unwrap_or_default();
    let length = match record.headers.get_str(headers::INFERENCE_HEADER_CONTENT_LENGTH) {
        None => value.len(),
        Some(text) => text.parse().ok().filter(|n| *n <= value.len()).ok_or("the length of its JSON is wrong")?,
    };
    let mut binary: Bytes = value.slice(length..);
    let response: Value = serde_json::from_slice(&value[..length]).map_err(|e| e.to_string())?;
    let mut outputs = Map::new();
    for output in response["outputs"].as_array().ok_or("it has no outputs")? {
        let name = output["name"].as_str().ok_or("an output has no name")?;
        let data = match output["parameters"]["binary_data_size"].as_u64().map(|n| n as usize) {
            None => output["data"].clone(),
            Some(size) if size <= binary.len() => {
                let floats = binary.split_to(size);
                floats.chunks_exact(4).map(|b| Value::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect()
            }
            Some(size) => return Err(format!("output `{name}`: {size} bytes, {} are left", binary.len())),
        };
        outputs.insert(name.to_owned(), data);
    }
    Ok(Value::Object(outputs))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use runtime::Headers;

    const ROW: RowId = RowId { partition: 3, number: 17 };

    fn record(value: impl Into<Bytes>, with: &[(&str, String)]) -> Record {
        let mut headers = Headers::default();
        for (name, value) in with {
            headers.push(*name, value.clone());
        }
        let (topic, key) = ("t".to_owned(), None);
        Record { topic, partition: 0, offset: 0, timestamp_ms: 0, key, value: Some(value.into()), headers }
    }

    #[test]
    fn an_answer_finds_its_row_and_only_in_its_run() {
        let answer = record("", &[(headers::SCORE_ROW, header("r7", ROW))]);
        assert_eq!(row_of("r7", &answer), Some(ROW));
        assert_eq!((row_of("r", &answer), row_of("r8", &answer), row_of("r7", &record("", &[]))), (None, None, None));
    }

    #[test]
    fn outputs_and_rejections_become_lines_that_are_read_back() {
        let json = r#"{"outputs":[{"name":"y","data":[1.5]},{"name":"z","parameters":{"binary_data_size":8}}]}"#;
        let mut bytes = json.as_bytes().to_vec();
        bytes.extend([2.0f32.to_le_bytes(), (-0.25f32).to_le_bytes()].concat());
        let length = json.len().to_string();
        let text = line(ROW, &record(bytes, &[(headers::INFERENCE_HEADER_CONTENT_LENGTH, length)]));
        assert_eq!(text, r#"{"partition":3,"row":17,"outputs":{"y":[1.5],"z":[2.0,-0.25]}}"#);
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((row_of_line(&read), is_rejected(&read)), (Some(ROW), false));

        let refused = record("x", &[(headers::REASON, "bad-shape".to_owned()), (headers::DETAIL, "inputs".to_owned())]);
        let read: Value = serde_json::from_str(&line(ROW, &refused)).unwrap();
        assert!(is_rejected(&read) && read["rejected"]["reason"] == "bad-shape", "{read}");
        let broken = line(ROW, &record("{}", &[]));
        assert!(broken.contains("bad-answer"), "{broken}");
    }
}
