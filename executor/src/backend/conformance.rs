//! One suite for every backend: what the rest of the crate relies on.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::fake::{FakeBackend, FakeModelFile};
use super::tract::TractBackend;
use super::{Backend, LoadError, LoadOptions, Model, Row};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A backend with a model file that it can load.
struct Subject {
    backend: Box<dyn Backend>,
    path: PathBuf,
    /// Keeps a written file alive.
    _file: Option<tempfile::NamedTempFile>,
}

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}

fn fake_file(file: &FakeModelFile) -> tempfile::NamedTempFile {
    let temp = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(temp.path(), serde_json::to_vec(file).unwrap()).unwrap();
    temp
}

fn subjects() -> Vec<Subject> {
    let file = fake_file(&FakeModelFile::sum(3));
    let mut subjects =
        vec![Subject { backend: Box::new(FakeBackend::default()), path: file.path().to_owned(), _file: Some(file) }];
    for model in ["delay.onnx", "occupancy-gru.onnx", "count-cnn.onnx"] {
        subjects.push(Subject { backend: Box::new(TractBackend), path: models().join(model), _file: None });
    }
    #[cfg(feature = "ort")]
    if let Some(backend) = onnxruntime() {
        for model in ["delay.onnx", "occupancy-gru.onnx", "count-cnn.onnx"] {
            subjects.push(Subject { backend: Box::new(backend.clone()), path: models().join(model), _file: None });
        }
    }
    subjects
}

/// ONNX Runtime, where `BARISTA_TEST_ORT` names its library.
#[cfg(feature = "ort")]
fn onnxruntime() -> Option<super::ort::OrtBackend> {
    let Some(library) = std::env::var_os("BARISTA_TEST_ORT") else {
        eprintln!("SKIPPED: backend ort, set BARISTA_TEST_ORT to libonnxruntime.so");
        return None;
    };
    Some(super::ort::OrtBackend::open(Path::new(&library)).unwrap())
}

fn row(model: &dyn Model, seed: usize) -> Row {
    let element = |i: usize| ((i + 31 * seed) as f32 * 0.71).sin();
    model.signature().inputs.iter().map(|spec| (0..spec.elements()).map(element).collect()).collect()
}

fn load(subject: &Subject, max_batch: usize) -> Arc<dyn Model> {
    subject.backend.load(&subject.path, &LoadOptions { max_batch }).unwrap()
}

fn assert_close(a: &[Row], b: &[Row], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (x, y) in a.iter().flatten().flatten().zip(b.iter().flatten().flatten()) {
        assert!((x - y).abs() <= 1e-4 * y.abs().max(1.0), "{what}: {x} against {y}");
    }
}

#[test]
fn a_batch_of_any_length_answers_like_its_rows_alone() {
    for subject in subjects() {
        let model = load(&subject, 8);
        assert_eq!(model.batches().first(), Some(&1), "{}", subject.path.display());
        let mut worker = model.worker().unwrap();
        let rows: Vec<Row> = (0..21).map(|i| row(model.as_ref(), i)).collect();
        let alone: Vec<Row> = rows.iter().flat_map(|row| worker.run(&[row]).unwrap()).collect();
        for n in [1, 2, 3, 5, 8, 9, 21] {
            let batch: Vec<&Row> = rows[..n].iter().collect();
            let what = format!("{} rows of {}", n, subject.path.display());
            assert_close(&worker.run(&batch).unwrap(), &alone[..n], &what);
        }
        assert!(worker.run(&[]).unwrap().is_empty());
    }
}

#[test]
fn a_request_leaves_nothing_behind_for_the_next_one() {
    for subject in subjects() {
        let model = load(&subject, 4);
        let rows: Vec<Row> = (0..4).map(|i| row(model.as_ref(), i)).collect();
        let mut used = model.worker().unwrap();
        for _ in 0..3 {
            for row in &rows {
                let fresh = model.worker().unwrap().run(&[row]).unwrap();
                assert_eq!(used.run(&[row]).unwrap(), fresh, "{}", subject.path.display());
            }
        }
    }
}

#[test]
fn answers_have_the_shape_of_the_signature() {
    for subject in subjects() {
        let model = load(&subject, 1);
        let signature = model.signature();
        assert!(!signature.inputs.is_empty() && !signature.outputs.is_empty());
        assert!(signature.batched, "{}: requests may carry rows", subject.path.display());
        let answer = model.worker().unwrap().run(&[&row(model.as_ref(), 1)]).unwrap();
        let lengths: Vec<usize> = answer[0].iter().map(Vec::len).collect();
        let expected: Vec<usize> = signature.outputs.iter().map(|spec| spec.elements()).collect();
        assert_eq!(lengths, expected, "{}", subject.path.display());
    }
}

#[test]
fn workers_of_one_model_run_side_by_side_and_agree() {
    for subject in subjects() {
        let model = load(&subject, 4);
        let rows: Vec<Row> = (0..8).map(|i| row(model.as_ref(), i)).collect();
        let run = || {
            let mut worker = model.worker().unwrap();
            rows.iter().flat_map(|row| worker.run(&[row]).unwrap()).collect::<Vec<Row>>()
        };
        let expected = run();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            for thread in threads {
                assert_close(&thread.join().unwrap(), &expected, &subject.path.display().to_string());
            }
        });
    }
}

