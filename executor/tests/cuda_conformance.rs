//! The CUDA backend on the stand-in driver, operator by operator, against tract.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod cuda_suite;

use cuda_suite::cases::{self, Domain};
use cuda_suite::onnx::{Attribute, Graph};
use cuda_suite::{compare, seed};
use executor::backend::cuda::lower::OPERATORS;
use executor::backend::cuda::{CudaBackend, Execution, Layout, lower_file};
use executor::backend::tract::TractBackend;
use executor::backend::{Backend, LoadError, LoadOptions};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

#[test]
fn every_operator_answers_as_tract_does() {
    let driver = fakecuda::install().unwrap();
    let (graphs, eager) = (CudaBackend::default(), CudaBackend::with_execution(Execution::Eager));
    let folder = tempfile::tempdir().unwrap();
    let seed = seed();
    println!("seed {seed}; BARISTA_TEST_SEED names another");
    let (mut operators, mut kernels, mut failures) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let cases = cases::all(seed);
    let total = cases.len();
    let mut worst = (0.0, String::new());
    for (i, case) in cases.into_iter().enumerate() {
        let path = folder.path().join("case.onnx");
        std::fs::write(&path, &case.bytes).unwrap();
        match compare(&path, [&TractBackend, &graphs, &eager], &[1, 3], case.domain, seed + i as u64) {
            Ok(verdict) => {
                operators.extend(verdict.operators);
                kernels.extend(verdict.kernels);
                if verdict.apart > worst.0 {
                    worst = (verdict.apart, case.name);
                }
            }
            Err(why) => failures.push(format!("{}: {why} {}", case.name, driver.last_fault())),
        }
    }
    assert_eq!(driver.counters().misuses, 0, "{}", driver.last_fault());
    println!("{total} models, {} operators, {} kernels; furthest from tract {worst:?}", operators.len(), kernels.len());
    assert!(failures.is_empty(), "seed {seed}: {} of {total} models:\n{}", failures.len(), failures.join("\n"));
    let missing: Vec<&str> = OPERATORS.into_iter().filter(|o| !operators.contains(*o)).collect();
    assert!(missing.is_empty(), "no model has {missing:?}");
    let committed = committed_kernels();
    let unused: Vec<&String> = committed.iter().filter(|k| !kernels.contains(k.as_str())).collect();
    assert!(unused.is_empty(), "no model runs {unused:?}");
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/README.md")).unwrap();
    let unsaid: Vec<&String> = committed.iter().filter(|k| !readme.contains(&format!("`{k}`"))).collect();
    assert!(unsaid.is_empty(), "kernels/README.md states no floor of {unsaid:?}");
}

/// A bias and an activation after a product cost no call of their own, whatever the size of the last axis.
#[test]
fn what_follows_a_product_is_part_of_it() {
    let launches = |case: &cases::Case| {
        let file = tempfile::NamedTempFile::with_suffix(".onnx").unwrap();
        std::fs::write(file.path(), &case.bytes).unwrap();
        let lowered = lower_file(file.path(), &LoadOptions { max_batch: 2 }, Layout::Shared).unwrap();
        lowered.plans.iter().map(|p| p.steps.len()).collect::<Vec<_>>()
    };
    let cases = cases::all(seed());
    let joined: Vec<_> =
        cases.iter().filter(|c| c.name.starts_with("Gemm to") || c.name.starts_with("Conv to 5, [1, 1]")).collect();
    assert!(joined.len() > 20, "{}", joined.len());
    for case in joined {
        assert_eq!(launches(case), [1, 1], "{}", case.name);
    }
}

/// Not in the allow-list: the whole model is refused, with the operator and the node.
#[test]
fn other_operators_are_refused_by_name() {
    let driver = fakecuda::install().unwrap();
    let refused = |build: &dyn Fn(&mut Graph, &str) -> String| {
        let mut graph = Graph::new(seed());
        let x = graph.input(&[4, 5]);
        let y = build(&mut graph, &x);
        graph.output(&y);
        let file = tempfile::NamedTempFile::with_suffix(".onnx").unwrap();
        std::fs::write(file.path(), graph.bytes()).unwrap();
        TractBackend.load(file.path(), &LoadOptions::default()).expect("the CPU takes it");
        let error = CudaBackend::default().load(file.path(), &LoadOptions::default()).err().expect("refused");
        assert!(matches!(error, LoadError::Unsupported { backend: "cuda", .. }), "{error}");
        error.to_string()
    };
    let text = refused(&|g, x| g.node("Sin", &[x], &[]));
    assert!(text.contains("unsupported operator Sin at node Sin"), "{text}");
    let text = refused(&|g, x| {
        let picked = g.integers(&[2, 0]);
        g.node("Gather", &[x, &picked], &[("axis", Attribute::Int(1))])
    });
    assert!(text.contains("unsupported operator Gather at node Gather"), "{text}");
    let text = refused(&|g, x| {
        let swapped = g.node("Transpose", &[x], &[("perm", Attribute::Ints(vec![1, 0, 2]))]);
        let (w, r) = (g.weights(&[1, 12, 5], 0.5), g.weights(&[1, 12, 3], 0.5));
        let outputs = g.nodes("LSTM", &[&swapped, &w, &r], &[("hidden_size", Attribute::Int(3))], 2);
        let axes = g.integers(&[0]);
        g.node("Squeeze", &[&outputs[1], &axes], &[])
    });
    assert!(text.contains("unsupported operator Scan at node LSTM"), "{text}");
    assert_eq!(driver.counters().misuses, 0);
}

/// Whole models: those of this repository, and PaddleOCR's classifier of text direction.
#[test]
fn whole_models_answer_as_tract_does() {
    let driver = fakecuda::install().unwrap();
    let (graphs, eager) = (CudaBackend::default(), CudaBackend::with_execution(Execution::Eager));
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let mut models: Vec<PathBuf> =
        ["delay.onnx", "occupancy-gru.onnx", "count-cnn.onnx"].iter().map(|name| committed.join(name)).collect();
    models.extend(cuda_suite::ppocr_cls());
    for path in models {
        let start = std::time::Instant::now();
        let verdict = compare(&path, [&TractBackend, &graphs, &eager], &[1, 3], Domain::Any, seed());
        let verdict = verdict.unwrap_or_else(|e| panic!("seed {}: {}: {e}", seed(), path.display()));
        println!("{}: {:e} from tract, {:?}", path.display(), verdict.apart, start.elapsed());
    }
    assert_eq!(driver.counters().misuses, 0, "{}", driver.last_fault());
}

/// Entries of the committed PTX.
fn committed_kernels() -> Vec<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/ptx");
    let mut names = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let entries = text.lines().filter_map(|l| l.strip_prefix(".visible .entry ")?.split('(').next());
        names.extend(entries.map(str::to_owned));
    }
    assert!(names.len() > 10, "{names:?}");
    names
}
