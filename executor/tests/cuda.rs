//! The CUDA backend on the stand-in driver, against tract.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use executor::backend::cuda::{CudaBackend, Layout, Probe, lower_file, probe, roofline};
use executor::backend::tract::TractBackend;
use executor::backend::{Backend, LoadError, LoadOptions, Model, Row};
use fakecuda::Installed;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One test at a time; at its end nothing of the API was misused.
struct Alone {
    driver: Installed,
    misuses: u64,
    _guard: MutexGuard<'static, ()>,
}

impl Drop for Alone {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.driver.counters().misuses, self.misuses, "{}", self.driver.last_fault());
        }
    }
}

/// The stand-in is one for the process, and some tests make it fail: one test at a time.
fn driver() -> (Installed, Alone) {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let driver = fakecuda::install().unwrap();
    driver.set(0, 0);
    driver.set(1, 0);
    driver.set(2, 1 << 30);
    driver.set(3, 0);
    (driver, Alone { driver, misuses: driver.counters().misuses, _guard: guard })
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

const MODELS: [&str; 3] = ["delay.onnx", "occupancy-gru.onnx", "count-cnn.onnx"];

fn row(model: &dyn Model, seed: usize) -> Row {
    let element = |i: usize| ((i + 31 * seed) as f32 * 0.71).sin();
    model.signature().inputs.iter().map(|spec| (0..spec.elements()).map(element).collect()).collect()
}

fn assert_close(got: &[Row], want: &[Row], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (x, y) in got.iter().flatten().flatten().zip(want.iter().flatten().flatten()) {
        assert!((x - y).abs() <= 1e-4 * y.abs().max(1.0), "{what}: {x} against {y}");
    }
}

fn run(model: &dyn Model, rows: &[Row]) -> Vec<Row> {
    model.worker().unwrap().run(&rows.iter().collect::<Vec<_>>()).unwrap()
}

#[test]
fn the_probe_names_the_device() {
    let (_driver, _one) = driver();
    let Probe::On(device) = probe() else { panic!("{}", probe()) };
    assert_eq!((device.name.as_str(), device.capability), ("fakecuda PTX interpreter", (7, 5)));
}

#[test]
fn committed_models_answer_as_tract_does() {
    let (driver, _one) = driver();
    for name in MODELS {
        let path = models().join(name);
        let options = LoadOptions { max_batch: 4 };
        let tract = TractBackend.load(&path, &options).unwrap();
        for layout in [Layout::Shared, Layout::Separate] {
            let cuda = CudaBackend::with_layout(layout).load(&path, &options).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(cuda.signature(), tract.signature(), "{name}");
            let rows: Vec<Row> = (0..7).map(|i| row(cuda.as_ref(), i)).collect();
            let want = run(tract.as_ref(), &rows);
            for n in [1, 2, 3, 7] {
                assert_close(&run(cuda.as_ref(), &rows[..n]), &want[..n], &format!("{n} rows of {name}, {layout:?}"));
            }
        }
        println!("{name}: {:?}", driver.counters());
    }
}

#[test]
fn results_do_not_depend_on_order_or_eagerness() {
    let (driver, _one) = driver();
    for name in MODELS {
        let cuda = CudaBackend::default().load(&models().join(name), &LoadOptions { max_batch: 2 }).unwrap();
        let rows: Vec<Row> = (0..2).map(|i| row(cuda.as_ref(), i)).collect();
        let want = run(cuda.as_ref(), &rows);
        for (lazy, order) in [(1, 0), (0, 1), (0, 2), (1, 3)] {
            driver.set(0, lazy);
            driver.set(1, order);
            assert_eq!(run(cuda.as_ref(), &rows), want, "{name}, lazy {lazy}, order {order}");
        }
        driver.set(0, 0);
        driver.set(1, 0);
    }
}

#[test]
fn four_instances_at_once_share_weights_and_agree() {
    let (driver, _one) = driver();
    let backend = CudaBackend::default();
    let path = models().join("occupancy-gru.onnx");
    let model = backend.load(&path, &LoadOptions { max_batch: 2 }).unwrap();
    let rows: Vec<Row> = (0..4).map(|i| row(model.as_ref(), i)).collect();
    let want = run(model.as_ref(), &rows);
    let before = driver.counters();
    let worker = model.worker().unwrap();
    let one = driver.counters().device_bytes - before.device_bytes;
    drop(worker);
    let lowered = lower_file(&path, &LoadOptions { max_batch: 2 }, Layout::Shared).unwrap();
    let activations: u64 = lowered.plans.iter().map(|p| p.arena_bytes()).sum();
    assert_eq!(one, activations, "a worker costs its activations and no weights");
    std::thread::scope(|scope| {
        let run = || (0..3).map(|_| run(model.as_ref(), &rows)).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
        for thread in threads {
            thread.join().unwrap().iter().for_each(|got| assert_eq!(got, &want));
        }
    });
}

#[test]
fn a_batch_allocates_nothing_and_waits_once() {
    let (driver, _one) = driver();
    let model = CudaBackend::default().load(&models().join("delay.onnx"), &LoadOptions { max_batch: 1 }).unwrap();
    let row = row(model.as_ref(), 1);
    let mut worker = model.worker().unwrap();
    let before = driver.counters();
    for _ in 0..10 {
        worker.run(&[&row]).unwrap();
    }
    let after = driver.counters();
    assert_eq!(after.allocations, before.allocations);
    assert_eq!(after.graph_launches - before.graph_launches, 10);
    assert_eq!(after.synchronizes - before.synchronizes, 10);
}

/// Memory of this process, KiB.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_thousand_loads_leave_nothing_behind() {
    let (driver, _one) = driver();
    let backend = CudaBackend::default();
    let path = models().join("delay.onnx");
    let cycle = || {
        let model = backend.load(&path, &LoadOptions { max_batch: 2 }).unwrap();
        let row = row(model.as_ref(), 1);
        model.worker().unwrap().run(&[&row]).unwrap()
    };
    let first = cycle();
    let alive = |d: Installed| {
        let c = d.counters();
        (c.device_buffers, c.device_bytes, c.pinned_buffers, c.streams, c.events, c.graphs, c.executables, c.modules)
    };
    let before = alive(driver);
    // The allocators of the process settle first: some hundred cycles later it may not have grown by more than a
    // buffer of the smallest model a cycle would leave behind.
    let mut settled = 0;
    for i in 0..1000 {
        assert_eq!(cycle(), first);
        if i == 300 {
            settled = resident_kib();
        }
    }
    let grown = resident_kib().saturating_sub(settled);
    println!("resident after 300 cycles {settled} KiB, after 1000 {grown} more");
    assert!(grown < 4096, "the process grew by {grown} KiB in 700 cycles");
    assert_eq!(alive(driver), before);
    assert_eq!(backend.used_bytes(), 0);
    drop(backend);
    let end = driver.counters();
    assert_eq!((end.device_bytes, end.modules), (0, 0));
}

