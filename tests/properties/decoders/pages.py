"""Decoders, by house. Pages of words and boxes."""

from __future__ import annotations

from protocol.rows.pages import page_of, read_page, read_pages, read_placed_pages
from protocol.rows.read import one_of
from tests.properties.decoders.rows import Decoder, json_line, json_value, of_file
from tests.properties.decoders.world import World
from tests.properties.odd_rows import parquet

ROW = {"words": ["total", "due"], "boxes": [[1, 2, 30, 40], [0, 0, 1000, 1000]], "label": "bill"}
PAGE = {key: ROW[key] for key in ("words", "boxes")}


def pages(world: World) -> dict[str, Decoder]:
    def rows(kind: str) -> Decoder:
        return Decoder(
            read=of_file(
                world.folder / f"pages.{kind}",
                lambda path: read_pages(
                    path, columns=("words", "boxes"), target="label", check=one_of(["bill"])
                ),
            ),
            seeds=(
                json_line(ROW)
                if kind == "jsonl"
                else parquet({name: [value] for name, value in ROW.items()}),
            ),
        )

    return {
        "protocol.rows.pages:read_pages": rows("jsonl"),
        "protocol.rows.pages:read_pages, parquet": rows("parquet"),
        "protocol.rows.pages:read_placed_pages": Decoder(
            read=of_file(world.folder / "placed.jsonl", read_placed_pages), seeds=(json_line(PAGE),)
        ),
        "protocol.rows.pages:read_page": Decoder(
            read=of_file(world.folder / "page.json", read_page), seeds=(json_line(PAGE),)
        ),
        "protocol.rows.pages:page_of": Decoder(
            read=lambda data: page_of(json_value(data), [[0, 0, 1, 1]], place="x"),
            seeds=(b'["total"]',),
        ),
    }
