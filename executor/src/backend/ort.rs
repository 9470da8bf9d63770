//! A second CPU backend: ONNX Runtime, where its shared library is on the machine. Cargo feature `ort`.
//!
//! Invariants:
//! - Nothing is downloaded: the library is the file that `executor.onnxruntime` names, loaded once a process. Without it
//!   the backend is absent and says why.
//! - A worker has a session of its own with one thread, as a worker is one core; sessions of a model share their packed
//!   weights.
//! - A batch is cut into the runs that were cheapest when the model was loaded ([`super::cuts`]).
//!
//! Left out: element types other than 32-bit floats, execution providers other than the CPU's.

use super::cuts::Cuts;
use super::{Backend, InferError, LoadError, LoadOptions, Model, Row, Signature, TensorSpec, Worker};
use ::ort::environment::Environment;
use ::ort::session::builder::{GraphOptimizationLevel, PrepackedWeights, SessionBuilder};
use ::ort::session::{Session, SessionInputValue};
use ::ort::value::{Outlet, Tensor, TensorElementType};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

const NAME: &str = "ort";

/// Runs of a batch size while it is timed; the fastest counts. Slow ones run once.
const TIMING_RUNS: u32 = 3;
/// A batch whose first run took longer than this is not timed again, milliseconds.
const TIMING_ENOUGH_MS: f64 = 20.0;

/// ONNX Runtime.
#[derive(Clone)]
pub struct OrtBackend {
    environment: Environment,
}

impl OrtBackend {
    /// Loads the library. A process has one: a second call with another path is an error.
    pub fn open(library: &Path) -> Result<Self, LoadError> {
        static OPENED: OnceLock<Result<(PathBuf, Environment), String>> = OnceLock::new();
        let opened = OPENED.get_or_init(|| {
            let environment = ::ort::init_from(library)
                .map_err(|error| error.to_string())
                .and_then(|builder| builder.with_telemetry(false).build().map_err(|error| error.to_string()))
                .map_err(|error| format!("backend ort: off, because {} cannot be used: {error}", library.display()))?;
            Ok((library.to_owned(), environment))
        });
        match opened {
            Ok((path, environment)) if path == library => Ok(OrtBackend { environment: environment.clone() }),
            Ok((path, _)) => Err(LoadError::NoBackend(format!(
                "backend ort: this process has loaded {} already, not {}",
                path.display(),
                library.display()
            ))),
            Err(why) => Err(LoadError::NoBackend(why.clone())),
        }
    }
}

impl Backend for OrtBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn load(&self, path: &Path, options: &LoadOptions) -> Result<Arc<dyn Model>, LoadError> {
        let bytes =
            std::fs::read(path).map_err(|e| LoadError::Read { path: path.to_owned(), detail: e.to_string() })?;
        let invalid = |detail: String| LoadError::Invalid { path: path.to_owned(), detail };
        let unsupported = |detail| LoadError::Unsupported { path: path.to_owned(), backend: NAME, detail };
        if bytes.is_empty() {
            return Err(invalid("the file is empty".to_owned()));
        }
        let maker = Maker { environment: self.environment.clone(), bytes, weights: PrepackedWeights::new() };
        let session = maker.session().map_err(|detail| match detail.contains("not a registered function/op") {
            true => unsupported(detail),
            false => invalid(detail),
        })?;
        let inputs = session.inputs().iter().map(input).collect::<Result<Vec<_>, _>>().map_err(unsupported)?;
        if inputs.is_empty() || session.outputs().is_empty() {
            return Err(invalid("the graph has no input or no output".to_owned()));
        }
        let mut worker = OrtWorker { session, shared: None };
        let compiled = compile(&mut worker, &inputs, options).map_err(unsupported)?;
        let shared = Arc::new(Shared { compiled, maker, spare: Mutex::new(Some(worker.session)) });
        Ok(Arc::new(OrtModel(shared)))
    }
}

/// What makes sessions of one file.
struct Maker {
    environment: Environment,
    bytes: Vec<u8>,
    weights: PrepackedWeights,
}

