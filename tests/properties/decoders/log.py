"""Decoders, by house. The transparency log: notes, leaves, proofs, receipts."""

from __future__ import annotations

import base64

from audit.log_copy import parse_batch, parse_kept
from audit.order import parse_first
from protocol.encoding import canonical_json
from protocol.merkle import leaf_hash
from protocol.transparency.dsse import (
    parse_envelope,
    sign_statement,
    verify_envelope,
)
from protocol.transparency.leaf_codec import decode_leaf, encode_statement, verify_author
from protocol.transparency.note import (
    KeyType,
    VerifierKey,
    cosign,
    lines_naming,
    parse_checkpoint,
    parse_key,
    verify_note,
)
from protocol.transparency.offline import OfflineProof, parse_offline_proof
from protocol.transparency.policy import parse_policy
from protocol.transparency.receipts import Receipt, sign_receipt, unverified_receipt, verify_receipt
from protocol.transparency.shown import Given, Proven, Shown, Tail, Told, decode_text, nodes_text
from protocol.transparency.submissions import (
    encode_request,
    parse_request,
    sign_complaint,
    sign_request,
    verify_request,
)
from protocol.transparency.tiles import parse_entries as parse_tile
from protocol.transparency.tree import Tree
from protocol.transparency.withdrawal import effect_of, withdrawal_of
from protocol.transparency.witness import AddCheckpoint, parse_add_checkpoint
from tests.properties.decoders.rows import (
    Decoder,
    json_line,
    json_value,
    of_text,
    payload_of,
    signed_by,
)
from tests.properties.decoders.world import World


def log(world: World) -> dict[str, Decoder]:
    return (
        _notes(world)
        | _copies(world)
        | _proofs(world)
        | _leaves(world)
        | _submissions(world)
        | _receipts(world)
        | _shown(world)
    )


def _witness(world: World) -> VerifierKey:
    return VerifierKey(name="w.example", type=KeyType.COSIGNATURE, public=world.public)


def _notes(world: World) -> dict[str, Decoder]:
    text, witness = world.note.partition("\n\n")[0] + "\n", _witness(world)
    cosigned = world.note + cosign(text, "w.example", world.key, time=5)
    origin = world.log_key.name
    request = AddCheckpoint(old=1, path=(bytes(32),), note=world.note).encode()
    return {
        "protocol.transparency.note:parse_key": Decoder(
            read=of_text(parse_key), seeds=(world.log_key.encode().encode(),)
        ),
        "protocol.transparency.note:verify_note": Decoder(
            read=of_text(lambda t: verify_note(t, [world.log_key, witness])),
            seeds=(world.note.encode(), cosigned.encode()),
        ),
        "protocol.transparency.note:lines_naming": Decoder(
            read=of_text(lambda t: lines_naming(t, witness)), seeds=(cosigned.encode(),)
        ),
        "protocol.transparency.note:parse_checkpoint": Decoder(
            read=of_text(lambda t: parse_checkpoint(t, origin=origin)), seeds=(text.encode(),)
        ),
        "protocol.transparency.witness:parse_add_checkpoint": Decoder(
            read=parse_add_checkpoint, seeds=(request,)
        ),
    }


def _copies(world: World) -> dict[str, Decoder]:
    batch = {
        "start": 0,
        "entries": [base64.b64encode(entry).decode() for entry in world.entries],
        "checkpoint": world.note,
    }
    return {
        "audit.log_copy:parse_batch": Decoder(
            read=lambda data: parse_batch(data, "log.batch"), seeds=(json_line(batch),)
        ),
        "audit.log_copy:parse_kept": Decoder(
            read=of_text(lambda t: parse_kept(t, world.log_key)), seeds=(world.note.encode(),)
        ),
        "protocol.transparency.tiles:parse_entries": Decoder(
            read=parse_tile, seeds=(b"\x00\x02hi" * 2,)
        ),
        "audit.order:parse_first": Decoder(
            read=lambda data: parse_first([data], world.log_key.public), seeds=world.entries[:1]
        ),
    }


