//! The CPU backend: ONNX files through tract.
//!
//! Invariants, each from a measurement:
//! - One concrete plan for each batch size (1 and powers of two up to the largest batch asked for): a symbolic batch is
//!   up to ten times slower, and recurrent operators panic on it.
//! - Plans are timed once while loading, and a batch is served by the cheapest series of runs ([`super::cuts`]); a plan
//!   that is never the cheapest is dropped with its memory.
//! - Workers are states on the shared plan, so one more worker costs its activations and no weights.
//! - A state is used again for the next request. Recurrent operators would carry their hidden state over from one
//!   request to the next: they are told to start afresh, and a check while loading proves it; a plan that fails the check
//!   gets a fresh state for each run.
//! - Declared output and intermediate shapes of the file are ignored: exporters often write wrong ones.
//! - Loading runs inside `catch_unwind`, since a damaged file can trip assertions deep inside the parser.
//!
//! Left out: dimensions other than the batch that vary, element types other than 32-bit floats, threads inside one
//! inference.

use super::cuts::Cuts;
use super::{Backend, InferError, LoadError, LoadOptions, Model, Row, Signature, TensorSpec, Worker, panic_message};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::gru_seq::GruSeq;
use tract_onnx::tract_core::ops::scan::Scan;
use tract_onnx::tract_hir::infer::Factoid;

const NAME: &str = "tract";

/// Runs of a plan while it is timed; the fastest counts. Slow plans run once.
const TIMING_RUNS: u32 = 3;
/// A plan whose first run took longer than this is not timed again, milliseconds.
const TIMING_ENOUGH_MS: f64 = 20.0;

/// tract, pure Rust, no libraries needed.
#[derive(Debug, Clone, Copy, Default)]
pub struct TractBackend;

impl Backend for TractBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn load(&self, path: &Path, options: &LoadOptions) -> Result<Arc<dyn Model>, LoadError> {
        let bytes =
            std::fs::read(path).map_err(|e| LoadError::Read { path: path.to_owned(), detail: e.to_string() })?;
        let invalid = |detail: String| LoadError::Invalid { path: path.to_owned(), detail };
        let compiled = catch_unwind(AssertUnwindSafe(|| compile(path, &bytes, options)));
        match compiled {
            Ok(Ok(model)) => Ok(Arc::new(model)),
            Ok(Err(Fault::Invalid(detail))) => Err(invalid(detail)),
            Ok(Err(Fault::Unsupported(detail))) => {
                Err(LoadError::Unsupported { path: path.to_owned(), backend: NAME, detail })
            }
            Err(panic) => Err(invalid(format!("the loader gave up: {}", panic_message(panic.as_ref())))),
        }
    }
}

/// Why a file does not become a model; the path is added by the caller.
pub(super) enum Fault {
    Invalid(String),
    Unsupported(String),
}

impl From<TractError> for Fault {
    fn from(error: TractError) -> Self {
        Fault::Invalid(format!("{error:#}"))
    }
}

/// A compiled batch size.
#[derive(Clone)]
struct Plan {
    model: Arc<TypedRunnableModel>,
    /// Runs leave something behind in the state: each needs a fresh one.
    remembers: bool,
}

impl Plan {
    fn state(&self) -> TractResult<TypedSimpleState> {
        self.model.spawn()
    }
}

struct TractModel {
    signature: Signature,
    batches: Vec<usize>,
    /// In the order of `batches`.
    plans: Vec<Plan>,
    cuts: Cuts,
}

fn compile(path: &Path, bytes: &[u8], options: &LoadOptions) -> Result<TractModel, Fault> {
    let (signature, plans) = read_model(path, bytes, options.max_batch, &mut |typed, size| {
        Ok((size, Plan { model: typed.into_optimized()?.into_runnable()?, remembers: false }))
    })?;
    keep_what_pays(signature, plans, options.max_batch)
}

