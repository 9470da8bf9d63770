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
mod worker;

pub use plan::Layout;
pub use probe::{Probe, probe};

use super::cuts::Cuts;
use super::tract::{Fault, read_model};
use super::{Backend, InferError, LoadError, LoadOptions, Model, Signature, Worker, panic_message};
use driver::{Buffer, CudaError, Device};
use plan::{Constants, Plan};
use roofline::T4;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use worker::CudaWorker;

const NAME: &str = "cuda";

/// How a worker runs a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Execution {
    /// One launch of a graph that was captured when the worker was made.
    #[default]
    Graph,
    /// Each copy and each kernel by itself: for tests, which compare the two, and for tools that look at single
    /// kernels.
    Eager,
}

/// Our kernels on the first NVIDIA device. Starts the driver with the first model it loads.
#[derive(Debug, Default)]
pub struct CudaBackend {
    device: Mutex<Option<Arc<Device>>>,
    layout: Layout,
    execution: Execution,
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
        CudaBackend { layout, ..CudaBackend::default() }
    }

    /// A backend whose workers run batches in a given way.
    pub fn with_execution(execution: Execution) -> Self {
        CudaBackend { execution, ..CudaBackend::default() }
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
        Ok(Arc::new(CudaModel::new(device, lowered, self.execution).map_err(failed)?))
    }
}

struct CudaModel {
    device: Arc<Device>,
    signature: Signature,
    batches: Vec<usize>,
    shared: Arc<Shared>,
    cuts: Cuts,
    execution: Execution,
}

/// What all workers of a model use.
struct Shared {
    plans: Vec<Plan>,
    constants: Vec<Buffer>,
}

impl CudaModel {
    fn new(device: Arc<Device>, lowered: Lowered, execution: Execution) -> Result<Self, CudaError> {
        let Lowered { signature, plans, constants } = lowered;
        let sizes: Vec<usize> = constants.all().iter().map(|c| c.len()).collect();
        let buffers = device.allocate(&sizes)?;
        for (buffer, words) in buffers.iter().zip(constants.all()) {
            buffer.upload(words)?;
        }
        // A model without room for one worker is refused now, not when its first request comes.
        let arenas: Vec<usize> = plans.iter().map(|p| p.arena).collect();
        device.admit(&arenas)?;
        // No device is the same as another, but which batch size pays depends little on which.
        let timed: Vec<(usize, f64)> = plans.iter().map(|p| (p.batch, roofline::estimate(p, &T4).likely_us)).collect();
        let cuts = Cuts::new(&timed)
            .ok_or_else(|| CudaError::Driver { what: "making a plan", code: "there is none".to_owned() })?;
        let batches = plans.iter().map(|p| p.batch).collect();
        let shared = Arc::new(Shared { plans, constants: buffers });
        Ok(CudaModel { device, signature, batches, shared, cuts, execution })
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
