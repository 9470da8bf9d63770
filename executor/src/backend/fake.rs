//! A backend without a model: deterministic answers after a given time, for tests of everything around it.
//!
//! Its "model file" is JSON, see [`FakeModelFile`]. Output `k` of a row (counted over all output elements) is
//! `(k + 1) · Σ inputs`. A [`Gate`] holds all its workers until a test lets batches through.

use super::{Backend, InferError, LoadError, LoadOptions, Model, Row, Signature, TensorSpec, Worker};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Name and row shape of a tensor in a fake model file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FakeTensor {
    /// Name.
    pub name: String,
    /// Shape of one row.
    pub shape: Vec<usize>,
}

/// Content of a fake model file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FakeModelFile {
    /// Inputs.
    pub inputs: Vec<FakeTensor>,
    /// Outputs.
    pub outputs: Vec<FakeTensor>,
    /// Time of a batch apart from its rows, microseconds.
    #[serde(default)]
    pub batch_us: u64,
    /// Time of each row, microseconds.
    #[serde(default)]
    pub row_us: u64,
    /// A row whose first element is this fails.
    #[serde(default)]
    pub fails_on: Option<f32>,
    /// A row whose first element is this panics.
    #[serde(default)]
    pub panics_on: Option<f32>,
}

impl FakeModelFile {
    /// One input `x` of `elements`, one output `y` of one element, no service time.
    pub fn sum(elements: usize) -> Self {
        FakeModelFile {
            inputs: vec![FakeTensor { name: "x".to_owned(), shape: vec![elements] }],
            outputs: vec![FakeTensor { name: "y".to_owned(), shape: vec![1] }],
            batch_us: 0,
            row_us: 0,
            fails_on: None,
            panics_on: None,
        }
    }
}

#[derive(Debug, Default)]
struct GateState {
    open: bool,
    passes: u64,
    waiting: u64,
    passed: u64,
}

/// Holds fake workers: each batch takes one pass, or none while the gate is open.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

impl Gate {
    /// A gate without passes.
    pub fn closed() -> Arc<Self> {
        Arc::default()
    }

    /// Lets `batches` more batches through.
    pub fn allow(&self, batches: u64) {
        self.lock().passes += batches;
        self.changed.notify_all();
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.lock().open = true;
        self.changed.notify_all();
    }

    /// Workers that wait at the gate now.
    pub fn waiting(&self) -> u64 {
        self.lock().waiting
    }

    /// Batches that went through.
    pub fn passed(&self) -> u64 {
        self.lock().passed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self) {
        let mut state = self.lock();
        state.waiting += 1;
        while !state.open && state.passes == 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        state.passed += 1;
        state.passes = state.passes.saturating_sub(u64::from(!state.open));
    }
}

/// The backend; register it under its name `fake`.
#[derive(Debug, Clone, Default)]
pub struct FakeBackend {
    gate: Option<Arc<Gate>>,
    load_gate: Option<Arc<Gate>>,
}

impl FakeBackend {
    /// Batches pass `gate` one by one.
    #[must_use]
    pub fn with_gate(mut self, gate: Arc<Gate>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Loads pass `gate` one by one.
    #[must_use]
    pub fn with_load_gate(mut self, gate: Arc<Gate>) -> Self {
        self.load_gate = Some(gate);
        self
    }
}

impl Backend for FakeBackend {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn load(&self, path: &Path, _: &LoadOptions) -> Result<Arc<dyn Model>, LoadError> {
        if let Some(gate) = &self.load_gate {
            gate.pass();
        }
        let bytes =
            std::fs::read(path).map_err(|e| LoadError::Read { path: path.to_owned(), detail: e.to_string() })?;
        let file: FakeModelFile = serde_json::from_slice(&bytes)
            .map_err(|e| LoadError::Invalid { path: path.to_owned(), detail: e.to_string() })?;
        let specs = |tensors: &[FakeTensor]| -> Vec<TensorSpec> {
            tensors.iter().map(|t| TensorSpec::fp32(t.name.clone(), t.shape.clone())).collect()
        };
        let signature = Signature { inputs: specs(&file.inputs), outputs: specs(&file.outputs), batched: true };
        Ok(Arc::new(FakeModel { file, signature, gate: self.gate.clone() }))
    }
}

struct FakeModel {
    file: FakeModelFile,
    signature: Signature,
    gate: Option<Arc<Gate>>,
}

impl Model for FakeModel {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn batches(&self) -> &[usize] {
        &[1]
    }

    fn worker(&self) -> Result<Box<dyn Worker>, InferError> {
        Ok(Box::new(FakeWorker {
            file: self.file.clone(),
            outputs: self.signature.outputs.iter().map(TensorSpec::elements).collect(),
            gate: self.gate.clone(),
        }))
    }
}

struct FakeWorker {
    file: FakeModelFile,
    outputs: Vec<usize>,
    gate: Option<Arc<Gate>>,
}

impl FakeWorker {
    fn answer(&self, row: &Row) -> Result<Row, InferError> {
        let first = row.first().and_then(|input| input.first()).copied();
        assert!(first.is_none() || first != self.file.panics_on, "fake model panics on {first:?} as it was told");
        if first.is_some() && first == self.file.fails_on {
            return Err(InferError(format!("fake model fails on {first:?} as it was told")));
        }
        let sum: f32 = row.iter().flatten().sum();
        let mut k = 0.0;
        let mut element = || {
            k += 1.0;
            k * sum
        };
        Ok(self.outputs.iter().map(|&n| std::iter::repeat_with(&mut element).take(n).collect()).collect())
    }
}

impl Worker for FakeWorker {
    fn run(&mut self, batch: &[&Row]) -> Result<Vec<Row>, InferError> {
        if let Some(gate) = &self.gate {
            gate.pass();
        }
        let time_us = self.file.batch_us + self.file.row_us * batch.len() as u64;
        if time_us > 0 {
            std::thread::sleep(Duration::from_micros(time_us));
        }
        batch.iter().map(|row| self.answer(row)).collect()
    }
}