#[test]
fn what_would_overflow_the_device_is_refused_before_it_does() {
    let (driver, _one) = driver();
    let model = CudaBackend::default().load(&models().join("count-cnn.onnx"), &LoadOptions { max_batch: 4 }).unwrap();
    let row = row(model.as_ref(), 1);
    let mut worker = model.worker().unwrap();
    let want = worker.run(&[&row]).unwrap();
    driver.set(2, driver.counters().device_bytes + (129 << 20));
    let error = model.worker().err().unwrap().to_string();
    assert!(error.contains("not enough device memory"), "{error}");
    assert_eq!(worker.run(&[&row]).unwrap(), want, "who was there lives on");
}

#[test]
fn a_passing_error_costs_one_batch() {
    let (driver, _one) = driver();
    let model = CudaBackend::default().load(&models().join("delay.onnx"), &LoadOptions { max_batch: 2 }).unwrap();
    let row = row(model.as_ref(), 1);
    let (mut a, mut b) = (model.worker().unwrap(), model.worker().unwrap());
    let want = a.run(&[&row]).unwrap();
    // CUDA_ERROR_OUT_OF_MEMORY while launching.
    driver.fail(2, 0, 2);
    let error = a.run(&[&row]).unwrap_err().to_string();
    assert!(error.contains("launching a graph") && error.contains("OUT_OF_MEMORY"), "{error}");
    assert_eq!(b.run(&[&row]).unwrap(), want);
    assert_eq!(a.run(&[&row]).unwrap(), want);
    for call in [0, 4] {
        driver.fail(call, 1, 2);
        let before = driver.counters();
        assert!(model.worker().is_err(), "an allocation fails half way");
        let after = driver.counters();
        assert_eq!(
            (after.device_bytes, after.pinned_buffers, after.streams),
            (before.device_bytes, before.pinned_buffers, before.streams)
        );
    }
}

