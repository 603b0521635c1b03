"""The tensors of a checkpoint, whatever it lies in: one safetensors file, `.bin`, or shards of either.

They are read here and not by transformers, which draws new what it does not find, drops what it does not
expect, and has more than one opinion of what belongs to a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from base_model.source_files import FETCH, check_file, first_line, read_object
from protocol.errors import ArtefactError

if TYPE_CHECKING:
    from torch import Tensor  # imported where tensors are read: whoever looks for files needs none

INDEX = ".index.json"
# In transformers' own order of preference.
CONTAINERS = ("model.safetensors", "pytorch_model.bin")
OTHERS = (
    "*.safetensors",
    "*.bin",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.gguf",
    "*.ckpt*",
    "*.pt",
    "*.pth",
)
FLOATS = ("torch.float32", "torch.float16", "torch.bfloat16", "torch.float64")
# TensorFlow's names, which old checkpoints kept.
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def weight_files(folder: Path, containers: Sequence[str] = CONTAINERS) -> list[Path]:
    """The files with the weights, sorted; the index before its shards. Raises ArtefactError.

    ``containers``: names that they may have, the preferred one first.
    """
    for name in containers:
        if (folder / name).exists():
            return [folder / name]
        if (folder / (name + INDEX)).exists():
            return [folder / (name + INDEX), *_shards(folder / (name + INDEX))]
    there = sorted({path.name for kind in OTHERS for path in folder.glob(kind)})
    raise ArtefactError(
        f"{folder}: there are no weights"
        + (f", only {', '.join(there[:3])}, which are not read" if there else ""),
        f"fetch {containers[0]}, or save the model with its library's save_pretrained",
    )


def read_checkpoint(folder: Path, containers: Sequence[str] = CONTAINERS) -> dict[str, Tensor]:
    """Every tensor by its name in the checkpoint, in the type that it is stored in.

    ``containers``: as :func:`weight_files` has them. Raises ArtefactError for a file that is missing, cut or
    of another kind, and for a name twice.
    """
    index, *shards = weight_files(folder, containers)
    if not shards:
        return _renamed(index, _tensors(index))
    listed = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        part = _tensors(shard)
        names = {name for name, file in listed.items() if file == shard.name}
        if absent := sorted(names - set(part)):
            raise ArtefactError(f"{shard} has no {absent[0]}, which the index says", FETCH)
        if twice := sorted(set(tensors) & set(part)):
            raise ArtefactError(f"{shard} has {twice[0]} a second time", FETCH)
        tensors |= part
    return _renamed(index, tensors)


def _weight_map(index: Path) -> dict[str, str]:
    listed = read_object(index).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise ArtefactError(f"{index}: there is no `weight_map`", FETCH)
    for file in listed.values():
        if not isinstance(file, str) or "/" in file or file in ("", ".", ".."):
            raise ArtefactError(f"{index}: {file!r} is no file beside it", FETCH)
    return listed


def _shards(index: Path) -> list[Path]:
    shards = [index.parent / name for name in sorted(set(_weight_map(index).values()))]
    for shard in shards:
        check_file(shard)
    return shards


def _tensors(path: Path) -> dict[str, Tensor]:
    import torch

    check_file(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ArtefactError(f"{path} is cut or damaged: {first_line(error)}", FETCH) from None
    except Exception as error:  # an unpickler raises whatever the bytes lead it to
        raise ArtefactError(
            f"{path} is damaged, or holds more than tensors: {type(error).__name__}", FETCH
        ) from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in tensors.items()
    ):
        raise ArtefactError(
            f"{path} does not hold tensors by name",
            "save the model with transformers' save_pretrained",
        )
    return dict(tensors)


def _renamed(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        new = name
        for old, modern in RENAMED.items():
            new = new.removesuffix(old) + modern if new.endswith(old) else new
        if new in renamed:
            raise ArtefactError(f"{path} has {new} under two names", FETCH)
        renamed[new] = value
    return renamed


def as_float(name: str, value: Tensor, *, source: str) -> Tensor:
    """The tensor in float32, finite. Raises ArtefactError that names it."""
    import torch

    if str(value.dtype) not in FLOATS or value.layout != torch.strided:
        raise ArtefactError(
            f"{source}: {name} is {str(value.dtype).removeprefix('torch.')}, not a float weight",
            "name the model as it was before it was quantised",
        )
    value = value.detach().to(torch.float32).contiguous()
    if not torch.isfinite(value).all():
        raise ArtefactError(
            f"{source}: {name} has NaN or infinity", "use an earlier checkpoint of the model"
        )
    return value
