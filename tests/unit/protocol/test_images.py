"""Images as every party reads them: the same bytes of the same file, and refusals that show nothing."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from protocol.errors import DataError, MachineError
from protocol.image_manifest import Pixels
from protocol.rows import images, media
from protocol.rows.images import ImageCodec, as_input, read_pixels
from protocol.rows.media import read_file, read_inputs, read_media_paths, read_media_rows
from protocol.rows.read import any_label


def pixels(**others: Any) -> Pixels:
    fields = {
        **{"channels": 3, "resized": (6, 5), "resampling": "bilinear", "height": 6, "width": 5},
        **{"scale": 1 / 255, "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.6, 0.7)},
    }
    return Pixels(**(fields | others))


GREY = pixels(channels=1, mean=(0.0,), std=(1.0,))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 6, width: int = 5) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def test_an_image_of_the_right_size_is_its_own_bytes() -> None:
    values = read_pixels(encoded(noise()), pixels(), place="x")
    assert np.array_equal(np.moveaxis(values, 0, -1), np.asarray(noise()))
    scaled = as_input(values[None], pixels())
    exact = np.asarray(noise(), np.float64) / 255
    expected = (exact - [0.5, 0.4, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(np.moveaxis(scaled[0], 0, -1), expected, atol=1e-6)
    assert scaled.dtype == np.float32


@pytest.mark.parametrize("name", ["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"])
def test_another_size_is_stretched_and_its_middle_kept(name: str) -> None:
    asked = pixels(resampling=name, resized=(8, 9))
    stretched = noise(20, 11).resize((9, 8), Image.Resampling[name.upper()])
    values = read_pixels(encoded(noise(20, 11)), asked, place="x")
    assert np.array_equal(np.moveaxis(values, 0, -1), np.asarray(stretched)[1:7, 2:7])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_colours_become_those_that_are_asked_for(mode: str) -> None:
    image = noise().convert(mode)
    for asked, to in ((pixels(), "RGB"), (GREY, "L")):
        values = read_pixels(encoded(image), asked, place="x")
        expected = np.asarray(image.convert(to)).reshape(6, 5, -1)
        assert np.array_equal(np.moveaxis(values, 0, -1), expected)


def test_a_turned_photograph_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter of a turn
    plain, turned = (encoded(noise(5, 6), "PNG", **more) for more in ({}, {"exif": exif}))
    upright = Image.open(io.BytesIO(plain)).transpose(Image.Transpose.ROTATE_270)
    values = read_pixels(turned, pixels(), place="x")
    assert np.array_equal(np.moveaxis(values, 0, -1), np.asarray(upright))


def refused(data: bytes, asked: Pixels = GREY) -> DataError:
    with pytest.raises(DataError) as caught:
        read_pixels(data, asked, place="rows.jsonl: line 3")
    assert caught.value.cause.startswith("rows.jsonl: line 3: ")
    assert "rows" not in caught.value.public
    return caught.value


def test_what_is_no_such_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encoded(noise())
    assert "no PNG or JPEG" in refused(b"").cause
    assert "no PNG or JPEG" in refused(b"a text").cause
    assert "no PNG or JPEG" in refused(whole[: len(whole) // 2]).cause
    assert "no PNG or JPEG" in refused(encoded(noise(), "GIF")).cause
    assert "no PNG or JPEG" in refused(encoded(noise(), "TIFF")).cause
    deep = Image.fromarray(np.full((6, 5), 40_000, np.uint16))
    assert "mode I;16" in refused(encoded(deep)).cause
    for colour in (2, 4, 6):
        assert "16 bits a channel" in refused(deep_png(colour)).cause
    frames = encoded(noise(), save_all=True, append_images=[noise().rotate(90)])
    assert "several frames" in refused(frames).cause
    monkeypatch.setattr(images, "MOST_PIXELS", 29)
    assert "5 by 6 pixels, more than 29" in refused(whole).cause
    monkeypatch.setattr(media, "MOST_FILE", len(whole) - 1)
    with pytest.raises(DataError, match="x: its image has more than"):
        read_file(whole, ImageCodec(GREY), place="x")


def deep_png(colour: int, *, before: bytes = b"") -> bytes:
    """Two pixels of 16 bits a channel; ``colour``: PNG's number for colours, and grey or these with alpha."""
    channels = {2: 3, 4: 2, 6: 4}[colour]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes([0, *range(2 * 2 * channels)])))
    return b"\x89PNG\r\n\x1a\n" + before + header + data + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def test_bits_are_those_that_are_decoded() -> None:
    """Also of a file with a first header of another depth, of which decoders heed the last."""
    shallow = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 8, 2, 0, 0, 0))
    assert "16 bits a channel" in refused(deep_png(2, before=shallow)).cause


