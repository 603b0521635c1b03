"""Open a base folder: verify it, and build the frozen model on its codes.

Opening needs no float copy of the weights: the model is laid out without memory and every tensor
is taken from the file.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig

from base_model.encoder import EncoderClassifier, HeadedModel
from base_model.quant_linear import QuantLinear
from base_model.source_files import first_line
from base_model.verify import open_tokenizer, read_encoder_manifest, verify_encoder
from base_model.weights_file import REBUILD, WEIGHTS
from protocol.documents import parse_json
from protocol.errors import ArtefactError, FedgeError, MachineError
from protocol.manifest import CONFIG, HeadManifest, Manifest
from storage.regular import read_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Headed = TypeVar("Headed", bound=HeadedModel)
GRAPH = "graph.onnx"

# Up to this many bytes of expanded weights are kept: a small base trains faster, bit for bit alike.
KEEP_EXPANDED_BELOW = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class OpenBase:
    """An opened base. The model is in eval mode and frozen; its head is fresh."""

    folder: Path
    manifest: Manifest
    model: EncoderClassifier
    tokenizer: Tokenizer


def open_base(
    folder: Path,
    *,
    labels: int | None = None,
    verify: bool = True,
    matmul_dtype: torch.dtype | None = None,
) -> OpenBase:
    """Open a base for training.

    Args:
        folder: what ``fedge base build`` wrote.
        labels: outputs of the head; the base's own number, with its own head, without it.
        verify: hash every file first.
        matmul_dtype: type the expanded weights are multiplied in; float32 without it.

    Raises ArtefactError for a folder that is damaged or incomplete.
    """
    manifest = verify_encoder(folder) if verify else read_encoder_manifest(folder)
    sizes = {"vocab_size": manifest.vocab_size}
    model = filled_model(
        folder,
        manifest,
        lambda config, count: empty_model(config, manifest, labels=count),
        labels=labels,
        sizes=sizes,
        matmul_dtype=matmul_dtype,
    )
    return OpenBase(folder=folder, manifest=manifest, model=model, tokenizer=open_tokenizer(folder))


def filled_model(
    folder: Path,
    manifest: HeadManifest,
    empty: Callable[[Any, int], Headed],
    *,
    labels: int | None,
    sizes: Mapping[str, object],
    matmul_dtype: torch.dtype | None,
) -> Headed:
    """The frozen model of a base's folder, in eval mode.

    ``empty`` (config, labels) lays it out without memory; ``sizes``: what its config has to say, beside what
    every manifest does. Raises ArtefactError, MachineError.
    """
    tensors = read_tensors(folder / WEIGHTS)
    try:
        config = AutoConfig.for_model(**parse_json(read_regular(folder / CONFIG)))
        _check_sizes(config, manifest, sizes)
        model = empty(config, labels or manifest.head.labels)
        _install(model, manifest, tensors, matmul_dtype)
        _fresh_head(model, manifest, tensors, labels)
    except MemoryError:
        raise MachineError(f"{folder}: not enough memory", "use a larger machine") from None
    except Exception as error:  # what config and tensors can make torch and transformers raise
        if isinstance(error, FedgeError):
            raise
        raise ArtefactError(
            f"{folder}: cannot be opened: {_cause(error)}", _remedy(manifest)
        ) from error
    model.requires_grad_(False)
    model.eval()
    return model


def _cause(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"the weights and the model do not fit at {error.args[0]}"
    return f"{type(error).__name__}: {first_line(error)}"


def _remedy(manifest: HeadManifest) -> str:
    """Files that are whole and do not open were made by other versions, or by another program."""
    odd = [
        f"{name} {version}"
        for name, version in manifest.made_with.items()
        if name in ("torch", "transformers") and version != importlib.metadata.version(name)
    ]
    return f"install {' and '.join(odd)}, with which it was built" if odd else REBUILD


def _check_sizes(config: object, manifest: HeadManifest, sizes: Mapping[str, object]) -> None:
    """A config that claims more than the manifest would lay out more. Raises ValueError."""
    claimed = {
        "num_hidden_layers": manifest.layers,
        "hidden_size": manifest.hidden_size,
        **sizes,
    }
    for name, meant in claimed.items():
        if getattr(config, name, None) != meant:
            raise ValueError(f"{name} is not the manifest's")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises ArtefactError when it is truncated or no such file."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{path}: cannot be read: {error}", REBUILD) from None


def empty_model(config: object, manifest: Manifest, *, labels: int) -> EncoderClassifier:
    """The model without memory behind its parameters; its few buffers are real."""
    with torch.device("meta"):
        model = EncoderClassifier(config, pooling=manifest.pooling, labels=labels)
    rebuild: dict[str, Callable[[Tensor], Tensor]] = {
        "position_ids": lambda b: torch.arange(b.shape[-1]).expand(b.shape).clone(),
        "token_type_ids": lambda b: torch.zeros(b.shape, dtype=torch.long),
    }
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            path, _, kind = name.rpartition(".")
            model.get_submodule(path).register_buffer(kind, rebuild[kind](buffer), persistent=False)
    return model


def _install(
    model: HeadedModel,
    manifest: HeadManifest,
    tensors: dict[str, Tensor],
    matmul_dtype: torch.dtype | None,
) -> None:
    """Put codes and float tensors where they belong; complain about anything left over."""
    used: set[str] = set()
    if manifest.bits in (4, 8):
        expanded = 4 * sum(x.in_features * x.out_features for x in manifest.linears)
        for linear in manifest.linears:
            names = [f"{linear.path}.{kind}" for kind in ("qweight", "scales", "bias")]
            used.update(name for name in names if name in tensors)
            module = QuantLinear.from_codes(
                tensors[names[0]],
                tensors[names[1]],
                bits=manifest.bits,
                block=manifest.block,
                in_features=linear.in_features,
                bias=tensors.get(names[2]),
                matmul_dtype=matmul_dtype,
            )
            module.keep_expanded = expanded <= KEEP_EXPANDED_BELOW
            parent, _, child = linear.path.rpartition(".")
            setattr(model.get_submodule(parent), child, module)
    head = {f"{manifest.head.path}.weight", f"{manifest.head.path}.bias"}
    rest = {
        k: v.float() if v.is_floating_point() else v
        for k, v in tensors.items()
        if k not in used | head
    }
    wanted = {name for name, p in model.named_parameters() if p.is_meta} - head
    if odd := sorted(wanted ^ set(rest)):
        raise KeyError(odd[0])
    model.load_state_dict(rest, strict=False, assign=True)


def _fresh_head(
    model: HeadedModel, manifest: HeadManifest, tensors: dict[str, Tensor], labels: int | None
) -> None:
    """The base's own head, or a zero one of another size (a run sends its own)."""
    path = manifest.head.path
    if labels is None or labels == manifest.head.labels:
        weight, bias = tensors[f"{path}.weight"], tensors[f"{path}.bias"]
    else:
        weight, bias = torch.zeros(labels, manifest.head.in_features), torch.zeros(labels)
    head = model.get_submodule(path)
    assert isinstance(head, nn.Linear)
    head.weight, head.bias = nn.Parameter(weight.float()), nn.Parameter(bias.float())
