//! Measures a model: load time, memory, and latency and throughput by workers and batch.
//!
//! What is measured is what the node runs: the same backend, one thread and one state a worker, a batch cut into runs
//! as the backend cuts it. The process should be otherwise idle; the first load of a process is the one to believe for
//! memory. Blocking: call it off the async threads.
//!
//! Left out: queueing, decoding and writing (the executor's own, measured live).

pub mod fit;

use crate::backend::cuda::roofline::{self, Figures};
use crate::backend::cuda::{self, Layout, Lowered};
use crate::backend::{Backend, InferError, LoadError, LoadOptions, Model, Row, Signature};
use crate::stats::quantile;
use schemas::profile::{LatencyDistribution, Profile, ProfilePoint};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What is measured and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Numbers of workers.
    pub workers: Vec<u32>,
    /// Numbers of rows in a batch.
    pub batches: Vec<u32>,
    /// Before each point, unmeasured.
    pub warmup: Duration,
    /// Shortest time of a point.
    pub duration: Duration,
    /// A point goes on until it has this many batches, …
    pub min_samples: usize,
    /// … but no longer than this.
    pub max_duration: Duration,
    /// Pin each worker to a core of its own, as far as there are cores.
    pub pin: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            workers: vec![1],
            batches: vec![1],
            warmup: Duration::from_millis(200),
            duration: Duration::from_secs(2),
            min_samples: 200,
            max_duration: Duration::from_secs(15),
            pin: false,
        }
    }
}

impl Options {
    /// Longest time that measuring can take, apart from loading.
    pub fn longest(&self) -> Duration {
        let points = u32::try_from(self.workers.len() * self.batches.len()).unwrap_or(u32::MAX);
        (self.warmup + self.max_duration) * points
    }
}

/// Told before each point and once at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Points measured.
    pub done: usize,
    /// Points in all.
    pub total: usize,
    /// Workers and batch of the next point; absent at the end.
    pub next: Option<(u32, u32)>,
}

/// A model could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options ask for nothing, or for nobody to do it.
    #[error("{0}")]
    Options(String),
    /// The file could not be read for its checksum.
    #[error("model {}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The model could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model failed on an input of its own shape.
    #[error("{workers} workers, batch {batch}: {source}")]
    Infer {
        /// Workers of the point.
        workers: u32,
        /// Batch of the point.
        batch: u32,
        /// What the backend says.
        source: InferError,
    },
}

/// Measures the model at `path` on `backend`.
pub fn measure(
    path: &Path,
    backend: &dyn Backend,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> Result<Profile, Error> {
    let (workers, batches) = (&options.workers, &options.batches);
    if workers.is_empty() || batches.is_empty() || workers.contains(&0) || batches.contains(&0) {
        return Err(Error::Options("workers and batch sizes must be given and be at least 1".to_owned()));
    }
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let sha256 = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    drop(bytes);
    let max_batch = batches.iter().max().map_or(1, |b| *b as usize);

    let before_mib = resident_mib();
    let started = Instant::now();
    let model = backend.load(path, &LoadOptions { max_batch })?;
    let row = sample_row(model.signature());
    let first = model.worker().and_then(|mut worker| worker.run(&[&row]));
    first.map_err(|source| Error::Infer { workers: 1, batch: 1, source })?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let memory_mib = (resident_mib() - before_mib).max(0.0);

    let pairs: Vec<(u32, u32)> = workers.iter().flat_map(|w| batches.iter().map(move |b| (*w, *b))).collect();
    let mut points = Vec::with_capacity(pairs.len());
    let mut distributions = Vec::with_capacity(pairs.len());
    for &(workers, batch) in &pairs {
        progress(Progress { done: points.len(), total: pairs.len(), next: Some((workers, batch)) });
        let measured = measure_point(model.as_ref(), &row, workers, batch, options);
        let (point, distribution) = measured.map_err(|source| Error::Infer { workers, batch, source })?;
        points.push(point);
        distributions.extend(distribution);
    }
    progress(Progress { done: points.len(), total: pairs.len(), next: None });
    Ok(Profile {
        model: path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
        sha256,
        backend: backend.name().to_owned(),
        host: host(),
        load_ms,
        memory_mib,
        points,
        estimated: false,
        distributions,
    })
}

/// The profile that a model would have on a device nobody has measured it on, by `backend::cuda::roofline`: marked as an
/// estimate. One worker; the batch sizes are those a plan is made for (1, 2, 4, …) up to the largest asked for. Gives
/// the lowered model too.
pub fn estimate(path: &Path, device: &Figures, max_batch: u32) -> Result<(Profile, Lowered), Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let sha256 = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let started = Instant::now();
    let lowered = cuda::lower_file(path, &LoadOptions { max_batch: max_batch.max(1) as usize }, Layout::default())?;
    let load_ms = started.elapsed().as_secs_f64() * 1e3;
    let constants: usize = lowered.constants.all().iter().map(|words| 4 * words.len()).sum();
    let activations: u64 = lowered.plans.iter().map(|plan| plan.arena_bytes()).sum();
    let profile = Profile {
        model: path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
        sha256,
        backend: "cuda".to_owned(),
        host: format!("{} by its data sheet", device.name),
        // What the device adds (its context, copying the weights) is not known.
        load_ms,
        memory_mib: (constants as u64 + activations) as f64 / f64::from(1 << 20),
        points: lowered.plans.iter().map(|plan| roofline::point(plan, device)).collect(),
        estimated: true,
        distributions: Vec::new(),
    };
    Ok((profile, lowered))
}

