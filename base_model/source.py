"""The source of a base: a Hugging Face model, from a folder, a package or the Hub.

Weights are read as float32 whatever the source or torch's default says: other rounding would give
other codes, and so another base.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig

from base_model.families import Family, family_of
from protocol.errors import ArtefactError, MachineError

PACKAGE = "package:"
transformers.utils.logging.disable_progress_bar()  # the commands draw their own
Pooling = Literal["mean", "cls", "pooler"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A loaded source: encoder in float32, its own head if it has one, tokenizer as JSON text."""

    name: str
    config: PretrainedConfig
    family: Family
    encoder: torch.nn.Module
    head: tuple[torch.Tensor, torch.Tensor] | None
    tokenizer: str
    pooling: Pooling


def locate(source: str) -> str:
    """A folder or Hub id for ``source``; ``package:module/folder`` is looked up among packages."""
    if not source.startswith(PACKAGE):
        return source
    module, _, folder = source.removeprefix(PACKAGE).partition("/")
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise MachineError(
            f"the package `{module}` is not installed",
            "install it (fedge's own example: pip install -c constraints.txt '.[demo]')",
        )
    path = Path(next(iter(found.submodule_search_locations))) / folder
    if not path.is_dir():
        raise ArtefactError(
            f"the package `{module}` has no folder `{folder}`", "correct the source"
        )
    return str(path)


def _is_path(source: str) -> bool:
    """Whether it cannot be meant as a Hub id, which is `name` or `owner/name`."""
    return source.startswith((".", "/", "~")) or source.count("/") > 1


def load_source(source: str, *, pooling: str) -> Source:
    """Load encoder, head and tokenizer. Raises ArtefactError for what cannot be a base."""
    place = locate(source)
    folder = Path(place)
    if not folder.exists() and _is_path(source):
        raise ArtefactError(
            f"{source}: there is no such folder", "name a Hugging Face model folder"
        )
    if folder.exists() and not (folder / "config.json").is_file():
        raise ArtefactError(
            f"{source}: there is no config.json", "name a Hugging Face model folder"
        )
    try:
        config = AutoConfig.from_pretrained(place)
        family = family_of(config.model_type, source=source)
        encoder, loading = AutoModel.from_pretrained(
            place, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(place)
        text = tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise ArtefactError(
            f"{source}: cannot be loaded: {(str(error).splitlines() or ['?'])[0][:200]}",
            "name a folder or Hub id with config.json, weights and a fast tokenizer",
        ) from None
    chosen = _pooling(pooling, folder, family)
    _check_complete(source, loading, chosen)
    return Source(
        name=source,
        config=config,
        family=family,
        encoder=encoder.float().eval(),
        head=_own_head(place, config),
        tokenizer=_without_padding(text, tokenizer.pad_token_id, tokenizer.pad_token),
        pooling=chosen,
    )


def _check_complete(source: str, loading: dict[str, Any], pooling: Pooling) -> None:
    """transformers fills what a checkpoint lacks with random numbers: that is no base."""
    absent = sorted(
        name
        for name in {*loading["missing_keys"], *(key[0] for key in loading["mismatched_keys"])}
        if pooling == "pooler" or "pooler." not in name
    )
    if absent:
        only_pooler = all("pooler." in name for name in absent)
        raise ArtefactError(
            f"{source}: the checkpoint lacks {absent[0]} ({len(absent)} tensors in all)",
            "pass --pooling mean or cls" if only_pooler else "fetch a complete checkpoint",
        )


def _pooling(asked: str, folder: Path, family: Family) -> Pooling:
    if asked in ("mean", "cls", "pooler"):
        return asked  # type: ignore[return-value]
    if asked != "auto":
        raise ArtefactError(f"pooling `{asked}` is not known", "use auto, mean, cls or pooler")
    file = folder / "1_Pooling" / "config.json"  # sentence-transformers' own convention
    if file.is_file():
        modes = json.loads(file.read_text("utf-8"))
        if modes.get("pooling_mode_cls_token") or modes.get("pooling_mode") == "cls":
            return "cls"
        if modes.get("pooling_mode_mean_tokens") or modes.get("pooling_mode") == "mean":
            return "mean"
        raise ArtefactError(f"{file}: this pooling is not supported", "pass --pooling mean or cls")
    return family.default_pooling  # type: ignore[return-value]


def _own_head(place: str, config: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A trained ``classifier`` in the checkpoint, if there is one with the right shape."""
    path = Path(place) / "model.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        if not {"classifier.weight", "classifier.bias"} <= names:
            return None
        weight, bias = file.get_tensor("classifier.weight"), file.get_tensor("classifier.bias")
    return (weight.float(), bias.float()) if weight.shape[1] == config.hidden_size else None


def _without_padding(text: str, pad_id: int | None, pad_token: str | None) -> str:
    """The tokenizer with its padding named and no truncation of its own: length is the plan's."""
    document = json.loads(text)
    document["truncation"] = None
    document["padding"] = {
        "strategy": "BatchLongest",
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": pad_id or 0,
        "pad_type_id": 0,
        "pad_token": pad_token or "[PAD]",
    }
    return json.dumps(document, ensure_ascii=False, sort_keys=True)
