#!/usr/bin/env bash
# One would guess that ONNX Runtime's ReduceLogSumExp is as fast as the six operators that say the same (largest, difference,
# exponential, sum, logarithm, largest again): it is one pass over memory less. On the CPU onnxruntime 1.31.1 takes about nine
# times as long for it on one thread (inferred: it calls the exponential number by number, where Exp computes many at once).
# It matters here: the loss of a model that writes is a logarithm of a sum over a vocabulary, for every token; written as the
# one operator it took as long as the products of the output layer. fedge writes it out.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
cat >"$folder/observe.py" <<'END'
import importlib.metadata
import sys
import time

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper


def session(nodes, extra=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        list(extra),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def seconds(opened, x):
    opened.run(None, {"x": x})
    taken = []
    for _ in range(7):
        began = time.process_time()
        opened.run(None, {"x": x})
        taken.append(time.process_time() - began)
    return min(taken)


axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
one = [helper.make_node("ReduceLogSumExp", ["x", "axes"], ["y"], keepdims=1)]
several = [
    helper.make_node("ReduceMax", ["x", "axes"], ["m"], keepdims=1),
    helper.make_node("Sub", ["x", "m"], ["d"]),
    helper.make_node("Exp", ["d"], ["e"]),
    helper.make_node("ReduceSum", ["e", "axes"], ["s"], keepdims=1),
    helper.make_node("Log", ["s"], ["l"]),
    helper.make_node("Add", ["l", "m"], ["y"]),
]
x = np.random.default_rng(0).normal(0, 3, (128, 8192)).astype(np.float32)
first, second = session(one, [axes]), session(several, [axes])
apart = float(np.abs(first.run(None, {"x": x})[0] - second.run(None, {"x": x})[0]).max())
slow, fast = seconds(first, x), seconds(second, x)
for package in ("onnxruntime", "onnx", "numpy"):
    print(package, importlib.metadata.version(package))
print(f"128 rows of 8192: ReduceLogSumExp {1e3 * slow:.1f} ms, written out {1e3 * fast:.1f} ms, ratio {slow / fast:.1f}; apart {apart:.1e}")
sys.exit(0 if slow > 3 * fast and apart < 1e-4 else 1)
END
"$folder/venv/bin/python" "$folder/observe.py"