/// A row of the model's shape; the values vary, so that no operator sees all zeros.
fn sample_row(signature: &Signature) -> Row {
    let element = |i: usize| (i as f32 * 0.37).sin();
    signature.inputs.iter().map(|spec| (0..spec.elements()).map(element).collect()).collect()
}

/// What the threads of a point share.
struct Point<'a> {
    model: &'a dyn Model,
    rows: Vec<&'a Row>,
    options: &'a Options,
    start: Barrier,
    samples: AtomicUsize,
    failed: AtomicBool,
}

fn measure_point(
    model: &dyn Model,
    row: &Row,
    workers: u32,
    batch: u32,
    options: &Options,
) -> Result<(ProfilePoint, Option<LatencyDistribution>), InferError> {
    let cores = if options.pin { core_affinity::get_core_ids().unwrap_or_default() } else { Vec::new() };
    let point = Point {
        model,
        rows: vec![row; batch as usize],
        options,
        start: Barrier::new(workers as usize),
        samples: AtomicUsize::new(0),
        failed: AtomicBool::new(false),
    };
    let measured: Vec<Result<Vec<f64>, InferError>> = std::thread::scope(|scope| {
        let spawn = |i: u32| {
            let (point, core) = (&point, cores.get(i as usize).copied());
            scope.spawn(move || {
                if let Some(core) = core {
                    core_affinity::set_for_current(core);
                }
                point.work()
            })
        };
        let threads: Vec<_> = (0..workers).map(spawn).collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|r| r.unwrap_or_else(|_| Err(InferError("the model panicked".to_owned())))).collect()
    });
    let mut times_ms = Vec::new();
    let mut rps = 0.0;
    for of_worker in measured {
        let of_worker = of_worker?;
        let busy_s = of_worker.iter().sum::<f64>() / 1e3;
        rps += of_worker.len() as f64 * f64::from(batch) / busy_s.max(1e-9);
        times_ms.extend(of_worker);
    }
    let at = |q| quantile(times_ms.clone(), q);
    let point = ProfilePoint { workers, batch, p50_ms: at(0.5), p95_ms: at(0.95), p99_ms: at(0.99), rps };
    Ok((point, fit::describe(workers, batch, &times_ms)))
}

