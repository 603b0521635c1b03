"""A tiny decoder, opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_runtime.decoder.base import DecoderBase
from tests.tiny_decoder import write_tiny_decoder


@pytest.fixture(scope="session")
def decoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_decoder(tmp_path_factory.mktemp("decoder") / "tiny")


@pytest.fixture(scope="session")
def decoder(decoder_folder: Path) -> DecoderBase:
    return DecoderBase.open(decoder_folder, threads=1)