impl Maker {
    fn session(&self) -> Result<Session, String> {
        let builder = Session::builder(&self.environment).map_err(|e| e.to_string())?;
        let set = |builder: SessionBuilder| {
            builder
                .with_optimization_level(GraphOptimizationLevel::All)?
                .with_intra_threads(1)?
                .with_inter_threads(1)?
                .with_intra_op_spinning(false)?
                .with_prepacked_weights(&self.weights)
        };
        let mut builder = set(builder).map_err(|e| e.to_string())?;
        builder.commit_from_memory(&self.bytes).map_err(|e| e.to_string())
    }
}

/// An input of the file.
struct Input {
    name: String,
    /// First dimension: `None` when it varies.
    first: Option<usize>,
    rest: Vec<usize>,
}

fn input(outlet: &Outlet) -> Result<Input, String> {
    let name = outlet.name().to_owned();
    match outlet.dtype().tensor_type() {
        Some(TensorElementType::Float32) => {}
        other => return Err(format!("input `{name}` has element type {other:?}, only 32-bit floats are served")),
    }
    let shape: Vec<i64> = outlet.dtype().tensor_shape().map(|s| s.iter().copied().collect()).unwrap_or_default();
    let (first, rest) = shape.split_first().ok_or_else(|| format!("input `{name}` is a scalar"))?;
    let fixed = |d: &i64| usize::try_from(*d).ok().filter(|d| *d > 0);
    let rest = rest.iter().map(fixed).collect::<Option<Vec<usize>>>();
    let rest = rest.ok_or_else(|| format!("input `{name}` has dimensions {shape:?}, only the first may vary"))?;
    Ok(Input { name, first: fixed(first), rest })
}

/// Signature and costs.
struct Compiled {
    signature: Signature,
    batches: Vec<usize>,
    cuts: Cuts,
    /// Names of the outputs in their order.
    outputs: Vec<String>,
    /// First dimension of each input in a run of one row, without batching.
    first: Vec<usize>,
}

fn compile(worker: &mut OrtWorker, inputs: &[Input], options: &LoadOptions) -> Result<Compiled, String> {
    let varies = inputs.iter().all(|i| i.first.is_none());
    if !varies && inputs.iter().any(|i| i.first.is_none()) {
        return Err("some inputs have a batch dimension and some have not".to_owned());
    }
    let batch_of_one = inputs.iter().all(|i| i.first.is_none_or(|n| n == 1));
    let outputs: Vec<String> = worker.session.outputs().iter().map(|o| o.name().to_owned()).collect();
    let shapes = |rows: usize| {
        inputs.iter().map(move |i| {
            let first = i.first.unwrap_or(rows);
            std::iter::once(first).chain(i.rest.iter().copied()).collect::<Vec<usize>>()
        })
    };
    let run = |worker: &mut OrtWorker, rows: usize| {
        let tensors = shapes(rows).zip(inputs).map(|(shape, input)| {
            let n: usize = shape.iter().product();
            (input.name.clone(), shape, (0..n).map(|i| (i as f32 * 0.37).sin()).collect())
        });
        worker.raw(tensors.collect(), &outputs)
    };
    let one = run(worker, 1).map_err(|e| e.0)?;
    let batched = batch_of_one && one.iter().all(|(shape, _)| shape.first() == Some(&1));
    let mut timed = Vec::new();
    let mut rows = 1;
    let largest = if batched && varies { options.max_batch.max(1) } else { 1 };
    while rows < 2 * largest {
        let mut best = f64::INFINITY;
        for _ in 0..TIMING_RUNS {
            let started = Instant::now();
            let answers = run(worker, rows).map_err(|e| e.0)?;
            if batched && answers.iter().any(|(shape, _)| shape.first() != Some(&rows)) {
                return Err(format!("a batch of {rows} rows gives outputs of {:?}", answers[0].0));
            }
            best = best.min(started.elapsed().as_secs_f64() * 1e3);
            if best > TIMING_ENOUGH_MS {
                break;
            }
        }
        timed.push((rows, best));
        rows *= 2;
    }
    let skip = usize::from(batched);
    let signature = Signature {
        inputs: inputs
            .iter()
            .map(|i| {
                let first = (!batched).then_some(i.first.unwrap_or(1));
                TensorSpec::fp32(i.name.clone(), first.into_iter().chain(i.rest.iter().copied()).collect())
            })
            .collect(),
        outputs: outputs
            .iter()
            .zip(&one)
            .map(|(name, (shape, _))| TensorSpec::fp32(name.clone(), shape.iter().skip(skip).copied().collect()))
            .collect(),
        batched,
    };
    let cuts = Cuts::new(&timed).ok_or("no batch size can be run")?;
    let used: Vec<usize> = (0..timed.len()).filter(|i| *i == 0 || cuts.uses(*i, largest)).map(|i| timed[i].0).collect();
    let first = inputs.iter().map(|i| i.first.unwrap_or(1)).collect();
    Ok(Compiled { signature, batches: used, cuts, outputs, first })
}

