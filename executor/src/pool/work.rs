//! What a worker thread of a pool does: batches from the queue through the model, each job finished or put back.

use super::{Accepted, Duty, Parts, PoolEvent, Shared};
use crate::backend::{InferError, Row, Worker, panic_message};
use crate::metrics::ServiceLabel;
use crate::queue::{Class, Entry};
use crate::request::{Fault, respond};
use crate::stats::Run;
use schemas::headers::Reason;
use schemas::prediction::ResultParameters;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::Instant;

pub(super) fn rows_of(batch: &[Entry<Accepted>]) -> u32 {
    batch.iter().map(|e| e.rows).sum()
}

/// A worker thread.
pub(super) fn work(shared: &Shared, duty: Duty) {
    let _lease = shared.parts.cores.pin();
    let mut worker: Option<Box<dyn Worker>> = None;
    loop {
        let made = match worker.take() {
            Some(worker) => Ok(worker),
            None => make_worker(shared),
        };
        let mut ready = match made {
            Ok(worker) => worker,
            Err(error) => {
                *shared.lock().alive(duty) -= 1;
                (shared.parts.events)(PoolEvent::Broke(error.0));
                return;
            }
        };
        let Some(batch) = shared.next_batch(duty) else { return };
        let rows = rows_of(&batch);
        match run_batch(shared, ready.as_mut(), batch) {
            // After a panic the worker's state is unknown: it gets a new one.
            After::Done { orders, usable } => {
                shared.batch_done(duty, rows, &orders, Vec::new());
                worker = usable.then_some(ready);
            }
            After::Broken { orders, left, why } => {
                shared.batch_done(duty, rows, &orders, left);
                *shared.lock().alive(duty) -= 1;
                (shared.parts.events)(PoolEvent::Broke(why));
                return;
            }
        }
    }
}

/// What a batch left behind.
enum After {
    /// All its jobs are finished.
    Done {
        /// Their order keys.
        orders: Vec<Option<u64>>,
        /// The worker can be used again.
        usable: bool,
    },
    /// The engine failed.
    Broken {
        /// Order keys of those that were finished before.
        orders: Vec<Option<u64>>,
        /// The others.
        left: Vec<Accepted>,
        /// What the engine says.
        why: String,
    },
}

fn orders_of(jobs: &[Accepted]) -> Vec<Option<u64>> {
    jobs.iter().map(|job| job.order).filter(Option::is_some).collect()
}

fn make_worker(shared: &Shared) -> Result<Box<dyn Worker>, InferError> {
    catch_unwind(AssertUnwindSafe(|| shared.parts.model.worker()))
        .unwrap_or_else(|panic| Err(InferError(format!("worker: {}", panic_message(panic.as_ref())))))
}

/// Runs a batch and finishes its jobs.
fn run_batch(shared: &Shared, worker: &mut dyn Worker, batch: Vec<Entry<Accepted>>) -> After {
    let parts = &shared.parts;
    let size = batch.len();
    let span = tracing::info_span!(
        "batch",
        service = parts.answerer.service,
        version = parts.answerer.version,
        requests = size,
        rows = rows_of(&batch),
    );
    if let Some(first) = batch.first() {
        runtime::trace::set_parent(&span, &first.item.record.headers);
    }
    let _entered = span.enter();
    let jobs: Vec<Accepted> = batch.into_iter().map(|e| e.item).collect();
    let orders = orders_of(&jobs);
    let (outcome, usable) = infer(parts, worker, &jobs, size);
    let error = match outcome {
        Ok(ran) => {
            finish_answered(parts, jobs, &ran, size);
            return After::Done { orders, usable };
        }
        Err(error) => error,
    };
    if let Some(why) = worker.broken().filter(|_| usable) {
        return After::Broken { orders: Vec::new(), left: jobs, why };
    }
    if size > 1 {
        return run_alone(shared, worker, jobs, usable);
    }
    for job in jobs {
        job.finish(Err(Fault::new(Reason::InferenceFailed, error.0.clone())));
    }
    After::Done { orders, usable }
}

