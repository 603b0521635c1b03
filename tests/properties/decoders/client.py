"""Decoders, by house. What a client keeps, reads and is sent."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from base_model import source_files
from base_model.images.preprocessing import read_preprocessing
from client.control_variates import Correction
from client.kept_controls import FileControls
from client.ledger import FileLedger
from client.openings import FileOpenings
from client.receipts import Receipts
from client.sessions import FileSession
from protocol.image_manifest import Pixels
from protocol.recipe import Recipe
from protocol.rows.conversations import (
    read_chats,
    read_completions,
    read_plain,
    read_sources,
)
from protocol.rows.images import read_image_paths, read_image_rows, read_input, read_pixels
from protocol.rows.read import any_label
from protocol.secagg.session import Session
from server.history import HISTORY, read_history
from tests.image_models import preprocessing
from tests.properties.decoders.rows import (
    Decoder,
    json_line,
    of_file,
)
from tests.properties.decoders.world import ENTRY, SID, World
from tests.properties.odd_rows import parquet
from tests.unit.audit.runs import small_manifest


def client(world: World) -> dict[str, Decoder]:
    return _session(world) | _memories(world) | _files(world) | _rows(world)


def _session(world: World) -> dict[str, Decoder]:
    session = Session(
        plan="0" * 64,
        run=bytes(16),
        sid=SID,
        seq=1,
        phase="advertise",
        seen={bytes(16): 1},
        asked=bytes(32),
        reply=b"x",
    )
    return {
        "client.sessions:FileSession.load": Decoder(
            read=of_file(world.folder / "s.json", lambda path: FileSession(path).load()),
            seeds=(session.model_dump_json().encode(),),
        ),
    }


def _memories(world: World) -> dict[str, Decoder]:
    """What a client remembers between attempts and rounds."""
    receipts = sorted(world.folder.glob("run-sites/*.receipts.jsonl"))[0].read_bytes()
    openings = sorted(world.folder.glob("run-sites/*.openings.jsonl"))[0].read_bytes()
    sid = json.loads(receipts.splitlines()[0])["sid"]

    def remembered(path: Path) -> object:
        memory = Receipts(path)
        return memory.held(), memory.told(bytes.fromhex(sid))

    recipe = Recipe(plan=world.plan, manifest=small_manifest())
    controls = FileControls(world.folder / "controls", world.plan.digest, "a", recipe.layout)
    adapter = recipe.layout.unflatten(np.ones(recipe.layout.size, np.float32))
    correction = Correction(recipe, 1, adapter, {})
    controls.keep(correction.remembered(correction.shift))
    (kept,) = (world.folder / "controls").glob("*")
    return {
        "client.kept_controls:FileControls.load": Decoder(
            read=of_file(kept, lambda _: controls.load()), seeds=(kept.read_bytes(),)
        ),
        "client.openings:FileOpenings.of": Decoder(
            read=of_file(world.folder / "o.jsonl", lambda path: FileOpenings(path).of("0" * 64)),
            seeds=(openings,),
        ),
        "client.receipts:Receipts.held": Decoder(
            read=of_file(world.folder / "r.jsonl", remembered), seeds=(receipts,)
        ),
        "client.ledger:FileLedger.entries": Decoder(
            read=of_file(world.folder / "l.jsonl", lambda path: FileLedger(path).entries()),
            seeds=(json_line(ENTRY),),
        ),
    }


def _files(world: World) -> dict[str, Decoder]:
    return {
        "base_model.source_files:read_json": Decoder(
            read=of_file(world.folder / "config.json", source_files.read_json),
            seeds=(b'{"model_type": "bert", "hidden_size": 8}',),
        ),
        "base_model.source_files:read_object": Decoder(
            read=of_file(world.folder / "config.json", source_files.read_object),
            seeds=(b'{"model_type": "bert", "hidden_size": 8}',),
        ),
        "server.history:read_history": Decoder(
            read=of_file(world.folder / HISTORY, lambda path: read_history(path.parent)),
            seeds=(
                b'{"format":1,"event":"round","round":2,"turn":3,"time":1.5,"values":{"used":3.0}}\n',
            ),
        ),
    }


CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "there"}]


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


def _rows(world: World) -> dict[str, Decoder]:
    label = world.plan.task.labels[0]
    rows = json_line({"text": "hi", "label": label})
    table = f'text,label\n"h,i",{label}\n'.encode()
    return {
        "protocol.rows.read:read_rows": Decoder(
            read=of_file(world.folder / "rows.jsonl", lambda path: world.plan.task.rows(path)),
            seeds=(rows,),
        ),
        "protocol.rows.read:read_rows, csv": Decoder(
            read=of_file(world.folder / "rows.csv", lambda path: world.plan.task.rows(path)),
            seeds=(table,),
        ),
        "protocol.rows.read:read_rows, parquet": Decoder(
            read=of_file(world.folder / "rows.parquet", lambda path: world.plan.task.rows(path)),
            seeds=(parquet({"text": ["hi"], "label": [label]}),),
        ),
        "protocol.rows.images:read_image_rows": Decoder(
            read=of_file(
                world.folder / "images.jsonl",
                lambda path: read_image_rows(path, image="i", target="l", check=any_label),
            ),
            seeds=(json_line({"i": "a.png", "l": "x"}),),
        ),
        "protocol.rows.images:read_image_paths": Decoder(
            read=of_file(world.folder / "paths.jsonl", lambda path: read_image_paths(path, "i")),
            seeds=(json_line({"i": "a.png"}),),
        ),
        "protocol.rows.images:read_pixels": Decoder(
            read=lambda data: read_pixels(data, PIXELS_OF_TESTS, place="x"),
            seeds=(png(),),
        ),
        "protocol.rows.images:read_input": Decoder(
            read=lambda data: read_input([data], PIXELS_OF_TESTS), seeds=(png(),)
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
        "protocol.rows.conversations:read_chats": Decoder(
            read=of_file(world.folder / "chats.jsonl", lambda path: read_chats(path, "messages")),
            seeds=(json_line({"messages": CHAT}),),
        ),
        "protocol.rows.conversations:read_completions": Decoder(
            read=of_file(
                world.folder / "prompts.jsonl", lambda path: read_completions(path, "p", "c")
            ),
            seeds=(json_line({"p": "hi", "c": "there"}),),
        ),
        "protocol.rows.conversations:read_sources": Decoder(
            read=of_file(world.folder / "pairs.jsonl", lambda path: read_sources(path, "p", "c")),
            seeds=(json_line({"p": "hi", "c": "there"}),),
        ),
        "protocol.rows.conversations:read_plain": Decoder(
            read=of_file(world.folder / "plain.jsonl", lambda path: read_plain(path, "text")),
            seeds=(json_line({"text": "hi"}),),
        ),
    }
