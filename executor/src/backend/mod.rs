//! Backends: what loads a model file and runs it.
//!
//! Purpose: one small synchronous interface behind which every inference engine sits. A [`Backend`] loads a file into
//! a [`Model`], which is shared by all workers; each worker thread makes its own [`Worker`] and keeps it.
//!
//! Invariants:
//! - A bad file is an error, never a panic, and the message names the file.
//! - A model's signature gives shapes of one row, without the batch dimension. A batch is a slice of rows of any
//!   length; how it is cut into runs is the backend's own business, and answers come in the order of the rows.
//! - A worker that returned an error can be used again.
//!
//! Left out: who runs what when (`queue`, `pool`), and how tensors look on the wire (`request`).

pub mod cuda;
mod cuts;
pub mod fake;
#[cfg(feature = "ort")]
pub mod ort;
pub mod slowed;
pub mod tract;

#[cfg(test)]
mod conformance;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Element type of a tensor. Only 32-bit floats are served now; a model that needs another one does not load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datatype {
    /// 32-bit floats.
    Fp32,
}

impl Datatype {
    /// Name in the Open Inference Protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Datatype::Fp32 => "FP32",
        }
    }
}

/// One input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in the model file.
    pub name: String,
    /// Shape of one row, without the batch dimension.
    pub shape: Vec<usize>,
    /// Element type.
    pub datatype: Datatype,
}

impl TensorSpec {
    /// A tensor of 32-bit floats.
    pub fn fp32(name: impl Into<String>, shape: Vec<usize>) -> Self {
        TensorSpec { name: name.into(), shape, datatype: Datatype::Fp32 }
    }

    /// Elements of one row.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Inputs and outputs of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// Inputs in the model's order.
    pub inputs: Vec<TensorSpec>,
    /// Outputs in the model's order.
    pub outputs: Vec<TensorSpec>,
    /// True when the first dimension of every tensor is the batch, so that a tensor on the wire is `[rows, shape…]`;
    /// otherwise it is `shape` itself and a request is one row.
    pub batched: bool,
}

/// One row: the elements of each tensor, row-major, in the order of the signature.
pub type Row = Vec<Vec<f32>>;

/// How a model is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Largest number of rows that will be given to a worker at once, at least 1. Larger batches still work.
    pub max_batch: usize,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions { max_batch: 1 }
    }
}

/// Loads model files.
pub trait Backend: Send + Sync {
    /// Name in configuration, plans and profiles: `tract`, `cuda`.
    fn name(&self) -> &'static str;

    /// Reads and compiles a model file. Takes milliseconds to seconds: call it off the async threads.
    fn load(&self, path: &Path, options: &LoadOptions) -> Result<Arc<dyn Model>, LoadError>;
}

/// A loaded model, shared by its workers.
pub trait Model: Send + Sync {
    /// Inputs and outputs.
    fn signature(&self) -> &Signature;

    /// Numbers of rows that have a plan of their own, ascending; always holds 1.
    fn batches(&self) -> &[usize];

    /// State of one worker. It stays on the thread that made it.
    fn worker(&self) -> Result<Box<dyn Worker>, InferError>;
}

/// Runs batches on one thread.
pub trait Worker {
    /// Outputs of each row, in order. Rows fit the signature: who calls has validated them.
    fn run(&mut self, batch: &[&Row]) -> Result<Vec<Row>, InferError>;

    /// After a run that failed: why it was the engine that failed and not a row, where it was. The instance is then
    /// given up, and its requests go to others.
    fn broken(&self) -> Option<String> {
        None
    }
}

/// A model file could not be loaded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("model {}: cannot be read: {detail}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        detail: String,
    },
    /// The file is not a model, or is damaged.
    #[error("model {}: not a usable model file: {detail}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What the loader says.
        detail: String,
    },
    /// This node has no such backend, or cannot start it.
    #[error("{0}")]
    NoBackend(String),
    /// The model is sound, this backend cannot serve it.
    #[error("model {}: not supported by backend {backend}: {detail}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The backend.
        backend: &'static str,
        /// What is missing.
        detail: String,
    },
}

/// A batch could not be run.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct InferError(pub String);

/// Backends of this process by name.
#[derive(Clone, Default)]
pub struct Backends {
    present: BTreeMap<&'static str, Arc<dyn Backend>>,
    /// Why others are not here.
    absent: BTreeMap<&'static str, String>,
}

impl Backends {
    /// What this build and machine have: `tract`; `cuda` where there is a usable driver and device; and with cargo feature
    /// `ort` ONNX Runtime, if `onnxruntime` names a library that can be loaded.
    pub fn available(onnxruntime: Option<&Path>) -> Self {
        let backends = Backends::default().with(Arc::new(tract::TractBackend)).with_ort(onnxruntime);
        match cuda::probe() {
            cuda::Probe::On(device) => {
                tracing::info!(%device, "CUDA backend: on");
                backends.with(Arc::new(cuda::CudaBackend::default()))
            }
            cuda::Probe::Off(reason) => {
                tracing::info!("CUDA backend: off, because {reason}");
                backends.without("cuda", format!("it is off, because {reason}"))
            }
        }
    }

    #[cfg(feature = "ort")]
    fn with_ort(self, onnxruntime: Option<&Path>) -> Self {
        let Some(library) = onnxruntime else {
            return self.without("ort", "executor.onnxruntime names no library".to_owned());
        };
        match ort::OrtBackend::open(library) {
            Ok(backend) => self.with(Arc::new(backend)),
            Err(error) => {
                tracing::warn!(%error, "this node goes on without ONNX Runtime");
                self.without("ort", error.to_string())
            }
        }
    }

    #[cfg(not(feature = "ort"))]
    fn with_ort(self, onnxruntime: Option<&Path>) -> Self {
        if onnxruntime.is_some() {
            tracing::warn!(
                "executor.onnxruntime: this build is without cargo feature `ort`, the setting has no effect"
            );
        }
        self.without("ort", "this build is without cargo feature `ort`".to_owned())
    }

    fn without(mut self, name: &'static str, why: String) -> Self {
        self.absent.insert(name, why);
        self
    }

    /// Adds a backend; one of the same name is replaced.
    #[must_use]
    pub fn with(mut self, backend: Arc<dyn Backend>) -> Self {
        self.absent.remove(backend.name());
        self.present.insert(backend.name(), backend);
        self
    }

    /// The backend of this name.
    pub fn get(&self, name: &str) -> Option<Arc<dyn Backend>> {
        self.present.get(name).cloned()
    }

    /// Why there is no backend of this name, one sentence for a person.
    pub fn why_not(&self, name: &str) -> String {
        let others = self.names().join(", ");
        match self.absent.get(name) {
            Some(why) => format!("backend `{name}` is not there: {why}; this node has {others}"),
            None => format!("backend `{name}` is not there, this node has {others}"),
        }
    }

    /// Names, for messages.
    pub fn names(&self) -> Vec<&'static str> {
        self.present.keys().copied().collect()
    }
}

impl std::fmt::Debug for Backends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Backends").field(&self.names()).finish()
    }
}

/// Message of a caught panic.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic without a message".to_owned())
}
