"""Makes `ppocr-cls.onnx` and `resnet50.onnx`, see models.sh.

    python models.py UNPACKED_RAPIDOCR_WHEEL FOLDER [1]     1: only the first
"""

import pathlib
import sys

import numpy as np
import onnx
from onnx import numpy_helper


def set_shape(value, shape):
    dims = value.type.tensor_type.shape
    del dims.dim[:]
    for size in shape:
        dim = dims.dim.add()
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = size


def keep_real_inputs(graph):
    weights = {i.name for i in graph.initializer}
    inputs = [i for i in graph.input if i.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    del graph.value_info[:]


def ppocr_cls(wheel, folder):
    model = onnx.load(wheel / "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx")
    keep_real_inputs(model.graph)
    set_shape(model.graph.input[0], ["N", 3, 48, 192])
    set_shape(model.graph.output[0], ["N", 2])
    onnx.save(model, folder / "ppocr-cls.onnx")


def resnet50(folder):
    """The light model makes its weights by ConstantOfShape: they become random tensors of the same shape."""
    light = pathlib.Path(onnx.__file__).parent / "backend/test/data/light/light_resnet50.onnx"
    model = onnx.load(light)
    graph, rng = model.graph, np.random.default_rng(0)
    keep_real_inputs(graph)
    constants = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    shapes = {n.output[0]: tuple(int(x) for x in constants[n.input[0]]) for n in graph.node if n.op_type == "ConstantOfShape"}
    alias = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Unsqueeze" and n.input[0] in shapes}
    weights = {}
    for node in graph.node:
        for place, name in enumerate(alias.get(i, i) for i in node.input):
            if name not in shapes or name in weights:
                continue
            shape = shapes[name]
            if node.op_type in ("Conv", "Gemm") and place == 1:
                fan_in = int(np.prod(shape[1:]))
                weights[name] = rng.normal(0, np.sqrt((2 if node.op_type == "Conv" else 1) / fan_in), shape)
            elif node.op_type == "BatchNormalization":
                low, high = {1: (0.8, 1.0), 2: (-0.1, 0.1), 3: (-0.1, 0.1), 4: (0.9, 1.1)}[place]
                weights[name] = rng.uniform(low, high, shape)
            else:
                weights[name] = rng.normal(0, 0.01, shape)
    nodes = [n for n in graph.node if not (n.op_type == "ConstantOfShape" and n.output[0] in weights)]
    del graph.node[:]
    graph.node.extend(nodes)
    used = {i for n in nodes for i in n.input}
    reshapes = {n.input[1] for n in nodes if n.op_type == "Reshape"}
    kept = []
    for initializer in graph.initializer:
        if initializer.name in reshapes:
            target = numpy_helper.to_array(initializer).copy()
            target[0] = 0  # as many rows as come in
            initializer = numpy_helper.from_array(target, initializer.name)
        if initializer.name in used:
            kept.append(initializer)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items())
    set_shape(graph.input[0], ["N", 3, 224, 224])
    set_shape(graph.output[0], ["N", 1000])
    model.ir_version = 8
    onnx.save(model, folder / "resnet50.onnx")


if __name__ == "__main__":
    wheel, folder = map(pathlib.Path, sys.argv[1:3])
    ppocr_cls(wheel, folder)
    if len(sys.argv) == 3:
        resnet50(folder)
