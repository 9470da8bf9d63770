"""From trained arrays to an ONNX file (IR 8, opset 17), and from a file to its test vectors."""

import hashlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8


def save(path, name, doc, nodes, weights, inputs, outputs):
    """Writes one graph; `inputs` and `outputs` are (name, shape) with "N" as the free batch axis.

    Float arrays are stored as float32. The bytes are a function of the arguments alone: no date, no
    tool version, and protobuf is told to be deterministic.
    """
    value = lambda n, s: helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
    initializers = [
        numpy_helper.from_array(v if v.dtype == np.int64 else v.astype(np.float32), k)
        for k, v in weights.items()
    ]
    graph = helper.make_graph(
        nodes, name, [value(*i) for i in inputs], [value(*o) for o in outputs], initializers
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="barista models/train.py",
        doc_string=doc,
    )
    model.ir_version = IR_VERSION
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def run(path, x):
    """The outputs of a file in ONNX Runtime, one thread: an implementation that is not ours."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (feed,) = [i.name for i in session.get_inputs()]
    return session.run(None, {feed: x.astype(np.float32)})[0]


def agree(path, x, expected, tolerance=1e-4):
    """Fails unless ONNX Runtime answers as `expected` within `tolerance`, relative to max(1, |y|)."""
    got = run(path, x)
    worst = float(np.max(np.abs(got - expected) / np.maximum(1.0, np.abs(expected))))
    if not worst <= tolerance:
        raise SystemExit(f"{path.name}: ONNX Runtime and the numpy reference differ by {worst:.2e}")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sine(shape, offset, scale, step=0.01):
    """The deterministic input of the test vectors: offset + scale * sin(step * i), i = flat index.

    Computed in float64 and rounded once to float32, so that any language reproduces it.
    """
    i = np.arange(int(np.prod(shape)), dtype=np.float64)
    return (offset + scale * np.sin(step * i)).astype(np.float32).reshape(shape)


def case(tensor, expected, source):
    """One entry of test-vectors.json; `source` is how a reader obtains the input."""
    return {
        "input": source,
        "shape": list(tensor.shape),
        "expected": [float(np.float32(v)) for v in np.ravel(expected)],
    }


def sine_case(reference, shape, offset, scale, step=0.01):
    """A case whose input is `sine`, answered by `reference(tensor)`."""
    tensor = sine(shape, offset, scale, step)
    return case(tensor, reference(tensor), {"sine": {"offset": offset, "scale": scale, "step": step}})


def confirm(path, entry):
    """Reads one case as a test in another language does and holds ONNX Runtime against it."""
    source = entry["input"]
    tensor = np.array(source["rows"], np.float32) if "rows" in source else sine(entry["shape"], **source["sine"])
    expected = np.array(entry["expected"]).reshape(entry["shape"][0], -1)
    agree(path, tensor.reshape(entry["shape"]), expected)