def test_a_side_is_bounded_and_not_the_whole_alone() -> None:
    assert "1 by 16385 pixels, a side longer" in refused(encoded(Image.new("1", (1, 16_385)))).cause
    assert "16385 by 1 pixels, a side longer" in refused(encoded(Image.new("1", (16_385, 1)))).cause
    longest = encoded(Image.new("1", (1, 16_384)))
    assert read_pixels(longest, pixels(), place="x").shape == (3, 6, 5)


def test_too_many_pixels_for_pillow_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert "more than 33554432 pixels" in refused(encoded(noise())).cause


def test_want_of_memory_is_no_fault_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageOps, "exif_transpose", full)
    with pytest.raises(MachineError, match="x: not enough memory"):
        read_pixels(encoded(noise()), pixels(), place="x")


def test_an_image_says_where_its_row_stands(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("image\na.png\nb.png\n")
    rows = read_media_paths(path, "image")
    assert [row.path for row in rows] == [tmp_path / "a.png", tmp_path / "b.png"]
    (tmp_path / "a.png").write_bytes(encoded(noise()))
    (tmp_path / "b.png").write_bytes(b"a text")
    with pytest.raises(DataError) as caught:
        read_inputs(rows, ImageCodec(pixels()))
    assert caught.value.cause.startswith(f"{path}: line 3: its image is no PNG")
    with pytest.raises(DataError, match="image 66: its image"):
        read_inputs([row.path for row in rows], ImageCodec(pixels()), first=65)


@given(st.binary(max_size=200), st.integers(0, 120), st.integers(0, 120))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_an_image_or_refused(junk: bytes, at: int, end: int) -> None:
    """Also those of an image with junk in it."""
    whole = encoded(noise())
    for data in (junk, whole[:at] + junk + whole[end:]):
        try:
            values = read_pixels(data, pixels(), place="x")
        except DataError:
            continue
        assert (values.shape, values.dtype) == ((3, 6, 5), np.uint8)


def test_rows_name_files_from_their_folder_on(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.png").write_bytes(encoded(noise()))
    path = tmp_path / "rows.jsonl"
    path.write_text('{"image": "inner/a.png", "label": "x", "whose": 7}\n')
    table = read_media_rows(path, column="image", target="label", check=any_label, group="whose")
    assert table.texts == [tmp_path / "inner" / "a.png"]
    assert (table.targets, table.groups) == (["x"], ["7"])
    assert read_inputs(table.texts, ImageCodec(pixels()))["pixel_values"].shape == (1, 3, 6, 5)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('{"image": 3, "label": "x"}', "column `image` holds a number"),
        ('{"image": " ", "label": "x"}', "column `image` is empty"),
        ('{"image": "a\\u0000b", "label": "x"}', "NUL"),
        ('{"label": "x"}', "the column `image` is missing"),
        ('{"image": "a.png", "label": 1}', "column `label` holds a number"),
    ],
)
def test_a_row_without_a_path_is_named(tmp_path: Path, line: str, cause: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"image": "a.png", "label": "x"}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read_media_rows(path, column="image", target="label", check=any_label)
    assert caught.value.cause.startswith(f"{path}: line 2")
    assert cause in caught.value.cause


@given(
    st.lists(st.integers(0, 255), min_size=30, max_size=30),
    st.floats(0.001, 10),
    st.floats(-5, 5),
    st.floats(0.01, 10),
)
def test_scaling_is_what_it_says(values: list[int], scale: float, mean: float, std: float) -> None:
    asked = pixels(channels=1, scale=scale, mean=(mean,), std=(std,))
    given_pixels = np.array(values, np.uint8).reshape(1, 1, 6, 5)
    exact = (given_pixels.astype(np.float64) * scale - mean) / std
    found = as_input(given_pixels, asked)
    bound = 1e-6 * (np.abs(given_pixels * scale) + abs(mean)) / std + 1e-6
    assert (np.abs(found - exact) <= bound).all()
