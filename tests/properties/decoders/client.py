"""Decoders, by house. What a client keeps, reads and is sent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from base_model import source_files
from client.control_variates import Correction
from client.kept_controls import FileControls
from client.ledger import FileLedger
from client.openings import FileOpenings
from client.receipts import Receipts
from client.sessions import FileSession
from protocol.recipe import Recipe
from protocol.rows.conversations import (
    read_chats,
    read_completions,
    read_plain,
    read_sources,
)
from protocol.secagg.session import Session
from server.history import HISTORY, read_history
from tests.properties.decoders.rows import (
    Decoder,
    json_line,
    of_file,
)
from tests.properties.decoders.world import ENTRY, SID, World
from tests.properties.odd_rows import parquet
from tests.unit.audit.small_bases import small_manifest


def client(world: World) -> dict[str, Decoder]:
    return _session(world) | _memories(world) | _files(world) | _rows(world) | _conversations(world)


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

    def spent(path: Path) -> object:
        ledger = FileLedger(path)
        return ledger.entries(), ledger.account()

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
        "client.openings:FileOpenings.last": Decoder(
            read=of_file(world.folder / "o.jsonl", lambda path: FileOpenings(path).last("0" * 64)),
            seeds=(openings,),
        ),
        "client.receipts:Receipts.held": Decoder(
            read=of_file(world.folder / "r.jsonl", remembered), seeds=(receipts,)
        ),
        "client.ledger:FileLedger.entries": Decoder(
            read=of_file(world.folder / "l.jsonl", spent),
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
    }


def _conversations(world: World) -> dict[str, Decoder]:
    return {
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
