"""Images on a device: what it lacks is said when it starts, and what it decodes at a time is bounded."""

from __future__ import annotations

import base64
import json
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_runtime.base import EdgeBase, read_manifest
from edge_runtime.commands import app as commands
from edge_runtime.http_server import App
from edge_runtime.reading import DECODERS, MediaReader
from edge_runtime.single import SingleService
from protocol.errors import DataError, MachineError
from protocol.image_manifest import Pixels
from protocol.rows import images
from tests.asgi import asked
from tests.image_models import write_images


def test_a_device_without_a_decoder_does_not_start(
    tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MachineError, match="Pillow, which is not installed"):
        EdgeBase.open(tiny_images, threads=1)


def test_what_a_machine_lacks_later_is_an_answer(
    tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(SingleService(tiny_images, None, threads=1))
    (image,) = write_images(tmp_path, 1)
    question = {"images": [base64.b64encode(image.read_bytes()).decode()]}
    assert asked(app, question)[0] == 200
    monkeypatch.setitem(sys.modules, "PIL", None)
    status, document = asked(app, question)
    assert (status, document["error"]["code"]) == (503, "serve.machine")
    assert "Pillow" in document["error"]["cause"]


def test_few_images_are_decoded_at_a_time(
    tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, running, most = MediaReader(read_manifest(tiny_images)), set[int](), list[int]()

    def slow(_data: bytes, _pixels: Pixels, *, place: str) -> images.Bytes:
        running.add(threading.get_ident())
        most.append(len(running))
        time.sleep(0.01)  # in which any other thread would begin
        running.remove(threading.get_ident())
        return np.zeros((1, 2, 2), np.uint8)

    monkeypatch.setattr(images, "read_pixels", slow)
    threads = [
        threading.Thread(target=reader.prepared, args=([b"", b""],), kwargs={"pairs": False})
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 16
    assert max(most) <= DECODERS


def test_an_image_of_a_file_is_named_by_its_row(tiny_images: Path, tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    rows = tmp_path / "rows.csv"
    rows.write_text("image\n0.png\nabsent.png\n")
    arguments = ["infer", "--base", str(tiny_images), "--file", str(rows)]
    with pytest.raises(DataError) as caught:
        CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert caught.value.cause.startswith(f"{rows}: line 3: its image cannot be read")
    rows.write_text("image\n0.png\n")
    done = CliRunner().invoke(commands, [*arguments, "--json"], catch_exceptions=False)
    assert [row["image"] for row in json.loads(done.stdout)] == [str(tmp_path / "0.png")]
