//! `approx_quantile(x, p)`: an aggregate over [`Sketch`]; `p` is a literal from 0 to 1.

use crate::sql::sketch::Sketch;
use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Float64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type};
use arrow::record_batch::RecordBatch;
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, EmitTo, GroupsAccumulator, Signature, Volatility,
};
use std::sync::Arc;

/// SQL name.
pub const NAME: &str = "approx_quantile";

/// The aggregate for registration.
pub fn udaf() -> AggregateUDF {
    AggregateUDF::from(ApproxQuantile { signature: Signature::user_defined(Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct ApproxQuantile {
    signature: Signature,
}

impl AggregateUDFImpl for ApproxQuantile {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        match arguments {
            [x, p] if x.is_numeric() && p.is_numeric() => Ok(vec![DataType::Float64, DataType::Float64]),
            _ => plan_err!("{NAME} takes a number and a literal probability, such as {NAME}(speed_mps, 0.95)"),
        }
    }

    fn state_fields(&self, arguments: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format!("{}[sketch]", arguments.name), DataType::Binary, true))])
    }

    fn accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(One { p: probability(&arguments)?, sketch: Sketch::default() }))
    }

    fn groups_accumulator_supported(&self, arguments: AccumulatorArgs<'_>) -> bool {
        !arguments.is_distinct
    }

    fn create_groups_accumulator(&self, arguments: AccumulatorArgs<'_>) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Groups { p: probability(&arguments)?, sketches: Vec::new(), heap_bytes: 0 }))
    }
}

/// The literal `p` of a call.
fn probability(arguments: &AccumulatorArgs<'_>) -> Result<f64> {
    if arguments.is_distinct {
        return plan_err!("{NAME} does not take DISTINCT");
    }
    let nothing = RecordBatch::new_empty(Arc::new(arrow::datatypes::Schema::empty()));
    let literal = arguments.exprs.get(1).and_then(|e| e.evaluate(&nothing).ok());
    match literal {
        Some(ColumnarValue::Scalar(ScalarValue::Float64(Some(p)))) if (0.0..=1.0).contains(&p) => Ok(p),
        _ => plan_err!("{NAME}: the probability must be a literal from 0 to 1"),
    }
}

fn damaged(error: crate::sql::sketch::Damaged) -> DataFusionError {
    DataFusionError::Execution(error.to_string())
}

/// One sketch a group.
struct Groups {
    p: f64,
    sketches: Vec<Sketch>,
    /// Of `sketches` at the last count; a batch adds at most what its rows take.
    heap_bytes: usize,
}

impl Groups {
    fn grow(&mut self, groups: usize) {
        if self.sketches.len() < groups {
            self.sketches.resize_with(groups, Sketch::default);
        }
    }

    fn take(&mut self, emit_to: EmitTo) -> Vec<Sketch> {
        let taken = emit_to.take_needed(&mut self.sketches);
        self.heap_bytes = self.sketches.iter().map(Sketch::heap_bytes).sum();
        taken
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        group_indices: &[usize],
        filter: Option<&BooleanArray>,
        groups: usize,
    ) -> Result<()> {
        self.grow(groups);
        let xs: &Float64Array = values[0].as_primitive::<Float64Type>();
        let passes = |row: usize| filter.is_none_or(|f| f.is_valid(row) && f.value(row));
        for (row, &group) in group_indices.iter().enumerate() {
            if xs.is_valid(row) && passes(row) {
                self.sketches[group].add(xs.value(row));
            }
        }
        self.heap_bytes += xs.len() * size_of::<i16>();
        Ok(())
    }

    fn merge_batch(&mut self, values: &[ArrayRef], group_indices: &[usize], groups: usize) -> Result<()> {
        self.grow(groups);
        let states: &BinaryArray = values[0].as_binary::<i32>();
        for (row, &group) in group_indices.iter().enumerate() {
            if states.is_valid(row) {
                self.sketches[group].merge_bytes(states.value(row)).map_err(damaged)?;
            }
        }
        self.heap_bytes = self.sketches.iter().map(Sketch::heap_bytes).sum();
        Ok(())
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        let p = self.p;
        Ok(Arc::new(self.take(emit_to).iter().map(|s| s.quantile(p)).collect::<Float64Array>()))
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        let states = self.take(emit_to);
        Ok(vec![Arc::new(BinaryArray::from_iter_values(states.iter().map(Sketch::to_bytes)))])
    }

    fn convert_to_state(&self, values: &[ArrayRef], filter: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let rows = values.first().map_or(0, |v| v.len());
        let each: Vec<usize> = (0..rows).collect();
        let mut fresh = Groups { p: self.p, sketches: Vec::new(), heap_bytes: 0 };
        fresh.update_batch(values, &each, filter, rows)?;
        fresh.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        self.heap_bytes + self.sketches.capacity() * size_of::<Sketch>()
    }
}

/// A single group, for plans without group accumulators.
#[derive(Debug)]
struct One {
    p: f64,
    sketch: Sketch,
}

impl Accumulator for One {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        values[0].as_primitive::<Float64Type>().iter().flatten().for_each(|x| self.sketch.add(x));
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(self.sketch.quantile(self.p)))
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.sketch.heap_bytes()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Binary(Some(self.sketch.to_bytes()))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let Some(states) = states[0].as_binary_opt::<i32>() else {
            return exec_err!("{NAME}: state is not binary");
        };
        states.iter().flatten().try_for_each(|bytes| self.sketch.merge_bytes(bytes).map_err(damaged))
    }
}