/// Reads a model file and makes a plan for each batch size: 1, and powers of two up to the first that holds
/// `max_batch`. `make` gets the typed model with that batch.
pub(super) fn read_model<P>(
    path: &Path,
    bytes: &[u8],
    max_batch: usize,
    make: &mut dyn FnMut(TypedModel, usize) -> Result<P, Fault>,
) -> Result<(Signature, Vec<P>), Fault> {
    let parsed = parse(path, bytes)?;
    let inputs = input_shapes(&parsed)?;
    let all_symbolic = inputs.iter().all(|i| i.first == First::Symbolic);
    let none_symbolic = inputs.iter().all(|i| i.first != First::Symbolic);
    if !all_symbolic && !none_symbolic {
        return Err(Fault::Unsupported("some inputs have a batch dimension and some have not".to_owned()));
    }
    let (single, outputs) = typed_for(&parsed, &inputs, 1)?;
    let batched = inputs.iter().all(|i| matches!(i.first, First::Symbolic | First::Fixed(1)))
        && outputs.iter().all(|shape| shape.first() == Some(&1));
    let mut plans = vec![make(single, 1)?];
    if batched && all_symbolic {
        let mut size = 2;
        while size < 2 * max_batch.max(1) && max_batch > 1 {
            let (typed, shapes) = typed_for(&parsed, &inputs, size)?;
            if shapes.iter().all(|shape| shape.first() == Some(&size)) {
                plans.push(make(typed, size)?);
            }
            size *= 2;
        }
    }
    Ok((signature(&parsed, &inputs, &outputs, batched), plans))
}

fn parse(path: &Path, bytes: &[u8]) -> Result<InferenceModel, Fault> {
    let loader = onnx().with_ignore_output_shapes(true).with_ignore_value_info(true);
    let mut reader = bytes;
    let proto = loader.proto_model_for_read(&mut reader)?;
    let folder = path.parent().and_then(Path::to_str);
    let parsed = loader.parse(&proto, folder)?;
    if !parsed.unresolved_inputs.is_empty() {
        return Err(Fault::Invalid(format!("nothing gives the values {}", parsed.unresolved_inputs.join(", "))));
    }
    let unknown: std::collections::BTreeSet<String> = parsed
        .model
        .nodes()
        .iter()
        .map(|node| node.op.name().into_owned())
        .filter(|name| name.starts_with("Unimplemented"))
        .collect();
    if !unknown.is_empty() {
        let names: Vec<String> = unknown.into_iter().collect();
        return Err(Fault::Unsupported(format!("operators {}", names.join(", "))));
    }
    if parsed.model.output_outlets()?.is_empty() {
        return Err(Fault::Invalid("the graph has no output".to_owned()));
    }
    Ok(parsed.model)
}

/// First dimension of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Symbolic,
    Fixed(usize),
    Scalar,
}

struct Input {
    name: String,
    first: First,
    /// Dimensions after the first.
    rest: Vec<usize>,
}

impl Input {
    /// Full shape for a batch.
    fn shape(&self, batch: usize) -> Vec<usize> {
        let first = match self.first {
            First::Symbolic => Some(batch),
            First::Fixed(n) => Some(n),
            First::Scalar => None,
        };
        first.into_iter().chain(self.rest.iter().copied()).collect()
    }
}

fn input_shapes(model: &InferenceModel) -> Result<Vec<Input>, Fault> {
    let outlets = model.input_outlets()?;
    if outlets.is_empty() {
        return Err(Fault::Invalid("the graph has no input".to_owned()));
    }
    (0..outlets.len()).map(|i| input_shape(model, i)).collect()
}

fn input_shape(model: &InferenceModel, index: usize) -> Result<Input, Fault> {
    let name = model.node(model.input_outlets()?[index].node).name.clone();
    let fact = model.input_fact(index)?;
    match fact.datum_type.concretize() {
        Some(DatumType::F32) => {}
        other => {
            let found = other.map_or_else(|| "unknown".to_owned(), |t| format!("{t:?}"));
            return Err(Fault::Unsupported(format!("input `{name}` has element type {found}, only F32 is served")));
        }
    }
    if fact.shape.is_open() {
        return Err(Fault::Unsupported(format!("input `{name}` has no fixed number of dimensions")));
    }
    let dims: Vec<Option<usize>> = fact.shape.dims().map(|d| d.concretize().and_then(|d| positive(&d))).collect();
    let first = match dims.first() {
        None => First::Scalar,
        Some(None) => First::Symbolic,
        Some(Some(n)) => First::Fixed(*n),
    };
    let mut rest = Vec::new();
    for (at, dim) in dims.iter().enumerate().skip(1) {
        rest.push(dim.ok_or_else(|| {
            Fault::Unsupported(format!(
                "dimension {at} of input `{name}` is not fixed; only the first one, the batch, may vary"
            ))
        })?);
    }
    Ok(Input { name, first, rest })
}

/// A fixed dimension; some exporters write 0 or -1 for one that varies.
fn positive(dim: &TDim) -> Option<usize> {
    dim.to_i64().ok().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0)
}