def _proofs(world: World) -> dict[str, Decoder]:
    tree, index = Tree(map(leaf_hash, world.entries)), len(world.entries) - 1
    proof = OfflineProof(
        index=index,
        path=tuple(tree.inclusion(index, tree.size)),
        checkpoint=world.note,
        extra=world.entries[-1],
    ).encode()
    log_line, witness = f"log {world.log_key.encode()}\n", _witness(world).encode()
    policy = f"{log_line}witness w {witness}\ngroup all 1 w\nquorum all\n"
    trusted = parse_policy(f"{log_line}quorum none\n")

    def proven(text: str) -> object:
        offline = parse_offline_proof(text)
        offline.verify(offline.extra or b"", trusted)
        return offline.encode()

    return {
        "protocol.transparency.offline:parse_offline_proof": Decoder(
            read=of_text(proven), seeds=(proof.encode(),)
        ),
        "protocol.transparency.policy:parse_policy": Decoder(
            read=of_text(parse_policy), seeds=(policy.encode(),)
        ),
    }


def _leaves(world: World) -> dict[str, Decoder]:
    statement = sign_statement("x", {"a": 1}, {"n": "0" * 64}, world.key)
    complaint = sign_complaint(client=bytes(16), about="late", receipt="", key=world.key)
    messages = [data for data in world.entries if b'"payload"' not in data]
    reads = [(index, decode_leaf(data)) for index, data in enumerate(world.entries)]
    request = sign_request(origin=world.log_key.name, sid="0" * 64, key=world.key)
    effect = effect_of(reads, {request.client})
    withdrawal = encode_statement(*withdrawal_of(request, effect), world.key)

    def leaf_of(data: bytes) -> object:
        read = decode_leaf(data)
        verify_author(read, world.log_key.public, world.public)
        return read

    return {
        "protocol.transparency.leaf_codec:decode_leaf": Decoder(
            read=leaf_of,
            seeds=(
                *world.entries[:3],
                *messages[:2],
                canonical_json({"kind": "complaint", **complaint.model_dump()}),
            ),
        ),
        "protocol.transparency.leaf_codec:decode_leaf, signed": Decoder(
            read=lambda data: leaf_of(signed_by(data, world.key)),
            seeds=tuple(
                payload_of(data) for data in (*world.entries, withdrawal) if b'"payload"' in data
            ),
        ),
        "protocol.transparency.dsse:parse_envelope": Decoder(
            read=lambda data: verify_envelope(parse_envelope(json_value(data))[0], world.public),
            seeds=(statement,),
        ),
    }


def _submissions(world: World) -> dict[str, Decoder]:
    request = sign_request(origin=world.log_key.name, sid="0" * 64, key=world.key)

    def read(data: bytes) -> object:
        parsed = parse_request(data)
        verify_request(parsed, world.public)
        return parsed

    return {
        "protocol.transparency.submissions:parse_request": Decoder(
            read=read, seeds=(encode_request(request),)
        ),
    }


def _signed_receipt(world: World) -> str:
    receipt = Receipt(
        origin=world.log_key.name,
        client="0" * 32,
        sid="0" * 64,
        seq=1,
        rid="0" * 64,
        root="0" * 64,
        round=1,
        attempt=1,
    )
    return sign_receipt(receipt, world.key)


def _receipts(world: World) -> dict[str, Decoder]:
    signed = _signed_receipt(world)
    return {
        "protocol.transparency.receipts:unverified_receipt": Decoder(
            read=of_text(unverified_receipt), seeds=(signed.encode(),)
        ),
        "protocol.transparency.receipts:verify_receipt": Decoder(
            read=of_text(lambda t: verify_receipt(t, world.public)), seeds=(signed.encode(),)
        ),
        "protocol.transparency.receipts:verify_receipt, signed": Decoder(
            read=lambda data: verify_receipt(signed_by(data, world.key).decode(), world.public),
            seeds=(payload_of(signed.encode()),),
        ),
    }


def _shown(world: World) -> dict[str, Decoder]:
    log_key, first = world.log_key.encode(), world.entries[0]
    tail = Tail(
        start=1,
        peaks=nodes_text([leaf_hash(first)]),
        leaves=[data.decode() for data in world.entries[1:]],
    )
    parts = (
        Told(size=3, open=[1]),
        Given(key=log_key, receipt=_signed_receipt(world)),
        Shown(
            key=log_key,
            checkpoint=world.note,
            consistency="",
            tail=tail,
            proven=[Proven(index=0, path=nodes_text([bytes(32)]), leaf=first.decode())],
        ),
    )

    def read(text: str) -> object:
        kind = Told if '"size"' in text else Shown if '"checkpoint"' in text else Given
        return decode_text(kind, text, "log")

    return {
        "protocol.transparency.shown:decode_text": Decoder(
            read=of_text(read), seeds=tuple(canonical_json(part.model_dump()) for part in parts)
        ),
    }
