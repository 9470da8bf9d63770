//! A worker: one stream, its memory, and a way to run each batch size.

use super::driver::{Buffer, CudaError, Graph, Pinned, Stream};
use super::plan::{At, Plan, Slot};
use super::{CudaModel, Execution, Shared};
use crate::backend::cuts::Cuts;
use crate::backend::{InferError, Row, TensorSpec, Worker};
use std::sync::Arc;

/// One stream with the graphs of all batch sizes. Fields are dropped in this order: graphs before what they touch.
pub(super) struct CudaWorker {
    lanes: Vec<Lane>,
    stream: Stream,
    shared: Arc<Shared>,
    cuts: Cuts,
    input_widths: Vec<usize>,
    output_widths: Vec<usize>,
    /// What the device said to the last batch, where it failed.
    broken: Option<String>,
}

/// A batch size of a worker.
struct Lane {
    /// `None` where batches run eagerly.
    graph: Option<Graph>,
    memory: LaneMemory,
    batch: usize,
}

/// What a lane works on.
struct LaneMemory {
    inputs: Vec<Pinned>,
    outputs: Vec<Pinned>,
    arena: Buffer,
}

impl CudaWorker {
    pub(super) fn new(model: &CudaModel) -> Result<Self, CudaError> {
        let stream = Stream::new(&model.device)?;
        let arenas: Vec<usize> = model.shared.plans.iter().map(|p| p.arena).collect();
        let arenas = model.device.allocate(&arenas)?;
        let mut lanes = Vec::new();
        for (plan, arena) in model.shared.plans.iter().zip(arenas) {
            lanes.push(Lane::new(model, plan, arena, &stream)?);
        }
        stream.wait()?;
        let widths = |specs: &[TensorSpec]| specs.iter().map(TensorSpec::elements).collect();
        Ok(CudaWorker {
            lanes,
            stream,
            shared: model.shared.clone(),
            cuts: model.cuts.clone(),
            input_widths: widths(&model.signature.inputs),
            output_widths: widths(&model.signature.outputs),
            broken: None,
        })
    }

    fn run_lane(&mut self, lane: usize, part: &[&Row], rows: &mut Vec<Row>) -> Result<(), CudaError> {
        let plan = &self.shared.plans[lane];
        let lane = &mut self.lanes[lane];
        for (i, (pinned, width)) in lane.memory.inputs.iter_mut().zip(&self.input_widths).enumerate() {
            let to = pinned.slice_mut();
            for r in 0..lane.batch {
                // A batch that is not full repeats its last row.
                let row = &part[r.min(part.len() - 1)][i];
                to[r * width..(r + 1) * width].copy_from_slice(row);
            }
        }
        match &lane.graph {
            Some(graph) => self.stream.replay(graph)?,
            None => lane.memory.enqueue(plan, &self.shared.constants, &self.stream)?,
        }
        self.stream.wait()?;
        let start = rows.len();
        rows.resize_with(start + part.len(), || Vec::with_capacity(self.output_widths.len()));
        for (pinned, width) in lane.memory.outputs.iter().zip(&self.output_widths) {
            for (row, values) in rows[start..].iter_mut().zip(pinned.slice().chunks_exact(*width)) {
                row.push(values.to_vec());
            }
        }
        Ok(())
    }
}

impl Lane {
    fn new(model: &CudaModel, plan: &Plan, arena: Buffer, stream: &Stream) -> Result<Self, CudaError> {
        let pinned = |specs: &[TensorSpec]| {
            specs.iter().map(|s| Pinned::new(&model.device, s.elements() * plan.batch)).collect::<Result<Vec<_>, _>>()
        };
        let (inputs, outputs) = (pinned(&model.signature.inputs)?, pinned(&model.signature.outputs)?);
        let mut memory = LaneMemory { inputs, outputs, arena };
        let graph = match model.execution {
            Execution::Graph => Some(stream.capture(|| memory.enqueue(plan, &model.shared.constants, stream))?),
            Execution::Eager => None,
        };
        Ok(Lane { graph, memory, batch: plan.batch })
    }
}

impl LaneMemory {
    /// Puts a batch on the stream: copies in, kernels, copies out.
    fn enqueue(&mut self, plan: &Plan, constants: &[Buffer], stream: &Stream) -> Result<(), CudaError> {
        let resolve = |at: At| match at.slot {
            Slot::Buffer(b) => self.arena.at(plan.offsets[b] + at.offset),
            Slot::Constant(c) => constants[c].at(at.offset),
        };
        for (slot, from) in plan.inputs.iter().zip(&self.inputs) {
            stream.upload(resolve((*slot).into()), from)?;
        }
        for step in &plan.steps {
            stream.launch(&step.call.launch(), resolve)?;
        }
        for (slot, to) in plan.outputs.iter().zip(&mut self.outputs) {
            stream.download(to, resolve((*slot).into()))?;
        }
        Ok(())
    }
}

impl Worker for CudaWorker {
    fn run(&mut self, batch: &[&Row]) -> Result<Vec<Row>, InferError> {
        self.broken = None;
        let mut rows = Vec::with_capacity(batch.len());
        for (lane, taken) in self.cuts.runs(batch.len()) {
            let part = &batch[rows.len()..rows.len() + taken];
            if let Err(error) = self.run_lane(lane, part, &mut rows) {
                self.broken = Some(error.to_string());
                return Err(InferError(error.to_string()));
            }
        }
        Ok(rows)
    }

    fn broken(&self) -> Option<String> {
        self.broken.clone()
    }
}
