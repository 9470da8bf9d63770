//! The conformance suite of the CUDA backend: run on the stand-in driver by `cuda_conformance`, and on a real device by
//! the example `gpu_check`.

#![allow(unreachable_pub, reason = "one module of two programs")]

pub mod cases;
pub mod onnx;

use cases::Domain;
use executor::backend::{Backend, Model, Row};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Largest difference from tract, relative to the larger of 1 and the size of the number.
pub const TOLERANCE: f32 = 1e-4;
/// Seed of weights and inputs unless `BARISTA_TEST_SEED` names another.
const SEED: u64 = 7;

/// The seed of this run.
pub fn seed() -> u64 {
    std::env::var("BARISTA_TEST_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(SEED)
}

/// `ppocr-cls.onnx`, which is not in the repository: where `BARISTA_BENCH_MODELS` names its folder or
/// `bench/peers/models.sh` put it. That script is run where `BARISTA_REQUIRE_REAL=1` asks for everything; elsewhere
/// its absence is said, and the model left out.
pub fn ppocr_cls() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folder =
        std::env::var_os("BARISTA_BENCH_MODELS").map_or_else(|| root.join("target/bench-models"), PathBuf::from);
    let path = folder.join("ppocr-cls.onnx");
    if path.is_file() {
        return Some(path);
    }
    if std::env::var("BARISTA_REQUIRE_REAL").as_deref() != Ok("1") {
        eprintln!("SKIPPED: ppocr-cls is not in {}; bench/peers/models.sh fetches it", folder.display());
        return None;
    }
    let script = root.join("bench/peers/models.sh");
    let fetched = std::process::Command::new(&script).arg("--small").arg(&folder).status();
    let fetched = fetched.is_ok_and(|status| status.success()) && path.is_file();
    assert!(fetched, "BARISTA_REQUIRE_REAL=1, and {} did not bring {}", script.display(), path.display());
    Some(path)
}

/// `n` rows for a model.
pub fn rows(model: &dyn Model, n: usize, domain: Domain, seed: u64) -> Vec<Row> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let range = match domain {
        Domain::Any => -2.0f32..2.0,
        Domain::Positive => 0.1..3.0,
    };
    let mut tensor = |n: usize| (0..n).map(|_| rng.random_range(range.clone())).collect();
    (0..n).map(|_| model.signature().inputs.iter().map(|spec| tensor(spec.elements())).collect()).collect()
}

/// Answers of one worker to the rows as one batch.
pub fn answers(model: &dyn Model, rows: &[Row]) -> Result<Vec<Row>, String> {
    let mut worker = model.worker().map_err(|e| e.to_string())?;
    worker.run(&rows.iter().collect::<Vec<_>>()).map_err(|e| e.to_string())
}

/// Largest difference relative to what is wanted; infinite where a number is none, or numbers are missing.
pub fn difference(got: &[Row], want: &[Row]) -> f32 {
    let lengths = |rows: &[Row]| rows.iter().map(|r| r.iter().map(Vec::len).collect()).collect::<Vec<Vec<usize>>>();
    if lengths(got) != lengths(want) {
        return f32::INFINITY;
    }
    let pairs = got.iter().flatten().flatten().zip(want.iter().flatten().flatten());
    pairs.fold(0.0, |worst, (x, y)| {
        let apart = (x - y).abs() / y.abs().max(1.0);
        if apart.is_nan() { f32::INFINITY } else { worst.max(apart) }
    })
}

/// What one model's comparison found.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Largest difference from tract.
    pub apart: f32,
    /// Operators and kernels of its plan.
    pub operators: BTreeSet<String>,
    pub kernels: BTreeSet<&'static str>,
}

/// Loads a file on tract, on the backend with graphs, and on the one without, and compares batches of each length:
/// with tract within the tolerance, without graphs to the bit.
pub fn compare(
    path: &Path,
    backends: [&dyn Backend; 3],
    lengths: &[usize],
    domain: Domain,
    seed: u64,
) -> Result<Verdict, String> {
    use executor::backend::LoadOptions;
    use executor::backend::cuda::{Layout, lower_file};
    let options = LoadOptions { max_batch: 2 };
    let [tract, graphs, eager] = backends.map(|b| b.load(path, &options).map_err(|e| format!("{}: {e}", b.name())));
    let (tract, graphs, eager) = (tract?, graphs?, eager?);
    if graphs.signature() != tract.signature() {
        return Err(format!("signature {:?} against {:?}", graphs.signature(), tract.signature()));
    }
    let mut verdict = Verdict::default();
    for plan in lower_file(path, &options, Layout::default()).map_err(|e| e.to_string())?.plans {
        verdict.kernels.extend(plan.steps.iter().map(|s| s.call.launch().kernel));
        verdict.operators.extend(plan.operators);
    }
    let most = lengths.iter().max().copied().unwrap_or(1);
    let rows = rows(tract.as_ref(), most, domain, seed);
    let want = answers(tract.as_ref(), &rows)?;
    for n in lengths {
        let got = answers(graphs.as_ref(), &rows[..*n])?;
        let apart = difference(&got, &want[..*n]);
        if apart > TOLERANCE {
            return Err(format!("{n} rows: {apart:e} from tract"));
        }
        if answers(eager.as_ref(), &rows[..*n])? != got {
            return Err(format!("{n} rows: the graph's replay and its calls one by one answer differently"));
        }
        verdict.apart = verdict.apart.max(apart);
    }
    Ok(verdict)
}
