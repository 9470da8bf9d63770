//! The GPU backend: our own kernels through the CUDA driver, on tract's reading of the model.
//!
//! Purpose: a second engine behind the same interface. A model file is read by tract as for the CPU backend, lowered to
//! a flat [`plan`], and run as one captured graph per worker and batch size.
//!
//! Invariants:
//! - Without a usable driver nothing of cudarc is touched: [`probe()`] says why the backend is off.
//! - A model with an operator outside the list of [`lower`] is refused as a whole; it is never split over two engines.
//! - Weights are on the device once a model. A worker owns a stream, its activations, pinned memory for inputs and
//!   outputs, and its graphs; all of it is allocated when it is made, which is refused where the device would overflow.
//! - A batch is one copy into pinned memory, one graph launch, one wait.
//! - An error of the device ends a batch with an error; one that ends the device's context makes every later call fail
//!   with its reason.
//!
//! Left out: more than one device, element types other than 32-bit floats, tensor cores.

mod driver;
pub mod lower;
pub mod plan;
pub mod probe;
pub mod roofline;

pub use plan::Layout;
pub use probe::{Probe, probe};

use super::cuts::Cuts;
use super::tract::{Fault, read_model};
use super::{Backend, InferError, LoadError, LoadOptions, Model, Row, Signature, Worker, panic_message};
use driver::{Buffer, CudaError, Device, Graph, Pinned, Stream};
use plan::{At, Constants, Plan, Slot};
use roofline::T4;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

const NAME: &str = "cuda";

/// Our kernels on the first NVIDIA device. Starts the driver with the first model it loads.
#[derive(Debug, Default)]
pub struct CudaBackend {
    device: Mutex<Option<Arc<Device>>>,
    layout: Layout,
}

/// A model lowered for some batch sizes, and what it needs on the device.
#[derive(Debug)]
pub struct Lowered {
    /// Inputs and outputs.
    pub signature: Signature,
    /// One plan a batch size, ascending.
    pub plans: Vec<Plan>,
    /// Weights and programs.
    pub constants: Constants,
}

impl CudaBackend {
    /// A backend that lays out activations in a given way.
    pub fn with_layout(layout: Layout) -> Self {
        CudaBackend { device: Mutex::default(), layout }
    }

    /// Device memory in buffers of this backend, bytes; 0 before the first model.
    pub fn used_bytes(&self) -> u64 {
        let device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        device.as_ref().map_or(0, |d| d.used_bytes())
    }

    fn device(&self) -> Result<Arc<Device>, LoadError> {
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(device) = device.as_ref() {
            return Ok(device.clone());
        }
        let opened = catch_unwind(Device::open)
            .unwrap_or_else(|panic| Err(format!("the driver library fails: {}", panic_message(panic.as_ref()))))
            .map_err(|reason| LoadError::NoBackend(format!("CUDA backend: off, because {reason}")))?;
        *device = Some(opened.clone());
        Ok(opened)
    }
}

/// Lowers a model file; needs no device.
pub fn lower_file(path: &Path, options: &LoadOptions, layout: Layout) -> Result<Lowered, LoadError> {
    let bytes = std::fs::read(path).map_err(|e| LoadError::Read { path: path.to_owned(), detail: e.to_string() })?;
    let invalid = |detail: String| LoadError::Invalid { path: path.to_owned(), detail };
    let lowered = catch_unwind(AssertUnwindSafe(|| {
        let mut constants = Constants::default();
        let (signature, plans) = read_model(path, &bytes, options.max_batch, &mut |typed, size| {
            let decluttered = typed.into_decluttered()?;
            lower::lower(&decluttered, size, &mut constants, layout).map_err(|e| Fault::Unsupported(e.to_string()))
        })?;
        Ok(Lowered { signature, plans, constants })
    }));
    match lowered {
        Ok(Ok(lowered)) => Ok(lowered),
        Ok(Err(Fault::Invalid(detail))) => Err(invalid(detail)),
        Ok(Err(Fault::Unsupported(detail))) => {
            Err(LoadError::Unsupported { path: path.to_owned(), backend: NAME, detail })
        }
        Err(panic) => Err(invalid(format!("the loader gave up: {}", panic_message(panic.as_ref())))),
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn load(&self, path: &Path, options: &LoadOptions) -> Result<Arc<dyn Model>, LoadError> {
        // The file first: what is wrong with it is wrong with or without a device.
        let lowered = lower_file(path, options, self.layout)?;
        let device = self.device()?;
        let failed = |e: CudaError| LoadError::NoBackend(format!("model {}: {e}", path.display()));
        Ok(Arc::new(CudaModel::new(device, lowered).map_err(failed)?))
    }
}

struct CudaModel {
    device: Arc<Device>,
    signature: Signature,
    batches: Vec<usize>,
    shared: Arc<Shared>,
    cuts: Cuts,
}

/// What all workers of a model use.
struct Shared {
    plans: Vec<Plan>,
    constants: Vec<Buffer>,
}

impl CudaModel {
    fn new(device: Arc<Device>, lowered: Lowered) -> Result<Self, CudaError> {
        let Lowered { signature, plans, constants } = lowered;
        let sizes: Vec<usize> = constants.all().iter().map(|c| c.len()).collect();
        let buffers = device.allocate(&sizes)?;
        for (buffer, words) in buffers.iter().zip(constants.all()) {
            buffer.upload(words)?;
        }
        // No device is the same as another, but which batch size pays depends little on which.
        let timed: Vec<(usize, f64)> = plans.iter().map(|p| (p.batch, roofline::estimate(p, &T4).likely_us)).collect();
        let cuts = Cuts::new(&timed)
            .ok_or_else(|| CudaError::Driver { what: "making a plan", code: "there is none".to_owned() })?;
        let batches = plans.iter().map(|p| p.batch).collect();
        Ok(CudaModel { device, signature, batches, shared: Arc::new(Shared { plans, constants: buffers }), cuts })
    }
}

impl Model for CudaModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn batches(&self) -> &[usize] {
        &self.batches
    }

    fn worker(&self) -> Result<Box<dyn Worker>, InferError> {
        let worker = CudaWorker::new(self).map_err(|e| InferError(e.to_string()))?;
        Ok(Box::new(worker))
    }
}

