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
    KINDS,
    DeviceKind,
    decoder_kind,
    documents_kind,
    images_kind,
    samples_kind,
    seq2seq_kind,
    sounds_kind,
)


@pytest.fixture(scope="session")
def kinds(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_base: Path,
    released: dict[str, Path],
    delivery_rows: list[dict[str, str]],
    tiny_images: Path,
    tiny_sounds: Path,
    tiny_samples: Path,
    tiny_pages: Path,
    write_adapter: Callable[..., Path],
) -> dict[str, DeviceKind]:
    adapters = {"good": released["a"], "bad": released["b"]}
    encoder = DeviceKind(name="encoder", base=tiny_base, adapters=adapters, rows=delivery_rows)
    decoder = decoder_kind(tmp_path_factory.mktemp("decoder"))
    return {
        "encoder": encoder,
        "images": images_kind(tmp_path_factory.mktemp("images"), tiny_images, write_adapter),
        "sounds": sounds_kind(tmp_path_factory.mktemp("sounds"), tiny_sounds, write_adapter),
        "samples": samples_kind(tmp_path_factory.mktemp("samples"), tiny_samples, write_adapter),
        "documents": documents_kind(tmp_path_factory.mktemp("pages"), tiny_pages, write_adapter),
        "decoder": decoder,
        "seq2seq": seq2seq_kind(tmp_path_factory.mktemp("seq2seq")),
    }


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest, kinds: dict[str, DeviceKind]) -> DeviceKind:
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
