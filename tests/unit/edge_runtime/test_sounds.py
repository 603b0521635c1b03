"""Sounds on a device: rows of files are named, another medium is refused, and nothing has to be installed."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edge_runtime.base import EdgeBase
from edge_runtime.bench import bench
from edge_runtime.commands import app as commands
from edge_runtime.http_server import App
from edge_runtime.label_vectors import label_vectors
from edge_runtime.single import SingleService
from protocol.errors import ArtefactError, DataError, PlanError
from protocol.manifest import parse_manifest
from tests.asgi import asked
from tests.image_models import write_images
from tests.sound_models import tone, wav, write_sounds


def test_a_sound_of_a_file_is_named_by_its_row(tiny_sounds: Path, tmp_path: Path) -> None:
    write_sounds(tmp_path, 1)
    rows = tmp_path / "rows.csv"
    rows.write_text("audio\n0.wav\nabsent.wav\n")
    arguments = ["infer", "--base", str(tiny_sounds), "--file", str(rows)]
    with pytest.raises(DataError) as caught:
        CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert caught.value.cause.startswith(f"{rows}: line 3: its sound cannot be read")
    rows.write_text("audio\n0.wav\n")
    done = CliRunner().invoke(commands, [*arguments, "--json"], catch_exceptions=False)
    assert [row["audio"] for row in json.loads(done.stdout)] == [str(tmp_path / "0.wav")]
    done = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert "audio" in done.stdout
    with pytest.raises(DataError, match="a sound has no second text"):
        CliRunner().invoke(commands, [*arguments, "--pair-column", "x"], catch_exceptions=False)


def test_questions_of_another_medium_are_the_askers_fault(
    tiny_sounds: Path, tiny_images: Path, tmp_path: Path
) -> None:
    """And Pillow is no part of a device of sounds."""
    (image,) = write_images(tmp_path, 1)
    png, heard = (base64.b64encode(d).decode() for d in (image.read_bytes(), wav(tone(300.0))))
    short = base64.b64encode(wav(np.zeros(1, np.int16))).decode()
    ears, eyes = (App(SingleService(base, None, threads=1)) for base in (tiny_sounds, tiny_images))
    assert asked(ears, {"sounds": [heard]})[0] == 200
    for app, question, reason in (
        (ears, {"sounds": [png]}, "no WAV file"),
        (ears, {"sounds": [heard], "text_pairs": ["a"]}, "text_pairs"),
        (ears, {"sounds": [short] * 65}, "sounds"),
        (ears, {"images": [heard]}, "answers sounds, and images were given"),
        (eyes, {"sounds": [png]}, "answers images, and sounds were given"),
        (ears, {"sounds": []}, "sounds"),
        (ears, {"texts": ["a"]}, "answers sounds, and texts were given"),
        (eyes, {"images": [heard]}, "no PNG or JPEG"),
    ):
        status, document = asked(app, question)
        assert status == 422
        assert reason in json.dumps(document)


@pytest.mark.parametrize(
    ("fixture", "shapes"),
    [
        ("tiny_sounds", {"input_features": (2, 8, 20)}),
        ("tiny_samples", {"input_values": (2, 16_000), "attention_mask": (2, 16_000)}),
    ],
)
def test_nothing_that_decodes_images_is_needed(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    fixture: str,
    shapes: dict[str, tuple[int, ...]],
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    base = EdgeBase.open(request.getfixturevalue(fixture), threads=1)
    feeds = base.batch([wav(tone(300.0)), wav(np.zeros(1, np.int16))], max_length=0)
    assert {name: value.shape for name, value in feeds.items()} == shapes


def test_what_is_of_texts_alone_is_refused(tiny_sounds: Path) -> None:
    with pytest.raises(PlanError, match="the base reads sounds, and names of labels are texts"):
        label_vectors(EdgeBase.open(tiny_sounds, threads=1), ["a", "b"])
    text = (tiny_sounds / "manifest.json").read_text()
    with pytest.raises(ArtefactError, match="sorts sounds, and one that sorts texts is needed"):
        parse_manifest(text, source="m")


@pytest.mark.parametrize("fixture", ["tiny_sounds", "tiny_samples"])
def test_what_an_adapter_costs_is_measured_of_sounds_too(
    request: pytest.FixtureRequest, fixture: str
) -> None:
    timings = bench(
        request.getfixturevalue(fixture), None, batch=2, length=9, repeats=1, threads=1
    ).timings
    assert [timing.name for timing in timings] == ["adapter off", "adapter on"]
