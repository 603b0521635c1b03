"""Which rows an adapter was measured on: an image is more than its name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from protocol.errors import DataError
from protocol.rows.measured import measured_rows


def test_of_texts_it_is_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"text,label\na,x\nb,y\n")
    rows = measured_rows(path, ["a", "b"])
    assert (rows.count, rows.digest) == (2, hashlib.sha256(path.read_bytes()).hexdigest())


def test_of_images_what_they_show_too(tmp_path: Path) -> None:
    images = [tmp_path / "a.png", tmp_path / "b.png"]
    for number, image in enumerate(images):
        image.write_bytes(bytes([number]) * 9)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"image": image.name}) + "\n" for image in images))
    before = measured_rows(path, images)
    whole = b"".join(hashlib.sha256(each.read_bytes()).digest() for each in (path, *images))
    assert before.count == 2
    assert before.digest == hashlib.sha256(whole).hexdigest()
    images[1].write_bytes(b"another")
    assert measured_rows(path, images).digest != before.digest
    images[1].unlink()
    with pytest.raises(DataError, match="row 2: its file cannot be read"):
        measured_rows(path, images)
