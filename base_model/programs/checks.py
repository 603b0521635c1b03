"""What a graph of a program may be: known operators on the base's own file, inputs and outputs as listed.

Whoever publishes a base, or hands a program on, writes what a client runs on its rows. ONNX Runtime
takes far more than a program needs: graphs within nodes, loops, tensors at any path, operators of other
domains. So nothing is opened that has any of them. (P-11.4)
"""

from __future__ import annotations

import math

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto, helper

from base_model.programs.build import OPSET
from base_model.programs.document import REMEDY, GraphEntry
from base_model.programs.tape import MICROSOFT
from base_model.tasks import TASKS
from base_model.weights_file import WEIGHTS
from protocol.denoiser_manifest import CLASSES, STEPS
from protocol.errors import ArtefactError
from protocol.manifest import BOXES, TYPE_IDS

MOST_BYTES, MOST_NODES, MOST_INSIDE = 2**26, 200_000, 2**24
MOST_CONVOLVED = 4096  # taps, stride, groups of a convolution
SIZES = {"kernel_shape": 1, "strides": 1, "pads": 2, "group": 1}
STANDARD = """
Abs Add And Cast Clip Concat Constant ConstantOfShape Conv CumSum Div Equal Erf Exp Expand
Flatten Gather GatherElements GatherND Gelu Gemm Greater GreaterOrEqual Identity LayerNormalization Less
LessOrEqual Log LogSoftmax MatMul Max Min Mod Mul Neg NonZero Not Or Pow Range Reciprocal ReduceMax
ReduceLogSumExp ReduceMean ReduceSum Relu Reshape ScatterElements ScatterND Shape Sigmoid Sign
SimplifiedLayerNormalization Sin Cos Size Slice Softmax Split Sqrt
Squeeze Sub Tanh Tile Transpose Trilu Unsqueeze Where
"""
OPERATORS = {("", kind) for kind in STANDARD.split()}
RUNTIMES = "FusedMatMul GatherBlockQuantized MatMulNBits QuickGelu RotaryEmbedding"  # of ONNX Runtime's own
OPERATORS |= {(MICROSOFT, kind) for kind in RUNTIMES.split()}
PLAIN = {
    AttributeProto.FLOAT, AttributeProto.INT, AttributeProto.STRING, AttributeProto.TENSOR,
    AttributeProto.FLOATS, AttributeProto.INTS, AttributeProto.STRINGS,
}  # fmt: skip
BITS = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.INT64: 64, TensorProto.INT32: 32,
    TensorProto.UINT8: 8, TensorProto.BOOL: 8,
}  # fmt: skip
INTEGER_TARGETS = {task.TARGET for task in TASKS.values() if task.ELEMENT == TensorProto.INT64}
INTEGERS = {"input_ids", "attention_mask", TYPE_IDS, BOXES, STEPS, CLASSES, *INTEGER_TARGETS}


def verify_graph(data: bytes, entry: GraphEntry, *, weights: int, source: str) -> None:
    """A graph that may be run. ``weights``: bytes of the base's file. Raises ArtefactError."""
    try:
        if len(data) > MOST_BYTES:
            raise ValueError(f"longer than {MOST_BYTES} bytes")
        _verify(_parsed(data), entry, weights)
    except ValueError as error:
        raise ArtefactError(f"{source}: {error}", REMEDY) from None


def _parsed(data: bytes) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(data)
    except DecodeError:
        raise ValueError("it is no ONNX graph, or cut off") from None


