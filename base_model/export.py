"""The edge graph of texts: the base's encoder in ONNX, with slots for whatever an adapter brings.

The plain encoder is exported (never a PEFT-wrapped one: its names would be folded away) and then
operated on by module path (``base_model.graph_linears``). A slot is a graph input that is also an
initializer, so with no adapter the base answers: rank 0, no prompt, its own head.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from base_model.encoder import EncoderClassifier
from base_model.graph_data import IR_VERSION, SMALL, OutsideFile
from base_model.graph_data import ONE_FILE as ONE_FILE
from base_model.graph_data import OPSET as OPSET
from base_model.graph_forms import add_bottleneck, add_linear_slots, add_norm_slots, add_slot
from base_model.graph_linears import (
    Codes,
    flatten_rows,
    linear_nodes,
    module_of,
    quantise,
    sort_topologically,
)
from protocol.bottlenecks import bottleneck_places, feed_forwards
from protocol.forms import SOFT_PROMPT
from protocol.manifest import BOXES, GRAPH_DATA, TYPE_IDS, TYPES_SHAPE, Linear, Slot

INPUTS, OUTPUT = ("input_ids", "attention_mask"), "logits"
FEATURES = "features"


class _Features(nn.Module):
    """Ids, mask and soft prompt (n, width of word embeddings) to pooled features (rows, hidden).

    The prompt goes in front of the word embeddings and its positions are counted and pooled like
    words: what peft's prompt tuning does in torch. What stands beside ids and mask are token types or, of a
    family that reads them, boxes (rows, tokens, 4), which are zeros of a prompt.
    """

    def __init__(self, model: EncoderClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        soft_prompt: Tensor,
        beside: Tensor | None = None,
    ) -> Tensor:
        words = self.model.get_input_embeddings()(input_ids)
        table = self.model.type_table
        if beside is not None and table is not None:
            # the encoder adds type 0 to every position; type 0 then adds exactly nothing here
            words = words + (table - table[:1])[beside]
        rows = words.shape[0]
        prompt = soft_prompt.unsqueeze(0).expand(rows, -1, -1)
        ones = torch.ones_like(prompt[..., 0], dtype=attention_mask.dtype)
        mask = torch.cat([ones, attention_mask], 1)
        encoder = self.model.get_submodule(self.model.prefix)
        pad = self.model.config.pad_token_id
        counted = torch.cat([ones, (input_ids != (-1 if pad is None else pad)).to(ones.dtype)], 1)
        placed = {}
        if beside is not None and self.model.family.boxed:
            nowhere = torch.zeros_like(ones).unsqueeze(-1).expand(-1, -1, beside.shape[-1])
            placed[BOXES] = torch.cat([nowhere, beside], 1)
        encoded = encoder(
            inputs_embeds=torch.cat([prompt, words], 1),
            attention_mask=mask,
            **self.model.positions(counted),
            **placed,
        )
        return self.model._pool(encoded, mask)


def export_graph(
    model: EncoderClassifier,
    linears: Iterable[Linear],
    codes: Codes,
    *,
    path: Path,
    bits: int,
    block: int,
    accuracy_level: int,
    slots: bool,
    scales: bool = False,
    prompt: npt.NDArray[np.float32] | None = None,
    half: bool = False,
    most: int = ONE_FILE,
) -> list[Slot]:
    """Write ``graph.onnx`` and return its slots.

    Tensors of more than ``most`` bytes together lie beside it, in ``graph.data``. (P-1.8)

    ``model`` holds the float32 values that the codes stand for; ``codes`` maps a module path to
    (codes, scales) and is empty for a float base. ``slots=False`` leaves the same graph without
    optional inputs: of a merged model, with its soft ``prompt`` (n, width), or for comparison. ``half``
    stores matrices in 16 bits; it computes in float32. ``scales`` gives linears a scale as well, which costs
    2 to 3 % of every answer (docs/adr/0044).
    """
    graph_model, width = _exported(model), getattr(model.config, model.family.embedding)
    graph = graph_model.graph
    adapt_linears(
        graph,
        linears,
        codes,
        bits=bits,
        block=block,
        accuracy_level=accuracy_level,
        # softmax does not see a key's shift: all scores of a query move alike
        unshifted=model.family.key,
        slots=slots,
        scales=scales,
        hidden=model.config.hidden_size,
    )
    if slots:
        _bottleneck_of_words(graph, model, width)
    attach_head(graph, model.classifier, slots)
    _prompt_slot(graph, width, slots, prompt)
    if model.type_table is not None:
        _types_input(graph, slots)
    return finished_graph(graph_model, path, quantised=bool(codes), half=half, most=most)


def adapt_linears(
    graph: onnx.GraphProto,
    linears: Iterable[Linear],
    codes: Codes,
    *,
    bits: int,
    block: int,
    accuracy_level: int,
    unshifted: str,
    slots: bool,
    scales: bool,
    hidden: int,
    front: tuple[str, ...] = (),
) -> None:
    """Put codes into the linears of an exported graph, have it run by rows and, with ``slots``, add these.

    ``unshifted``: last path component of linears that get no shift. ``front``: what paths of norms begin with
    that get nothing, since no gradient goes so far.
    """
    nodes = linear_nodes(graph)
    adapted = [(linear, node) for linear in linears for node in nodes[linear.path]]
    for linear, node in adapted:
        if linear.path in codes:
            quantise(graph, node, linear, codes[linear.path], bits, block, accuracy_level)
    flatten_rows(graph, [node for _, node in adapted])
    if not slots:
        return
    outputs = defaultdict[str, list[tuple[str, str]]](list)
    for linear, node in adapted:
        source, name = node.input[0], linear.path.rpartition(".")[2]
        output = add_linear_slots(graph, node, linear, shifted=name != unshifted, scaled=scales)
        outputs[linear.path].append((source, output))
    _add_bottlenecks(graph, hidden, outputs)
    add_norm_slots(graph, front)


def finished_graph(
    model: onnx.ModelProto, path: Path, *, quantised: bool, half: bool = False, most: int = ONE_FILE
) -> list[Slot]:
    """Clean the graph, order it and write it to ``path``; returns its slots."""
    graph = model.graph
    _drop_unused(graph)
    if half:
        _halve(graph)
    if quantised:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.ir_version = IR_VERSION
    _strip_metadata(model)
    sort_topologically(graph)
    defaults = _slots_of(graph)
    if sum(len(initializer.raw_data) for initializer in graph.initializer) > most:
        _move_out(graph, path.parent / GRAPH_DATA, {slot.name for slot in defaults})
    onnx.save(model, str(path))
    return defaults


def _add_bottlenecks(
    graph: onnx.GraphProto, size: int, outputs: Mapping[str, list[tuple[str, str]]]
) -> None:
    """At each of :mod:`protocol.bottlenecks`; ``outputs``: (source, output) by path, of every call of it."""
    seconds = feed_forwards(outputs)
    # behind a feed-forward's output first: what lies beside it is added to that
    for path, place in sorted(bottleneck_places(outputs).items(), key=lambda x: x[1] == "beside"):
        for call, (source, output) in enumerate(outputs[path]):
            if place == "beside":
                add_bottleneck(graph, path, source, outputs[seconds[path]][call][1], size)
            else:
                add_bottleneck(graph, path, output, output, size)


def _bottleneck_of_words(graph: onnx.GraphProto, model: EncoderClassifier, width: int) -> None:
    """Behind the word embeddings (texts, tokens, ``width``), before what is added to them or joins them."""
    table = model.get_input_embeddings()
    path = next(name for name, module in model.named_modules() if module is table)
    gather = next(n for n in graph.node if n.op_type == "Gather" and module_of(n) == path)
    words, rows, behind = (gather.output[0] + end for end in ("", "/rows", "/behind"))
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = behind if name == words else name
    sizes = (np.array([-1, width], np.int64), np.array([width], np.int64))
    flat, last = f"{rows}/shape", f"{rows}/width"
    for name, value in zip((flat, last), sizes, strict=True):
        graph.initializer.append(numpy_helper.from_array(value, name))
    graph.node.append(helper.make_node("Reshape", [words, flat], [rows]))
    add_bottleneck(graph, path, rows, rows, width)
    graph.node.extend(
        [
            helper.make_node("Shape", [INPUTS[0]], [f"{rows}/texts"]),
            helper.make_node("Concat", [f"{rows}/texts", last], [f"{behind}/shape"], axis=0),
            helper.make_node("Reshape", [rows, f"{behind}/shape"], [behind]),
        ]
    )


def _move_out(graph: onnx.GraphProto, path: Path, slots: set[str]) -> None:
    """Write the tensors, but slots' defaults, into a file beside the graph, page by page.

    One after the other: a protobuf message ends at 2 GiB, and memory is short where a base is large.
    """
    outside = OutsideFile(path)
    for tensor in graph.initializer:
        if tensor.name in slots or len(tensor.raw_data) < SMALL:
            continue
        data = tensor.raw_data
        tensor.ClearField("raw_data")
        outside.add(tensor, data)


def _exported(model: EncoderClassifier) -> onnx.ModelProto:
    ids = torch.randint(0, 4, (2, 7))
    width = getattr(model.config, model.family.embedding)
    example: tuple[Tensor, ...] = (ids, torch.ones_like(ids), torch.zeros(3, width))
    rows, tokens = torch.export.Dim("batch"), torch.export.Dim("sequence")
    shapes: tuple[dict[int, Any], ...] = (
        {0: rows, 1: tokens},
        {0: rows, 1: tokens},
        {0: torch.export.Dim("prompt", min=0)},
    )
    names = [*INPUTS, SOFT_PROMPT]
    if model.type_table is not None:
        example, shapes = (*example, torch.zeros_like(ids)), (*shapes, {0: rows, 1: tokens})
        names.append(TYPE_IDS)
    if model.family.boxed:
        boxes = torch.zeros(*ids.shape, 4, dtype=torch.int64)
        example, shapes = (*example, boxes), (*shapes, {0: rows, 1: tokens})
        names.append(BOXES)
    return exported(_Features(model), example, names, shapes)


def exported(
    module: nn.Module,
    example: tuple[Tensor, ...],
    names: list[str],
    shapes: tuple[dict[int, Any], ...],
) -> onnx.ModelProto:
    """``module`` in ONNX, with :data:`FEATURES` as its output; torch's remarks are kept to itself."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                example,
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                input_names=names,
                output_names=[FEATURES],
                verbose=False,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