/// The typed model of one batch size and the shapes of its outputs.
fn typed_for(model: &InferenceModel, inputs: &[Input], batch: usize) -> Result<(TypedModel, Vec<Vec<usize>>), Fault> {
    let mut model = model.clone();
    for (i, input) in inputs.iter().enumerate() {
        model.set_input_fact(i, InferenceFact::dt_shape(f32::datum_type(), input.shape(batch)))?;
    }
    let mut typed = model.into_typed()?;
    forget_between_runs(&mut typed);
    let mut shapes = Vec::new();
    for i in 0..typed.output_outlets()?.len() {
        let fact = typed.output_fact(i)?;
        if fact.datum_type != f32::datum_type() {
            let found = fact.datum_type;
            return Err(Fault::Unsupported(format!("output {i} has element type {found:?}, only F32 is served")));
        }
        let shape = fact.shape.as_concrete();
        shapes.push(
            shape.ok_or_else(|| Fault::Unsupported(format!("the shape of output {i} depends on the data")))?.to_vec(),
        );
    }
    Ok((typed, shapes))
}

/// Recurrent operators start each run from their initial state; by default they go on from the run before.
fn forget_between_runs(model: &mut TypedModel) {
    for node in model.nodes_mut() {
        if let Some(gru) = node.op_as_mut::<GruSeq>() {
            gru.reset_every_turn = true;
        }
        if let Some(scan) = node.op_as_mut::<Scan>() {
            scan.reset_every_turn = true;
            forget_between_runs(&mut scan.body);
        }
    }
}

fn signature(model: &InferenceModel, inputs: &[Input], outputs: &[Vec<usize>], batched: bool) -> Signature {
    let row_shape = |full: &[usize]| if batched { full[1..].to_vec() } else { full.to_vec() };
    let output_name = |i: usize| {
        let outlet = model.outputs.get(i).copied();
        let label = outlet.and_then(|o| model.outlet_label(o).map(str::to_owned));
        label.unwrap_or_else(|| format!("output_{i}"))
    };
    Signature {
        inputs: inputs.iter().map(|i| TensorSpec::fp32(i.name.clone(), row_shape(&i.shape(1)))).collect(),
        outputs: outputs
            .iter()
            .enumerate()
            .map(|(i, shape)| TensorSpec::fp32(output_name(i), row_shape(shape)))
            .collect(),
        batched,
    }
}

/// Times the plans and drops those that no batch would use.
fn keep_what_pays(signature: Signature, mut plans: Vec<(usize, Plan)>, max_batch: usize) -> Result<TractModel, Fault> {
    let mut timed = Vec::new();
    for (size, plan) in &mut plans {
        plan.remembers = remembers(&signature, *size, plan)?;
        timed.push((*size, time_plan(&signature, *size, plan)?));
    }
    let no_plan = || Fault::Invalid("no plan could be made".to_owned());
    let all = Cuts::new(&timed).ok_or_else(no_plan)?;
    let kept: Vec<usize> = (0..plans.len()).filter(|&i| plans[i].0 == 1 || all.uses(i, max_batch.max(1))).collect();
    let cuts = Cuts::new(&kept.iter().map(|&i| timed[i]).collect::<Vec<_>>()).ok_or_else(no_plan)?;
    let plans: Vec<(usize, Plan)> = kept.iter().map(|&i| plans[i].clone()).collect();
    tracing::debug!(?timed, kept = ?plans.iter().map(|p| p.0).collect::<Vec<_>>(), "plans timed");
    let (batches, plans) = plans.into_iter().unzip();
    Ok(TractModel { signature, batches, plans, cuts })
}

/// A row whose elements differ, and differ with `seed`.
fn sample_row(signature: &Signature, seed: f32) -> Row {
    let element = |i: usize| (i as f32 * 0.37 + seed).sin();
    signature.inputs.iter().map(|spec| (0..spec.elements()).map(element).collect()).collect()
}

/// True when a run changes what the next one answers in the same state.
fn remembers(signature: &Signature, size: usize, plan: &Plan) -> Result<bool, Fault> {
    let mut state = plan.state()?;
    let mut answer = |seed: f32| -> TractResult<TVec<TValue>> {
        let row = sample_row(signature, seed);
        state.run(stack(signature, &vec![&row; size], size)?)
    };
    let first = answer(0.0)?;
    answer(1.0)?;
    Ok(answer(0.0)? != first)
}