/// One stream with the graphs of all batch sizes. Fields are dropped in this order: graphs before what they touch.
struct CudaWorker {
    lanes: Vec<Lane>,
    stream: Stream,
    shared: Arc<Shared>,
    cuts: Cuts,
    input_widths: Vec<usize>,
    output_widths: Vec<usize>,
}

/// A batch size of a worker.
struct Lane {
    graph: Graph,
    inputs: Vec<Pinned>,
    outputs: Vec<Pinned>,
    /// Memory the graph works on; held, not touched.
    _arena: Buffer,
    batch: usize,
}

impl CudaWorker {
    fn new(model: &CudaModel) -> Result<Self, CudaError> {
        let stream = Stream::new(&model.device)?;
        let arenas: Vec<usize> = model.shared.plans.iter().map(|p| p.arena).collect();
        let arenas = model.device.allocate(&arenas)?;
        let mut lanes = Vec::new();
        for (plan, arena) in model.shared.plans.iter().zip(arenas) {
            lanes.push(Lane::new(model, plan, arena, &stream)?);
        }
        stream.wait()?;
        let widths = |specs: &[super::TensorSpec]| specs.iter().map(super::TensorSpec::elements).collect();
        Ok(CudaWorker {
            lanes,
            stream,
            shared: model.shared.clone(),
            cuts: model.cuts.clone(),
            input_widths: widths(&model.signature.inputs),
            output_widths: widths(&model.signature.outputs),
        })
    }

    fn run_lane(&mut self, lane: usize, part: &[&Row], rows: &mut Vec<Row>) -> Result<(), CudaError> {
        let lane = &mut self.lanes[lane];
        for (i, (pinned, width)) in lane.inputs.iter_mut().zip(&self.input_widths).enumerate() {
            let to = pinned.slice_mut();
            for r in 0..lane.batch {
                // A batch that is not full repeats its last row.
                let row = &part[r.min(part.len() - 1)][i];
                to[r * width..(r + 1) * width].copy_from_slice(row);
            }
        }
        self.stream.replay(&lane.graph)?;
        self.stream.wait()?;
        let start = rows.len();
        rows.resize_with(start + part.len(), || Vec::with_capacity(self.output_widths.len()));
        for (pinned, width) in lane.outputs.iter().zip(&self.output_widths) {
            for (row, values) in rows[start..].iter_mut().zip(pinned.slice().chunks_exact(*width)) {
                row.push(values.to_vec());
            }
        }
        Ok(())
    }
}

impl Lane {
    fn new(model: &CudaModel, plan: &Plan, arena: Buffer, stream: &Stream) -> Result<Self, CudaError> {
        let device = &model.device;
        let elements =
            |specs: &[super::TensorSpec]| -> Vec<usize> { specs.iter().map(|s| s.elements() * plan.batch).collect() };
        let pinned =
            |sizes: Vec<usize>| sizes.into_iter().map(|n| Pinned::new(device, n)).collect::<Result<Vec<_>, _>>();
        let inputs = pinned(elements(&model.signature.inputs))?;
        let mut outputs = pinned(elements(&model.signature.outputs))?;
        let constants = &model.shared.constants;
        let resolve = |at: At| match at.slot {
            Slot::Buffer(b) => arena.at(plan.offsets[b] + at.offset),
            Slot::Constant(c) => constants[c].at(at.offset),
        };
        let graph = stream.capture(|| {
            for (slot, from) in plan.inputs.iter().zip(&inputs) {
                stream.upload(resolve((*slot).into()), from)?;
            }
            for step in &plan.steps {
                stream.launch(&step.call.launch(), resolve)?;
            }
            for (slot, to) in plan.outputs.iter().zip(&mut outputs) {
                stream.download(to, resolve((*slot).into()))?;
            }
            Ok(())
        })?;
        Ok(Lane { graph, inputs, outputs, _arena: arena, batch: plan.batch })
    }
}

impl Worker for CudaWorker {
    fn run(&mut self, batch: &[&Row]) -> Result<Vec<Row>, InferError> {
        debug_assert_eq!(self.shared.plans.len(), self.lanes.len(), "one lane a plan");
        let mut rows = Vec::with_capacity(batch.len());
        for (lane, taken) in self.cuts.runs(batch.len()) {
            let part = &batch[rows.len()..rows.len() + taken];
            self.run_lane(lane, part, &mut rows).map_err(|e| InferError(e.to_string()))?;
        }
        Ok(rows)
    }
}
