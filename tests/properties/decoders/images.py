"""Decoders, by house. Images, and what a source says becomes of them."""

from __future__ import annotations

import io

from PIL import Image

from base_model.images.preprocessing import read_preprocessing
from protocol.image_manifest import Pixels
from protocol.rows.images import ImageCodec, read_pixels
from protocol.rows.media import read_inputs, read_media_paths, read_media_rows
from protocol.rows.read import any_label
from tests.image_models import preprocessing
from tests.properties.decoders.rows import Decoder, json_line, of_file
from tests.properties.decoders.world import World

PIXELS_OF_TESTS = Pixels(
    channels=1,
    resized=(4, 4),
    resampling="bilinear",
    height=4,
    width=4,
    scale=1 / 255,
    mean=(0.5,),
    std=(0.5,),
)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), 7).save(buffer, "PNG")
    return buffer.getvalue()


def images(world: World) -> dict[str, Decoder]:
    return {
        "protocol.rows.media:read_media_rows": Decoder(
            read=of_file(
                world.folder / "images.jsonl",
                lambda path: read_media_rows(path, column="i", target="l", check=any_label),
            ),
            seeds=(json_line({"i": "a.png", "l": "x"}),),
        ),
        "protocol.rows.media:read_media_paths": Decoder(
            read=of_file(world.folder / "paths.jsonl", lambda path: read_media_paths(path, "i")),
            seeds=(json_line({"i": "a.png"}),),
        ),
        "protocol.rows.images:read_pixels": Decoder(
            read=lambda data: read_pixels(data, PIXELS_OF_TESTS, place="x"),
            seeds=(png(),),
        ),
        "protocol.rows.media:read_inputs": Decoder(
            read=lambda data: read_inputs([data], ImageCodec(PIXELS_OF_TESTS)), seeds=(png(),)
        ),
        "base_model.images.preprocessing:read_preprocessing": Decoder(
            read=of_file(
                world.folder / "preprocessor_config.json",
                lambda path: read_preprocessing(
                    path.parent, family="vit", channels=3, size=(12, 12)
                ),
            ),
            seeds=(json_line(preprocessing()),),
        ),
    }
