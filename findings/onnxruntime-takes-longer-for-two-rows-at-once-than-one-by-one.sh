#!/usr/bin/env bash
# One would guess that two rows multiplied by a matrix of 4 bits at once take less than one row twice: the codes are read once.
# With accuracy_level 0 or 1, where rows stay floats, MatMulNBits of onnxruntime 1.31.1 on the CPU takes two to three times as long for two
# rows as for one (inferred: one row is multiplied by the codes as they are, for more the matrix is widened to floats first); it
# breaks even at about three rows. With accuracy_level 4 two rows take less than one twice.
# It matters here: a device that writes two texts at the same time would batch them and be slower for it. fedge reads two or three
# texts one by one on such a base, and together from four on.
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
from onnx import TensorProto, helper, numpy_helper

SIZE, BLOCK = 1536, 32
ROWS = (1, 2, 4, 8)


def session(level):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (SIZE, SIZE // BLOCK, BLOCK // 2), dtype=np.uint8)
    scales = rng.random((SIZE, SIZE // BLOCK)).astype(np.float32) * 0.01
    about = {"K": SIZE, "N": SIZE, "bits": 4, "block_size": BLOCK, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft", **about)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", SIZE]) for name in "xy"]
    held = [numpy_helper.from_array(codes, "codes"), numpy_helper.from_array(scales, "scales")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], held)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def seconds(opened, rows):
    x = np.random.default_rng(rows).normal(size=(rows, SIZE)).astype(np.float32)
    least = 1e9
    for _ in range(60):
        began = time.process_time()
        for _ in range(5):
            opened.run(None, {"x": x})
        least = min(least, (time.process_time() - began) / 5)
    return least


for package in ("onnxruntime", "onnx", "numpy"):
    print(package, importlib.metadata.version(package))
ratios = {}
for level in (0, 1, 4):
    opened = session(level)
    taken = {rows: seconds(opened, rows) for rows in ROWS}
    ratios[level] = {rows: taken[rows] / taken[1] for rows in ROWS}
    shown = ", ".join(f"{rows} rows {ratio:.2f}" for rows, ratio in ratios[level].items())
    print(f"accuracy_level {level}, over one row: {shown}")
sys.exit(0 if ratios[0][2] > 2 and ratios[1][2] > 2 and ratios[4][2] < 2 else 1)
END
"$folder/venv/bin/python" "$folder/observe.py"
