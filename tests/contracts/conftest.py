"""Every kind of base that devices have, with releases: what contracts over all of them begin with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.backends import Backend, open_backend
from tests.delivery_world import World
from tests.device_kinds import (
    BY_DEFAULT,
    KINDS,
    DeviceKind,
    decoder_kind,
    documents_kind,
    drawings_kind,
    images_kind,
    samples_kind,
    seq2seq_kind,
    sounds_kind,
)
from tests.tiers import some_by_default

WRITING = {"decoder": decoder_kind, "seq2seq": seq2seq_kind}
ON_BASES = {
    "images": (images_kind, "tiny_images"),
    "sounds": (sounds_kind, "tiny_sounds"),
    "samples": (samples_kind, "tiny_samples"),
    "documents": (documents_kind, "tiny_pages"),
    "drawings": (drawings_kind, "tiny_denoiser"),
}


class Kinds(dict[str, DeviceKind]):
    """By name, each made when somebody first asks for it."""

    def __init__(self, make: Callable[[str], DeviceKind]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, name: str) -> DeviceKind:
        self[name] = self._make(name)
        return self[name]


@pytest.fixture(scope="session")
def kinds(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    write_adapter: Callable[..., Path],
) -> Kinds:
    def made(name: str) -> DeviceKind:
        if name == "encoder":
            released = request.getfixturevalue("released")
            return DeviceKind(
                name="encoder",
                base=request.getfixturevalue("tiny_base"),
                adapters={"good": released["a"], "bad": released["b"]},
                rows=request.getfixturevalue("delivery_rows"),
            )
        folder = tmp_path_factory.mktemp(name)
        if name in WRITING:
            return WRITING[name](folder)
        maker, base = ON_BASES[name]
        return maker(folder, request.getfixturevalue(base), write_adapter)

    return Kinds(made)


@pytest.fixture(scope="session", params=some_by_default(BY_DEFAULT, KINDS))
def kind(request: pytest.FixtureRequest, kinds: Kinds) -> DeviceKind:
    return kinds[request.param]


@pytest.fixture(scope="session")
def backend(kind: DeviceKind) -> Backend[Any]:
    return open_backend(kind.base, threads=1)


@pytest.fixture
def world(kind: DeviceKind, tmp_path: Path) -> World:
    return kind.world(tmp_path / "world")


@pytest.fixture
def copied(kind: DeviceKind, tmp_path: Path) -> Path:
    return shutil.copytree(kind.adapters["good"], tmp_path / "copied")
