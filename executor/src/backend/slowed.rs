//! A model that takes its time: emulates a slower machine.
//!
//! The inference is real; after it the worker rests until the batch has taken `floor` for each of its rows, and so
//! holds its permit as long as a slow core would. For demonstrations and tests of scaling on one fast machine.

use super::{InferError, Model, Row, Signature, Worker};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A model whose rows take at least a given time each.
pub struct Slowed {
    model: Arc<dyn Model>,
    floor: Duration,
}

impl Slowed {
    /// `model`, at least `floor` a row.
    pub fn new(model: Arc<dyn Model>, floor: Duration) -> Self {
        Slowed { model, floor }
    }
}

struct SlowedWorker {
    worker: Box<dyn Worker>,
    floor: Duration,
}

impl Model for Slowed {
    fn signature(&self) -> &Signature {
        self.model.signature()
    }

    fn batches(&self) -> &[usize] {
        self.model.batches()
    }

    fn worker(&self) -> Result<Box<dyn Worker>, InferError> {
        Ok(Box::new(SlowedWorker { worker: self.model.worker()?, floor: self.floor }))
    }
}

impl Worker for SlowedWorker {
    fn run(&mut self, batch: &[&Row]) -> Result<Vec<Row>, InferError> {
        let begin = Instant::now();
        let result = self.worker.run(batch);
        let least = self.floor * u32::try_from(batch.len()).unwrap_or(u32::MAX);
        std::thread::sleep(least.saturating_sub(begin.elapsed()));
        result
    }

    fn broken(&self) -> Option<String> {
        self.worker.broken()
    }
}