impl Point<'_> {
    /// One worker: warms up, waits for the others, then runs batches; their times in milliseconds.
    fn work(&self) -> Result<Vec<f64>, InferError> {
        let warm = self.warm_up();
        self.failed.fetch_or(warm.is_err(), Ordering::SeqCst);
        // Everybody comes here, also after a failure, or the others would wait for ever.
        self.start.wait();
        let mut worker = warm?;
        let began = Instant::now();
        let mut times_ms = Vec::new();
        while !self.failed.load(Ordering::Relaxed) && !self.is_enough(began.elapsed(), times_ms.is_empty()) {
            let started = Instant::now();
            if let Err(error) = worker.run(&self.rows) {
                self.failed.store(true, Ordering::SeqCst);
                return Err(error);
            }
            times_ms.push(started.elapsed().as_secs_f64() * 1e3);
            self.samples.fetch_add(1, Ordering::Relaxed);
        }
        Ok(times_ms)
    }

    fn warm_up(&self) -> Result<Box<dyn crate::backend::Worker>, InferError> {
        // A panic here would leave the others at the barrier.
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut worker = self.model.worker()?;
            let began = Instant::now();
            worker.run(&self.rows)?;
            while began.elapsed() < self.options.warmup {
                worker.run(&self.rows)?;
            }
            Ok(worker)
        }));
        caught.unwrap_or_else(|panic| Err(InferError(crate::backend::panic_message(panic.as_ref()))))
    }

    /// Each worker measures at least one batch, however long it takes.
    fn is_enough(&self, elapsed: Duration, first: bool) -> bool {
        let sampled =
            elapsed >= self.options.duration && self.samples.load(Ordering::Relaxed) >= self.options.min_samples;
        !first && (sampled || elapsed >= self.options.max_duration)
    }
}

/// Resident memory of this process, MiB; 0 where the system does not tell.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|l| l.trim().strip_suffix("kB")).and_then(|kib| kib.trim().parse::<f64>().ok()).unwrap_or(0.0)
        / 1024.0
}

/// Processor and cores of this machine.
pub fn host() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split_once(':'));
    let model = model.map_or("unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {cores} cores")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::backend::fake::{FakeBackend, FakeModelFile};

    fn quick(workers: &[u32], batches: &[u32]) -> Options {
        Options {
            workers: workers.to_vec(),
            batches: batches.to_vec(),
            warmup: Duration::ZERO,
            duration: Duration::ZERO,
            min_samples: 20,
            max_duration: Duration::from_secs(10),
            pin: false,
        }
    }

    fn fake_file(file: &FakeModelFile) -> tempfile::NamedTempFile {
        let temp = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(temp.path(), serde_json::to_vec(file).unwrap()).unwrap();
        temp
    }

    #[test]
    fn every_point_is_measured_and_told() {
        let file = fake_file(&FakeModelFile { batch_us: 200, row_us: 100, ..FakeModelFile::sum(3) });
        let mut told = Vec::new();
        let profile =
            measure(file.path(), &FakeBackend::default(), &quick(&[1, 2], &[1, 4]), &mut |p| told.push(p)).unwrap();
        assert_eq!(profile.problems(), Vec::<String>::new());
        let pairs: Vec<_> = profile.points.iter().map(|p| (p.workers, p.batch)).collect();
        assert_eq!(pairs, [(1, 1), (1, 4), (2, 1), (2, 4)]);
        for (point, described) in profile.points.iter().zip(&profile.distributions) {
            assert_eq!((point.workers, point.batch), (described.workers, described.batch));
            assert!(described.samples >= 20 && profile.fitted_p95_ms(point.workers, point.batch).is_some());
        }
        assert!(profile.points[1].p50_ms >= 0.6, "a fake batch of four takes at least 0.6 ms: {:?}", profile.points[1]);
        assert!(profile.load_ms > 0.0 && profile.memory_mib >= 0.0);
        assert_eq!(profile.sha256.len(), 64);
        assert_eq!(told.len(), 5);
        assert_eq!(told[4], Progress { done: 4, total: 4, next: None });
    }

    #[test]
    fn what_cannot_be_measured_is_an_error() {
        let none = measure(Path::new("/nowhere.onnx"), &FakeBackend::default(), &quick(&[1], &[1]), &mut |_| {});
        assert!(matches!(none, Err(Error::Read { .. })), "{none:?}");
        let file = fake_file(&FakeModelFile::sum(1));
        let zero = measure(file.path(), &FakeBackend::default(), &quick(&[0], &[1]), &mut |_| {});
        assert!(matches!(zero, Err(Error::Options(_))), "{zero:?}");
        // The sample row begins with sin(0).
        let fails = fake_file(&FakeModelFile { fails_on: Some(0.0), ..FakeModelFile::sum(1) });
        let failed = measure(fails.path(), &FakeBackend::default(), &quick(&[2], &[1]), &mut |_| {});
        assert!(matches!(failed, Err(Error::Infer { .. })), "{failed:?}");
    }

    #[test]
    fn the_host_names_its_cores() {
        assert!(host().contains("cores"));
    }
}
