//! `tumble(ts, interval)` and `hop(ts, slide, width)`.
//!
//! As scalar functions both give the start of the *pane* that `ts` falls in: panes are `slide` long (for a tumbling
//! window the slide is the width) and aligned to the Unix epoch in UTC. The window operator recognises them in
//! `GROUP BY` and puts the panes together to windows; after it, the same column holds the start of the window.
//!
//! Left out: month intervals (they have no fixed length) and alignment to a local day.

use arrow::array::{ArrayRef, AsArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, TimeUnit, TimestampMillisecondType};
use datafusion::common::{Result, ScalarValue, plan_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use std::sync::Arc;

/// Milliseconds of a day, for `interval '1 day'`.
const DAY_MS: i64 = 86_400_000;

/// Which of the two functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Windows side by side.
    Tumble,
    /// Windows that overlap.
    Hop,
}

impl Kind {
    /// The kind that this SQL function name stands for.
    pub fn of(name: &str) -> Option<Kind> {
        [Kind::Tumble, Kind::Hop].into_iter().find(|kind| name.eq_ignore_ascii_case(kind.name()))
    }

    /// The SQL name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tumble => "tumble",
            Kind::Hop => "hop",
        }
    }

    /// Number of arguments.
    pub fn arity(self) -> usize {
        match self {
            Kind::Tumble => 2,
            Kind::Hop => 3,
        }
    }
}

/// Length and step of a query's windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowShape {
    /// Distance between the starts of two windows, milliseconds; the length of a pane. Divides `width_ms`.
    pub slide_ms: i64,
    /// Length of a window, milliseconds.
    pub width_ms: i64,
}

impl WindowShape {
    /// Checks the literal intervals of a call (`tumble`: width; `hop`: slide and width). The error says what is wrong.
    pub fn from_intervals(kind: Kind, intervals: &[ScalarValue]) -> Result<Self, String> {
        let lengths = intervals.iter().map(interval_ms).collect::<Result<Vec<i64>, String>>()?;
        match (kind, lengths.as_slice()) {
            (Kind::Tumble, &[width_ms]) => Ok(WindowShape { slide_ms: width_ms, width_ms }),
            (Kind::Hop, &[slide_ms, width_ms]) if width_ms % slide_ms == 0 => Ok(WindowShape { slide_ms, width_ms }),
            (Kind::Hop, &[slide_ms, width_ms]) => {
                Err(format!("the width ({width_ms} ms) must be a multiple of the slide ({slide_ms} ms)"))
            }
            _ => Err(format!("takes a time column and {} interval(s)", kind.arity() - 1)),
        }
    }

    /// Start of the pane of an instant.
    pub fn pane_of(self, ms: i64) -> i64 {
        floor_to(ms, self.slide_ms)
    }
}

/// The greatest multiple of `step_ms` that is at most `ms`.
pub fn floor_to(ms: i64, step_ms: i64) -> i64 {
    ms.saturating_sub(ms.rem_euclid(step_ms))
}

/// Length of a literal interval in milliseconds, at least 1.
fn interval_ms(value: &ScalarValue) -> Result<i64, String> {
    let (months, ms, sub_ms) = match value {
        ScalarValue::IntervalMonthDayNano(Some(i)) => {
            (i.months, i64::from(i.days) * DAY_MS + i.nanoseconds / 1_000_000, i.nanoseconds % 1_000_000)
        }
        ScalarValue::IntervalDayTime(Some(i)) => (0, i64::from(i.days) * DAY_MS + i64::from(i.milliseconds), 0),
        other => return Err(format!("`{other}` is not a literal interval such as interval '60 seconds'")),
    };
    if months != 0 {
        return Err("months have no fixed length; write days, hours, minutes or seconds".to_owned());
    }
    if sub_ms != 0 || ms < 1 {
        return Err("an interval must be a positive whole number of milliseconds".to_owned());
    }
    Ok(ms)
}