/// After a batch failed: each request alone, so that only the one at fault is rejected.
fn run_alone(shared: &Shared, worker: &mut dyn Worker, jobs: Vec<Accepted>, mut usable: bool) -> After {
    let parts = &shared.parts;
    let mut fresh: Option<Box<dyn Worker>> = None;
    let mut orders = Vec::new();
    let mut jobs = jobs.into_iter();
    while let Some(job) = jobs.next() {
        if !usable {
            match make_worker(shared) {
                Ok(made) => fresh = Some(made),
                Err(error) => {
                    orders.push(job.order);
                    job.finish(Err(Fault::new(Reason::InferenceFailed, error.0)));
                    continue;
                }
            }
        }
        let current: &mut dyn Worker = match fresh.as_deref_mut() {
            Some(made) => made,
            None => worker,
        };
        let order = job.order;
        let alone = vec![job];
        let (outcome, still_usable) = infer(parts, current, &alone, 1);
        usable = still_usable;
        match outcome {
            Ok(ran) => finish_answered(parts, alone, &ran, 1),
            Err(error) => {
                if let Some(why) = current.broken().filter(|_| usable) {
                    return After::Broken { orders, left: alone.into_iter().chain(jobs).collect(), why };
                }
                for job in alone {
                    job.finish(Err(Fault::new(Reason::InferenceFailed, error.0.clone())));
                }
            }
        }
        orders.push(order);
    }
    After::Done { orders, usable: usable && fresh.is_none() }
}

/// A finished inference.
struct Ran {
    rows: Vec<Row>,
    started: Instant,
    infer_ms: f64,
}

/// Runs the jobs' rows as one batch; the flag is false when the worker cannot be used again.
fn infer(parts: &Parts, worker: &mut dyn Worker, jobs: &[Accepted], size: usize) -> (Result<Ran, InferError>, bool) {
    let rows: Vec<&Row> = jobs.iter().flat_map(|job| job.request.rows.iter()).collect();
    let started = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(|| worker.run(&rows)));
    let infer_ms = started.elapsed().as_secs_f64() * 1e3;
    let label = ServiceLabel { service: parts.answerer.service.clone() };
    parts.metrics.inference_seconds.get_or_create(&label).observe(infer_ms / 1e3);
    parts.metrics.batch_size.get_or_create(&label).observe(size as f64);
    match result {
        Ok(Ok(answers)) if answers.len() == rows.len() => (Ok(Ran { rows: answers, started, infer_ms }), true),
        Ok(Ok(answers)) => {
            let detail = format!("the model gave {} answers for {} rows", answers.len(), rows.len());
            (Err(InferError(detail)), true)
        }
        Ok(Err(error)) => (Err(error), true),
        Err(panic) => {
            let message = panic_message(panic.as_ref());
            tracing::error!(service = parts.answerer.service, message, "the model panicked");
            (Err(InferError(format!("the model panicked: {message}"))), false)
        }
    }
}

fn finish_answered(parts: &Parts, jobs: Vec<Accepted>, ran: &Ran, batch_size: usize) {
    let now_ms = parts.clock.now_ms();
    let label = ServiceLabel { service: parts.answerer.service.clone() };
    let rows_in_run = u32::try_from(ran.rows.len()).unwrap_or(u32::MAX);
    let background = jobs.first().is_some_and(|job| job.class == Class::Batch);
    let mut answers = ran.rows.as_slice();
    for job in jobs {
        let (own, rest) = answers.split_at(job.request.rows.len());
        answers = rest;
        let queued = ran.started.saturating_duration_since(job.received);
        parts.metrics.queue_seconds.get_or_create(&label).observe(queued.as_secs_f64());
        let parameters = ResultParameters {
            node: parts.node.clone(),
            backend: parts.backend.clone(),
            batch_size: u32::try_from(batch_size).unwrap_or(u32::MAX),
            queue_ms: queued.as_secs_f64() * 1e3,
            infer_ms: ran.infer_ms,
            deadline_met: now_ms <= job.deadline_ms,
        };
        let signature = parts.model.signature();
        let out = respond(&parts.answerer, signature, &job.record, &job.request, own, parameters);
        job.finish(out);
    }
    let busy_ms = ran.started.elapsed().as_secs_f64() * 1e3;
    let run = Run { rows: rows_in_run, infer_ms: ran.infer_ms, busy_ms, background };
    parts.stats.lock().unwrap_or_else(PoisonError::into_inner).ran(now_ms, run);
}
