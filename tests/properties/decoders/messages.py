"""Decoders, by house. Messages of an exchange, and Flower's records."""

from __future__ import annotations

import json

import numpy as np

from protocol.errors import ArtefactError
from protocol.exchange import Contribution
from protocol.exchange.plain import PlainClient
from protocol.exchange.plain import decode as decode_plain
from protocol.secagg.agreement import Keys
from protocol.secagg.messages import (
    decode_advert,
    decode_cohort,
    decode_ids,
    decode_masked_tail,
    decode_reveals,
    decode_round,
    decode_signatures,
    split_senders,
    split_unmask,
)
from protocol.tasks.classification import METRICS
from protocol.transparency.leaf_codec import sha256
from protocol.transparency.leaves import Alive
from protocol.transparency.lists import Lists
from protocol.transparency.sum_leaves import parse_boxes
from protocol.wire import Hello, Instruction, LogText, Refusal, from_record, to_record
from tests.properties.decoders.rows import (
    Decoder,
    json_line,
    json_value,
)
from tests.properties.decoders.world import World


def listed_alive(digest: str) -> Alive:
    """A leaf whose clients are in a file."""
    return Alive(seq=1, group=0, rid="0" * 64, clients=digest, signatures={})


def messages(world: World) -> dict[str, Decoder]:
    return _secret(world) | _plain() | _records()


def _secret(world: World) -> dict[str, Decoder]:
    adverts = [
        bytes.fromhex(json.loads(data)["advert"])
        for data in world.entries
        if b'"kind":"advert"' in data
    ]
    advert = adverts[0]
    cohort = (6).to_bytes(2, "big") * 2 + bytes(8) + bytes(32) + b"\x00\x01" + advert
    members = b"\x00\x02" + bytes(16) + bytes(15) + b"\x01" + b"boxes"
    return {
        "protocol.secagg.messages:decode_advert": Decoder(
            read=lambda data: decode_advert(data, Keys.X25519), seeds=(advert,)
        ),
        "protocol.secagg.messages:decode_cohort": Decoder(
            read=lambda data: decode_cohort(data, Keys.X25519), seeds=(cohort,)
        ),
        "protocol.secagg.messages:decode_ids": Decoder(
            read=lambda data: decode_ids(data, "x"), seeds=(bytes(15) + b"\x01",)
        ),
        "protocol.secagg.messages:decode_round": Decoder(read=decode_round, seeds=(members,)),
        "protocol.secagg.messages:split_senders": Decoder(
            read=lambda data: split_senders(data, Keys.X25519),
            seeds=(b"\x00\x01" + advert + bytes(92),),
        ),
        "protocol.transparency.lists:Lists.whole": Decoder(
            read=lambda data: Lists(lambda _: data).whole(listed_alive(sha256(data))),
            seeds=(b"".join(number.to_bytes(16, "big") for number in range(130)),),
        ),
        "protocol.transparency.sum_leaves:parse_boxes": Decoder(
            read=parse_boxes,
            seeds=(b'[{"box":"00","path":["11"],"receiver":"22","sender":"33"}]',),
        ),
        "protocol.secagg.messages:decode_masked_tail": Decoder(
            read=decode_masked_tail, seeds=(bytes(32 + 4 + 64),)
        ),
        "protocol.secagg.messages:decode_signatures": Decoder(
            read=decode_signatures, seeds=(bytes(80),)
        ),
        "protocol.secagg.messages:decode_reveals": Decoder(
            read=lambda data: decode_reveals(data, 2), seeds=(bytes(66),)
        ),
        "protocol.secagg.messages:split_unmask": Decoder(
            read=lambda data: split_unmask(data, Keys.X25519), seeds=(bytes(300),)
        ),
    }


def _plain() -> dict[str, Decoder]:
    metrics = dict.fromkeys(METRICS, 1.0)
    plain = PlainClient().mask(
        Contribution(update=np.ones(3, np.float32), weight=1, metrics=metrics)
    )
    return {
        "protocol.exchange.plain:decode": Decoder(
            read=lambda data: decode_plain("c", data, size=3, max_weight=1, metrics=METRICS),
            seeds=(plain,),
        ),
    }


def _records() -> dict[str, Decoder]:
    instruction = Instruction(
        round=1,
        attempt=1,
        plan_digest="0",
        base="0",
        adapter_digest="0",
        evaluate=True,
    )
    records = (
        instruction,
        Hello(client="a", base="b", protocol=1),
        Refusal(kind="x", cause="y", remedy="z"),
        LogText(text="t"),
    )

    def record(data: bytes) -> object:
        document = json_value(data)
        if not isinstance(document, dict):
            raise ArtefactError("Flower's records are dictionaries", "")
        kind = next((type(r) for r in records if set(to_record(r)) == set(document)), Hello)
        return from_record(kind, document)

    return {
        "protocol.wire:from_record": Decoder(
            read=record, seeds=tuple(json_line(to_record(each)) for each in records)
        ),
    }
