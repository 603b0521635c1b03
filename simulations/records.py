"""Reading a run folder: records of finished rounds and the adapters they published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from protocol.errors import ArtefactError
from protocol.layout import Tensors
from protocol.peft_format import CONFIG_FILE, WEIGHTS_FILE, from_peft, published_as
from simulations.files import read_json

ROUNDS, RECORD, ADAPTER = "rounds", "record.json", "adapter"


def round_folder(run: Path, number: int) -> Path:
    """The folder of a published round."""
    return run / ROUNDS / f"{number:04d}"


def adapter_folder(run: Path, number: int) -> Path:
    """The PEFT folder of a published round."""
    return round_folder(run, number) / ADAPTER


def round_records(run: Path) -> list[dict[str, Any]]:
    """Records of all published rounds from 1 on, in order."""
    found = []
    paths = (run / ROUNDS).glob(f"[0-9]*/{RECORD}")
    numbered = [
        path for path in paths if path.parent.name.isdecimal()
    ]  # no copy of a round beside it
    for path in sorted(numbered, key=lambda each: int(each.parent.name)):
        record = read_json(path)
        if record["round"] > 0:
            found.append(record)
    return found


def published_adapter(run: Path, number: int) -> Tensors:
    """The adapter of a round by canonical names, float32. Raises ArtefactError for damage."""
    folder = adapter_folder(run, number)
    path = folder / WEIGHTS_FILE
    try:
        config = (folder / CONFIG_FILE).read_bytes()
        method = published_as(config, source=str(folder / CONFIG_FILE)).method
        return from_peft(dict(load_file(path)), method=method)
    except (OSError, SafetensorError):
        raise ArtefactError(
            f"{path} cannot be read", "restore it, or start the run again in another folder"
        ) from None