def attach_head(graph: onnx.GraphProto, head: nn.Linear, slots: bool) -> None:
    """``logits = features @ weight.T + bias``, always with a bias to fill."""
    weight = head.weight.detach().numpy().astype(np.float32)
    bias = head.bias.detach().numpy().astype(np.float32)
    for name, value, shape in (
        ("classifier.weight", weight, ["labels", weight.shape[1]]),
        ("classifier.bias", bias, ["labels"]),
    ):
        if slots:
            add_slot(graph, name, shape, value)
        else:
            graph.initializer.append(numpy_helper.from_array(value, name))
    graph.node.append(
        helper.make_node(
            "Gemm", [FEATURES, "classifier.weight", "classifier.bias"], [OUTPUT], transB=1
        )
    )
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", "labels"])
    )


def _halve(graph: onnx.GraphProto) -> None:
    """Keep matrices in float16; ONNX Runtime widens them once, when it opens the file.

    Vectors stay: they are few, and every number that passes a norm carries its rounding.
    """
    for tensor in list(graph.initializer):
        small = len(tensor.dims) < 2 or len(tensor.raw_data) < SMALL
        if tensor.data_type != TensorProto.FLOAT or small:
            continue
        half = numpy_helper.to_array(tensor).astype(np.float16)
        name = tensor.name
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(half, f"{name}/half"))
        graph.node.append(helper.make_node("Cast", [f"{name}/half"], [name], to=TensorProto.FLOAT))