/// Milliseconds of the plan's fastest run.
fn time_plan(signature: &Signature, size: usize, plan: &Plan) -> Result<f64, Fault> {
    let row = sample_row(signature, 0.0);
    let rows: Vec<&Row> = vec![&row; size];
    let mut state = plan.state()?;
    let mut fastest = f64::INFINITY;
    for _ in 0..TIMING_RUNS {
        let started = Instant::now();
        if plan.remembers {
            state = plan.state()?;
        }
        state.run(stack(signature, &rows, size)?)?;
        let took_ms = started.elapsed().as_secs_f64() * 1e3;
        fastest = fastest.min(took_ms);
        if took_ms > TIMING_ENOUGH_MS {
            break;
        }
    }
    Ok(fastest)
}

/// Input tensors of a run: the rows one after the other, the last one repeated up to `size`.
fn stack(signature: &Signature, rows: &[&Row], size: usize) -> TractResult<TVec<TValue>> {
    let mut tensors = tvec!();
    for (i, spec) in signature.inputs.iter().enumerate() {
        let mut data = Vec::with_capacity(spec.elements() * size);
        for row in rows {
            data.extend_from_slice(&row[i]);
        }
        for _ in rows.len()..size {
            data.extend_from_slice(&rows[rows.len() - 1][i]);
        }
        let batch = signature.batched.then_some(size);
        let shape: Vec<usize> = batch.into_iter().chain(spec.shape.iter().copied()).collect();
        tensors.push(Tensor::from_shape(&shape, &data)?.into_tvalue());
    }
    Ok(tensors)
}

impl Model for TractModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn batches(&self) -> &[usize] {
        &self.batches
    }

    fn worker(&self) -> Result<Box<dyn Worker>, InferError> {
        let mut states = Vec::new();
        for plan in &self.plans {
            states.push(plan.state().map_err(|e| InferError(format!("worker: {e:#}")))?);
        }
        Ok(Box::new(TractWorker {
            signature: self.signature.clone(),
            batches: self.batches.clone(),
            plans: self.plans.clone(),
            states,
            cuts: self.cuts.clone(),
        }))
    }
}

struct TractWorker {
    signature: Signature,
    batches: Vec<usize>,
    plans: Vec<Plan>,
    states: Vec<TypedSimpleState>,
    cuts: Cuts,
}

impl Worker for TractWorker {
    fn run(&mut self, batch: &[&Row]) -> Result<Vec<Row>, InferError> {
        let mut rows = Vec::with_capacity(batch.len());
        for (plan, taken) in self.cuts.runs(batch.len()) {
            let part = &batch[rows.len()..rows.len() + taken];
            if let Err(error) = self.run_plan(plan, part, &mut rows) {
                // The state may hold half a turn: the next batch gets a fresh one.
                self.states[plan] = self.plans[plan].state().map_err(|e| InferError(format!("worker: {e:#}")))?;
                return Err(InferError(format!("{error:#}")));
            }
        }
        Ok(rows)
    }
}

impl TractWorker {
    fn run_plan(&mut self, plan: usize, part: &[&Row], rows: &mut Vec<Row>) -> TractResult<()> {
        let tensors = stack(&self.signature, part, self.batches[plan])?;
        if self.plans[plan].remembers {
            self.states[plan] = self.plans[plan].state()?;
        }
        let outputs = self.states[plan].run(tensors)?;
        let start = rows.len();
        rows.resize_with(start + part.len(), || Vec::with_capacity(outputs.len()));
        for (tensor, spec) in outputs.iter().zip(&self.signature.outputs) {
            let view = tensor.try_as_plain_ram()?;
            let elements = view.as_slice::<f32>()?;
            let width = spec.elements();
            for (i, row) in rows[start..].iter_mut().enumerate() {
                let of_row = elements.get(i * width..(i + 1) * width);
                let of_row = of_row.ok_or_else(|| {
                    TractError::msg(format!(
                        "output `{}` has {} elements, too few for its rows",
                        spec.name,
                        elements.len()
                    ))
                })?;
                row.push(of_row.to_vec());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn committed(name: &str, max_batch: usize) -> TractModel {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models").join(name);
        let bytes = std::fs::read(&path).unwrap();
        let compiled = compile(&path, &bytes, &LoadOptions { max_batch });
        compiled.unwrap_or_else(|_| panic!("{name} compiles"))
    }

    #[test]
    fn recurrent_models_keep_their_state_and_remember_nothing() {
        let model = committed("occupancy-gru.onnx", 4);
        assert!(model.plans.iter().all(|plan| !plan.remembers), "told to forget, so that states can be used again");
    }

    #[test]
    fn plans_are_made_up_to_the_batch_asked_for() {
        assert_eq!(committed("delay.onnx", 1).batches, [1]);
        let batches = committed("delay.onnx", 6).batches;
        assert!(batches.iter().all(|size| [1, 2, 4, 8].contains(size)), "{batches:?}");
    }
}