def _verify(model: onnx.ModelProto, entry: GraphEntry, weights: int) -> None:
    graph = model.graph
    if model.functions or model.training_info or graph.sparse_initializer:
        raise ValueError("it has functions, training instructions or sparse tensors")
    if others := {item.domain for item in model.opset_import} - {"", "ai.onnx", MICROSOFT}:
        raise ValueError(f"it asks for operators of {min(others)!r}")
    if any(item.version != OPSET for item in model.opset_import if item.domain != MICROSOFT):
        raise ValueError(f"it is not written for operators of version {OPSET}")
    if len(graph.node) > MOST_NODES:
        raise ValueError(f"it has more than {MOST_NODES} nodes")
    inside = sum(_verify_node(node) for node in graph.node)
    inside += sum(_verify_tensor(tensor, weights) for tensor in graph.initializer)
    if inside > MOST_INSIDE:
        raise ValueError("it holds weights of its own")
    initial = {tensor.name for tensor in graph.initializer}
    if len(initial) < len(graph.initializer):
        raise ValueError("two of its tensors have one name")
    for what, values, names in (
        ("inputs", graph.input, entry.inputs),
        ("outputs", graph.output, entry.outputs),
    ):
        if [value.name for value in values] != names or initial & set(names):
            raise ValueError(f"its {what} are not those listed")
        for value in values:
            kind = TensorProto.INT64 if value.name in INTEGERS else TensorProto.FLOAT
            if value.type.tensor_type.elem_type != kind:
                raise ValueError(f"{value.name} is of another type")


def _verify_node(node: onnx.NodeProto) -> int:
    """Bytes of its attributes."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    if (domain, node.op_type) not in OPERATORS or node.overload:
        raise ValueError(f"the operator {node.domain}:{node.op_type} has no place in a program")
    if node.op_type == "Conv":
        _verify_convolution(node)
    for attribute in node.attribute:
        if attribute.type not in PLAIN or attribute.ref_attr_name:
            raise ValueError(f"{node.op_type} has a graph within, or another odd attribute")
        if attribute.type == AttributeProto.TENSOR:
            if attribute.t.external_data:
                raise ValueError("a constant lies outside")
            _verify_tensor(attribute.t, 0)
    return sum(attribute.ByteSize() for attribute in node.attribute)


def _verify_convolution(node: onnx.NodeProto) -> None:
    """Along one axis and without gaps; each size is said, and no more is put around than a kernel sees."""
    said = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    fixed = said.pop("auto_pad", None), said.pop("dilations", None)
    sizes = {name: [said.pop(name, 0)] if name == "group" else said.pop(name, []) for name in SIZES}
    if said or fixed != (b"NOTSET", [1]) or any(len(sizes[n]) != SIZES[n] for n in SIZES):
        raise ValueError("a convolution that is not along one axis, or has gaps")
    most = {"pads": sizes["kernel_shape"][0]}
    for name, values in sizes.items():
        least = 0 if name == "pads" else 1
        if not all(least <= value <= most.get(name, MOST_CONVOLVED) for value in values):
            raise ValueError(f"a convolution's {name} is out of bounds")


def _verify_tensor(tensor: onnx.TensorProto, weights: int) -> int:
    """Bytes that the graph itself holds of it."""
    bits = BITS.get(tensor.data_type)
    if bits is None or tensor.HasField("segment") or any(size < 0 for size in tensor.dims):
        raise ValueError(f"{tensor.name} is of an odd type or shape")
    claimed = -(-math.prod(tensor.dims) * bits // 8)
    if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
        held = tensor.ByteSize()
        if claimed > 2 * held + 8 * 64:  # small typed fields are packed
            raise ValueError(f"{tensor.name} claims more than its bytes")
        return held
    place = {item.key: item.value for item in tensor.external_data}
    if set(place) != {"location", "offset", "length"} or place["location"] != WEIGHTS:
        raise ValueError(f"{tensor.name} lies outside the base's {WEIGHTS}")
    numbers = [place["offset"], place["length"]]
    if not all(text.isascii() and text.isdigit() and len(text) < 20 for text in numbers):
        raise ValueError(f"{tensor.name} lies at no place")
    offset, length = map(int, numbers)
    if offset + length > weights or length != claimed:
        raise ValueError(f"{tensor.name} lies behind the end of {WEIGHTS}, or is of another length")
    return 0
