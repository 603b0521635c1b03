"""What a training step keeps in memory is decided by its graph. (docs/adr/0050)"""

from __future__ import annotations

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from base_model.graph_linears import sort_topologically
from base_model.programs.folder import Program
from base_model.programs.step import Step
from base_model.programs.tape import Tape
from tests.unit.base_model.programs.trained_plan import TRAIN


def test_no_weight_is_expanded_before_a_gradient_asks_for_it(program: Program) -> None:
    """It depends on the labels, so on the loss: the forward half is over whatever order a runtime takes."""
    graph = onnx.load_model_from_string(program.graphs[TRAIN]).graph
    after_loss = {"labels"}
    for node in graph.node:  # in the order in which they run
        if after_loss & set(node.input):
            after_loss |= set(node.output)
    expanded = [node for node in graph.node if node.op_type == "GatherBlockQuantized"]
    assert expanded
    assert all(node.output[0] in after_loss for node in expanded)


@pytest.mark.parametrize(
    ("shape", "gradients", "constant"),
    [
        (("rows", "tokens", 384), ("rows", "tokens", 12, 32), [0, 0, 384]),
        (("rows", "tokens", 12, 32), ("rows", "tokens", 384), [0, 0, 12, 32]),
        (("rows", 12), ("rows", 12, 1), [0, 12]),
        (("both", 384), ("rows", "tokens", 384), [-1, 384]),
        ((2, 3), ("rows", 6), [2, 3]),
        (("rows", "tokens", 8), ("both", 8), None),
        (("tokens", "rows"), ("rows", "tokens"), None),
    ],
)
def test_a_reshape_back_asks_for_no_shape_where_one_size_at_most_is_free(
    shape: tuple[int | str, ...], gradients: tuple[int | str, ...], constant: list[int] | None
) -> None:
    """What asks for a tensor's shape keeps the tensor, where a runtime lets it."""
    graph = helper.make_graph([], "g", [], [])
    node = helper.make_node("Reshape", ["x", "sizes"], ["y"])
    step = Step(
        Tape(graph, ""), node, "dy", frozenset({0}), {"x": shape, "y": gradients}, lambda *_: ""
    )
    name = step.reshaping("x")
    if constant is None:
        assert graph.node[-1].op_type == "Shape"
    else:
        assert not graph.node
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        assert values[name].tolist() == constant


@given(
    st.integers(2, 9).flatmap(lambda n: st.tuples(st.just(n), st.permutations(range(n)), st.data()))
)
def test_a_sorted_graph_reads_what_is_there(drawn: tuple[int, list[int], st.DataObject]) -> None:
    """Nodes of any acyclic graph, in any order, come after what they read."""
    count, order, data = drawn
    reads = [
        data.draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else set() for n in range(count)
    ]
    nodes = [
        helper.make_node("Sum", [f"n{maker}" for maker in sorted(reads[n])] or ["x"], [f"n{n}"])
        for n in range(count)
    ]
    graph = helper.make_graph([nodes[n] for n in order], "g", [], [])
    sort_topologically(graph)
    there = {"x"}
    for node in graph.node:
        assert set(node.input) <= there
        there |= set(node.output)
    assert len(graph.node) == count


def test_what_is_in_order_stays_as_it_is() -> None:
    nodes = [helper.make_node("Neg", [f"n{n}"], [f"n{n + 1}"]) for n in range(4)]
    graph = helper.make_graph(nodes, "g", [], [])
    sort_topologically(graph)
    assert [node.output[0] for node in graph.node] == ["n1", "n2", "n3", "n4"]


def test_what_only_a_late_node_reads_comes_late() -> None:
    late = helper.make_node("Neg", ["x"], ["late"])
    chain = [helper.make_node("Neg", [f"n{n}"], [f"n{n + 1}"]) for n in range(3)]
    reader = helper.make_node("Add", ["n3", "late"], ["y"])
    graph = helper.make_graph([*chain, reader, late], "g", [], [])
    sort_topologically(graph)
    assert [node.output[0] for node in graph.node] == ["n1", "n2", "n3", "late", "y"]


def test_a_cycle_is_refused() -> None:
    nodes = [helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Neg", ["b"], ["a"])]
    with pytest.raises(ValueError, match="cycle"):
        sort_topologically(helper.make_graph(nodes, "g", [], []))