def _prompt_slot(
    graph: onnx.GraphProto, width: int, slots: bool, prompt: npt.NDArray[np.float32] | None
) -> None:
    """The exported input becomes optional; without slots it is a constant, empty without ``prompt``."""
    for value in list(graph.input):
        if value.name == SOFT_PROMPT:
            graph.input.remove(value)
    empty = np.zeros((0, width), np.float32)
    if slots:
        add_slot(graph, SOFT_PROMPT, ["prompt", width], empty)
    else:
        constant = empty if prompt is None else np.ascontiguousarray(prompt, np.float32)
        graph.initializer.append(numpy_helper.from_array(constant, SOFT_PROMPT))


def _types_input(graph: onnx.GraphProto, slots: bool) -> None:
    """Token types may be left out: then one type 0 stands for every token. Without slots they are that."""
    graph.input.remove(next(value for value in graph.input if value.name == TYPE_IDS))
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] == TYPE_IDS:
            node.input[0] = INPUTS[0]  # the exporter reads sizes wherever it finds them
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1), np.int64), TYPE_IDS))
    if slots:
        kind = TensorProto.INT64
        graph.input.append(helper.make_tensor_value_info(TYPE_IDS, kind, TYPES_SHAPE))


def _slots_of(graph: onnx.GraphProto) -> list[Slot]:
    defaults = {initializer.name for initializer in graph.initializer}
    return [
        Slot(
            name=value.name,
            dtype="float32",
            shape=[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
        )
        for value in graph.input
        if value.name in defaults and value.name != TYPE_IDS
    ]


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for initializer in list(graph.initializer):
        if initializer.name not in used:
            graph.initializer.remove(initializer)
    del graph.value_info[:]


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Stack traces of the exporting machine have no place in an artefact."""
    del model.metadata_props[:]
    graph = model.graph
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    model.doc_string = graph.doc_string = ""