/// The scalar function behind `tumble` and `hop`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct WindowFn {
    kind: Kind,
    signature: Signature,
}

/// `tumble` or `hop` for registration.
pub fn udf(kind: Kind) -> ScalarUDF {
    let signature = Signature::new(TypeSignature::Any(kind.arity()), Volatility::Immutable);
    ScalarUDF::from(WindowFn { kind, signature })
}

impl ScalarUDFImpl for WindowFn {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments.first() {
            Some(time @ DataType::Timestamp(TimeUnit::Millisecond, _)) => Ok(time.clone()),
            other => plan_err!("{}: the first argument must be a time column, not {other:?}", self.kind.name()),
        }
    }

    fn invoke_with_args(&self, call: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let Some((time, intervals)) = call.args.split_first() else {
            return plan_err!("{} needs arguments", self.kind.name());
        };
        let literals: Vec<ScalarValue> = intervals
            .iter()
            .map(|v| match v {
                ColumnarValue::Scalar(s) => Ok(s.clone()),
                ColumnarValue::Array(_) => plan_err!("{}: intervals must be literals", self.kind.name()),
            })
            .collect::<Result<_>>()?;
        let shape = match WindowShape::from_intervals(self.kind, &literals) {
            Ok(shape) => shape,
            Err(detail) => return plan_err!("{}: {detail}", self.kind.name()),
        };
        let array = time.to_array(call.number_rows)?;
        Ok(ColumnarValue::Array(pane_starts(&array, shape)))
    }
}

/// Pane start of every timestamp, nulls kept. `array` is of type Timestamp(ms).
fn pane_starts(array: &ArrayRef, shape: WindowShape) -> ArrayRef {
    let times: &TimestampMillisecondArray = array.as_primitive::<TimestampMillisecondType>();
    Arc::new(times.unary::<_, TimestampMillisecondType>(|ms| shape.pane_of(ms)).with_timezone_opt(times.timezone()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use arrow::datatypes::IntervalMonthDayNano;

    fn interval(months: i32, days: i32, ns: i64) -> ScalarValue {
        ScalarValue::IntervalMonthDayNano(Some(IntervalMonthDayNano::new(months, days, ns)))
    }

    fn seconds(s: i64) -> ScalarValue {
        interval(0, 0, s * 1_000_000_000)
    }

    #[test]
    fn shapes_of_good_and_bad_intervals() {
        let tumble = |i| WindowShape::from_intervals(Kind::Tumble, &[i]);
        let hop = |a, b| WindowShape::from_intervals(Kind::Hop, &[a, b]);
        assert_eq!(tumble(seconds(60)), Ok(WindowShape { slide_ms: 60_000, width_ms: 60_000 }));
        assert_eq!(tumble(interval(0, 1, 0)).unwrap().width_ms, DAY_MS);
        assert_eq!(hop(seconds(10), seconds(60)), Ok(WindowShape { slide_ms: 10_000, width_ms: 60_000 }));
        for (result, says) in [
            (tumble(seconds(0)), "positive"),
            (tumble(seconds(-5)), "positive"),
            (tumble(interval(0, 0, 1_500)), "whole"),
            (tumble(interval(1, 0, 0)), "months"),
            (tumble(ScalarValue::Int64(Some(5))), "interval '60 seconds'"),
            (hop(seconds(7), seconds(60)), "multiple"),
            (WindowShape::from_intervals(Kind::Hop, &[seconds(7)]), "2 interval"),
        ] {
            let error = result.unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn panes_are_aligned_to_the_epoch_before_it_too() {
        let shape = WindowShape { slide_ms: 10, width_ms: 30 };
        assert_eq!([-11, -10, -1, 0, 9, 10].map(|ms| shape.pane_of(ms)), [-20, -10, -10, 0, 0, 10]);
        assert_eq!(floor_to(i64::MIN, 1000), i64::MIN, "no overflow at the end of time");
    }
}
