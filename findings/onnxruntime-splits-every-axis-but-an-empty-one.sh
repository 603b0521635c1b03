#!/usr/bin/env bash
# One would guess that Split with num_outputs = 2 makes two empty tensors of an axis of size 0, as it makes two of size 1 of one of
# size 2, and as it does where the sizes are given as an input ([0, 0]). onnx's reference evaluator does; onnxruntime 1.31.1 refuses to run:
# "Invalid num_outputs value of 2. Size of dimension being split is 0". Also onnx's shape inference and checker take the model.
# It matters here: an adapter that nobody has filled in is a low-rank branch of rank 0, and such a branch in front of projections that
# are joined cannot be divided by Split with num_outputs: the graph runs with an adapter and fails without one. fedge gives sizes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.31.1 onnx==1.23.2 numpy==2.4.6
cat >"$folder/observe.py" <<'END'
import importlib.metadata
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def model(given):
    inputs, held, about = ["x"], [], {"num_outputs": 2}
    if given:
        inputs, held, about = ["x", "sizes"], [numpy_helper.from_array(np.zeros(2, np.int64), "sizes")], {}
    node = helper.make_node("Split", inputs, ["a", "b"], axis=1, **about)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, "n"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, None]) for name in "ab"]
    graph = helper.make_graph([node], "g", [x], ends, held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def ran(made, size):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    try:
        return [value.shape for value in session.run(None, {"x": np.zeros((2, size), np.float32)})]
    except Exception as error:
        return str(error).splitlines()[0]


for package in ("onnxruntime", "onnx", "numpy"):
    print(package, importlib.metadata.version(package))
counted, given = model(given=False), model(given=True)
reference = [v.shape for v in ReferenceEvaluator(counted).run(None, {"x": np.zeros((2, 0), np.float32)})]
print("size 2, num_outputs 2, onnxruntime:", ran(counted, 2))
print("size 0, num_outputs 2, reference: ", reference)
print("size 0, num_outputs 2, onnxruntime:", ran(counted, 0))
print("size 0, sizes given,   onnxruntime:", ran(given, 0))
empty = [(2, 0), (2, 0)]
same = reference == empty and ran(given, 0) == empty and "Invalid num_outputs" in ran(counted, 0)
sys.exit(0 if same else 1)
END
"$folder/venv/bin/python" "$folder/observe.py"