#[test]
fn a_bad_file_is_an_error_that_names_it() {
    let good = std::fs::read(models().join("delay.onnx")).unwrap();
    let contents: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("text", b"this is no model".to_vec()),
        ("zeros", vec![0; 4096]),
        ("truncated", good[..good.len() / 2].to_vec()),
        ("noise", (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()),
    ];
    let backends: [Box<dyn Backend>; 2] = [Box::new(FakeBackend::default()), Box::new(TractBackend)];
    let backends = backends.into_iter();
    #[cfg(feature = "ort")]
    let backends = backends.chain(onnxruntime().map(|backend| Box::new(backend) as Box<dyn Backend>));
    for backend in backends {
        for (name, content) in &contents {
            let file = tempfile::Builder::new().prefix(&format!("{name}-")).tempfile().unwrap();
            std::fs::write(file.path(), content).unwrap();
            let error = backend.load(file.path(), &LoadOptions::default()).err();
            let error = error.unwrap_or_else(|| panic!("{} loads {name}", backend.name()));
            assert!(error.to_string().contains(name), "{}: {error}", backend.name());
        }
        let missing = backend.load(Path::new("/nowhere/missing.onnx"), &LoadOptions::default()).err().unwrap();
        assert!(matches!(&missing, LoadError::Read { .. }), "{missing}");
        assert!(missing.to_string().contains("missing.onnx"), "{missing}");
    }
}

#[test]
fn damage_anywhere_in_a_model_never_panics() {
    let good = std::fs::read(models().join("delay.onnx")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    // Structure sits at both ends of the file, weights between; a prime step meets every kind of byte.
    let places = (0..200).chain((200..good.len()).step_by(997)).chain(good.len() - 200..good.len());
    for at in places {
        let mut bytes = good.clone();
        bytes[at] ^= 0x5a;
        std::fs::write(file.path(), &bytes).unwrap();
        // Some damage only changes a weight or a name: loading is allowed, panicking is not.
        if let Err(error) = TractBackend.load(file.path(), &LoadOptions { max_batch: 2 }) {
            assert!(!error.to_string().is_empty());
        }
    }
}

#[test]
fn an_unknown_operator_is_named() {
    let mut bytes = std::fs::read(models().join("delay.onnx")).unwrap();
    let at = bytes.windows(4).position(|w| w == b"Relu").unwrap();
    bytes[at..at + 4].copy_from_slice(b"Zelu");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let error = TractBackend.load(file.path(), &LoadOptions::default()).err().unwrap();
    assert!(matches!(&error, LoadError::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("Zelu"), "{error}");
}

#[test]
fn committed_models_answer_as_their_test_vectors_say() {
    let text = std::fs::read_to_string(models().join("test-vectors.json")).unwrap();
    let vectors: serde_json::Value = serde_json::from_str(&text).unwrap();
    let tolerance = vectors["tolerance"].as_f64().unwrap();
    let mut compared = 0;
    for (name, model) in vectors["models"].as_object().unwrap() {
        let path = models().join(model["file"].as_str().unwrap());
        let loaded = TractBackend.load(&path, &LoadOptions { max_batch: 4 }).unwrap();
        let signature = loaded.signature();
        assert_eq!(signature.inputs[0].name, model["input_name"].as_str().unwrap(), "{name}");
        assert_eq!(signature.outputs[0].name, model["output_name"].as_str().unwrap(), "{name}");
        let mut worker = loaded.worker().unwrap();
        for case in model["cases"].as_array().unwrap() {
            let elements = signature.inputs[0].elements();
            let data = input_of(case);
            let expected = flat(&case["expected"]);
            let rows: Vec<Row> = data.chunks(elements).map(|row| vec![row.to_vec()]).collect();
            let answers = worker.run(&rows.iter().collect::<Vec<_>>()).unwrap();
            let answers: Vec<f32> = answers.into_iter().flatten().flatten().collect();
            assert_eq!(answers.len(), expected.len(), "{name}");
            for (x, y) in answers.iter().zip(&expected) {
                let error = (f64::from(*x) - y).abs() / y.abs().max(1.0);
                assert!(error <= tolerance, "{name}: {x} against {y}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 3, "the vectors compare something");
}

/// Row-major elements of a case's input: literal rows, or a sine.
fn input_of(case: &serde_json::Value) -> Vec<f32> {
    if let Some(sine) = case["input"].get("sine") {
        let number = |key: &str| sine[key].as_f64().unwrap();
        let shape: usize = case["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).product();
        let (offset, scale, step) = (number("offset"), number("scale"), number("step"));
        return (0..shape).map(|i| (offset + scale * (step * i as f64).sin()) as f32).collect();
    }
    flat(&case["input"]["rows"]).into_iter().map(|x| x as f32).collect()
}

fn flat(value: &serde_json::Value) -> Vec<f64> {
    match value {
        serde_json::Value::Array(items) => items.iter().flat_map(flat).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}