#[test]
fn a_broken_device_is_named_by_every_later_call_and_tract_lives_on() {
    let (driver, _one) = driver();
    let path = models().join("delay.onnx");
    let backend = CudaBackend::default();
    let model = backend.load(&path, &LoadOptions::default()).unwrap();
    let row = row(model.as_ref(), 1);
    let mut worker = model.worker().unwrap();
    worker.run(&[&row]).unwrap();
    // CUDA_ERROR_LAUNCH_FAILED, after which a context is lost.
    driver.fail(3, 0, 719);
    let error = worker.run(&[&row]).unwrap_err().to_string();
    assert!(error.contains("LAUNCH_FAILED"), "{error}");
    for error in [worker.run(&[&row]).unwrap_err().to_string(), model.worker().err().unwrap().to_string()] {
        assert!(error.contains("failed earlier") && error.contains("LAUNCH_FAILED"), "{error}");
    }
    let error = backend.load(&path, &LoadOptions::default()).err().unwrap();
    assert!(matches!(error, LoadError::NoBackend(_)), "{error}");
    let tract = TractBackend.load(&path, &LoadOptions::default()).unwrap();
    assert_eq!(run(tract.as_ref(), &[row]).len(), 1);
}

#[test]
fn plans_are_printed_and_share_memory() {
    let (_driver, _one) = driver();
    let other = std::env::var_os("BARISTA_BENCH_MODELS").map(|folder| PathBuf::from(folder).join("ppocr-cls.onnx"));
    let paths = MODELS.map(|name| models().join(name)).into_iter().chain(other);
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let lowered = lower_file(&path, &LoadOptions { max_batch: 2 }, Layout::Shared).unwrap();
        for plan in &lowered.plans {
            println!("{name} {plan}");
            for device in roofline::DEVICES {
                let e = roofline::estimate(plan, &device);
                assert!(e.floor_us > 0.0 && e.floor_us < e.likely_us && e.likely_us < e.slow_us);
                println!("FLOOR {name} {} {} {:.2} {:.0}", plan.batch, device.name, e.floor_us, e.likely_us);
            }
            let apart: usize = plan.buffers.iter().sum();
            assert!(plan.arena <= apart.next_multiple_of(64) + 64 * plan.buffers.len());
            assert!(plan.to_string().lines().count() == plan.steps.len() + 1);
        }
    }
}

#[test]
fn bad_files_are_errors_without_a_device_too() {
    let (_driver, _one) = driver();
    let backend: Arc<dyn Backend> = Arc::new(CudaBackend::default());
    let error = backend.load(Path::new("/nowhere/missing.onnx"), &LoadOptions::default()).err().unwrap();
    assert!(matches!(error, LoadError::Read { .. }), "{error}");
}