struct Shared {
    compiled: Compiled,
    maker: Maker,
    /// The session that was made while loading, for the first worker.
    spare: Mutex<Option<Session>>,
}

struct OrtModel(Arc<Shared>);

impl Model for OrtModel {
    fn signature(&self) -> &Signature {
        &self.0.compiled.signature
    }

    fn batches(&self) -> &[usize] {
        &self.0.compiled.batches
    }

    fn worker(&self) -> Result<Box<dyn Worker>, InferError> {
        let spare = self.0.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        let session = spare.map_or_else(|| self.0.maker.session(), Ok).map_err(InferError)?;
        Ok(Box::new(OrtWorker { session, shared: Some(self.0.clone()) }))
    }
}

struct OrtWorker {
    session: Session,
    /// Absent while the model is being loaded.
    shared: Option<Arc<Shared>>,
}

/// Name, shape and elements of an input.
type Given = (String, Vec<usize>, Vec<f32>);
/// Shape and elements of an output.
type Answer = (Vec<usize>, Vec<f32>);

impl OrtWorker {
    fn raw(&mut self, inputs: Vec<Given>, outputs: &[String]) -> Result<Vec<Answer>, InferError> {
        let failed = |error: ::ort::Error| InferError(error.to_string());
        let mut values: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
        for (name, shape, data) in inputs {
            values.push((Cow::Owned(name), Tensor::from_array((shape, data)).map_err(failed)?.into()));
        }
        let ran = self.session.run(values).map_err(failed)?;
        let answer = |name: &String| {
            let value = ran.get(name).ok_or_else(|| InferError(format!("output `{name}` is missing")))?;
            let (shape, data) = value.try_extract_tensor::<f32>().map_err(failed)?;
            let shape = shape.iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect();
            Ok((shape, data.to_vec()))
        };
        outputs.iter().map(answer).collect()
    }

    fn run_cut(&mut self, shared: &Shared, rows: &[&Row]) -> Result<Vec<Row>, InferError> {
        let Compiled { signature, outputs, first, .. } = &shared.compiled;
        let inputs = signature.inputs.iter().enumerate().map(|(i, spec)| {
            let data: Vec<f32> = rows.iter().flat_map(|row| row[i].iter().copied()).collect();
            let shape = match signature.batched {
                true => std::iter::once(rows.len() * first[i]).chain(spec.shape.iter().copied()).collect(),
                false => spec.shape.clone(),
            };
            (spec.name.clone(), shape, data)
        });
        let answers = self.raw(inputs.collect(), outputs)?;
        let mut out: Vec<Row> = vec![Vec::with_capacity(outputs.len()); rows.len()];
        for ((_, data), spec) in answers.iter().zip(&signature.outputs) {
            if data.len() != rows.len() * spec.elements() {
                let detail = format!("output `{}` has {} elements for {} rows", spec.name, data.len(), rows.len());
                return Err(InferError(detail));
            }
            for (row, own) in out.iter_mut().zip(data.chunks(spec.elements().max(1))) {
                row.push(own.to_vec());
            }
        }
        Ok(out)
    }
}

impl Worker for OrtWorker {
    fn run(&mut self, batch: &[&Row]) -> Result<Vec<Row>, InferError> {
        let Some(shared) = self.shared.clone() else {
            return Err(InferError("the model is still being loaded".to_owned()));
        };
        let mut answers = Vec::with_capacity(batch.len());
        let mut left = batch;
        for (_, rows) in shared.compiled.cuts.runs(batch.len()) {
            let (now, later) = left.split_at(rows);
            answers.extend(self.run_cut(&shared, now)?);
            left = later;
        }
        Ok(answers)
    }
}
