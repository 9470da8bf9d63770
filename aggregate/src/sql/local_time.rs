//! `local_hour(ts)` and `local_weekday(ts)`: calendar features in the time zone of the configuration.
//!
//! Timestamps in the stream are UTC without a zone; people ride by local time. `local_hour` is 0–23 and
//! `local_weekday` is 0 (Monday) – 6 (Sunday), both as 32-bit integers; null stays null.

use arrow::array::{AsArray, Int32Array};
use arrow::datatypes::{DataType, TimeUnit, TimestampMillisecondType};
use datafusion::common::{Result, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Which part of the local time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Hour,
    Weekday,
}

impl Part {
    fn of(self, local: DateTime) -> i32 {
        match self {
            Part::Hour => i32::from(local.hour()),
            Part::Weekday => i32::from(local.weekday().to_monday_zero_offset()),
        }
    }
}

/// Both functions for `zone`.
pub fn udfs(zone: &TimeZone) -> Vec<ScalarUDF> {
    [("local_hour", Part::Hour), ("local_weekday", Part::Weekday)]
        .into_iter()
        .map(|(name, part)| {
            let signature = Signature::new(TypeSignature::Any(1), Volatility::Immutable);
            ScalarUDF::from(LocalTime { name, part, zone: zone.clone(), signature })
        })
        .collect()
}

#[derive(Debug, PartialEq, Eq)]
struct LocalTime {
    name: &'static str,
    part: Part,
    zone: TimeZone,
    signature: Signature,
}

impl Hash for LocalTime {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
        self.zone.iana_name().hash(state);
    }
}

impl ScalarUDFImpl for LocalTime {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments {
            [DataType::Timestamp(TimeUnit::Millisecond, _)] => Ok(DataType::Int32),
            other => plan_err!("{} takes a timestamp in milliseconds, not {other:?}", self.name),
        }
    }

    fn invoke_with_args(&self, call: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let array = call.args[0].to_array(call.number_rows)?;
        let times = array.as_primitive::<TimestampMillisecondType>();
        let parts: Int32Array = times.iter().map(|ms| self.part_at(ms?)).collect();
        Ok(ColumnarValue::Array(Arc::new(parts)))
    }
}

impl LocalTime {
    /// `None` outside the years −9999 to 9999.
    fn part_at(&self, ms: i64) -> Option<i32> {
        let instant = Timestamp::from_millisecond(ms).ok()?;
        Some(self.part.of(self.zone.to_datetime(instant)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn helsinki_winter_and_summer() {
        let zone = TimeZone::get("Europe/Helsinki").unwrap();
        let at = |part, text: &str| {
            let f =
                LocalTime { name: "", part, zone: zone.clone(), signature: Signature::any(1, Volatility::Immutable) };
            f.part_at(text.parse::<Timestamp>().unwrap().as_millisecond())
        };
        assert_eq!(at(Part::Hour, "2026-01-15T22:30:00Z"), Some(0));
        assert_eq!(at(Part::Hour, "2026-07-15T22:30:00Z"), Some(1));
        assert_eq!(at(Part::Weekday, "2026-01-15T21:59:00Z"), Some(3), "a Thursday");
        assert_eq!(at(Part::Weekday, "2026-01-15T22:30:00Z"), Some(4), "Friday there, still Thursday in UTC");
    }
}
