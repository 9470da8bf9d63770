//! `sin(x)` and `cos(x)`, radians: the engine is built without its mathematical functions, and cyclic calendar
//! features need these two.

use arrow::array::{AsArray, Float64Array};
use arrow::datatypes::{DataType, Float64Type};
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Function {
    Sin,
    Cos,
}

/// Both functions for registration.
pub fn udfs() -> [ScalarUDF; 2] {
    [Function::Sin, Function::Cos].map(|function| {
        let signature = Signature::exact(vec![DataType::Float64], Volatility::Immutable);
        ScalarUDF::from(Trigonometric { function, signature })
    })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Trigonometric {
    function: Function,
    signature: Signature,
}

impl ScalarUDFImpl for Trigonometric {
    fn name(&self) -> &str {
        match self.function {
            Function::Sin => "sin",
            Function::Cos => "cos",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, call: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let array = call.args[0].to_array(call.number_rows)?;
        let radians = array.as_primitive::<Float64Type>();
        let result: Float64Array = match self.function {
            Function::Sin => radians.unary(f64::sin),
            Function::Cos => radians.unary(f64::cos),
        };
        Ok(ColumnarValue::Array(Arc::new(result)))
    }
}
