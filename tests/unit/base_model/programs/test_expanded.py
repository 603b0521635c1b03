"""A program whose weights are expanded once. Its gradients: tests/unit/client/test_programs.py. (docs/adr/0097)"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from base_model.programs.document import ANSWER
from base_model.programs.expanded import expanded
from base_model.programs.folder import Program
from base_model.verify import read_manifest
from tests.unit.base_model.programs.trained_plan import TRAIN

MOST = 2**20


def test_nothing_is_expanded_at_a_step_and_nobody_reads_what_is_not_there(
    program: Program, tiny_base: Path
) -> None:
    graph, values = expanded(program.graphs[TRAIN], tiny_base, most=MOST)
    model = onnx.load_model_from_string(graph).graph
    assert not [node for node in model.node if node.op_type == "GatherBlockQuantized"]
    sources = {item.name for item in (*model.input, *model.initializer)}
    for node in model.node:
        assert sources.issuperset(name for name in node.input if name)
        sources.update(node.output)
    read = {name for node in model.node for name in node.input} | {o.name for o in model.output}
    assert read >= {item.name for item in model.initializer} >= values.keys()
    before = onnx.load_model_from_string(program.graphs[TRAIN]).graph
    assert [item.name for item in model.output] == [item.name for item in before.output]
    assert {item.name for item in model.input} == {item.name for item in before.input}


def test_the_floats_are_the_codes_times_their_scales(program: Program, tiny_base: Path) -> None:
    _, values = expanded(program.graphs[TRAIN], tiny_base, most=MOST)
    assert values
    stored = load_file(tiny_base / "weights.safetensors")
    for linear in read_manifest(tiny_base).linears:
        name = f"expanded/{linear.path}.qweight"
        if name in values:
            codes = stored[f"{linear.path}.qweight"].reshape(linear.out_features, -1, 16)
            both = np.stack([codes & 15, codes >> 4], -1).reshape(*codes.shape[:2], 32)
            both = both.astype(np.float32) - 8
            scales = stored[f"{linear.path}.scales"].reshape(*codes.shape[:2], 1)
            whole = (both * scales).reshape(linear.out_features, -1)
            assert np.array_equal(values.pop(name), whole)
    assert not values


@pytest.mark.parametrize(("name", "most"), [(TRAIN, 1000), (ANSWER, MOST)])
def test_too_large_or_without_codes_to_expand_a_graph_stays(
    program: Program, tiny_base: Path, name: str, most: int
) -> None:
    data = program.graphs[name]
    assert expanded(data, tiny_base, most=most) == (data, {})
